"""Words of windows: which tokens make up one, what a token looks like, and where in a conversation it stands."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from sparsight.label.evidence import Window
from sparsight.records import ROLES, Kind

NEAR = 4  # tokens at the start of a turn that are told apart
APOSTROPHES = "'’"
SPECIAL = Kind.BOS | Kind.TEMPLATE
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


def words_before(pieces: Sequence[str], at: int) -> Iterator[str]:
    """The words that end at a token or before it, in lower case; what has no letter is none."""
    for first, stop in spans(pieces):
        if stop > at + 1:
            return
        word = "".join(pieces[first:stop]).strip().casefold()
        if word[:1].isalpha():
            yield word


def places(window: Window) -> list[str]:
    """Where each token stands: "template", or whose turn and how many tokens into it: "assistant 0" to "assistant 3",
    "assistant later"; of a plain text "text 0", ..."""
    out, since = [], window.start if window.roles and window.roles[0] & Kind.TEXT else NEAR
    for kind in window.roles:
        if kind & SPECIAL:
            out.append("template")
            since = 0
            continue
        role = next((name for name, bit in ROLES.items() if kind & bit), "text")
        out.append(f"{role} {since if since < NEAR else 'later'}")
        since += 1
    return out


def readable(piece: str) -> str:
    """As it is put between quotation marks."""
    return "".join(SHOWN.get(c, c) for c in piece.strip()) or ("↵" if "\n" in piece else "␣")
