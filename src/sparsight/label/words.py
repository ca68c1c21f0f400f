"""Words of windows: which tokens make up one, what a token looks like, and where in a conversation it stands."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
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


def spans_of(pieces: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(first, one past the last) token of each word, and of each piece that is none."""
    starts, within = [0] if pieces else [], False
    for i, piece in enumerate(pieces):
        ends, begins = _edges(piece)
        if i and not (within and begins):
            starts.append(i)
        within = ends
    return tuple(zip(starts, [*starts[1:], len(pieces)], strict=True))


def words_of(pieces: Sequence[str], roles: Sequence[int]) -> tuple[tuple[int, int, str], ...]:
    """(its first token, its last, it in lower case) of each word with a letter; what the chat template adds is none."""
    out = []
    for first, stop in spans_of(pieces):
        word = pieces[first].strip() if stop == first + 1 else "".join(pieces[first:stop]).strip()
        if word[:1].isalpha() and not roles[first] & SPECIAL:
            out.append((first, stop - 1, word.casefold()))
    return tuple(out)


def turns_of(roles: Sequence[int]) -> tuple[int, ...]:
    """Of each token the number of its turn; what the template adds belongs to the turn that it comes before."""
    out, turn, last = [], 0, ""
    for kind in roles:
        role = "" if kind & SPECIAL else role_of(kind)
        turn += bool(last) and role != last
        last = role
        out.append(turn)
    return tuple(out)


# of windows, which come again and again
spans, words, turns = lru_cache(4096)(spans_of), lru_cache(4096)(words_of), lru_cache(4096)(turns_of)


@lru_cache(1024)
def role_of(kind: int) -> str:
    """Whose a token is, from its Kind bits; what the template adds is nobody's: "template"."""
    return next((name for name, bits in NAMED if kind & bits), "text")


def so_far(window: Window) -> list[tuple[int, int, str]]:
    """(first, one past the last token that comes after it, word) of each word that the text has had, once."""
    whole = len(window.pieces)
    out = [(0, whole, word) for word in window.earlier]
    seen = set(window.earlier)
    for _, last, word in words(window.pieces, window.roles):
        if word not in seen:
            seen.add(word)
            out.append((last, whole, word))
    return out


def to_come(window: Window) -> list[tuple[int, int, str]]:
    """(first, one past the last token that comes before it, word) of each word in the rest of each turn, once."""
    turn = turns(window.roles)
    if not turn:
        return []
    begins = {number: at for at, number in reversed([*enumerate(turn)])}
    last: dict[tuple[int, str], int] = {}
    for first, _, word in words(window.pieces, window.roles):
        last[turn[first], word] = first
    for word in window.later:
        last[turn[-1], word] = len(turn)
    return [(begins[number], stop, word) for (number, word), stop in last.items() if stop > begins[number]]


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
