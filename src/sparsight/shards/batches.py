"""Shuffled batches of a store: rows are read in short runs, from all over it, and mixed in a buffer.

    runs       of `block` neighbouring rows are dealt to the ranks, and put into a new order in each epoch
    windows    of `window` rows are filled with runs in that order, and each is permuted as a whole

So a batch holds rows of up to window / block places of the store. Rows of one run share a window in every epoch;
rows of different runs meet only by chance. Any batch of any epoch can be the first that is asked for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from sparsight.errors import BadInput
from sparsight.records import finite
from sparsight.shards.buffer import ShuffleBuffer, opaque
from sparsight.shards.manifest import DTYPES, Manifest, whole
from sparsight.shards.order import is_held_out, key, permutation
from sparsight.shards.read_ahead import read_ahead
from sparsight.shards.shard import TOKENS, Shard, rows_file

SPLITS = (None, "train", "validation")
WINDOW_BYTES, BLOCK_BYTES = 2**29, 2**18
DEAL, EPOCH = 0, 1  # two orders of one seed


class Batches:
    """Rows of a store, each once an epoch: {hook point: [batch, d_in], "index": int64 [batch]}.

    index: the numbers of the rows, for Shards.tokens. The last batch of an epoch may be smaller.

    size: rows of a batch. seed: of all orders. hook_points: those to read, None for all. split: "train", "validation"
    or None for both; held_out: the share of conversations in "validation", chosen by their numbers alone. window,
    block: rows of a window (rounded up to whole batches) and of a run; None for 512 MiB and 256 KiB of them. rank,
    world: which of so many readers this is; each has a part of its own, so that one process that joins the batches of
    two readers sees what two processes see. full: without smaller batches, and equally many for all readers. ahead: so
    many batches are made ahead by a thread. pin: batches in pinned memory; None for wherever there is CUDA.
    Memory: one window, and ahead + 2 batches. Raises BadInput for what cannot be.
    """

    def __init__(
        self,
        manifest: Manifest,
        shards: Sequence[Shard],
        size: int,
        *,
        seed: int = 0,
        hook_points: str | Iterable[str] | None = None,
        split: str | None = None,
        held_out: float = 0.01,
        window: int | None = None,
        block: int | None = None,
        rank: int = 0,
        world: int = 1,
        full: bool = False,
        ahead: int = 0,
        pin: bool | None = None,
    ) -> None:
        if split not in SPLITS:
            raise BadInput(f"No split {split!r}. There are: 'train', 'validation', or None for both.")
        if not 0 < finite(held_out, "held_out") < 1:
            raise BadInput(f"held_out is a share between 0 and 1, not {held_out!r}.")
        self._shards, self._split, self._held_out = shards, split, held_out
        self.hook_points, self._dtype = manifest.some(hook_points), DTYPES[manifest.dtype]
        self.size, self.seed = whole(size, 1, 2**40, "size"), whole(seed, 0, 2**64, "seed")
        world = whole(world, 1, 2**20, "world")
        rank, self._ahead = whole(rank, 0, world - 1, "rank"), whole(ahead, 0, 2**20, "ahead")
        width = sum(self.hook_points.values()) * manifest.width
        self.block = whole(max(BLOCK_BYTES // width, 1) if block is None else block, 1, 2**31, "block")
        rows = whole(max(WINDOW_BYTES // width, 1) if window is None else window, 1, 2**40, "window")
        self.window = -(-rows // size) * size
        self._pin = torch.cuda.is_available() if pin is None else pin
        self._rows = np.cumsum([0, *(shard.tokens for shard in shards)])  # the row that each shard begins with
        self._begin = np.cumsum([0, *(-(-shard.tokens // self.block) for shard in shards)])  # and the run
        self._counts = np.concatenate([np.zeros(0, np.int64), *map(self._count, shards)])
        some = self._counts.nonzero()[0]
        dealt = some[permutation(len(some), self.seed, DEAL)]
        self._runs = dealt[rank::world]
        self.rows = int(self._counts[self._runs].sum())
        self._length = -(-self.rows // size)
        if full:
            self._length = min(int(self._counts[dealt[r::world]].sum()) // size for r in range(world))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._length

    def __repr__(self) -> str:
        window = f"windows of {self.window:,} rows, filled with runs of {self.block:,}"
        return f"Batches({len(self):,} of {self.size:,} rows an epoch, from {window})"

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.epoch(0)

    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch, from number `start` on: the same as if all before had been taken."""
        out = self._drawn(whole(number, 0, 2**64, "epoch"), whole(start, 0, len(self), "start"))
        return read_ahead(out, self._ahead) if self._ahead else out

    def _drawn(self, epoch: int, start: int) -> Generator[dict[str, Tensor], None, None]:
        if start == len(self):
            return
        runs = self._runs[permutation(len(self._runs), self.seed, EPOCH, epoch)]
        begin = self._counts[runs].cumsum() - self._counts[runs]
        runs = runs[
            np.lexsort((runs, begin // self.window))
        ]  # the order within a window is lost: read in that of files
        ends = self._counts[runs].cumsum()
        window, batch = divmod(start, self.window // self.size)
        first = window * self.window  # row of the epoch with which the window begins
        run = int(ends.searchsorted(first, "right"))
        rows = min(self.window, -(-self.rows // self.size) * self.size)
        seed = key(self.seed, epoch)
        skip = first - int(ends[run] - self._counts[runs[run]])
        here = {"rows": rows, "size": self.size, "seed": seed, "window": window, "batch": batch, "skip": skip}
        mixed = ShuffleBuffer(self._read(runs[run:]), rows, self.size, seed, here, self._pin)
        yield from islice(mixed, len(self) - start)

    def _read(self, runs: np.ndarray) -> Iterator[tuple[None, dict[str, Tensor]]]:
        """The runs, one after the other. Each is read into the same memory."""
        room = {h: torch.empty(self.block, d_in, dtype=self._dtype) for h, d_in in self.hook_points.items()}
        owners = self._begin.searchsorted(runs, "right") - 1
        for run, owner in zip(runs.tolist(), owners.tolist(), strict=True):
            shard, first = self._shards[owner], (run - int(self._begin[owner])) * self.block
            length = min(self.block, shard.tokens - first)
            begin = int(self._rows[owner]) + first
            piece = {"index": torch.arange(begin, begin + length)}
            for hook_point, rows in room.items():
                piece[hook_point] = rows[:length]
                data = opaque(piece[hook_point])
                shard.read(rows_file(hook_point), first * data.itemsize, data)
            if self._counts[run] < length:
                conversations = np.empty(length, np.int64)
                shard.read(TOKENS, first * 8, conversations)
                wanted = torch.from_numpy(self._wanted(conversations))
                piece = {name: column[wanted] for name, column in piece.items()}
            yield None, piece

    def _count(self, shard: Shard) -> np.ndarray:
        """How many rows of each run of a shard are wanted, int64."""
        firsts = np.arange(0, shard.tokens, self.block)
        if self._split is None:
            return np.minimum(self.block, shard.tokens - firsts)
        wanted = self._wanted(shard.mapped(TOKENS, "conversations", np.int64))
        return np.add.reduceat(wanted, firsts, dtype=np.int64)

    def _wanted(self, conversations: np.ndarray) -> np.ndarray:
        """Which tokens are in the split, bool."""
        return is_held_out(conversations, self._held_out) == (self._split == "validation")
