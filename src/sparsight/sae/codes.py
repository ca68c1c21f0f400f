"""Codes: the sparse form of features. Of each token, only the active (feature, value) pairs.

Stored as compressed rows: token t's pairs are `features[offsets[t]:offsets[t + 1]]` and the same slice of `values`,
ascending by feature. 91 active features of 65,536 take 0.7 KB a token; the dense row takes 131 KB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.errors import BadInput, NoFeature
from sparsight.records import is_whole


@dataclass(frozen=True, eq=False)
class Codes:
    """Active features of some tokens.

    offsets: int64 [token + 1]; features: int32 [active]; values: float [active], above zero; d_hidden: how many
    features the SAE has. All three tensors live on one device.
    """

    offsets: Int[Tensor, " token_plus_1"]
    features: Int[Tensor, " active"]
    values: Float[Tensor, " active"]
    d_hidden: int

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "token feature"]) -> Codes:
        """The non-zero entries of a dense matrix."""
        token, feature = dense.nonzero(as_tuple=True)
        return cls.from_pairs(token, feature, dense[token, feature], *dense.shape)

    @classmethod
    def from_pairs(
        cls,
        token: Int[Tensor, " active"],
        feature: Int[Tensor, " active"],
        value: Float[Tensor, " active"],
        tokens: int,
        d_hidden: int,
    ) -> Codes:
        """From (token, feature, value) triples in any order.

        Raises NoFeature for a feature, BadInput for a token outside, for a pair that occurs twice, and for a value
        that is not above zero.
        """
        if not (value > 0).all():
            raise BadInput("Active features have values above zero: leave the others out.")
        for index, end in ((token, tokens), (feature, d_hidden)):
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < end:
                worst = int(index.min()) if int(index.min()) < 0 else int(index.max())
                raise BadInput(no_token(worst, end)) if index is token else NoFeature(no_feature(worst, end))
        place = token.long() * d_hidden + feature
        if not (place.diff() > 0).all():
            place, order = place.sort()
            if (place.diff() == 0).any():
                twice = int(place[:-1][place.diff() == 0][0])
                raise BadInput(f"Feature {twice % d_hidden} of token {twice // d_hidden} is given twice.")
            feature, value = feature[order], value[order]
        offsets = torch.zeros(tokens + 1, dtype=torch.int64, device=token.device)
        offsets[1:] = torch.bincount(token, minlength=tokens).cumsum(0)
        return cls(offsets, feature.to(torch.int32), value, d_hidden)

    @classmethod
    def joined(cls, parts: Sequence[Codes]) -> Codes:
        """The tokens of all parts, one after the other: at least one part, all of the same SAE."""
        if len({part.d_hidden for part in parts}) != 1:
            raise BadInput(f"Codes of one SAE are joined, not of {sorted({part.d_hidden for part in parts})} features.")
        lengths = torch.cat([parts[0].offsets[:1], *(part.offsets.diff() for part in parts)])
        features, values = torch.cat([p.features for p in parts]), torch.cat([p.values for p in parts])
        return cls(lengths.cumsum(0), features, values, parts[0].d_hidden)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Codes({len(self)} tokens, {len(self.values)} active of {self.d_hidden:,} features, L0 {self.l0:.1f})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        pairs = ((self.offsets, other.offsets), (self.features, other.features), (self.values, other.values))
        return self.d_hidden == other.d_hidden and all(torch.equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]

    @property
    def l0(self) -> float:
        """Mean number of active features per token."""
        return len(self.values) / max(len(self), 1)

    @property
    def tokens(self) -> Int[Tensor, " active"]:
        """The token of every pair."""
        return torch.repeat_interleave(self.offsets.diff())

    def at(self, token: int) -> list[tuple[int, float]]:
        """One token's (feature, value) pairs, strongest first. Negative tokens count from the end."""
        row = self[token]
        strongest = row.values.argsort(descending=True, stable=True)
        return list(zip(row.features[strongest].tolist(), row.values[strongest].tolist(), strict=True))

    def __getitem__(self, token: int | slice) -> Codes:
        """The codes of one token or of a run of tokens. Negative tokens count from the end."""
        if not isinstance(token, slice):
            token = int(token)
            if not -len(self) <= token < len(self):
                raise BadInput(no_token(token, len(self)))
            token = slice(token % len(self), token % len(self) + 1)
        start, stop, step = token.indices(len(self))
        if step != 1:
            raise BadInput("Codes are sliced in runs: the step must be 1.")
        stop = max(start, stop)
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        offsets = self.offsets[start : stop + 1] - low
        return Codes(offsets, self.features[low:high], self.values[low:high], self.d_hidden)

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        """Each token's (feature, value) pairs, strongest first."""
        return (self.at(token) for token in range(len(self)))

    def top(self, k: int) -> Codes:
        """The k strongest features of each token; ties go to the lower index."""
        if k < 1:
            raise BadInput(f"top() takes 1 or more, not {k}.")
        tokens = self.tokens
        by_strength = self.values.argsort(descending=True, stable=True)
        by_token = by_strength[tokens[by_strength].argsort(stable=True)]
        rank = torch.arange(len(by_token), device=tokens.device) - self.offsets[:-1][tokens[by_token]]
        kept = by_token[rank < k].sort().values
        offsets = torch.zeros_like(self.offsets)
        offsets[1:] = torch.bincount(tokens[kept], minlength=len(self)).cumsum(0)
        return Codes(offsets, self.features[kept], self.values[kept], self.d_hidden)

    def dense(self) -> Float[Tensor, "token feature"]:
        """The dense matrix: for small ones only."""
        out = self.values.new_zeros(len(self), self.d_hidden)
        out[self.tokens, self.features.long()] = self.values
        return out

    def of(self, feature: int) -> Float[Tensor, " token"]:
        """One feature's value at every token."""
        if not is_whole(feature):
            raise BadInput(f"A feature is named by its index, a whole number, not by {feature!r}.")
        if not 0 <= feature < self.d_hidden:
            raise NoFeature(no_feature(feature, self.d_hidden))
        out = self.values.new_zeros(len(self))
        hit = self.features == feature
        out[self.tokens[hit]] = self.values[hit]
        return out

    def strongest(self, k: int) -> list[tuple[int, float]]:
        """The k features with the highest value anywhere: (feature, its highest value), highest first."""
        if k < 1:
            raise BadInput(f"strongest() takes 1 or more, not {k}.")
        features, where = self.features.unique(return_inverse=True)
        peak = torch.zeros(len(features), dtype=self.values.dtype, device=self.values.device)
        peak = peak.scatter_reduce(0, where, self.values, "amax")
        order = peak.argsort(descending=True, stable=True)[:k]
        return list(zip(features[order].tolist(), peak[order].tolist(), strict=True))

    def to(self, device: torch.device | str) -> Codes:
        """The same codes on another device."""
        return Codes(self.offsets.to(device), self.features.to(device), self.values.to(device), self.d_hidden)


def no_token(token: int, tokens: int) -> str:
    """The sentence for a token index outside some Codes."""
    return f"No token {token}: there are {tokens:,} (0 to {tokens - 1})." if tokens else f"No token {token}: none here."


def no_feature(feature: int, d_hidden: int) -> str:
    """The sentence for a feature index outside an SAE."""
    return f"No feature {feature}: this SAE has {d_hidden:,} (0 to {d_hidden - 1})."
