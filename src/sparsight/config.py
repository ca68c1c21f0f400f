"""Settings that explain themselves: frozen dataclasses, every field of which says what it means and its unit.

A knob comes from its default, then from a TOML file's section, then from an override, "train.l0=91". None, which TOML
has no word for, is "none" in both. What was resolved can be written as TOML again, each knob with what it means.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sparsight.disk import first_line
from sparsight.errors import BadFile, BadInput

NONE = "none"


def knob(default: Any, says: str, **options: Any) -> Any:
    """A field that explains itself: its metadata has "says". One with repr=False is a secret and is never written."""
    return field(default=default, metadata={"says": says}, **options)


def check(value: object, name: str, right: object, allowed: str) -> None:
    """Raises BadInput, with what is allowed, where a knob's value is not right."""
    if not right:
        raise BadInput(f"{name} is {allowed}, not {str(value)[:60]!r}.")


def knobs(kind: type) -> dict[str, Field[Any]]:
    """The fields of a settings dataclass that can be given, by name."""
    return {f.name: f for f in fields(kind) if f.init}


@cache
def kinds(kind: type) -> dict[str, Any]:
    """What type each knob of a settings dataclass has."""
    return get_type_hints(kind)


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file. Raises BadFile where it is absent or is none."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"Cannot read '{path}' as TOML: {first_line(error)}") from error


def resolve(sections: Mapping[str, type], given: Mapping[str, Any], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of each section that is given or overridden: {section: instance}.

    sections: which there may be, each with its dataclass. given: {section: {key: value}}, as a TOML file has it; a list
    of tables, TOML's [[section]], gives a tuple of instances. overrides: "section.key=value", later ones last; one for
    a list is for all of it.
    Raises BadInput for an unknown section or key, a value of another type, and whatever the dataclass refuses.
    """
    tables = {section: _tables(section, value, sections) for section, value in given.items()}
    many = {section for section, value in given.items() if isinstance(value, list)}
    for line in overrides:
        section, key, text = split_override(line)
        _known(section, sections, "section", "")
        rows = tables.setdefault(section, [{}])
        value = from_text(text, _kind_of(sections[section], key, section), f"{section}.{key}", sections[section], key)
        tables[section] = [{**row, key: value} for row in rows]
    made = {section: tuple(build(sections[section], row, section) for row in rows) for section, rows in tables.items()}
    return {section: each if section in many else each[0] for section, each in made.items()}


def build(kind: type, given: Mapping[str, Any], section: str) -> Any:
    """An instance of a settings dataclass from one table. Raises BadInput, with the section's name."""
    values = {}
    for key, value in given.items():
        wanted, what = _kind_of(kind, key, section), f"{section}.{key}"
        values[key] = fits(value, wanted)
        if values[key] is MISSING:
            raise BadInput(_wrong(value, wanted, what, kind, key))
    for name, one in knobs(kind).items():
        if name not in values and one.default is MISSING and one.default_factory is MISSING:
            raise BadInput(f"[{section}] does not say {name}: {says(kind, name)}.")
    try:
        return kind(**values)
    except BadInput as error:
        raise BadInput(f"[{section}] {error}") from error


def split_override(line: str) -> tuple[str, str, str]:
    """Section, key and value of "section.key=value". Raises BadInput."""
    place, equals, text = line.partition("=")
    section, dot, key = place.strip().partition(".")
    if not (equals and dot and section and key):
        raise BadInput(f"Cannot read the setting '{line}'. Write section.key=value, as train.l0=91.")
    return section, key, text.strip()


def from_text(text: str, wanted: Any, what: str, kind: type, key: str) -> Any:
    """A value as a person types it: TOML (91, 1e-4, true, [16, 32], "quoted"), or a word that stands for itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
        found = fits(parsed["value"], wanted) if len(parsed) == 1 else MISSING
    except (tomllib.TOMLDecodeError, RecursionError):
        found = MISSING
    if found is MISSING and not text.startswith(("[", '"', "'")):
        found = fits(text, wanted)
    if found is MISSING:
        raise BadInput(_wrong(text, wanted, what, kind, key))
    return found


def fits(value: Any, wanted: Any) -> Any:
    """The value as an annotation wants it, or MISSING where it is of another type.

    A whole number does for a float, and a float that is whole for an int; one value does for a tuple of several.
    """
    if get_origin(wanted) in (Union, types.UnionType):
        return _fits_one(value, get_args(wanted))
    if get_origin(wanted) is tuple:
        return _fits_tuple(value, get_args(wanted))
    if get_origin(wanted) is Literal:
        return value if any(type(one) is type(value) and one == value for one in get_args(wanted)) else MISSING
    if isinstance(value, bool) or wanted is bool:
        return value if isinstance(value, bool) and wanted is bool else MISSING
    if wanted is float and isinstance(value, int):
        return float(value) if abs(value) < 2**1023 else MISSING
    if wanted is int and isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value if isinstance(value, wanted) else MISSING


def _fits_one(value: Any, members: tuple[Any, ...]) -> Any:
    """Of a union: none is None; then the member whose type it has already; then the first that it fits."""
    if type(None) in members and (value is None or value == NONE):
        return None
    rest = [member for member in members if member is not type(None)]
    for member in sorted(rest, key=lambda member: member is not type(value)):
        if (found := fits(value, member)) is not MISSING:
            return found
    return MISSING


def _fits_tuple(value: Any, members: tuple[Any, ...]) -> Any:
    each = value if isinstance(value, list | tuple) else [value]
    of = [members[0]] * len(each) if members[1:] == (...,) else list(members)
    if len(of) != len(each):
        return MISSING
    found = [fits(one, member) for one, member in zip(each, of, strict=True)]
    return MISSING if any(one is MISSING for one in found) else tuple(found)


def says(kind: type, key: str) -> str:
    """What a knob means, in its own words; None is said as files and options say it."""
    return str(knobs(kind)[key].metadata.get("says", "no word about it")).replace("None", NONE)


def in_words(wanted: Any) -> str:
    """What an annotation wants, for a person."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): NONE}
    if get_origin(wanted) in (Union, types.UnionType):
        return " or ".join(in_words(member) for member in get_args(wanted))
    if get_origin(wanted) is tuple:
        members = get_args(wanted)
        one = " or ".join(dict.fromkeys(in_words(member).removeprefix("a ") for member in members if member is not ...))
        return f"one or several of: {one}" if members[1:] == (...,) else f"{len(members)} of: {one}"
    if get_origin(wanted) is Literal:
        return f"one of: {', '.join(map(str, get_args(wanted)))}"
    return plain.get(wanted, getattr(wanted, "__name__", str(wanted)))


def as_toml(settings: Mapping[str, Any], about: str = "") -> str:
    """Settings, {section: instance or a tuple of them}, as TOML that resolve() reads back: every knob, and its meaning.

    about: said at the top, as `about = "..."`. Secrets are left out.
    Raises BadInput for what TOML cannot hold: text that is no Unicode, the word "none" where it would mean None.
    """
    parts = [f"about = {_quoted(about)}\n"] if about else []
    for section, value in settings.items():
        several = isinstance(value, tuple | list)
        for one in value if several else (value,):
            parts.append("\n".join([f"[[{section}]]" if several else f"[{section}]", *_lines(one, section)]) + "\n")
    return "\n".join(parts)


def _lines(instance: Any, section: str) -> Iterator[str]:
    """One line a knob."""
    kind = type(instance)
    for name, one in knobs(kind).items():
        if one.repr:
            said = _said(getattr(instance, name), kinds(kind)[name], f"{section}.{name}")
            yield f"{name} = {said}  # {' '.join(says(kind, name).split())}"


def _said(value: Any, wanted: Any, what: str) -> str:
    """A value in TOML's words."""
    if value is None:
        return json.dumps(NONE)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # 1e-05, inf and nan are TOML's words too
    if isinstance(value, str):
        if value == NONE and fits(value, wanted) is None:
            raise BadInput(f"{what} is the word '{NONE}', which would be read as no value.")
        return _quoted(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(_said(one, str, what) for one in value)}]"
    raise BadInput(f"{what} cannot be written as TOML: {value!r}.")


