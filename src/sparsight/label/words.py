"""Words of windows: which tokens make up one, what a token looks like, and where in a conversation it stands."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
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
def _piece(piece: str) -> tuple[bool, bool, str]:
    """Whether its end may be within a word, whether its beginning may; and what word it is alone, "" if none."""
    word = piece.strip()
    if shape(piece) == "special" or not piece:
        return False, False, word.casefold() if word[:1].isalpha() else ""
    ends = piece[-1].isalnum() or (piece[-1] in APOSTROPHES and any(map(str.isalnum, piece)))
    begins = piece[0].isalnum() or (piece[0] in APOSTROPHES and piece[1:2].isalpha())
    return ends, begins, word.casefold() if word[:1].isalpha() else ""


def spans_of(pieces: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(first, one past the last) token of each word, and of each piece that is none."""
    starts, within = [0] if pieces else [], False
    for i, (ends, begins, _) in enumerate(map(_piece, pieces)):
        if i and not (within and begins):
            starts.append(i)
        within = ends
    return tuple(zip(starts, [*starts[1:], len(pieces)], strict=True))


def words_of(pieces: Sequence[str], roles: Sequence[int]) -> tuple[tuple[int, int, str], ...]:
    """(its first token, its last, it in lower case) of each word with a letter; what the chat template adds is none."""
    out: list[tuple[int, int, str]] = []
    first, within, alone = 0, False, ""
    for i, (ends, begins, word) in enumerate([*map(_piece, pieces), (False, False, "")]):
        if within and begins:
            within = ends
            continue
        if i - first > 1:
            whole = "".join(pieces[first:i]).strip()
            alone = whole.casefold() if whole[:1].isalpha() else ""
        if alone and not roles[first] & SPECIAL:
            out.append((first, i - 1, alone))
        first, within, alone = i, ends, word
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


Spread = tuple[list[str], list[int], list[int]]  # words; of each the first token and one past the last that has it


def so_far(window: Window) -> Spread:
    """Each word that the text has had, once; a token has those that end with it or before."""
    new: dict[str, int] = {}
    seen = set(window.earlier)
    for _, last, word in words(window.pieces, window.roles):
        if word not in seen:
            new.setdefault(word, last)
    return (
        [*window.earlier, *new],
        [0] * len(window.earlier) + [*new.values()],
        [len(window.pieces)] * (len(window.earlier) + len(new)),
    )


def to_come(window: Window) -> Spread:
    """Each word in the rest of each turn, once; a token has those that begin after it."""
    if not window.pieces:
        return [], [], []
    turn = turns(window.roles)
    ends: dict[int, dict[str, int]] = {number: {} for number in turn}
    for first, _, word in words(window.pieces, window.roles):
        ends[turn[first]][word] = first
    ends[turn[-1]] |= dict.fromkeys(window.later, len(turn))
    names: list[str] = []
    begins: list[int] = []
    stops: list[int] = []
    for number, each in ends.items():
        names += each
        begins += [bisect_left(turn, number)] * len(each)
        stops += each.values()
    return names, begins, stops


def at_focus(window: Window, spread: Spread) -> set[str]:
    """The words that the focus has."""
    return {word for word, first, stop in zip(*spread, strict=True) if first <= window.focus < stop}


def places(window: Window) -> tuple[str, ...]:
    """Where each token stands: "template", or whose turn and how many tokens into it: "assistant 0" to "assistant 3",
    "assistant later"; of a plain text "text 0", ..."""
    begins = bool(window.roles) and role_of(window.roles[0]) == "text"
    return _places(window.roles, min(window.start, NEAR) if begins else NEAR)


@lru_cache(4096)
def _places(roles: tuple[int, ...], since: int) -> tuple[str, ...]:
    """since: tokens of its turn before the first."""
    out = []
    for kind in roles:
        if kind & SPECIAL:
            out.append("template")
            since = 0
        else:
            out.append(_place(kind, min(since, NEAR)))
            since += 1
    return tuple(out)


@lru_cache(1024)
def _place(kind: int, since: int) -> str:
    return f"{role_of(kind)} {since if since < NEAR else 'later'}"


def readable(piece: str) -> str:
    """As it is put between quotation marks."""
    return "".join(SHOWN.get(c, c) for c in piece.strip()) or ("↵" if "\n" in piece else "␣")
