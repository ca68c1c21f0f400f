"""Mixing rows as they come, in a buffer that is allocated once.

Rows are drawn from windows of so many rows, in the order in which they came: a window is permuted as a whole, by the
seed. What a batch frees is filled again at once, with rows of the next window, so that two windows take the memory of
one. Row k of the next window goes where the k-th drawn row lay: the order never depends on how the pieces were cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsight.errors import BadInput, Mismatch
from sparsight.shards.manifest import whole
from sparsight.shards.order import permutation

Piece = Mapping[str, Tensor]
"""Columns of the same tokens: {hook point: [token, d_in], any other name: [token] or [token, ...]}."""


class ShuffleBuffer:
    """Shuffled batches of activations that come straight from a harvest, without a disk.

    source: (position, piece) pairs; position says, as JSON, from where the source gives this piece again. rows: of the
    buffer, rounded up to whole batches. batch: rows of each batch; the very last may have fewer. seed: of the order.
    state: of an earlier buffer, from state(), with a source that begins at state["position"].
    Memory: the buffer, on the device of the pieces, the piece that came last, and the batch that is given out.

    A state holds no rows. Its window is asked from the source again, which computes up to `rows` rows a second time;
    with the same source, the batches to come are those that would have come, to the bit.
    Raises BadInput where pieces do not match, Mismatch for a state of another buffer. It is iterated once.
    """

    def __init__(
        self,
        source: Iterable[tuple[Any, Piece]],
        rows: int,
        batch: int,
        seed: int = 0,
        state: Mapping[str, Any] | None = None,
        pin: bool = False,
    ) -> None:
        self.batch = whole(batch, 1, 2**40, "batch")
        self.rows = -(-whole(rows, 1, 2**40, "rows") // batch) * batch
        self.seed, self._pin = seed, pin
        self._source = iter(source)
        self._held: dict[str, Tensor] = {}
        self._piece: Piece = {}
        self._length = self._used = 0  # of the piece
        self._position: Any = None
        begin = {"window": 0, "batch": 0, "position": None, "skip": 0}
        self._state = dict(state or {**self._shape(), **begin})
        for name, mine in self._shape().items():
            if self._state.get(name) != mine:
                raise Mismatch(f"The state is of a buffer with {name} {self._state.get(name)}; this one has {mine}.")
        self._skip = self._state["skip"]  # rows at the source's beginning that belong to the window before
        self._first: tuple[Any, int] = (None, 0)  # of the window to come: its piece's position, and the row in it

    def state(self) -> dict[str, Any]:
        """From where to go on after the batch that was given out last: small, and JSON if positions are."""
        return dict(self._state)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        slots = np.arange(self.rows)
        skip = self._state["batch"] * self.batch
        arrived = self._fill(slots, 0, self.rows)
        for window in range(self._state["window"], 2**62):
            if not arrived:
                return
            slots = slots[permutation(arrived, self.seed, window)]
            position, row = self._first
            here = {"window": window, "position": position, "skip": row}
            arrived = 0
            for start in range(0, len(slots), self.batch):
                end = min(start + self.batch, len(slots))
                if start >= skip:
                    out = {name: _taken(held, slots[start:end], self._pin) for name, held in self._held.items()}
                    self._state.update(here, batch=start // self.batch + 1)
                    if end == len(slots) and arrived:
                        position, row = self._first
                        self._state.update(window=window + 1, batch=0, position=position, skip=row)
                    yield out
                    del out
                arrived = self._fill(slots, arrived, end)
            skip = 0

    def _shape(self) -> dict[str, int]:
        return {"rows": self.rows, "size": self.batch, "seed": self.seed}

    def _fill(self, slots: np.ndarray, arrived: int, wanted: int) -> int:
        """Take rows of the next window until `wanted` have arrived or there are no more; how many have."""
        while arrived < wanted and self._more():
            if arrived == 0:
                self._first = (self._position, self._used)
            taken = min(wanted - arrived, self._length - self._used)
            rows = slice(self._used, self._used + taken)
            for name in self._piece:  # by name: a variable would hold the piece while the next is made
                _put(self._held[name], slots[arrived : arrived + taken], self._piece[name][rows])
            self._used += taken
            arrived += taken
        return arrived

    def _more(self) -> bool:
        """Whether the piece has rows left, after the next was asked for where it had none."""
        while self._used == self._length:
            self._piece = {}  # before the next is made: two would be one too many
            try:
                self._position, piece = next(self._source)
            except StopIteration:
                self._used = self._length = 0
                return False
            self._length = len(next(iter(piece.values()))) if piece else 0
            shapes = {name: (column.shape[1:], column.dtype, column.device) for name, column in piece.items()}
            if not self._held:
                for name, (shape, dtype, device) in shapes.items():
                    self._held[name] = torch.empty(self.rows, *shape, dtype=dtype, device=device)
            if shapes != {name: (held.shape[1:], held.dtype, held.device) for name, held in self._held.items()}:
                raise BadInput(f"A piece has {_said(piece)}; those before had {_said(self._held)}.")
            if any(len(column) != self._length for column in piece.values()):
                raise BadInput(f"The columns of a piece have different lengths: {_said(piece)}.")
            self._piece = piece
            self._used = min(self._skip, self._length)
            self._skip -= self._used
        return True


def opaque(rows: Tensor) -> np.ndarray:
    """The same memory, each row as one opaque value, [row]: numpy moves those 2 to 3 times as fast as torch does."""
    size = math.prod(rows.shape[1:]) * rows.element_size()
    return rows.view(-1).view(torch.uint8).numpy().view(f"V{size}")


def _put(held: Tensor, slots: np.ndarray, rows: Tensor) -> None:
    if held.device.type == "cpu":
        opaque(held)[slots] = opaque(rows.detach().contiguous())
    else:
        held.index_copy_(0, torch.from_numpy(slots).to(held.device), rows.detach())


def _taken(held: Tensor, slots: np.ndarray, pin: bool) -> Tensor:
    if held.device.type != "cpu":
        return held.index_select(0, torch.from_numpy(slots).to(held.device))
    out = torch.empty(len(slots), *held.shape[1:], dtype=held.dtype, pin_memory=pin)
    np.take(opaque(held), slots, out=opaque(out), mode="clip")  # "clip" needs no copy of out; no slot is outside
    return out


def _said(columns: Piece) -> str:
    return ", ".join(f"{name} {list(c.shape)} {c.dtype} on {c.device}" for name, c in columns.items()) or "nothing"
