"""Writes the tables of options into cli.md, and of knobs into train.md and label.md: python docs/knobs.py, after a knob
was added or changed.

A table stands between <!-- options VERB SECTION -->, or <!-- knobs SECTION -->, and <!-- end -->.
"""

import re
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

import click

from sparsight.cli import cli
from sparsight.cli.knobs import BETWEEN
from sparsight.config import knobs
from sparsight.recipes.recipe import sections

PAGE = Path(__file__).with_name("cli.md")
TRAIN, LABEL = PAGE.with_name("train.md"), PAGE.with_name("label.md")
KNOBS = re.compile(r"(<!-- knobs (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
PLACE = re.compile(r"(<!-- options (\w+) (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
DEFAULT = re.compile(r" \[default: (.*)\]$")


def filled(page: str) -> str:
    """The page with its tables as the options are now."""
    page = KNOBS.sub(lambda place: place[1] + knob_table(place[2]) + place[4], page)
    return PLACE.sub(lambda place: place[1] + (table(place[2], place[3]) or place[4]) + place[5], page)


def knob_table(section: str) -> str:
    """A section's knobs, as Python and TOML have them."""
    rows = [
        f"| `{name}` | {default(one)} | {one.metadata['says']} |" for name, one in knobs(sections()[section]).items()
    ]
    return "\n".join(["| knob | default | meaning |", "|---|---|---|", *rows, ""])


def default(one: Field[Any]) -> str:
    return "" if one.default is MISSING or one.default == () else f"`{one.default!r}`"


def table(verb: str, section: str) -> str:
    """A verb's options that are knobs of a section."""
    options = [p for p in cli.commands[verb].params if isinstance(p, click.Option)]
    rows = [row(option) for option in options if str(option.name).startswith(section + BETWEEN)]
    return "\n".join(["| option | default | |", "|---|---|---|", *rows, ""]) if rows else ""


def row(option: click.Option) -> str:
    help_ = str(option.help)
    default = DEFAULT.search(help_)
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    said = f"`{default[1]}`" if default else ""
    meaning = DEFAULT.sub("", help_).removesuffix(".") + ("; repeatable" if option.multiple else "")
    return f"| {names} | {said} | {meaning} |"


if __name__ == "__main__":
    for page in (PAGE, TRAIN, LABEL):
        page.write_text(filled(page.read_text()))
