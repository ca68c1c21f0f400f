"""What sort of feature it is, from what it does where it fires: the facts that a sentence about it is made of."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sparsight.label.evidence import Evidence, Window
from sparsight.label.words import at_focus, folded, places, role_of, shape, so_far, spans, to_come

WHOLE = 0.6  # of a token's weight in one whole word, for the word to stand for it
AGREED = 0.35  # of its weight before a token that its direction makes likelier, to count as saying it


class Weights(defaultdict[Any, float]):
    """Sums of numbers by key."""

    def __init__(self) -> None:
        super().__init__(float)


@dataclass
class Spoken:
    """A token that it fires on. key: it without case. share: of the feature's weight. word: what it is shown as; part:
    whether that is a part of words that differ. words: those that it is in, with their share of this token's weight;
    before, after: likewise those beside it."""

    key: str
    share: float
    word: str
    part: bool
    shape: str
    before: list[tuple[str, float]] = field(default_factory=list)
    after: list[tuple[str, float]] = field(default_factory=list)
    words: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class Profile:
    """Shares of the feature's weight: each window weighs as much as the root of its peak, spread over its tokens by
    their activations. tokens: heaviest first; the others by name, likewise. likelier: of the tokens that follow,
    those that its direction makes likelier. spelled: how they are shown, where they go on with a word. opens: of what
    lies on template tokens, whose turn comes next. said: of each window the words up to its focus, those that its turn
    has yet to come, and its share. lens: the tokens, without case and space, that its direction makes likelier."""

    tokens: list[Spoken]
    shapes: list[tuple[str, float]]
    places: list[tuple[str, float]]
    next: list[tuple[str, float]]
    languages: list[tuple[str, float]]
    likelier: list[tuple[str, float]]
    spelled: dict[str, str] = field(default_factory=dict)
    opens: list[tuple[str, float]] = field(default_factory=list)
    said: list[tuple[set[str], set[str], float]] = field(default_factory=list)
    lens: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether what follows is what its direction makes likelier."""
        return sum(share for _, share in self.likelier) >= AGREED


def profile(evidence: Evidence) -> Profile:
    """What it fires on, where and before what."""
    tokens: dict[str, Weights] = defaultdict(Weights)
    before: dict[str, Weights] = defaultdict(Weights)
    after: dict[str, Weights] = defaultdict(Weights)
    counts: dict[str, Weights] = defaultdict(Weights)
    for window in evidence.firing:
        each = max(window.values) ** 0.5 / sum(window.values)
        where, inside = places(window), spans(window.pieces)
        starts = [first for first, _ in inside]
        for i, value in enumerate(window.values):
            if value <= 0:
                continue
            weight, key = value * each, folded(window.pieces[i])
            which = bisect_right(starts, i) - 1
            span = inside[which]
            tokens[key][_shown(window, i, span, _word(window, span))] += weight
            before[key][_word(window, inside[which - 1]) if which else ""] += weight
            after[key][_word(window, inside[which + 1]) if which + 1 < len(inside) else ""] += weight
            counts["shapes"][shape(window.pieces[i])] += weight
            counts["places"][where[i]] += weight
            if where[i] == "template":
                counts["opens"][opens(window, i)] += weight
            if i + 1 < len(window.pieces):
                after_it = folded(window.pieces[i + 1])
                counts["next"][after_it] += weight
                counts["goes on"][after_it] += weight if i + 1 < span[1] else -weight
            counts["languages"][window.language or ""] += weight
    whole = sum(sum(each.values()) for each in tokens.values()) or 1.0
    heaviest = sorted(tokens, key=lambda key: (-sum(tokens[key].values()), key))
    spoken = [_spoken(key, tokens[key], before[key], after[key], whole) for key in heaviest]
    shares = {name: _shares(counts[name], whole) for name in ("shapes", "places", "next", "languages", "opens")}
    lens = tuple(dict.fromkeys(folded(text) for text, _ in evidence.above))
    likelier = [(text, share) for text, share in shares["next"] if text in lens]
    spelled = {text: f"…{text}" for text, weight in counts["goes on"].items() if weight > 0}
    said = [(at_focus(w, so_far(w)), at_focus(w, to_come(w)), max(w.values) ** 0.5 / whole) for w in evidence.firing]
    return Profile(spoken, likelier=likelier, spelled=spelled, said=said, lens=lens, **shares)


def opens(window: Window, at: int) -> str:
    """Whose turn a template token comes before; "" where the window does not tell."""
    return next((role for kind in window.roles[at:] if (role := role_of(kind)) != "template"), "")


def _word(window: Window, span: tuple[int, int]) -> str:
    word = window.pieces[span[0]] if span[1] == span[0] + 1 else "".join(window.pieces[span[0] : span[1]])
    return word.strip().casefold() or word


def _shown(window: Window, at: int, span: tuple[int, int], word: str) -> tuple[str, str, str, str]:
    """The whole word; the word up to the token; the token as a part of it; and what the token looks like."""
    core = folded(window.pieces[at])
    begins, ends = at == span[0], at == span[1] - 1
    so_far = folded("".join(window.pieces[span[0] : at + 1])) + "…" * (not ends)
    part = core if begins and ends else f"{core}…" if begins else f"…{core}" if ends else f"…{core}…"
    return word, so_far, part, shape(window.pieces[at])


def _spoken(key: str, shown: Weights, before: Weights, after: Weights, whole: float) -> Spoken:
    """The token as the longest of these that most of its weight has alike."""
    total = sum(shown.values())
    by: list[Weights] = [Weights(), Weights(), Weights(), Weights()]
    for ways, weight in shown.items():
        for counter, way in zip(by, ways, strict=True):
            counter[way] += weight
    best = [_ordered(counter)[0] for counter in by]
    word = next((way for way, weight in best[:2] if weight >= WHOLE * total), best[2][0])
    look = best[3][0]
    if look in ("number", "line break", "special", "punctuation"):
        word = key
    part = "…" in word and word != key
    return Spoken(
        key, total / whole, word, part, look, _shares(before, total), _shares(after, total), _shares(by[0], total)
    )


def _ordered(counts: Weights) -> list[tuple]:
    """Heaviest first; of equals the first in the alphabet."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _shares(counts: Weights, whole: float) -> list[tuple[str, float]]:
    return [(name, weight / whole) for name, weight in _ordered(counts)]
