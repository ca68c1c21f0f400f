"""The knobs of a settings dataclass as options of a verb: --l0 91, --hook-points a --hook-points b, --check/--no-check.

An option that is not given is None, so that a recipe's value, or the default, stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field
from typing import Any, get_args, get_origin

import click

from sparsight.config import NONE, from_text, kinds, knobs, says
from sparsight.errors import BadInput
from sparsight.recipes.recipe import sections

BETWEEN = "__"  # of a section and a key, in the name that click has for an option


class Knob(click.ParamType):
    """A value as config.from_text reads it."""

    def __init__(self, kind: type, key: str) -> None:
        self.kind, self.key = kind, key
        self.name = _metavar(kinds(kind)[key])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = from_text(value, kinds(self.kind)[self.key], self.key, self.kind, self.key)
            return NONE if found is None else found  # None is for what is not given
        except BadInput as error:
            self.fail(str(error), param, ctx)


def knob_options(
    section: str,
    prefix: str = "",
    flags: Mapping[str, str] | None = None,
    without: Iterable[str] = (),
    kind: type | None = None,
) -> Callable[..., Any]:
    """A decorator: the section's knobs as options, except secrets.

    prefix: before each name, "corpus-". flags: {key: name} of those with a name of their own. without: keys that get no
    option. A section whose room is not built has none at all. kind: its dataclass, where it is no section of a recipe.
    """
    kind = kind or sections().get(section)
    options = []
    for key, one in knobs(kind).items() if kind else ():
        if one.repr and key not in without:
            flag = (flags or {}).get(key, prefix + key.replace("_", "-"))
            options.append(_option(kind, section, one, flag))

    def with_options(verb: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            verb = option(verb)
        return verb

    return with_options


def gathered(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{section: {key: value}} of the knobs that were given."""
    out: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        section, between, key = name.partition(BETWEEN)
        if between and value not in (None, ()):
            each = tuple(one for several in value for one in several) if isinstance(value, tuple) else value
            out.setdefault(section, {})[key] = each
    return out


def _option(kind: Any, section: str, one: Field[Any], flag: str) -> Callable[..., Any]:
    wanted, name = kinds(kind)[one.name], f"{section}{BETWEEN}{one.name}"
    about = f"{says(kind, one.name)}.{_default(one)}"
    if bool in (wanted, *get_args(wanted)):
        return click.option(f"--{flag}/--no-{flag}", name, default=None, help=about)
    several = get_origin(wanted) is tuple
    return click.option(f"--{flag}", name, type=Knob(kind, one.name), multiple=several, help=about)


def _default(one: Field[Any]) -> str:
    """The default, in the words of an option."""
    value = one.default
    if value is MISSING or value == ():
        return ""
    if isinstance(value, tuple):
        said = ", ".join(map(str, value))
    elif isinstance(value, bool):
        said = "yes" if value else "no"
    else:
        said = NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return f" [default: {said}]"


def _metavar(wanted: Any) -> str:
    """What stands for the value in a help text."""
    members = {wanted, *get_args(wanted)}
    return "integer" if int in members else "number" if float in members else "text"
