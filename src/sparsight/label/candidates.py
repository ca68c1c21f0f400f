"""Which rule tells where a feature fires: every sensible choice of parts, judged on the windows that a labeller is
shown, each document as if it had not been seen. The simplest of the best wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from sparsight.label.auc import auc
from sparsight.label.evidence import Background
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
    ("later",): 0.015,
    ("later", "places"): 0.025,
    ("folded", "later"): 0.025,
    ("later", "words"): 0.025,
    ("later", "ngrams"): 0.035,
    ("later", "places", "words"): 0.035,
    ("next", "ngrams", "places", "words"): 0.05,
    ("later", "next", "ngrams"): 0.045,
    ("later", "ngrams", "places", "words"): 0.05,
}
TOKENS_SHARE = 0.3  # of what is judged: telling firing tokens from silent ones; the rest: telling windows
RIDGE = 1.0
STEPS = 12


@dataclass(frozen=True)
class Candidate:
    """A rule, and what it is good for. detection: AUC of telling firing windows from silent ones; fuzzing: of telling
    firing tokens from silent ones in firing windows; both with each document left out. telling: of what the feature's
    texts have had ("words") and have to come ("later"), whether the rule weighs it or not: words by what each tells."""

    parts: tuple[str, ...]
    rule: Rule
    detection: float
    fuzzing: float
    worth: float
    telling: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def candidates(sheet: Sheet, background: Background) -> list[Candidate]:
    """Best first. Empty where there is nothing to tell apart."""
    if not sheet.fires_in.any() or sheet.fires_in.all():
        return []
    parts = {
        "folded": table(sheet, sheet.folded, "folded"),
        "shapes": table(sheet, sheet.shapes, "shapes"),
        "places": table(sheet, sheet.places, "places"),
        "languages": table(sheet, sheet.languages, "languages", ""),
        "next": table(sheet, sheet.next, "next", ""),
        "words": words(sheet, "words", sheet.words, background.words),
        "later": words(sheet, "later", sheet.later, background.later),
        "ngrams": ngrams(sheet),
    }
    useful = {name for name, part in parts.items() if np.ptp(part.score) > 0}
    telling = {name: parts[name].telling for name in ("words", "later")}
    made = [_candidate(sheet, {name: parts[name] for name in names}, cost, telling)
            for names, cost in CHOICES.items() if useful.issuperset(names)]  # fmt: skip
    return sorted(made, key=lambda one: (-one.worth, len(one.parts), one.parts))


def _candidate(
    sheet: Sheet, parts: Mapping[str, Part], cost: float, telling: Mapping[str, Mapping[str, float]]
) -> Candidate:
    features = np.stack([part.score for part in parts.values()])
    bias, weights = fit(features, sheet.fires)
    score = bias + weights @ features
    detection, fuzzing = measured(sheet, score)
    tables: dict[str, dict] = {}
    for part, weight in zip(parts.values(), weights.tolist(), strict=True):
        bias += weight * part.zero
        for name, entries in part.tables.items() if weight > 0 else ():
            tables[name] = {key: weight * value for key, value in entries.items()}
    worth = (1 - TOKENS_SHARE) * detection + TOKENS_SHARE * fuzzing - cost
    return Candidate(tuple(parts), Rule(bias, **tables), detection, fuzzing, worth, telling)


def fit(features: Float[np.ndarray, "part token"], fires: np.ndarray) -> tuple[float, Float[np.ndarray, " part"]]:
    """Logistic regression of firing, with a ridge; bias and weights. A part that would count against itself counts
    nothing."""
    base, weights = float(logit(fires.mean())), np.zeros(len(features))
    spread = features.std(1)
    kept = np.nonzero(spread > 0)[0]
    while len(kept):
        x = np.concatenate([np.ones((1, features.shape[1])), features[kept] / spread[kept, None]])
        found = _newton(x, fires.astype(np.float64), np.concatenate([[base], spread[kept]]))
        if (found[1:] >= 0).all():
            weights[kept] = found[1:] / spread[kept]
            return float(found[0]), weights
        kept = kept[found[1:] >= 0]
    return base, weights


def _newton(x: np.ndarray, y: np.ndarray, found: np.ndarray) -> np.ndarray:
    """From a first guess: each part's log-odds as they are. Steps are bounded: where firing can be told without error,
    the odds have no maximum."""
    ridge = RIDGE * np.eye(len(x))
    ridge[0, 0] = 1e-3
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(found @ x, -30, 30)))
        step = np.linalg.solve((x * (p * (1 - p))) @ x.T + ridge, x @ (y - p) - ridge @ found)
        found = found + np.clip(step, -2, 2)
        if abs(step).max() < 0.01:
            break
    return found


def measured(sheet: Sheet, score: Float[np.ndarray, " token"]) -> tuple[float, float]:
    """Detection and fuzzing of a score of each token; one half where there is nothing to tell. On the fair sample of
    where it fires, as far as there is one: the strongest are easier than most."""
    peaks = np.maximum.reduceat(score, sheet.first)
    found = sheet.within(score)
    return auc(peaks[sheet.fair], peaks[~sheet.fires_in]), float(found.mean()) if len(found) else 0.5
