"""The active features of a batch while it is trained on, as pairs (row, feature)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Row r's pairs are features[offsets[r] : offsets[r + 1]], ascending, and the same slice of pre.

    offsets: int64 [row + 1]; features: int32 [pair]; pre: pre-activations [pair].
    """

    offsets: Int[Tensor, " row_plus_1"]
    features: Int[Tensor, " pair"]
    pre: Float[Tensor, " pair"]

    def __len__(self) -> int:
        return len(self.features)

    @property
    def rows(self) -> Int[Tensor, " pair"]:
        """The row of every pair, int64."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.features))

    def where(self, kept: Bool[Tensor, " pair"]) -> Pairs:
        """Only some of them."""
        before = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
        torch.cumsum(kept, 0, out=before[1:])
        return Pairs(before[self.offsets], self.features[kept], self.pre[kept])


@dataclass(frozen=True)
class Columns:
    """The same pairs in order of feature: those of f are rows, places[starts[f] : starts[f + 1]], ascending by row.

    starts: int64 [feature + 1]; rows: int32 [pair]; places: int32 [pair], which pair of Pairs it is.
    """

    starts: Int[Tensor, " feature_plus_1"]
    rows: Int[Tensor, " pair"]
    places: Int[Tensor, " pair"]


@dataclass(frozen=True)
class More:
    """Gradients of a few features from elsewhere, to be added. features: int64 [some]; enc, dec: [some, d]."""

    features: Int[Tensor, " some"]
    enc: Float[Tensor, "some d_in"]
    dec: Float[Tensor, "some d_out"]
