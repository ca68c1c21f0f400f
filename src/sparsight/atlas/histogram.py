"""The histogram of a feature's activations: fixed bins on a log scale, and quantiles from them.

Bin b holds what lies between 2^(-14 + b/16) and 2^(-14 + (b + 1)/16); the first and the last also what lies beyond.
With bins that are the same for everybody, histograms of parts of a text add up to that of the whole, exactly and in any
order; and a quantile, told as the middle of its bin, is off by at most 2.2 % (DDSketch: Masson, Rim, Lee 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

LOWEST, PER_DOUBLING, BINS = -14, 16, 448
GROWTH = 2 ** (1 / PER_DOUBLING)
ERROR = (GROWTH - 1) / (GROWTH + 1)
"""The largest relative error of a quantile, where it lies between 2^-14 and 2^14."""
QUANTILES = (0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999)


def edge(bin: int) -> float:
    """The least activation of a bin, and the largest of the one before it."""
    return 2.0 ** (LOWEST + bin / PER_DOUBLING)


def middle(bin: Int[np.ndarray, ...] | int) -> Float[np.ndarray, ...]:
    """The activation that is within ERROR of everything in a bin: of two edges, the one with the same ratio to both."""
    return 2.0 ** (LOWEST + np.asarray(bin) / PER_DOUBLING) * 2 * GROWTH / (GROWTH + 1)


def quantiles(
    counts: Int[np.ndarray, "feature bin"], highest: Float[np.ndarray, " feature"], shares: Sequence[float] = QUANTILES
) -> Float[np.ndarray, "feature share"]:
    """The activations of whose order those shares lie below, as numpy's "lower" method has it; never above `highest`,
    each feature's largest. Zero where a feature has no counts."""
    below = counts.cumsum(1)
    total = below[:, -1]
    out = np.zeros((len(counts), len(shares)))
    for column, share in enumerate(shares):
        rank = np.floor(share * np.maximum(total - 1, 0)).astype(np.int64)
        out[:, column] = np.minimum(middle((below <= rank[:, None]).sum(1)), highest)
    return np.where(total[:, None] > 0, out, 0.0)


def dense(histogram: Mapping[int, int]) -> Int[np.ndarray, " bin"]:
    """The counts of all bins, from Statistics.histogram."""
    out = np.zeros(BINS, np.int64)
    for bin, count in histogram.items():
        out[bin] = count
    return out
