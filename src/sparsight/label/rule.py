"""A label as a rule that runs: how likely the feature fires at each token of a window, from its text alone.

    logit(t) = bias + ngrams(t) + shapes(t) + words(t) + later(t) + places(t) + next(t) + languages

ngrams is the weight of the longest known run of tokens that ends at t, else of the token without its case and space
("folded"), as in Foote et al. 2023, Neuron to Graph (arXiv 2305.19911); words the sum over the words that the text
has up to t; later over those that its turn has after t. The others are a table each: what the token looks like, whose
turn it stands in and how far from its start, which token follows, the document's language. What is in no table weighs
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from sparsight.errors import BadFile
from sparsight.label.evidence import Window
from sparsight.label.sheet import Keys, Sheet, Spans
from sparsight.label.words import folded, places, shape, so_far, to_come

TABLES = ("folded", "shapes", "words", "later", "places", "next", "languages")


@dataclass(frozen=True)
class Rule:
    """Weights are natural-log odds. ngrams: by the texts of the tokens, spaces and case included."""

    bias: float = 0.0
    ngrams: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    folded: Mapping[str, float] = field(default_factory=dict)
    shapes: Mapping[str, float] = field(default_factory=dict)
    words: Mapping[str, float] = field(default_factory=dict)
    later: Mapping[str, float] = field(default_factory=dict)
    places: Mapping[str, float] = field(default_factory=dict)
    next: Mapping[str, float] = field(default_factory=dict)
    languages: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Rule:
        """From plain data, as to_json gives. Raises BadFile where it is no rule."""
        try:
            if unknown := data.keys() - {"bias", "ngrams", *TABLES}:
                raise ValueError(f"'{min(unknown)}' is no part of one")
            ngrams = {tuple(map(str, pieces)): float(weight) for weight, *pieces in data.get("ngrams", ()) if pieces}
            tables = {name: {str(k): float(w) for k, w in data.get(name, {}).items()} for name in TABLES}
            return cls(float(data.get("bias", 0.0)), ngrams, **tables)
        except (AttributeError, TypeError, ValueError) as error:
            raise BadFile(f"This is no rule: {error}.") from error

    def to_json(self) -> dict[str, Any]:
        """As plain data; empty parts are left out."""
        out: dict[str, Any] = {"bias": round(self.bias, 2)}
        if self.ngrams:
            out["ngrams"] = [[round(weight, 2), *pieces] for pieces, weight in self.ngrams.items()]
        tables = {name: {k: round(w, 2) for k, w in getattr(self, name).items()} for name in TABLES}
        return out | {name: table for name, table in tables.items() if table}

    def activations(self, window: Window) -> list[float]:
        """At each token, how likely the feature fires there, from 0 to 1."""
        pieces = window.pieces
        scores = [self.bias + self.languages.get(window.language or "", 0.0)] * len(pieces)
        if self.ngrams or self.folded:
            scores = [score + self._ngram(pieces, i) for i, score in enumerate(scores)]
        if self.shapes:
            scores = [score + self.shapes.get(shape(piece), 0.0) for score, piece in zip(scores, pieces, strict=True)]
        if self.places:
            scores = [score + self.places.get(p, 0.0) for score, p in zip(scores, places(window), strict=True)]
        if self.next:
            after = [self.next.get(folded(piece), 0.0) for piece in pieces[1:]]
            scores = [score + weight for score, weight in zip(scores, [*after, 0.0], strict=True)]
        for table, spans in ((self.words, so_far), (self.later, to_come)):
            for word, first, stop in zip(*spans(window), strict=True) if table else ():
                if (weight := table.get(word)) is not None:
                    scores[first:stop] = [score + weight for score in scores[first:stop]]
        return [1 / (1 + math.exp(-max(min(round(score, 9), 50.0), -50.0))) for score in scores]

    @cached_property
    def _longest(self) -> dict[str, int]:
        """Of each piece that an n-gram ends with, the tokens of the longest one."""
        out: dict[str, int] = {}
        for pieces in self.ngrams:
            out[pieces[-1]] = max(len(pieces), out.get(pieces[-1], 0))
        return out

    def _ngram(self, pieces: tuple[str, ...], at: int) -> float:
        for n in range(min(self._longest.get(pieces[at], 0), at + 1), 0, -1):
            if (weight := self.ngrams.get(pieces[at + 1 - n : at + 1])) is not None:
                return weight
        return self.folded.get(folded(pieces[at]), 0.0)

    def on(self, sheet: Sheet) -> Float[np.ndarray, " token"]:
        """The same as activations, of many windows at once."""
        score = np.full(len(sheet), self.bias)
        if self.ngrams or self.folded:
            score += self._ngrams_on(sheet)
        for name in ("shapes", "places", "next", "languages"):
            if table := getattr(self, name):
                known = {k: w for k, w in table.items() if k or name != "next"}  # "": past a window's end
                score += _looked_up(known, getattr(sheet, name))
        for table, name in ((self.words, "words"), (self.later, "later")):
            if table:
                spans: Spans = getattr(sheet, name)
                score += sheet.summed(spans, _looked_up(table, spans.keys))
        return 1 / (1 + np.exp(-np.clip(score.round(9), -50.0, 50.0)))

    def _ngrams_on(self, sheet: Sheet) -> Float[np.ndarray, " token"]:
        score = _looked_up(self.folded, sheet.folded)
        number = sheet.exact.number
        known = [pieces for pieces in self.ngrams if all(piece in number for piece in pieces)]
        for pieces in sorted(known, key=len):  # the longest counts
            (at,) = np.nonzero(sheet.exact.of == number[pieces[-1]])
            for back, piece in enumerate(reversed(pieces[:-1]), 1):
                at = at[sheet.before(back)[at] == number[piece]]
            score[at] = self.ngrams[pieces]
        return score


def _looked_up(table: Mapping[Any, float], keys: Keys) -> np.ndarray:
    """Of each key its weight, 0 where the table has none."""
    return np.array([table.get(name, 0.0) for name in keys.names], np.float64)[keys.of]
