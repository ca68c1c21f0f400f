"""What is said of many features at once: each one's best label, and its highest activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsight.atlas.atlas import PLAIN, Atlas

AT_ONCE = 8192  # features of one query: SQLite takes 32,766 values


@dataclass(frozen=True)
class Brief:
    """text: of the best label, None where there is none. max: the highest raw activation that the survey saw."""

    feature: int
    text: str | None
    max: float


def briefs(atlas: Atlas, features: Sequence[int]) -> list[Brief]:
    """One for each feature, in the order given; features that the atlas does not have are left out."""
    known: dict[int, Brief] = {}
    asked = list(dict.fromkeys(features))
    for start in range(0, len(asked), AT_ONCE):
        some = asked[start : start + AT_ONCE]
        marks = ", ".join("?" * len(some))
        texts: dict[int, str] = {}
        for label in atlas._ranked(atlas.rows(f"SELECT {PLAIN} FROM label WHERE feature IN ({marks})", *some)):
            texts.setdefault(label.feature, label.text)
        for feature, peak in atlas.rows(f"SELECT feature, max FROM feature WHERE feature IN ({marks})", *some):
            known[feature] = Brief(feature, texts.get(feature), peak)
    return [known[feature] for feature in features if feature in known]
