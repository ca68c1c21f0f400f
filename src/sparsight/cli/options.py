"""What several verbs share: the group that they stand in, options, JSON on standard output."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable
from typing import Any

import click

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


class Verbs(click.Group):
    """A group that names the nearest verb when it is given one that it does not have. A verb may be of two words."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if (two := " ".join(args[:2])) in self.commands:
            args = [two, *args[2:]]
        name = args[0] if args else ""
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.commands, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" There are: {', '.join(self.commands)}."
            raise click.UsageError(f"No verb '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)


def model_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """--model, --sae, --hook-point, --device, --dtype: which scope."""
    for option in reversed(
        [
            click.option(
                "--model", "-m", default="demo", show_default=True, help="'demo', a folder, a name on the hub."
            ),
            click.option("--sae", "-s", help="A folder, the model card's .pth, a repository on the hub."),
            click.option("--hook-point", help="Where the SAE reads, as model.layers.19. [default: what the SAE says]"),
            click.option("--device", help="cpu, cuda, mps, auto. [default: the GPU where there is one]"),
            click.option("--dtype", help="bfloat16, float16, float32. [default: the model's own on a GPU]"),
        ]
    ):
        verb = option(verb)
    return verb


def writing_options(temperature: float = 0.7) -> Callable[..., Any]:
    """How tokens are chosen; a seed each verb has for itself."""
    likeliest = "0 takes the likeliest token."
    options = [
        click.option("--max-new-tokens", "-n", default=96, show_default=True, help="At most so many tokens."),
        click.option("--temperature", "-t", default=temperature, show_default=True, help=likeliest),
        click.option("--top-p", default=0.95, show_default=True, help="Nucleus sampling."),
    ]

    def with_options(verb: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            verb = option(verb)
        return verb

    return with_options


def print_json(data: Any, indent: int | None = 2) -> None:
    """Plain data, on standard output."""
    unicode = "utf" in (sys.stdout.encoding or "").lower()  # elsewhere JSON's own escapes lose nothing
    click.echo(json.dumps(data, indent=indent, ensure_ascii=not unicode))
