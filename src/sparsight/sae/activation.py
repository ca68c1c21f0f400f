"""From pre-activations to features. With `pre = x · w_enc + b_enc`, every pointwise activation is one formula:

    feature = relu(gain · pre + shift)   where pre > threshold,   else 0

    relu        gain 1         shift 0                       threshold 0
    jumprelu    gain 1         shift 0                       threshold per feature (Rajamanoharan et al. 2024b)
    batchtopk   gain 1         shift 0                       threshold learned in training (Bussmann et al. 2024)
    gated       gain exp(r)    shift b_mag − exp(r) · b_enc  threshold 0 (Rajamanoharan et al. 2024a)

`topk` (Gao et al. 2024) is the odd one: which features pass depends on all the others of the same token.
"""

import torch
from jaxtyping import Float
from torch import Tensor

ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu", "gated")


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


def topk(pre: Float[Tensor, "*token feature"], k: int) -> Float[Tensor, "*token feature"]:
    """Keep the k largest pre-activations of each token that are above zero."""
    strongest = pre.topk(min(k, pre.shape[-1]), dim=-1)
    return torch.zeros_like(pre).scatter(-1, strongest.indices, torch.relu(strongest.values))
