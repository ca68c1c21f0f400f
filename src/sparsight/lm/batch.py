"""A batch of prompts as the model reads it: rows of token ids, padded on the left, with masks, positions and kinds.

Every pass in sparsight sees left-padded rows: then the last column is every row's newest token, decoding appends to
all rows alike, and a sliding window counts only real tokens. Rows that a caller padded on the right are moved, and
what is read from the pass is moved back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparsight.errors import BadInput
from sparsight.records import Kind


@dataclass(frozen=True)
class Prompt:
    """One row: token ids and what each token is."""

    ids: tuple[int, ...]
    kinds: tuple[Kind, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Place:
    """Where an intervention finds itself: the tokens of this pass, row by row.

    kinds: Kind bits, 0 at padding and in rows that have ended; positions: each token's place in its row, 0 its first;
    prompt: whether these are prompt tokens (else newly written ones); entropy: next-token entropy of the unedited
    model, nats, where asked for.
    """

    kinds: Int[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"]
    prompt: bool
    entropy: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Tokens of one pass. mask covers the cached tokens before them too."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch seen"]
    kinds: Int[Tensor, "batch pos"]
    prompt: bool = True
    even: bool = False  # known to be without padding: then the model needs neither mask nor positions
    order: Int[Tensor, "batch pos"] | None = None  # column of the caller's layout -> column here, where they differ

    @cached_property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Each token's place in its row; 0 at padding."""
        return (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -self.ids.shape[1] :]

    @property
    def place(self) -> Place:
        """What interventions are told."""
        return Place(self.kinds, self.positions, self.prompt)

    @classmethod
    def of_prompts(cls, prompts: Sequence[Prompt], pad: int, device: torch.device) -> Batch:
        """Rows of different lengths, padded on the left."""
        if not prompts:
            raise BadInput("There is no prompt: give at least one.")
        if not all(len(p) for p in prompts):
            raise BadInput("The prompt is empty: there is nothing to read or to go on from.")
        width = max(map(len, prompts))
        ids = [[pad] * (width - len(p)) + list(p.ids) for p in prompts]
        kinds = [[0] * (width - len(p)) + [int(k) for k in p.kinds] for p in prompts]
        mask = [[False] * (width - len(p)) + [True] * len(p) for p in prompts]
        made = [torch.tensor(rows, device=device) for rows in (ids, mask, kinds)]
        return cls(made[0], made[1], made[2], even=min(map(len, prompts)) == width)

    @classmethod
    def of_tensor(cls, ids: Tensor, attention_mask: Tensor | None, seen: Tensor | None, kinds: Tensor | None) -> Batch:
        """A caller's tensors. attention_mask: over these tokens, or over the seen ones and these; of the seen ones
        `seen` is what counts, since they lie in the cache as they were run, not as they were given."""
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise BadInput(f"Token ids are integers, [batch, pos]; given {list(ids.shape)} of {ids.dtype}.")
        ids = ids.to(torch.int64)
        if not ids.numel():
            raise BadInput("The prompt is empty: there is nothing to read or to go on from.")
        here = _mask_here(ids, attention_mask, seen)
        default = torch.full_like(ids, int(Kind.PROMPT | Kind.TEXT))
        kinds = (default if kinds is None else kinds.to(ids.device)) * here
        batch = cls(ids.masked_fill(~here, 0), here, kinds)  # a pad token may lie outside the model's vocabulary
        if bool((here[:, 1:] < here[:, :-1]).any()):
            batch = batch._left()
        return batch if seen is None else batch.after(seen)

    def after(self, seen: Bool[Tensor, "batch cached"]) -> Batch:
        """The same tokens behind cached ones."""
        if len(seen) != len(self.ids):
            raise BadInput(f"The cache holds {len(seen)} rows; this batch has {len(self.ids)}.")
        return replace(self, mask=torch.cat([seen.to(self.mask.device), self.mask], -1), even=False)

    def _left(self) -> Batch:
        """The same rows with all padding moved to the left."""
        forward = self.mask.to(torch.int8).argsort(dim=-1, stable=True)
        back = forward.argsort(-1)
        ids, mask, kinds = (t.gather(-1, forward) for t in (self.ids, self.mask, self.kinds))
        return Batch(ids, mask, kinds, self.prompt, order=back)

    def as_given(self, flow: Tensor) -> Tensor:
        """What flowed in this pass, [batch, pos, ...], in the caller's own layout."""
        if self.order is not None and flow.shape[:2] != self.order.shape:
            given = f"[{', '.join(map(str, flow.shape))}]"
            raise BadInput(f"What flows there, {given}, has no token axis, so right padding cannot be kept: pad left.")
        return flow if self.order is None else _columns(flow, self.order)

    def as_run(self, flow: Tensor) -> Tensor:
        """The way back."""
        return flow if self.order is None else _columns(flow, self.order.argsort(-1))


def as_tensor(numbers: Any) -> Any:
    """Lists of numbers of equal length, such as a tokenizer gives, as a tensor; anything else as it is."""
    try:
        return numbers if isinstance(numbers, (Tensor, str)) else torch.as_tensor(numbers)
    except (TypeError, ValueError, RuntimeError):
        return numbers


def _mask_here(ids: Tensor, attention_mask: Tensor | None, seen: Tensor | None) -> Bool[Tensor, "batch pos"]:
    """Which of these tokens are real."""
    if attention_mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    rows, width = ids.shape
    widths = {width} if seen is None else {width, seen.shape[1] + width}
    full = attention_mask.unsqueeze(0) if attention_mask.ndim == 1 else attention_mask
    if full.ndim != 2 or len(full) != rows or full.shape[1] not in widths:
        fits = " or ".join(f"[{rows}, {w}]" for w in sorted(widths))
        raise BadInput(f"The attention_mask must be {fits}; it is {list(attention_mask.shape)}.")
    here = full[:, -width:].to(device=ids.device, dtype=torch.bool)
    if not here.any(-1).all():
        raise BadInput("A row of the batch is all padding.")
    return here


def _columns(flow: Tensor, order: Tensor) -> Tensor:
    index = order.to(flow.device).reshape(*order.shape, *[1] * (flow.ndim - 2))
    return flow.gather(1, index.expand(-1, -1, *flow.shape[2:]))
