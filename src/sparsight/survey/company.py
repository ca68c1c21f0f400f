"""Which features fire together, from the activation log.

    PMI(a, b) = log2( p(a, b) / (p(a) p(b)) )        bits, over tokens

Of each feature those with the highest are told, among those that share enough tokens with it for that to mean
something.
Two features are duplicates where their decoder directions are nearly one and they fire on the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sparsight.atlas.log import ActivationLog

TOGETHER = 5  # tokens that two features share, at least
SHARE = 0.05  # of a feature's fires that are shared, at least
LIKE = 0.95  # cosine of decoder directions from which on two may be duplicates
SAME = 0.5  # tokens where both fire, of those where either does, from which on they are
ENTRIES = 2**24  # of a block that is counted at once
READ = 2**25  # activations that are held at once; beyond that, the first documents stand for all

Pairs = list[tuple[int, float]]


def coactive(log: ActivationLog, k: int, device: torch.device | str = "cpu") -> Iterator[Pairs]:
    """Of each feature, in order: (feature, PMI), highest first."""
    tokens = log.tokens if len(log) <= READ else int(log.tokens * READ / len(log))
    read = [log.inside(feature)[0] for feature in range(log.features)]
    read = [places[: np.searchsorted(places, tokens)] for places in read]
    counts = torch.tensor([len(places) for places in read], device=device)
    token = torch.from_numpy(np.concatenate(read)).to(device)
    feature = torch.repeat_interleave(torch.arange(len(read), device=device, dtype=torch.int32), counts)
    order = token.argsort(stable=True)
    by_token, lengths = feature[order], token.bincount(minlength=tokens)
    starts = lengths.cumsum(0) - lengths
    begin = 0
    for block in _blocks(counts, token, lengths):
        here = token[begin : begin + int(counts[block].sum())]
        mine = feature[begin : begin + len(here)].long() - block.start
        begin += len(here)
        joint = _joint(here, mine, len(counts[block]), by_token, lengths, starts, len(counts))
        yield from _best(joint, block.start, counts, tokens, k)


def _blocks(counts: Tensor, token: Tensor, lengths: Tensor) -> Iterator[slice]:
    """Runs of features whose pairs, and whose counts with all others, are held at once."""
    work = torch.zeros(len(counts) + 1, dtype=torch.int64)
    ends = counts.cumsum(0).cpu()
    pairs = torch.cat([lengths.new_zeros(1), lengths[token].cumsum(0)]).cpu()
    work[1:] = pairs[ends]
    most, start = max(1, ENTRIES // len(counts)), 0
    while start < len(counts):
        stop = int(torch.searchsorted(work, work[start] + ENTRIES, right=True)) - 1
        stop = min(max(stop, start + 1), start + most, len(counts))
        yield slice(start, stop)
        start = stop


def _joint(
    token: Tensor, row: Tensor, rows: int, by_token: Tensor, lengths: Tensor, starts: Tensor, features: int
) -> Int[Tensor, "row feature"]:
    """At how many tokens each of some features fires together with each of all."""
    many = lengths[token]
    ends = many.cumsum(0)
    inside = torch.arange(int(ends[-1]) if len(ends) else 0, device=token.device)
    inside -= torch.repeat_interleave(ends - many - starts[token], many)
    key = torch.repeat_interleave(row * features, many) + by_token[inside]
    return key.bincount(minlength=rows * features).view(rows, features)


def _best(joint: Int[Tensor, "row feature"], first: int, counts: Tensor, tokens: int, k: int) -> Iterator[Pairs]:
    mine = counts[first : first + len(joint)].unsqueeze(1)
    enough = (joint >= TOGETHER) & (joint >= SHARE * mine)
    own = torch.arange(len(joint), device=joint.device)
    enough[own, own + first] = False
    ratio = joint.double() * tokens / (mine * counts.unsqueeze(0)).clamp(min=1)
    pmi = torch.where(enough, ratio.log2(), -torch.inf)
    value, index = pmi.topk(min(k, pmi.shape[1]), dim=1)
    for features, bits in zip(index.tolist(), value.tolist(), strict=True):
        yield [(feature, bit) for feature, bit in zip(features, bits, strict=True) if bit > -np.inf]


def duplicates(log: ActivationLog, near: Sequence[Pairs]) -> dict[int, int]:
    """{feature: the one it does the same as}: of two, the one that fires less, or the later."""
    found: dict[int, tuple[float, int]] = {}
    for feature, pairs in enumerate(near):
        for other, cosine in pairs:
            if log is None or cosine <= LIKE or (other < feature and any(f == feature for f, _ in near[other])):
                continue
            a, b = log.inside(feature)[0], log.inside(other)[0]
            both = len(np.intersect1d(a, b, assume_unique=True))
            if both < max(TOGETHER, SAME * (len(a) + len(b) - both)):
                continue
            more, less = sorted((feature, other), key=lambda f: (-log.fires_in(f), f))
            if cosine > found.get(less, (0.0, 0))[0]:
                found[less] = (cosine, more)
    return {feature: other for feature, (_, other) in sorted(found.items())}
