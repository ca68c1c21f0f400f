"""How far two samples of many numbers lie apart, number by number: two matrices, [chat, feature] each."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import Missing

Sample = Float[Tensor, "chat feature"]
OfEach = Float[Tensor, " feature"]


def auc(one: Float[Tensor, "one feature"], other: Float[Tensor, "other feature"], paired: bool = False) -> OfEach:
    """P(one > other) + P(equal) / 2, over all pairs of chats; paired: over the pairs that belong together."""
    if paired:
        return ((one > other).float() + 0.5 * (one == other)).mean(0)
    order = other.T.contiguous().sort(dim=-1).values
    sought = one.T.contiguous()
    below, upto = (torch.searchsorted(order, sought, right=right) for right in (False, True))
    return (below + upto).double().mean(-1).float() / (2 * len(other))


def deviation(one: Float[Tensor, "one feature"], other: Float[Tensor, "other feature"], paired: bool = False) -> OfEach:
    """The pooled standard deviation; paired: that of the differences. 0 where there is one chat of each alone."""
    if paired:
        return (one - other).std(0) if len(one) > 1 else torch.zeros(one.shape[1])
    squares = sum(((side - side.mean(0)) ** 2).sum(0) for side in (one, other))
    assert isinstance(squares, Tensor)
    return (squares / max(len(one) + len(other) - 2, 1)).sqrt()


def log_odds(fires: OfEach, chats: int, other_fires: OfEach, other_chats: int) -> OfEach:
    """Of firing in a chat of one side against the other, half a chat added to every count (Haldane, Anscombe)."""
    odds = (fires + 0.5) / (chats - fires + 0.5)
    return (odds / ((other_fires + 0.5) / (other_chats - other_fires + 0.5))).log()


def p_values(one: Float[Tensor, "one feature"], other: Float[Tensor, "other feature"], paired: bool) -> np.ndarray:
    """Two-sided, [feature]: Mann and Whitney's; Wilcoxon's signed ranks for pairs. Raises Missing without scipy."""
    stats = scipy_stats()
    if not one.shape[1]:
        return np.zeros(0)
    if paired:
        return np.asarray(
            stats.wilcoxon((one - other).double().numpy(), zero_method="zsplit", method="approx", axis=0).pvalue
        )
    return np.asarray(stats.mannwhitneyu(one.double().numpy(), other.double().numpy(), axis=0).pvalue)


def q_values(p: np.ndarray) -> np.ndarray:
    """The false discovery rate at which each is found, by Benjamini and Hochberg (1995)."""
    return np.asarray(scipy_stats().false_discovery_control(np.clip(p, 0.0, 1.0))) if len(p) else p


def scipy_stats() -> ModuleType:
    """scipy.stats, or Missing."""
    try:
        from scipy import stats
    except ImportError as error:
        raise Missing("scipy is not installed: pip install 'sparsight[evaluate]'.") from error
    return stats
