"""Writes the tables of options into cli.md: python docs/knobs.py, after a knob was added or changed.

A table stands between <!-- options VERB SECTION --> and <!-- end -->.
"""

import re
from pathlib import Path

import click

from sparsight.cli import cli
from sparsight.cli.knobs import BETWEEN

PAGE = Path(__file__).with_name("cli.md")
PLACE = re.compile(r"(<!-- options (\w+) (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
DEFAULT = re.compile(r" \[default: (.*)\]$")


def filled(page: str) -> str:
    """The page with its tables as the options are now."""
    return PLACE.sub(lambda place: place[1] + (table(place[2], place[3]) or place[4]) + place[5], page)


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
    PAGE.write_text(filled(PAGE.read_text()))
