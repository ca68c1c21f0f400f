"""The examples of a feature in bands of its activations: of all places where it fires, the share that a band holds.

The edges are true quantiles, so a band of the lowest fifth holds a fifth of the places, whatever the largest is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sparsight.atlas.entries import Example, Statistics

EDGES = (0.2, 0.4, 0.6, 0.8, 0.95)


@dataclass(frozen=True)
class Band:
    """Activations above `low`, up to `high`, which are the shares `begins` to `ends` of all of them, from the weakest
    on. examples: of a fair sample of all places, strongest first."""

    low: float
    high: float
    begins: float
    ends: float
    examples: tuple[Example, ...]

    @property
    def share(self) -> float:
        """Of the places where the feature fires, those in the band."""
        return self.ends - self.begins


def bands(statistics: Statistics, examples: Sequence[Example]) -> list[Band]:
    """The strongest first. Edges are those of EDGES that were measured, or else all that were."""
    known = statistics.quantiles
    shares = [share for share in EDGES if share in known] or sorted(share for share in known if 0 < share < 1)
    marks = [(0.0, 0.0), *((share, known[share]) for share in shares), (1.0, statistics.max)]
    fair = sorted((one for one in examples if one.sampled), key=lambda one: (-one.value, one.at))
    out = []
    for (begins, low), (ends, high) in pairwise(marks):
        last, first = ends == 1.0, begins == 0.0
        inside = tuple(e for e in fair if (first or e.value > low) and (last or e.value <= high))
        out.append(Band(low, high, begins, ends, inside))
    return out[::-1]


def strongest(examples: Sequence[Example]) -> list[Example]:
    """Those kept for their strength, strongest first."""
    return [one for one in examples if one.top]
