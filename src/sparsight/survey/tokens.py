"""Which tokens a feature fires on: the heaviest of them, counted in fixed memory.

A summary of k counters for each feature (Misra, Gries 1982): where more tokens come than there are counters, the count
of the (k + 1)-th heaviest is taken off all, and what is then at zero goes. A count is never too high, and too low by at
most the feature's fires / (k + 1). Two summaries add up to one of both, with the same bound (Agarwal et al. 2012,
Mergeable summaries), though not to the same one in any order.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from sparsight.survey.order import ordered

NOTHING = 2**63 - 1


class TopTokens:
    """id, count: int32 [feature, k]; a count of 0 is nobody's. What comes is collected first, and counted when there is
    as much of it as there are counters, or a million."""

    def __init__(self, features: int, counters: int, device: torch.device | str = "cpu") -> None:
        self.id = torch.zeros(features, counters, dtype=torch.int32, device=device)
        self.count = torch.zeros(features, counters, dtype=torch.int32, device=device)
        self.waiting: list[Tensor] = []
        self.most = max(2**20, features * counters)

    @staticmethod
    def bytes_of(features: int, counters: int) -> int:
        """With what waits: int64 of (feature, token)."""
        return features * counters * 8 + 8 * max(2**20, features * counters)

    def add(self, feature: Int[Tensor, " active"], id: Int[Tensor, " active"]) -> None:
        """These features fired on these tokens."""
        self.waiting.append((feature << 32) | id)
        if sum(map(len, self.waiting)) >= self.most:
            self.settle()

    def settle(self) -> None:
        """Count what waits."""
        if self.waiting:
            key = ordered(torch.cat(self.waiting))
            self.waiting = []
            start = _starts(key)
            count = torch.diff(start, append=start.new_tensor([len(key)]))
            self._take(key[start], count)

    def merge(self, other: TopTokens) -> None:
        """Add another's counts, settled like these."""
        feature, column = (other.count > 0).nonzero(as_tuple=True)
        self._take((feature << 32) | other.id[feature, column], other.count[feature, column].long())

    def _take(self, key: Int[Tensor, " pair"], count: Int[Tensor, " pair"]) -> None:
        features, counters = self.count.shape
        feature, column = (self.count > 0).nonzero(as_tuple=True)
        key = torch.cat([(feature << 32) | self.id[feature, column].long(), key])
        count = torch.cat([self.count[feature, column].long(), count])
        key, by = key.sort(stable=True)
        start = _starts(key)
        group = torch.zeros_like(key)
        group[start[1:]] = 1
        total = torch.zeros(len(start), dtype=torch.int64, device=key.device).index_add_(0, group.cumsum(0), count[by])
        key = key[start]
        feature = key >> 32
        heavy = total.argsort(descending=True, stable=True)  # of the same count, the lower id first
        heavy = heavy[feature[heavy].argsort(stable=True)]
        feature, key, total = feature[heavy], key[heavy], total[heavy]
        first = torch.searchsorted(feature, torch.arange(features, device=key.device))
        rank = torch.arange(len(key), device=key.device) - first[feature]
        off = torch.zeros(features, dtype=torch.int64, device=key.device)
        off[feature[rank == counters]] = total[rank == counters]
        kept = (rank < counters) & (total > off[feature])
        self.id.zero_()
        self.count.zero_()
        self.id[feature[kept], rank[kept]] = (key[kept] & 0xFFFFFFFF).to(torch.int32)
        self.count[feature[kept], rank[kept]] = (total - off[feature])[kept].to(torch.int32)


def _starts(key: Int[Tensor, " pair"]) -> Int[Tensor, " group"]:
    """Where each run of the same key begins, in sorted keys."""
    new = torch.ones_like(key, dtype=torch.bool)
    new[1:] = key[1:] != key[:-1]
    return new.nonzero().squeeze(1)
