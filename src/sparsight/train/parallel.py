"""Several processes that train one SAE: each has a part of the tokens, a part of the features, or both.

    rank = data rank · `features` + feature rank

Processes with the same data rank read the same tokens and hold different features; those with the same feature rank
hold the same features and read different tokens. What one process alone would do is what they do together, but for
the order in which floating-point sums are taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sparsight.errors import BadInput
from sparsight.train.pairs import Pairs
from sparsight.train.plain import Plain

if TYPE_CHECKING:
    from sparsight.train.objective import Work

LOWER = 0.95  # of the least value that was kept: the guess at the next step's
SOME = 64  # rows that the very first guess is made from


class Team:
    """The processes of a run: alone by default.

    features: how many processes share one dictionary. Raises BadInput where the number of processes is no multiple.
    """

    def __init__(self, features: int = 1) -> None:
        ready = dist.is_available() and dist.is_initialized()
        self.world = dist.get_world_size() if ready else 1
        self.rank = dist.get_rank() if ready else 0
        if features < 1 or self.world % features:
            raise BadInput(f"{self.world} processes cannot share dictionaries in teams of {features}: no multiple.")
        self.features, self.data = features, self.world // features
        self.data_rank, self.feature_rank = divmod(self.rank, features)
        self._same_data = self._same_features = None
        if self.world > 1:  # every process takes part in making every group
            for d in range(self.data):
                group = dist.new_group([d * features + f for f in range(features)])
                self._same_data = group if d == self.data_rank else self._same_data
            for f in range(features):
                group = dist.new_group([d * features + f for d in range(self.data)])
                self._same_features = group if f == self.feature_rank else self._same_features

    @classmethod
    def from_environment(cls, device: torch.device, features: int = 1) -> Team:
        """The team that torchrun made, or a process alone. Of several on "cuda" each gets a GPU of its own."""
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(features)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def over_tokens(self, *tensors: Tensor) -> None:
        """Sum, in place, over the processes with other tokens."""
        for tensor in tensors if self.data > 1 else ():
            dist.all_reduce(tensor, group=self._same_features)

    def over_features(self, *tensors: Tensor) -> None:
        """Sum, in place, over the processes with other features."""
        for tensor in tensors if self.features > 1 else ():
            dist.all_reduce(tensor, group=self._same_data)

    def rows(self, tensor: Tensor) -> Tensor:
        """The rows of all processes with other tokens, one after another."""
        if self.data == 1:
            return tensor
        out = [torch.empty_like(tensor) for _ in range(self.data)]
        dist.all_gather(out, tensor.contiguous(), group=self._same_features)
        return torch.cat(out)

    def all_features(self, tensor: Tensor) -> Tensor:
        """The rows of all processes with other features, one after another; equally many each."""
        if self.features == 1:
            return tensor
        out = [torch.empty_like(tensor) for _ in range(self.features)]
        dist.all_gather(out, tensor.contiguous(), group=self._same_data)
        return torch.cat(out)

    def decode(
        self, do: Plain, pairs: Pairs, values: Tensor, weight: Tensor, bias: Tensor, target: Tensor, ends: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Plain.decode, where each process knows the pairs of its own features."""
        if self.features == 1:
            return do.decode(pairs, values, weight, bias, target, ends)
        zero = torch.zeros_like
        shown = [zero(target)]
        parts = do.decode(pairs, values, weight, zero(bias), zero(target), ends)[0]
        for g in range(len(ends)):  # err[g] = Σ_{m ≥ g} of what groups up to m decode
            shown.append(parts[g] - (parts[g + 1] if g + 1 < len(ends) else zero(target)))
        x_hat = torch.stack(shown[1:])
        self.over_features(x_hat)
        errors = x_hat + bias - target
        err = errors.flip(0).cumsum(0).flip(0)
        return err, do.dots(pairs, err, ends, weight), errors.square().flatten(1).double().sum(-1)

    def strongest(self, work: Work, k: int) -> tuple[Pairs, float]:
        """The k strongest pairs of each token, and the next guess at the bound."""
        bias, bound = work.weights["b_enc"], work.bound
        if not bound:  # the first step: a guess from a few rows
            some = work.pre[:SOME].to(bias.dtype) + bias
            last = some.topk(min(k, some.shape[1])).values[:, -1]
            bound = LOWER * _nth_lowest(last, len(last) // 10)
        pairs = work.refined(work.do.candidates(work.pre, bias, k, bound))
        pairs, bounds = self.pruned(work.do, pairs, k)
        return pairs, LOWER * _nth_lowest(bounds, len(bounds) // 50)

    def pruned(self, do: Plain, pairs: Pairs, k: int) -> tuple[Pairs, Tensor]:
        """Of each token the k strongest pairs, of all features wherever they are; and the k-th."""
        pairs, bounds = do.strongest(pairs, k)
        if self.features == 1:
            return pairs, bounds
        lengths = pairs.offsets.diff()
        mine = pairs.pre.new_full((len(lengths), k), -torch.inf)
        place = torch.arange(len(pairs), device=mine.device) - pairs.offsets[:-1][pairs.rows]
        mine[pairs.rows, place] = pairs.pre
        out = [torch.empty_like(mine) for _ in range(self.features)]
        dist.all_gather(out, mine, group=self._same_data)
        bounds = torch.cat(out, 1).topk(k).values[:, -1]
        return pairs.where(pairs.pre >= bounds[pairs.rows]), bounds

    def strongest_of_all(self, work: Work, count: int) -> tuple[Pairs, float]:
        """The `count` strongest pairs of the whole batch, and the next guess at the bound."""
        for bound in self._bounds(work, count):
            pairs = work.above(torch.full_like(work.norms, bound))
            total = torch.tensor(len(pairs), device=pairs.pre.device)
            if self.world > 1:
                dist.all_reduce(total)
            if int(total) > count or bound <= 0:
                break
        if int(total) <= count:
            return pairs, 0.0
        least = self.nth(pairs.pre, count)
        return pairs.where(pairs.pre >= least), LOWER * least

    def _bounds(self, work: Work, count: int) -> Iterator[float]:
        """Guesses at the bound, each for where the one before was too high."""
        if work.bound:
            yield work.bound
        yield self._guess(work, count)
        yield 0.0

    def _guess(self, work: Work, count: int) -> float:
        """A guess at the bound, from a few rows: without one, half of all pairs would be taken for candidates."""
        some = work.pre[:SOME].to(work.norms.dtype) + work.weights["b_enc"]
        wanted = 2 * count * len(some) // (work.tokens * self.features)  # twice as many: rows differ
        least = LOWER * _nth_lowest(some.flatten(), max(some.numel() - max(wanted, 1), 0))
        if self.world > 1:
            told = torch.tensor(least, device=some.device)
            dist.all_reduce(told, dist.ReduceOp.MIN)
            least = float(told)
        return max(least, 0.0)

    def nth(self, values: Tensor, n: int) -> float:
        """The n-th highest value of all processes'; 0 where there are fewer above it."""
        each = [values]
        if self.world > 1:
            length = torch.tensor([len(values)], device=values.device)
            lengths = [torch.empty_like(length) for _ in range(self.world)]
            dist.all_gather(lengths, length)
            padded = values.new_full((int(max(lengths)),), -torch.inf)
            padded[: len(values)] = values
            each = [torch.empty_like(padded) for _ in range(self.world)]
            dist.all_gather(each, padded)
        every = torch.cat(each)
        return max(_nth_lowest(every, len(every) - n), 0.0) if n <= len(every) else 0.0


def _nth_lowest(values: Tensor, n: int) -> float:
    """The n-th lowest value, from 0 up. On a GPU without a copy of them all."""
    if values.device.type == "cpu":
        return float(np.partition(values.numpy(), n)[n])
    return float(values.sort().values[n])
