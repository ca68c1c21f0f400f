"""The area under the ROC curve, and an interval for it that knows which windows are of the same document.

    AUC = P(score of a firing one > score of a silent one) + P(equal) / 2

Where scores are only yes and no this is the balanced accuracy; whoever always says the same gets one half.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float

from sparsight.atlas.entries import Score

Scores = Float[np.ndarray, " window"]


def wins(firing: Scores, silent: Scores) -> Float[np.ndarray, "firing silent"]:
    """1 where the firing one scores higher, 1/2 where they are equal, else 0."""
    difference = firing[:, None] - silent[None, :]
    return (difference > 0) + 0.5 * (difference == 0)


def auc(firing: Scores, silent: Scores) -> float:
    """By ranks: in n log n. NaN where there is none of either sort."""
    if not len(firing) or not len(silent):
        return float("nan")
    order = np.sort(silent)
    below, upto = np.searchsorted(order, firing, "left"), np.searchsorted(order, firing, "right")
    return float((below + upto).mean() / (2 * len(silent)))


def with_interval(
    firing: Scores, silent: Scores, documents: tuple[np.ndarray, np.ndarray], draws: int, seed: int
) -> Score:
    """The AUC with its 95 % interval from `draws` bootstrap draws of documents. documents: of the firing ones, and of
    the silent ones."""
    value, number = auc(firing, silent), len(firing) + len(silent)
    if not draws:
        return Score(value, None, None, number)
    _, which = np.unique(np.concatenate(documents), return_inverse=True)
    many = int(which.max()) + 1
    drawn = _drawn(many, draws, seed)
    of_firing, of_silent = drawn[:, which[: len(firing)]], drawn[:, which[len(firing) :]]
    pairs = of_firing.sum(1) * of_silent.sum(1)
    found = ((of_firing @ wins(firing, silent)) * of_silent).sum(1)[pairs > 0]
    if not len(found):
        return Score(value, None, None, number)
    low, high = np.quantile(found / pairs[pairs > 0], [0.025, 0.975])
    return Score(value, float(min(low, value)), float(max(high, value)), number)


def mean_with_interval(values: Scores, documents: np.ndarray, draws: int, seed: int) -> Score:
    """The mean of one number a window, likewise."""
    value = float(values.mean())
    if not draws:
        return Score(value, None, None, len(values))
    _, which = np.unique(documents, return_inverse=True)
    many = int(which.max()) + 1
    drawn = _drawn(many, draws, seed)[:, which]
    total = drawn.sum(1)
    found = (drawn @ values)[total > 0] / total[total > 0]
    low, high = np.quantile(found, [0.025, 0.975])
    return Score(value, float(low), float(high), len(values))


@lru_cache(4)  # the same documents are drawn for each score of a feature
def _drawn(many: int, draws: int, seed: int) -> Float[np.ndarray, "draw document"]:
    """How often each of so many documents is in each bootstrap draw."""
    which = np.random.default_rng(seed).integers(many, size=(draws, many)) + many * np.arange(draws)[:, None]
    return np.bincount(which.ravel(), minlength=draws * many).reshape(draws, many).astype(np.float64)
