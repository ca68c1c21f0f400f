"""What an SAE is, beside its weights; and the hash of both, by which labels and edits know it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsight.errors import BadInput
from sparsight.sae.activation import ACTIVATIONS, CHOOSING

NORMALIZATIONS = ("none", "layer_norm", "constant_norm")


@dataclass(frozen=True)
class SaeConfig:
    """What an SAE is, beside its weights.

    normalization: what is done to x before encoding and undone after decoding. "layer_norm": subtract the token's
    mean, divide by its standard deviation; "constant_norm": scale the token to norm sqrt(d_in). A fixed scale for
    all tokens needs no word here: readers fold it into the weights.

    d_out, hook_point_out: of a transcoder, which predicts what hook_point_out holds from what hook_point does. d_out
    given makes it one, where it is d_in too; unsaid, it becomes d_in where the two hook points differ. A transcoder
    undoes no normalization.
    skip: x_hat has x @ W_skipᵀ added (Paulo et al. 2025).
    """

    d_in: int
    d_hidden: int
    activation: str = "relu"
    k: int | None = None
    apply_b_dec_to_input: bool = False
    normalization: str = "none"
    model: str | None = None
    model_revision: str | None = None
    hook_point: str | None = None
    d_out: int | None = None
    hook_point_out: str | None = None
    skip: bool = False
    notes: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.d_out is None and self.hook_point_out not in (None, self.hook_point):
            object.__setattr__(self, "d_out", self.d_in)
        for name in ("d_in", "d_hidden") if self.d_out is None else ("d_in", "d_hidden", "d_out"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise BadInput(f"{name} must be a whole number above zero, not {getattr(self, name)!r}.")
        for name in ("model", "model_revision", "hook_point", "hook_point_out"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise BadInput(f"{name} is a name, or unsaid, not {getattr(self, name)!r}.")
        if self.activation not in ACTIVATIONS:
            raise BadInput(f"No activation {self.activation!r}. There are: {', '.join(ACTIVATIONS)}.")
        if self.normalization not in NORMALIZATIONS:
            raise BadInput(f"No normalization {self.normalization!r}. There are: {', '.join(NORMALIZATIONS)}.")
        if self.activation in CHOOSING and not (type(self.k) is int and 0 < self.k <= self.d_hidden):
            raise BadInput(f"A {self.activation} SAE needs k between 1 and {self.d_hidden}, not {self.k}.")
        if self.activation == "groupmax" and self.d_hidden % (self.k or 1):
            raise BadInput(f"groupmax needs groups of one size: k {self.k} does not divide {self.d_hidden} features.")
        if self.apply_b_dec_to_input and self.width_out != self.d_in:
            raise BadInput(f"b_dec has {self.width_out} numbers: it cannot be subtracted from an input of {self.d_in}.")

    @property
    def width_out(self) -> int:
        """How many numbers it writes: d_out, or d_in."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def transcoder(self) -> bool:
        """Whether it writes another thing than it reads."""
        return self.d_out is not None


def content_hash(config: SaeConfig, tensors: dict[str, Tensor]) -> str:
    """16 hex digits of a SHA-256 over what the SAE computes: activation, k, normalisation, and every weight's bytes."""
    digest = hashlib.sha256()
    k = config.k if config.activation in CHOOSING else None
    said = (config.activation, k, config.apply_b_dec_to_input, config.normalization)
    digest.update(repr((*said, "transcoder") if config.transcoder else said).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
