"""Sorting many whole numbers, which a survey does at every pass."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.sae.codes import Codes


def ordered(key: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The same numbers, ascending. On a CPU by numpy, which has vector instructions for it."""
    return torch.from_numpy(np.sort(key.numpy())) if key.device.type == "cpu" else key.sort().values


def by_feature(codes: Codes) -> tuple[Int[Tensor, " active"], Int[Tensor, " active"], Float[Tensor, " active"]]:
    """(feature, token, activation) of all active pairs by feature, then by token; activations in float32.

    Where feature and token take 31 bits together, the 32 of the activation are sorted with them as one number: that
    costs less than sorting, and then gathering in the order that was found.
    """
    tokens, value = len(codes), codes.values.to(torch.float32)
    key = codes.features.long() * tokens + codes.tokens
    if tokens * codes.d_hidden <= 2**31:
        key = ordered((key << 32) | value.view(torch.int32).long())
        value = (key & 0xFFFFFFFF).to(torch.int32).view(torch.float32)
        key = key >> 32
    else:
        key, order = key.sort()
        value = value[order]
    return key // tokens, key % tokens, value
