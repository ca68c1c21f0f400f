"""Which rule tells where a feature fires: every sensible choice of parts, judged on the windows that a labeller is shown,
each document as if it had not been seen. The simplest of the best wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from sparsight.label.auc import auc
from sparsight.label.parts import Part, logit, ngrams, table, words
from sparsight.label.rule import Rule
from sparsight.label.sheet import Sheet

CHOICES: dict[tuple[str, ...], float] = {  # parts: AUC that they must be better by than something simpler
    ("folded",): 0.0,
    ("places",): 0.0,
    ("shapes",): 0.005,
    ("languages",): 0.005,
    ("words",): 0.01,
    ("next",): 0.01,
    ("ngrams",): 0.015,
    ("folded", "places"): 0.015,
    ("places", "words"): 0.02,
    ("shapes", "words"): 0.02,
    ("places", "shapes"): 0.02,
    ("folded", "words"): 0.02,
    ("folded", "next"): 0.025,
    ("next", "words"): 0.025,
    ("ngrams", "words"): 0.03,
    ("ngrams", "places"): 0.03,
    ("next", "ngrams"): 0.03,
    ("next", "ngrams", "places", "words"): 0.05,
}
TOKENS_SHARE = 0.3  # of what is judged: telling firing tokens from silent ones; the rest: telling windows
RIDGE = 1.0
STEPS = 8


@dataclass(frozen=True)
class Candidate:
    """A rule, and what it is good for. detection: AUC of telling firing windows from silent ones; fuzzing: of telling
    firing tokens from silent ones in firing windows; both with each document left out. sure: of its words, the standard
    errors that each is from meaning nothing."""

    parts: tuple[str, ...]
    rule: Rule
    detection: float
    fuzzing: float
    worth: float
    sure: Mapping[str, float] = field(default_factory=dict)


def candidates(sheet: Sheet, background: Mapping[str, float]) -> list[Candidate]:
    """Best first. Empty where there is nothing to tell apart."""
    if not sheet.fires_in.any() or sheet.fires_in.all():
        return []
    parts = {
        "folded": table(sheet, sheet.folded, "folded"),
        "shapes": table(sheet, sheet.shapes, "shapes"),
        "places": table(sheet, sheet.places, "places"),
        "languages": table(sheet, sheet.languages, "languages", ""),
        "next": table(sheet, sheet.next, "next", ""),
        "words": words(sheet, background),
        "ngrams": ngrams(sheet),
    }
    useful = {name for name, part in parts.items() if np.ptp(part.score) > 0}
    made = [_candidate(sheet, {name: parts[name] for name in names}, cost)
            for names, cost in CHOICES.items() if useful.issuperset(names)]  # fmt: skip
    return sorted(made, key=lambda one: (-one.worth, len(one.parts), one.parts))


def _candidate(sheet: Sheet, parts: Mapping[str, Part], cost: float) -> Candidate:
    features = np.stack([part.score for part in parts.values()])
    bias, weights = fit(features, sheet.fires)
    score = bias + weights @ features
    detection, fuzzing = measured(sheet, score)
    tables: dict[str, dict] = {}
    for part, weight in zip(parts.values(), weights.tolist(), strict=True):
        for name, entries in part.tables.items() if weight > 0 else ():
            tables[name] = {key: weight * value for key, value in entries.items()}
    sure = parts["words"].sure if "words" in parts else {}
    worth = (1 - TOKENS_SHARE) * detection + TOKENS_SHARE * fuzzing - cost
    return Candidate(tuple(parts), Rule(bias, **tables), detection, fuzzing, worth, sure)


def fit(features: Float[np.ndarray, "part token"], fires: np.ndarray) -> tuple[float, Float[np.ndarray, " part"]]:
    """Logistic regression of firing, with a ridge; bias and weights. A part that would count against itself counts
    nothing."""
    base, weights = float(logit(fires.mean())), np.zeros(len(features))
    kept = np.arange(len(features))
    while len(kept):
        found = _newton(np.concatenate([np.ones((1, features.shape[1])), features[kept]]), fires.astype(float), base)
        if (found[1:] >= 0).all():
            weights[kept] = found[1:]
            return float(found[0]), weights
        kept = kept[found[1:] >= 0]
    return base, weights


def _newton(x: np.ndarray, y: np.ndarray, base: float) -> np.ndarray:
    found = np.concatenate([[base], np.ones(len(x) - 1) / max(len(x) - 1, 1)])
    ridge = RIDGE * np.eye(len(x))
    ridge[0, 0] = 1e-3
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(found @ x, -30, 30)))
        slope = x @ (y - p) - ridge @ found
        found = found + np.linalg.solve((x * (p * (1 - p))) @ x.T + ridge, slope)
        found[1:] = np.clip(found[1:], -5, 5)
    return found


def measured(sheet: Sheet, score: Float[np.ndarray, " token"]) -> tuple[float, float]:
    """Detection and fuzzing of a score of each token; one half where there is nothing to tell."""
    peaks = np.maximum.reduceat(score, sheet.first)
    detection = auc(peaks[sheet.fires_in], peaks[~sheet.fires_in])
    inside = sheet.fires_in[sheet.window]
    found = [each for each in by_window(sheet, score, inside) if not np.isnan(each)]
    return detection, float(np.mean(found)) if found else 0.5


def by_window(sheet: Sheet, score: np.ndarray, inside: np.ndarray) -> list[float]:
    """The AUC of telling firing tokens from silent ones, of each window where both are; in order of the windows."""
    out = []
    ends = np.append(sheet.first[1:], len(sheet))
    for number in np.nonzero(sheet.fires_in)[0]:
        here = slice(sheet.first[number], ends[number])
        fires = sheet.fires[here]
        out.append(auc(score[here][fires], score[here][~fires]))
    return out


