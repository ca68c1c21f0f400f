"""What the edits of rows do to a pass: the maths of steering, for whoever holds the buffers (see layout.py).

    decode(f') + (x − decode(f))  =  x + (f' − f) @ W_dec

At a token the slots' activations are computed, conditions read them, edits change them, and the difference times the
decoder rows is added to the residual. Nothing branches on a value, so it can be traced into a graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsight.sae.activation import CHOOSING, FeatureRows, evaluate, pick
from sparsight.sae.sae import ENCODE_MEMORY, SparseAutoEncoder
from sparsight.scope.layout import Buffers, Shape


class Effect(NamedTuple):
    """Of a pass. out: [batch, pos, d_in], what flows on, in its own dtype and on its own device. touched: [batch, pos],
    bool; share: [batch, pos], |change| / |residual|, 0 where untouched; happened: [batch, pos, event], bool, the events
    that hold; edited: [batch, pos, slot], bool, the features that were changed."""

    out: Tensor
    touched: Tensor
    share: Tensor
    happened: Tensor
    edited: Tensor


class Changes(NamedTuple):
    """before, change: [batch, pos, slot], activations before any edit, and what is added to them. on: [batch, pos,
    want], which edits and events hold. size: what normalisation took off; None where it takes nothing."""

    before: Tensor
    change: Tensor
    on: Tensor
    size: Tensor | None


def effect(
    b: Buffers,
    features: FeatureRows,
    shape: Shape,
    sae: SparseAutoEncoder,
    flow: Float[Tensor, "batch pos d_in"],
    kinds: Int[Tensor, "batch pos"],
    positions: Int[Tensor, "batch pos"],
    entropy: Float[Tensor, "batch pos"] | None = None,
) -> Effect:
    """Edits as the buffers say, on the SAE's device. features: the buffers' features (see layout.feature_rows), which a
    graph does not take apart itself."""
    home = flow.device
    x = flow.to(device=sae.device, dtype=b["encoder"].dtype)
    kinds, positions = kinds.to(sae.device), positions.to(sae.device)
    _, change, on, size = changes(b, features, shape, sae, x, kinds, positions, entropy)
    delta = change @ b["decoder"]
    delta = delta if size is None else delta * size
    edited = change != 0
    edits = edited.any(-1, keepdim=True)
    out = torch.where(edits, (x + delta).to(flow.dtype), flow.to(sae.device))
    moved = torch.where(edits, out.to(x.dtype) - x, torch.zeros_like(x))  # as it is after rounding
    touched = (moved != 0).any(-1)
    share = moved.norm(dim=-1) / x.norm(dim=-1).clamp_min(torch.finfo(x.dtype).tiny)
    share = torch.where(touched, share, torch.zeros_like(share))
    return Effect(out.to(home), touched, share, on[..., shape.depth * shape.slots :], edited)


def changes(
    b: Buffers,
    features: FeatureRows,
    shape: Shape,
    sae: SparseAutoEncoder,
    x: Float[Tensor, "batch pos d_in"],
    kinds: Int[Tensor, "batch pos"],
    positions: Int[Tensor, "batch pos"],
    entropy: Float[Tensor, "batch pos"] | None = None,
) -> Changes:
    """What the edits would do to the features at x, without doing it; all on the SAE's device but the entropy."""
    read, _, size = sae.normalize(x)
    if sae.config.activation in CHOOSING:
        width = max(1024, ENCODE_MEMORY // (16 * x.shape[0] * x.shape[1]))  # a long prompt is encoded in parts
        a = pick(*sae.strongest(read.to(sae.dtype), width), b["index"].unsqueeze(1)).to(x.dtype)
    else:
        a = evaluate(read, features)
    on = _on(b, a, kinds, positions, None if entropy is None else entropy.to(sae.device))
    after, n, depths = a, shape.slots, shape.depth
    for depth in range(depths):
        changed = b["factor"][:, None, depth] * after + b["shift"][:, None, depth]
        after = torch.where(on[..., depth * n : (depth + 1) * n], changed, after)
    meant = on[..., :n] if depths == 1 else on[..., : depths * n].unflatten(-1, (depths, n)).any(-2)
    change = torch.where(meant, after - a, torch.zeros_like(a))
    return Changes(a, change, on, size)


def tally(b: Buffers, kinds: Int[Tensor, "batch pos"], done: Effect) -> None:
    """Adds a pass to the receipts' numbers, in place."""
    saw(b, kinds)
    b["touched"] += done.touched.sum(-1)
    b["ratio"] += done.share.sum(-1)
    if b["fired"].shape[-1]:
        b["fired"] |= done.happened.any(1)


def saw(b: Buffers, kinds: Int[Tensor, "batch pos"]) -> None:
    """The same for a pass in which nothing acts."""
    b["seen"] += (kinds.to(b["seen"].device) != 0).sum(-1)


def _on(
    b: Buffers, a: Float[Tensor, "batch pos slot"], kinds: Tensor, positions: Tensor, entropy: Tensor | None
) -> Bool[Tensor, "batch pos want"]:
    """Which edits and events hold at which token."""
    kind, want = kinds.unsqueeze(-1), b["kinds"].unsqueeze(1)
    on = ((kind & want) != 0) & ((kind & b["spared"].unsqueeze(1)) == 0)
    if b["positions"].shape[-1]:
        named = (positions[:, :, None, None] == b["positions"].unsqueeze(1)).any(-1)
        on = on | (named & (kind != 0))
    if b["constant"].shape[-1]:
        lost = ~(b["clause"].unsqueeze(1) & _literals(b, a).unsqueeze(2)).any(-1)
        on = on & ~(b["needs"].unsqueeze(1) & lost.unsqueeze(2)).any(-1)
    elif b["needs"].shape[-1]:  # clauses without a comparison: the empty OR, which never holds
        on = on & ~b["needs"].any(-1).unsqueeze(1)
    if entropy is not None:
        nats = entropy.unsqueeze(-1)
        on = on & (nats >= b["low"].unsqueeze(1)) & (nats <= b["high"].unsqueeze(1))
    return on


def _literals(b: Buffers, a: Float[Tensor, "batch pos slot"]) -> Bool[Tensor, "batch pos literal"]:
    """Which comparisons hold, on the activations before any edit."""
    left, right = _side(b, 0, a), _side(b, 1, a) + b["constant"].unsqueeze(1)
    less, equal, greater = b["compare"].unsqueeze(1).unbind(2)
    return ((left < right) & less) | ((left == right) & equal) | ((left > right) & greater)


def _side(b: Buffers, which: int, a: Float[Tensor, "batch pos slot"]) -> Float[Tensor, "batch pos literal"]:
    """What the left (0) or right (1) sides of the comparisons read."""
    index, floor, gain = (b[name][:, which].unsqueeze(1) for name in ("side", "side_floor", "side_gain"))
    value = a.gather(-1, index.expand(-1, a.shape[1], -1))
    return torch.where(value < floor, torch.zeros_like(value), value) * gain
