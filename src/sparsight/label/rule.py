"""A label as a rule that runs: how likely the feature fires at each token of a window, from its text alone.

    logit(t) = bias + ngrams(t) + shapes(t) + words(t) + places(t) + next(t) + languages

ngrams is the weight of the longest known run of tokens that ends at t, else of the token without its case and space
("folded"), as in Foote et al. 2023, Neuron to Graph (arXiv 2305.19911); words the sum over the words that the window
has up to t. The others are a table each: what the token looks like, whose turn it stands in and how far from its
start, which token follows, the document's language. What is in no table weighs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsight.errors import BadFile
from sparsight.label.evidence import Window
from sparsight.label.words import folded, places, shape, words

TABLES = ("folded", "shapes", "words", "places", "next", "languages")
LONGEST = 3  # tokens of an n-gram


@dataclass(frozen=True)
class Rule:
    """Weights are natural-log odds. ngrams: by the texts of the tokens, spaces and case included."""

    bias: float = 0.0
    ngrams: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    folded: Mapping[str, float] = field(default_factory=dict)
    shapes: Mapping[str, float] = field(default_factory=dict)
    words: Mapping[str, float] = field(default_factory=dict)
    places: Mapping[str, float] = field(default_factory=dict)
    next: Mapping[str, float] = field(default_factory=dict)
    languages: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Rule:
        """From plain data, as to_json gives. Raises BadFile where it is no rule."""
        try:
            if unknown := data.keys() - {"bias", "ngrams", *TABLES}:
                raise ValueError(f"'{min(unknown)}' is no part of one")
            ngrams = {tuple(map(str, pieces)): float(weight) for weight, *pieces in data.get("ngrams", ())}
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
        if self.words:
            self._add_words(window, scores)
        return [1 / (1 + math.exp(-max(min(score, 50.0), -50.0))) for score in scores]

    def _ngram(self, pieces: tuple[str, ...], at: int) -> float:
        for n in range(LONGEST, 0, -1):
            if n <= at + 1 and (weight := self.ngrams.get(pieces[at + 1 - n : at + 1])) is not None:
                return weight
        return self.folded.get(folded(pieces[at]), 0.0)

    def _add_words(self, window: Window, scores: list[float]) -> None:
        """Each known word counts from its last token on, once."""
        seen: set[str] = set()
        for last, word in words(window.pieces, window.roles):
            if (weight := self.words.get(word)) is not None and word not in seen:
                seen.add(word)
                for i in range(last, len(scores)):
                    scores[i] += weight
