"""Which rule tells where a feature fires: every sensible choice of parts, judged on the windows that a labeller is
shown, each document as if it had not been seen. The simplest of the best wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float

from sparsight.label.auc import auc
from sparsight.label.evidence import Background
from sparsight.label.parts import Part, logit, ngrams, table, words
from sparsight.label.rule import Rule
from sparsight.label.sheet import Sheet

CHOICES: tuple[tuple[str, ...], ...] = (
    ("folded",),
    ("places",),
    ("shapes",),
    ("languages",),
    ("words",),
    ("next",),
    ("ngrams",),
    ("later",),
    ("folded", "places"),
    ("places", "words"),
    ("shapes", "words"),
    ("places", "shapes"),
    ("folded", "words"),
    ("folded", "next"),
    ("next", "words"),
    ("ngrams", "words"),
    ("ngrams", "places"),
    ("next", "ngrams"),
    ("later", "places"),
    ("folded", "later"),
    ("later", "words"),
    ("later", "ngrams"),
    ("folded", "places", "words"),
    ("ngrams", "places", "words"),
    ("later", "places", "words"),
    ("next", "ngrams", "places", "words"),
    ("later", "ngrams", "places", "words"),
)
PART = 0.006  # AUC that a rule must be better by, for each part that it has more than another
FITTED = 8  # of the best choices, that are fitted by regression
TOKENS_SHARE = 0.3  # of what is judged: telling firing tokens from silent ones; the rest: telling windows
RIDGE = 1.0
STEPS, NEAR = 12, 0.03  # of Newton's method at most; a step that is small enough


@dataclass(frozen=True, eq=False)
class Candidate:
    """A rule, and what it is good for. weights: of each part; bias: None where they are a
    discriminant's. detection: AUC of telling firing windows from silent
    ones; fuzzing: of telling firing tokens from silent ones in firing windows; both with each document left out.
    telling: of what the feature's texts have had ("words") and have to come ("later"), whether the rule weighs it or
    not: words by what each tells."""

    sheet: Sheet
    made_of: Mapping[str, Part]
    weights: Float[np.ndarray, " part"]
    bias: float | None
    detection: float
    fuzzing: float
    worth: float
    telling: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.made_of)

    def table(self, name: str) -> Mapping[str, float]:
        """The log-odds of a part of its rule, where that counts."""
        counts = dict(zip(self.made_of, self.weights.tolist(), strict=True)).get(name, 0.0) > 0
        return self.made_of[name].tables[name] if counts else {}

    @cached_property
    def rule(self) -> Rule:
        bias, tables = self.bias or 0.0, {}
        for part, weight in zip(self.made_of.values(), self.weights.tolist(), strict=True):
            bias += weight * part.zero
            for name, entries in part.tables.items() if weight > 0 else ():
                tables[name] = {key: weight * value for key, value in entries.items()}
        return Rule(bias, **tables)

    @cached_property
    def fitted(self) -> Candidate:
        """With the weights of a logistic regression, which tells the odds too."""
        if self.bias is not None:
            return self
        bias, weights = fit(np.stack([part.score for part in self.made_of.values()]), self.sheet.fires)
        return _judged(self.sheet, self.made_of, weights, bias, self.telling)


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
    weights = _discriminants(sheet, {name: parts[name] for name in parts if name in useful})
    made = [_judged(sheet, {name: parts[name] for name in names}, weights(names), None, telling)
            for names in CHOICES if useful.issuperset(names)]  # fmt: skip
    made = [one.fitted if i < FITTED else one for i, one in enumerate(sorted(made, key=_order))]
    return sorted(made, key=_order)


def _order(one: Candidate) -> tuple[float, int, tuple[str, ...]]:
    return -one.worth, len(one.parts), one.parts


def _judged(
    sheet: Sheet,
    parts: Mapping[str, Part],
    weights: Float[np.ndarray, " part"],
    bias: float | None,
    telling: Mapping[str, Mapping[str, float]],
) -> Candidate:
    score = sum(weight * part.score for weight, part in zip(weights.tolist(), parts.values(), strict=True))
    detection, fuzzing = measured(sheet, np.asarray(score))
    worth = (1 - TOKENS_SHARE) * detection + TOKENS_SHARE * fuzzing - PART * (len(parts) - 1)
    return Candidate(sheet, parts, weights, bias, detection, fuzzing, worth, telling)


def _discriminants(sheet: Sheet, parts: Mapping[str, Part]) -> Callable[[Sequence[str]], Float[np.ndarray, " part"]]:
    """Fisher's linear discriminant of some of the parts: nearly as good as a regression, and quick, as all choices
    share one matrix. A part that would count against itself counts nothing."""
    x = np.stack([part.score for part in parts.values()])
    place = {name: i for i, name in enumerate(parts)}
    x = x - x.mean(1, keepdims=True)
    scatter, lean = x @ x.T, x @ (sheet.fires - sheet.fires.mean())
    scatter += np.diag(1e-3 * scatter.diagonal() + 1e-9)

    def weights(names: Sequence[str]) -> Float[np.ndarray, " part"]:
        out, kept = np.zeros(len(names)), list(range(len(names)))
        while kept:
            at = [place[names[i]] for i in kept]
            found = np.linalg.solve(scatter[np.ix_(at, at)], lean[at])
            if (found >= 0).all():
                out[kept] = found
                break
            kept = [i for i, value in zip(kept, found.tolist(), strict=True) if value >= 0]
        return out

    return weights


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
        if abs(step).max() < NEAR:
            break
    return found


def measured(sheet: Sheet, score: Float[np.ndarray, " token"]) -> tuple[float, float]:
    """Detection and fuzzing of a score of each token; one half where there is nothing to tell. On the fair sample of
    where it fires, as far as there is one: the strongest are easier than most."""
    peaks = np.maximum.reduceat(score, sheet.first)
    found = sheet.within(score)
    return auc(peaks[sheet.fair], peaks[~sheet.fires_in]), float(found.mean()) if len(found) else 0.5
