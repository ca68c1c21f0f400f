"""Steering: controllers compiled for the rows of a batch, ready to run inside a pass.

With the SAE's error term added back, the card's formula needs only the edited features:

    decode(f') + (x − decode(f))  =  x + (f' − f) @ W_dec

So each row holds slots, one per feature that its controller names: encoder row, bias, decoder row (layout.py), and a
pass computes with these alone (effect.py). k features cost O(k · d_in) a token; the rest of the SAE is not touched (a
topk or groupmax SAE must be encoded whole, to know what passes). Shapes are fixed, nothing branches on values: a decode
step can be compiled, and other edits are other numbers in the same buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.edits import Controller
from sparsight.errors import BadInput, Mismatch
from sparsight.lm.batch import Place
from sparsight.records import Receipt
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.scope.effect import Effect, effect, saw, tally
from sparsight.scope.layout import (
    TALLY,
    Buffers,
    Shape,
    blank,
    blank_features,
    feature_rows,
    fill_features,
    fill_row,
    prepared,
)
from sparsight.scope.program import Program
from sparsight.wire import fingerprint


@dataclass(frozen=True)
class Steered:
    """One row: what is wanted of it, flattened, and which of its events were told already."""

    controller: Controller
    program: Program
    prompt_length: int
    told: set[str] = field(default_factory=set)

    @property
    def acts(self) -> bool:
        return bool(self.program.changes or self.program.events)


class Steering:
    """One controller per row, as tensors. Implements sparsight.lm.lm.Placed; use one object for one generation.

    prompt_lengths: tokens of each row's prompt, which positions like -1 count from.
    """

    def __init__(
        self,
        sae: SparseAutoEncoder,
        controllers: Sequence[Controller],
        prompt_lengths: Sequence[int],
        hook_point: str | None = None,
    ):
        self.sae, self.controllers = sae, list(controllers)
        self.hook_point = hook_point or sae.config.hook_point or "?"
        programs = [prepared(sae, *of) for of in zip(controllers, prompt_lengths, strict=True)]
        self.steered = [Steered(*of) for of in zip(controllers, programs, prompt_lengths, strict=True)]
        self.rows = len(programs)
        self.acts = any(row.acts for row in self.steered)
        self.touches_prompt = any(p.touches_prompt for p in programs)
        self.needs_entropy = any(p.needs_entropy for p in programs)
        self.shape = Shape.of(programs)
        self.b = buffers(sae, self.rows, self.shape, list(enumerate(self.steered)))
        self.features = feature_rows(self.b)

    # ── in a pass ────────────────────────────────────────────────────────────────────────────────────────────────

    def edit(self, activations: Float[Tensor, "batch pos d_in"], place: Place) -> Tensor:
        """What shall flow on. With nothing to do, the very same tensor."""
        if activations.shape[0] != self.rows:
            raise BadInput(f"Compiled for {self.rows} rows, given {activations.shape[0]}.")
        if activations.shape[-1] != self.sae.d_in:
            gives = f"'{self.hook_point}' of this model gives {activations.shape[-1]:,}"
            raise Mismatch(f"This SAE reads {self.sae.d_in:,} numbers; {gives}.")
        if self.needs_entropy and place.entropy is None:
            raise BadInput("Entropy bounds need the unedited model's pass beside: use scope.chat or scope.complete.")
        if not self.acts or (place.prompt and not self.touches_prompt):
            saw(self.b, place.kinds)
            return activations
        return self.apply(activations, place.kinds, place.positions, place.entropy)

    def apply(
        self,
        flow: Float[Tensor, "batch pos d_in"],
        kinds: Int[Tensor, "batch pos"],
        positions: Int[Tensor, "batch pos"],
        entropy: Float[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_in"]:
        """The maths of effect.py, and the tally for the receipts; no Python branch on a value."""
        return self.act(flow, kinds, positions, entropy).out

    def act(self, flow: Tensor, kinds: Tensor, positions: Tensor, entropy: Tensor | None = None) -> Effect:
        """The same, told token by token."""
        done = effect(self.b, self.features, self.shape, self.sae, flow, kinds, positions, entropy)
        tally(self.b, kinds.to(self.sae.device), done)
        return done

    # ── what it did ──────────────────────────────────────────────────────────────────────────────────────────────

    def receipt(self, row: int) -> Receipt:
        """What was done to a row so far."""
        return receipt(self.b, row, self.controllers[row], self.hook_point)

    def new_events(self, row: int) -> list[str]:
        """Names of the events that came true in this row since this was last asked; each is told once."""
        if not self.steered[row].program.events:
            return []
        return new_events(self.steered[row], self.b["fired"][row].tolist())

    # ── for compiled steps: the same shapes, other numbers ───────────────────────────────────────────────────────

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for two steerings that may use the same buffers."""
        shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in sorted(self.b.items()))
        return (self.sae.fingerprint, str(self.sae.device), str(self.sae.dtype), self.shape, shapes)

    def twin(self) -> Steering:
        """A steering of the same shape with buffers of its own, which stay where they are."""
        out = object.__new__(Steering)
        out.__dict__.update(self.__dict__)
        out.b = {name: t.clone() for name, t in self.b.items()}
        out.features = feature_rows(out.b)
        return out

    def load(self, other: Steering) -> None:
        """Take over another's numbers, in place; until `hand_back`, the other reads its tally here."""
        for name, tensor in self.b.items():
            tensor.copy_(other.b[name])
        other.b |= {name: self.b[name] for name in TALLY}

    def hand_back(self, other: Steering) -> None:
        """Give the one whose numbers were loaded a tally of its own again."""
        other.b |= {name: self.b[name].clone() for name in TALLY}


@torch.inference_mode(False)  # buffers that a pass writes into, whatever the caller's mode then
@torch.no_grad()
def buffers(sae: SparseAutoEncoder, rows: int, shape: Shape, steered: Sequence[tuple[int, Steered]]) -> Buffers:
    """Buffers for so many rows, with (row, what is wanted of it) written into them; the other rows want nothing."""
    narrow = blank(shape, rows, sae, torch.device("cpu"))
    for row, one in steered:
        fill_row(narrow, row, shape, one.program, one.prompt_length)
    out = {name: tensor.to(sae.device) for name, tensor in narrow.items()} | blank_features(shape, rows, sae)
    fill_features(out, sae, [(row, one.program) for row, one in steered])
    return out


def receipt(b: Buffers, row: int, controller: Controller, hook_point: str) -> Receipt:
    """What was done to a row, by its tally."""
    seen, touched, ratio = torch.stack([b[name][row].double() for name in ("seen", "touched", "ratio")]).tolist()
    return Receipt(fingerprint(controller), hook_point, int(touched), int(seen), ratio / touched if touched else 0.0)


def new_events(row: Steered, fired: Sequence[bool]) -> list[str]:
    """Names of events that came true by now and were not told yet, which they then are."""
    events = row.program.events
    names = [event.name for event, hit in zip(events, fired, strict=False) if hit and event.name not in row.told]
    row.told.update(names)
    return list(dict.fromkeys(names))
