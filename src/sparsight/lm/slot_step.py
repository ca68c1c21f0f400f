"""One decode step over the first rows of some slots: eagerly, or as a compiled graph for each number of rows.

A compiled step is made for a number of rows and of places (a power of two each), and has buffers of its own, like the
one of compiled.py; with fewer rows than that the last ones are idle: their kind is 0, so no edit acts there, and what
they write lies in slots that nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.errors import BadInput, NotReached
from sparsight.lm.compiled import compiler_options, cpp_compiler, grouped_heads, own_code
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.lm.slots import Slots
from sparsight.lm.tap import grafted, tapped

SHORTEST = 256  # places that the smallest compiled step looks at; the others look at four times as many as the last


@runtime_checkable
class Table(Protocol):
    """What acts in a step: see scope/table.py."""

    @property
    def is_first(self) -> bool: ...
    def acts(self, rows: int) -> bool: ...
    def part(self, rows: int) -> Mapping[str, Tensor]: ...
    def apply(self, flow: Tensor, kinds: Tensor, positions: Tensor, entropy: Tensor | None) -> Tensor: ...
    def pass_by(self, kinds: Tensor) -> None: ...


class SlotSteps:
    """Steps over slots, with a table of edits at a hook point.

    table: None for the unedited model. compiled: numbers of rows that compiled steps are made for; others run eagerly,
    and so does a step whose table has outgrown the buffers that it began with.
    """

    def __init__(
        self,
        lm: ObservableLanguageModel,
        slots: Slots,
        hook_point: str,
        table: Table | None,
        compiled: Sequence[int] = (),
    ):
        self.lm, self.slots, self.hook_point, self.table = lm, slots, hook_point, table
        self.sizes = sorted(set(compiled))
        self.made: dict[tuple[int, int], CompiledSlotStep] = {}
        if self.sizes and lm.device.type == "cpu" and not cpp_compiler():
            raise BadInput("No C++ compiler was found: install g++ or clang, or write eagerly (compiled=False).")

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self,
        ids: Int[Tensor, " row"],
        positions: Int[Tensor, " row"],
        kinds: Int[Tensor, " row"],
        longest: int,
        entropy: Float[Tensor, " row"] | None = None,
        read: bool = False,
    ) -> tuple[Float[Tensor, "row vocabulary"], Float[Tensor, "row d"] | None]:
        """(logits of each row, the hook point's residual before any edit, where it is asked for).

        positions: where each row's token stands; longest: the highest of them, and one. kinds: 0 where nothing acts.
        """
        size = next((s for s in self.sizes if s >= len(ids)), None)
        if size is not None and (self.table is None or self.table.is_first):
            step = self.step(size, longest)
            return step(ids, positions, kinds, entropy, read)
        return self._eager(ids, positions, kinds, longest, entropy, read)

    def step(self, size: int, longest: int) -> CompiledSlotStep:
        """The compiled step for so many rows and places; compiled at its first run."""
        width = next(w for w in self.widths if w >= longest)
        if (size, width) not in self.made:
            self.made[size, width] = CompiledSlotStep(self, size, width)
        return self.made[size, width]

    @property
    def widths(self) -> list[int]:
        """How many places compiled steps look at."""
        widths, width = [], SHORTEST
        while width < self.slots.capacity:
            widths.append(width)
            width *= 4
        return [*widths, self.slots.capacity]

    def _eager(
        self, ids: Tensor, positions: Tensor, kinds: Tensor, longest: int, entropy: Tensor | None, read: bool
    ) -> tuple[Tensor, Tensor | None]:
        seen: list[Tensor] = []

        def tap(flow: Tensor) -> Tensor | None:
            if read:
                seen.append(flow[:, 0].clone())
            if self.table is None:
                return None
            if not self.table.acts(len(flow)):
                self.table.pass_by(kinds.unsqueeze(1))
                return None
            self.table.part(len(flow))
            nats = None if entropy is None else entropy.unsqueeze(1)
            return self.table.apply(flow, kinds.unsqueeze(1), positions.unsqueeze(1), nats)

        with self.lm.turn, tapped(self.lm.model, {self.hook_point: [tap]}):
            logits = forward(self.lm, self.slots, ids, positions, longest)
        return logits, seen[0] if seen else None


class CompiledSlotStep:
    """One graph, for so many rows that look at so many places."""

    @torch.inference_mode(False)
    def __init__(self, of: SlotSteps, rows: int, width: int):
        self.of, self.lm, self.rows, self.width = of, of.lm, rows, width
        numbers = {"dtype": torch.int64, "device": of.lm.device}
        self.ids, self.positions, self.kinds = (torch.zeros(rows, **numbers) for _ in range(3))
        self.flowed = torch.zeros((), **numbers)
        self.entropy = torch.zeros(rows, 1, device=of.lm.device)
        self.read = torch.zeros(rows, of.lm.width(of.hook_point), dtype=of.lm.dtype, device=of.lm.device)
        self.cache = of.slots.view(self.positions, width)
        self.proved = False
        edits = [] if of.table is None else list(of.table.part(rows).values())
        buffers = [self.ids, self.positions, self.kinds, self.flowed, self.entropy, self.read]
        for tensor in (*buffers, *edits, *of.slots.keys, *of.slots.values):
            torch._dynamo.mark_static_address(tensor)
        told = compiler_options(of.lm.device)
        self._graph: Callable[[], Tensor] = torch.compile(
            own_code(self._step), fullgraph=True, dynamic=False, options=told
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self, ids: Tensor, positions: Tensor, kinds: Tensor, entropy: Tensor | None, read: bool
    ) -> tuple[Tensor, Tensor | None]:
        rows = len(ids)
        for mine, given in ((self.ids, ids), (self.positions, positions), (self.kinds, kinds)):
            mine.zero_()
            mine[:rows].copy_(given)
        self.entropy.zero_()
        if entropy is not None:
            self.entropy[:rows, 0].copy_(entropy)
        with self.lm.turn, grafted(self.lm.model, {self.of.hook_point: self._tap}), grouped_heads():
            logits = self._graph()
        if not self.proved:
            if int(self.flowed) != 1:
                raise NotReached(f"The compiled step ran past its hook point ({self.of.hook_point}).")
            self.proved = True
        return logits[:rows].clone(), self.read[:rows].clone() if read else None

    def _step(self) -> Tensor:
        return forward(self.lm, self.of.slots, self.ids, self.positions, self.width, self.cache)

    def _tap(self, flow: Tensor) -> Tensor:
        self.flowed.add_(1)
        self.read.copy_(flow[:, 0])
        if self.of.table is None:
            return flow
        return self.of.table.apply(flow, self.kinds.unsqueeze(1), self.positions.unsqueeze(1), self.entropy)


def forward(
    lm: ObservableLanguageModel, slots: Slots, ids: Tensor, positions: Tensor, width: int, cache: Any = None
) -> Float[Tensor, "row vocabulary"]:
    """The pass: one token per row, each of which sees its own row up to itself."""
    places = torch.arange(width, device=positions.device)
    out = lm.model(
        input_ids=ids.unsqueeze(1),
        attention_mask=(places <= positions.unsqueeze(1)).to(torch.int64),
        position_ids=positions.unsqueeze(1),
        use_cache=True,
        **{lm.cache_word: slots.view(positions, width) if cache is None else cache},
    )
    return out.logits[:, -1]