def _quoted(text: str) -> str:
    """Text as a TOML string: JSON's, whose escapes are TOML's too."""
    try:
        text.encode("utf-8")
    except UnicodeError as error:
        raise BadInput(f"TOML holds Unicode, and {text!r} is none.") from error
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _tables(section: str, value: Any, sections: Mapping[str, type]) -> list[Mapping[str, Any]]:
    """A section's tables: one, or those of a list. Raises BadInput for what is none."""
    _known(section, sections, "section", "")
    rows: list[Any] = value if isinstance(value, list) and value else [value]
    if not all(isinstance(row, Mapping) for row in rows):
        raise BadInput(f"[{section}] is a table of settings, not {value!r}.")
    return rows


def _kind_of(kind: type, key: str, section: str) -> Any:
    """The annotation of a knob. Raises BadInput where there is no such knob."""
    _known(key, knobs(kind), "setting", f" in [{section}]")
    return kinds(kind)[key]


def _known(name: str, known: Iterable[str], what: str, where: str) -> None:
    """Raises BadInput for a name that is not among the known ones, with its nearest neighbour."""
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise BadInput(f"No {what} '{name}'{where}.{hint} There are: {', '.join(names)}.")


def _wrong(value: Any, wanted: Any, what: str, kind: type, key: str) -> str:
    return f"{what} is {in_words(wanted)}, not {str(value)[:60]!r}. It is: {says(kind, key)}."
