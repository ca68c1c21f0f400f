"""Verbs about recipes: recipes list, show, new."""

from __future__ import annotations

from pathlib import Path

import click

from sparsight.cli.options import Verbs, as_json, print_json
from sparsight.disk import first_line, write_aside
from sparsight.errors import BadFile, BadInput
from sparsight.recipes.recipe import load_recipe, names, recipe_text


@click.group(cls=Verbs, invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """Settings of a harvest, a training and an evaluation, to look at and to copy."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@recipes.command("list")
@as_json
def list_(json_: bool) -> None:
    """The recipes that come along."""
    from sparsight import screen

    found = {name: load_recipe(name).about for name in names()}
    print_json(found) if json_ else screen.show_table(found)


@recipes.command()
@click.argument("name")
@click.option("--resolved", is_flag=True, help="Every setting, the defaults too, with what it means.")
def show(name: str, resolved: bool) -> None:
    """A recipe that comes along, or a file's, as it is written."""
    made = load_recipe(name)  # what cannot be meant is said here too
    click.echo(made.to_toml() if resolved else recipe_text(name), nl=False)


@recipes.command()
@click.argument("file")
@click.option("--from", "origin", default="demo", show_default=True, help="The recipe that is copied.")
@click.option("--force", is_flag=True, help="Even where there is such a file: it is lost.")
def new(file: str, origin: str, force: bool) -> None:
    """Write a copy of a recipe to FILE, to change it."""
    path, text = Path(file), recipe_text(origin)
    if path.exists() and not force:
        raise BadInput(f"There is a '{file}' already. Give another name, or --force to lose what it holds.")
    try:
        write_aside(path, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise BadFile(f"Cannot write '{file}': {first_line(error)}") from error
    click.echo(f"Wrote {file}, a copy of '{origin}'.", err=True)
