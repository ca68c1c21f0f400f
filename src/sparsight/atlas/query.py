"""What is looked for in an atlas, as one types it.

    talk like a pirate       words, by meaning and as they stand in labels
    "arr"                    features that fire on this token
    #123                     this feature
    density:<0.001 max:>3    what was measured: density, max, mean, documents, score (of a label)
    role:assistant           where it fires most: role, language; flag:dead, not:dense: what the survey says of it
    type:output method:human what a label is, and who wrote it
    logit:"arr"              features that make this token likelier
    fires:"some text"        features that fire on this text

Filters all hold at once. Any text can be read: what is no filter is words; a filter that there is not is an error.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparsight.atlas.entries import FLAGS, METHODS
from sparsight.errors import BadInput

NUMBERS = ("density", "max", "mean", "documents", "score")
ROLES = ("bos", "template", "system", "user", "assistant", "tool", "text")
NAMES = {"role": ROLES, "flag": FLAGS, "not": FLAGS, "method": METHODS}  # what may stand behind these
FILTERS = (*NUMBERS, "role", "language", "type", "flag", "not", "method", "logit", "fires")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
FEATURE = re.compile(r"#([0-9]{1,18})(?=\s|$)")
FILTER = re.compile(r"([A-Za-z][A-Za-z-]*):(?=\S)(?!//)")
NUMBER = re.compile(r"(<=|>=|<|>|=)?([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)(%?)", re.IGNORECASE)


@dataclass(frozen=True)
class Filter:
    """name: of FILTERS. op: one of < <= > >= =. value: a number for NUMBERS, else text."""

    name: str
    value: float | str
    op: str = "="

    def __str__(self) -> str:
        if not isinstance(self.value, str):
            return f"{self.name}:{'' if self.op == '=' else self.op}{self.value!r}"
        plain = re.fullmatch(r'[^\s"]+', self.value)
        return f"{self.name}:{self.value if plain else quoted(self.value)}"


@dataclass(frozen=True)
class Query:
    """text: words, single spaces between them. exact: texts of tokens. features: indices. filters: that all hold."""

    text: str = ""
    exact: tuple[str, ...] = ()
    features: tuple[int, ...] = ()
    filters: tuple[Filter, ...] = ()

    @classmethod
    def of(cls, words: str | Query) -> Query:
        """From what somebody typed. Raises BadInput for a filter, or a value of one, that there is not."""
        if isinstance(words, Query):
            return words
        parts = list(dict.fromkeys(part for part in _parts(words) if not isinstance(part, Word)))
        text = " ".join(part for part in _parts(words) if isinstance(part, Word))
        exact = tuple(part for part in parts if isinstance(part, str))
        features = tuple(part for part in parts if isinstance(part, int))
        return cls(text, exact, features, tuple(part for part in parts if isinstance(part, Filter)))

    def __str__(self) -> str:
        """Words that mean the same query."""
        named = (f"#{index}" for index in self.features)
        return " ".join(filter(None, (self.text, *map(quoted, self.exact), *named, *map(str, self.filters))))

    def __bool__(self) -> bool:
        return self != Query()

    def valued(self, name: str) -> list[str]:
        """The texts that a filter was given."""
        return [str(one.value) for one in self.filters if one.name == name]


def quoted(text: str) -> str:
    """Between quotation marks."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Word(str):
    """A word of the text; any other text stood between quotation marks."""


def _parts(words: str) -> Iterator[Filter | int | str]:
    """Filters, feature indices, exact texts and words, as they come."""
    at = 0
    while at < len(words):
        if words[at].isspace():
            at += 1
        elif words[at] == '"':
            found = QUOTED.match(words, at)
            at = found.end() if found else at + 1  # one that is never closed says nothing
            if found and found[1]:
                yield _unescaped(found[1])
        elif found := FEATURE.match(words, at):
            at = found.end()
            yield int(found[1])
        elif found := FILTER.match(words, at):
            value, at = _value(words, found.end())
            yield _filter(found[1].lower(), value)
        else:
            word = words[at:].split(maxsplit=1)[0]
            at += len(word)
            yield Word(word)


def _value(words: str, at: int) -> tuple[str, int]:
    """What stands behind a filter's colon, and where it ends."""
    if found := QUOTED.match(words, at):
        return _unescaped(found[1]), found.end()
    bare = words[at:].split(maxsplit=1)[0]
    return bare.replace('"', ""), at + len(bare)


def _filter(name: str, value: str) -> Filter:
    _check(name, FILTERS, "filter", " To look for these words, put a space behind the colon.")
    if name in NUMBERS:
        number = NUMBER.fullmatch(value.strip())
        if not number or not math.isfinite(float(number[2])):
            raise BadInput(f"{name}: takes a number, as in {name}:<0.001 or {name}:>=3; not {value[:40]!r}.")
        return Filter(name, float(number[2]) / (100 if number[3] else 1), number[1] or "=")
    if not value.strip():
        raise BadInput(f'{name}: takes a word, or words between quotation marks, as in {name}:"two words".')
    if name in NAMES:
        value = value.strip().lower()
        _check(value, NAMES[name], "flag" if name == "not" else name)
    return Filter(name, value)


def _check(name: str, known: Sequence[str], what: str, todo: str = "") -> None:
    """Raises BadInput for a name that is not among these, with its nearest neighbour."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise BadInput(f"No {what} '{name[:40]}'.{hint} There are: {', '.join(known)}.{todo}")


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)
