"""Features that point where others do: the cosine of decoder directions, among all features of an SAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsight.errors import BadInput
from sparsight.sae.sae import SparseAutoEncoder

BLOCK = 8192  # decoder rows in float32 at once


@torch.no_grad()
def nearest(sae: SparseAutoEncoder, features: Sequence[int], k: int = 10) -> list[tuple[int, float]]:
    """(feature, cosine) of the k features nearest to a feature, or to the centre of several: the mean of their
    directions, each of length 1. The given ones are left out; of equally near ones the lower index comes first.

    Raises NoFeature, and BadInput for none.
    """
    asked = sae.checked_indices(features)
    if not len(asked) or k < 1:
        raise BadInput("Neighbours of which feature, and how many? Name one feature or more, and a number from 1 up.")
    centre = torch.nn.functional.normalize(sae.W_dec[asked].float(), dim=-1).mean(0)
    centre = centre / centre.norm().clamp_min(1e-12)
    parts = []
    for block in sae.W_dec.split(BLOCK):
        rows = block.float()
        parts.append(rows @ centre / rows.norm(dim=-1).clamp_min(1e-12))
    cosines = torch.cat(parts)
    cosines[asked] = -2.0
    order = cosines.argsort(descending=True, stable=True)[: min(k, len(cosines) - len(asked.unique()))]
    return list(zip(order.tolist(), cosines[order].tolist(), strict=True))
