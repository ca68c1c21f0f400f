"""Words of windows: which tokens make up one, what a token looks like, and where in a conversation it stands."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from sparsight.label.evidence import Window
from sparsight.records import ROLES, Kind
from sparsight.records import SPECIAL as RECORDED

NEAR = 4  # tokens at the start of a turn that are told apart
APOSTROPHES = "'’"
SPECIAL = int(RECORDED)  # plain numbers: faster by far
NAMED = (("template", SPECIAL), *((name, int(kind)) for name, kind in ROLES.items()), ("text", int(Kind.TEXT)))
SHOWN = {"\n": "↵", "\t": "⇥"}


@lru_cache(65_536)
def folded(piece: str) -> str:
    """Without case and without the space around it; a piece of space alone stays."""
    return piece.strip().casefold() or piece


@lru_cache(65_536)
def shape(piece: str) -> str:
    """What it looks like: "number", "CAPITALS", "Capitalised", "lower case", another script by name, "punctuation",
    "line break", "space", "special"."""
    core = piece.strip()
    if not core:
        return "line break" if "\n" in piece else "space"
    if core.startswith("<|") and core.endswith("|>"):
        return "special"
    letters = [c for c in core if c.isalpha()]
    if letters:
        script = unicodedata.name(letters[0], "OTHER").split()[0]
        if script != "LATIN":
            return script.capitalize()
        if len(letters) > 1 and core.upper() == core:
            return "CAPITALS"
        return "Capitalised" if letters[0].isupper() else "lower case"
    return "number" if any(c.isdigit() for c in core) else "punctuation"


@lru_cache(65_536)
def _edges(piece: str) -> tuple[bool, bool]:
    """Whether the end of a piece may be within a word, and whether its beginning may."""
    if shape(piece) == "special" or not piece:
        return False, False
    ends = piece[-1].isalnum() or (piece[-1] in APOSTROPHES and any(map(str.isalnum, piece)))
    begins = piece[0].isalnum() or (piece[0] in APOSTROPHES and piece[1:2].isalpha())
    return ends, begins


def spans(pieces: Sequence[str]) -> list[tuple[int, int]]:
    """(first, one past the last) token of each word, and of each piece that is none."""
    starts = [0] if pieces else []
    for i in range(1, len(pieces)):
        if not (_edges(pieces[i - 1])[0] and _edges(pieces[i])[1]):
            starts.append(i)
    return list(zip(starts, [*starts[1:], len(pieces)], strict=True))


def words(pieces: Sequence[str], roles: Sequence[int]) -> Iterator[tuple[int, str]]:
    """(its last token, it in lower case) of each word with a letter; what the chat template adds is none."""
    for first, stop in spans(pieces):
        word = pieces[first].strip() if stop == first + 1 else "".join(pieces[first:stop]).strip()
        if word[:1].isalpha() and not roles[first] & SPECIAL:
            yield stop - 1, word.casefold()


@lru_cache(1024)
def role_of(kind: int) -> str:
    """Whose a token is, from its Kind bits; what the template adds is nobody's: "template"."""
    return next((name for name, bits in NAMED if kind & bits), "text")


def places(window: Window) -> list[str]:
    """Where each token stands: "template", or whose turn and how many tokens into it: "assistant 0" to "assistant 3",
    "assistant later"; of a plain text "text 0", ..."""
    out, since = [], window.start if window.roles and role_of(window.roles[0]) == "text" else NEAR
    for kind in window.roles:
        role = role_of(kind)
        if role == "template":
            out.append(role)
            since = 0
        else:
            out.append(f"{role} {since if since < NEAR else 'later'}")
            since += 1
    return out


def readable(piece: str) -> str:
    """As it is put between quotation marks."""
    return "".join(SHOWN.get(c, c) for c in piece.strip()) or ("↵" if "\n" in piece else "␣")
