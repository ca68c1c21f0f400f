"""From pre-activations to features. With `pre = x · w_enc + b_enc`, every pointwise activation is one formula:

    feature = relu(gain · pre + shift)   where pre > threshold,   else 0

    relu        gain 1         shift 0                       threshold 0
    jumprelu    gain 1         shift 0                       threshold per feature (Rajamanoharan et al. 2024b)
    batchtopk   gain 1         shift 0                       threshold learned in training (Bussmann et al. 2024)
    gated       gain exp(r)    shift b_mag − exp(r) · b_enc  threshold 0 (Rajamanoharan et al. 2024a)

Two are odd: which features pass depends on the others of the same token. `topk` (Gao et al. 2024): the k largest.
`groupmax` (EleutherAI's sparsify): of each of k groups of neighbours, d_hidden / k features each, the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CHOOSING = ("topk", "groupmax")  # the odd ones
ACTIVATIONS = ("relu", *CHOOSING, "batchtopk", "jumprelu", "gated")


def pointwise(
    pre: Float[Tensor, "*token feature"],
    threshold: Float[Tensor, "*#token feature"] | None = None,
    gain: Float[Tensor, "*#token feature"] | None = None,
    shift: Float[Tensor, "*#token feature"] | None = None,
) -> Float[Tensor, "*token feature"]:
    """The formula above; an argument that is None takes no part (threshold 0, gain 1, shift 0)."""
    value = pre if gain is None else gain * pre
    value = torch.relu(value if shift is None else value + shift)
    if threshold is not None:
        return value * (pre > threshold)
    return value if gain is None and shift is None else value * (pre > 0)


def passing(
    pre: Float[Tensor, "token feature"], threshold: Float[Tensor, " feature"] | None = None
) -> tuple[Int[Tensor, " active"], Int[Tensor, " active"]]:
    """(token, feature) of all that is not below its threshold (0), in order; of what is no number, too."""
    below = pre <= (0 if threshold is None else threshold)
    if below.device.type == "cpu":  # numpy searches a mask several times as fast as torch
        place = torch.from_numpy(np.flatnonzero(np.logical_not(below.numpy())))
    else:
        place = (~below).flatten().nonzero().squeeze(-1)
    return place // pre.shape[-1], place % pre.shape[-1]


def largest(
    pre: Float[Tensor, "*token feature"], k: int
) -> tuple[Float[Tensor, "*token top"], Int[Tensor, "*token top"]]:
    """(values, indices) of the k largest entries, largest first; of equal ones, the lower index comes first.

    torch.topk picks freely among equals, and in bf16 many are equal: the same token would have other features when
    it is encoded in blocks. So one integer per entry is sorted: the float's order above, the place below.
    """
    k = min(k, pre.shape[-1])
    if pre.dtype == torch.float64:  # no room for both in 64 bits
        values, indices = pre.sort(dim=-1, descending=True, stable=True)
        return values[..., :k], indices[..., :k]
    bits = pre.detach().float().view(torch.int32)
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32  # as integers, floats below zero run backwards
    order |= torch.arange(pre.shape[-1] - 1, -1, -1, device=pre.device)
    indices = order.topk(k, dim=-1).indices
    return pre.gather(-1, indices), indices


def groupmax(
    pre: Float[Tensor, "*token feature"], groups: int
) -> tuple[Float[Tensor, "*token group"], Int[Tensor, "*token group"]]:
    """(values, indices) of the largest entry of each group of neighbours; of equal ones, the first."""
    values, place = pre.unflatten(-1, (groups, -1)).max(dim=-1)
    return values, place + torch.arange(groups, device=pre.device) * (pre.shape[-1] // groups)


@dataclass(frozen=True)
class FeatureRows:
    """All that is needed to compute, and to change, a few features without the rest of the SAE; float32 at least.

    encoder: [..., feature, d_in]; decoder: [..., feature, d_out]; bias, threshold, gain, shift: [..., feature], as
    at the top of this file, with the subtraction of b_dec folded into the bias.
    """

    encoder: Tensor
    decoder: Tensor
    bias: Tensor
    threshold: Tensor
    gain: Tensor
    shift: Tensor


def evaluate(x: Float[Tensor, "*token d_in"], rows: FeatureRows) -> Float[Tensor, "*token k"]:
    """Features of normalised x from their rows alone, in the rows' dtype: [*token, d_in] with [..., k, d_in]."""
    pre = x.to(rows.encoder.dtype) @ rows.encoder.transpose(-1, -2) + rows.bias
    return pointwise(pre, rows.threshold, rows.gain, rows.shift)


def pick(
    values: Float[Tensor, "*token top"], indices: Int[Tensor, "*token top"], wanted: Int[Tensor, "*#token k"]
) -> Float[Tensor, "*token k"]:
    """Of each token's (value, feature index) pairs, the values of the wanted features; 0 for one that is not there."""
    hit = indices.unsqueeze(-2) == wanted.unsqueeze(-1)
    return (hit * values.unsqueeze(-2)).sum(-1)
