"""Where batches come from: a store of activations on the disk, or a model that is run while the SAE is trained.

A source gives the same batches in the same order every time, and goes on from any place in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsight.errors import BadInput
from sparsight.shards.buffer import Piece, ShuffleBuffer
from sparsight.shards.shards import Shards
from sparsight.train.parallel import Team

Batch = Mapping[str, Tensor]
"""{hook point: [row, d]}, raw activations."""
Pieces = Callable[[Any], Iterator[tuple[Any, Piece]]]
"""From a position on: pairs of a position and what begins there."""
SAMPLING = 2**32  # added to the seed of the orders in which samples are drawn


class Source(Protocol):
    """What a training run needs of its activations."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What they are of, as JSON: model, revision, corpus, ..."""
        ...

    @property
    def hook_points(self) -> Sequence[str]: ...

    def sample(self, tokens: int) -> Batch:
        """The same tokens every time, for the beginning; no more than there are."""
        ...

    def held_out(self, tokens: int, size: int) -> Iterator[Batch]:
        """The same tokens every time, that batches() never gives, in pieces of at most `size`."""
        ...

    def batches(self, size: int, position: Any = None) -> Iterator[tuple[Any, Batch]]:
        """Batches without end, of `size` rows for this process, each with the position to go on at after it."""
        ...


class ShardSource:
    """Batches of a store. seed: of their order. team: whose processes read different tokens."""

    def __init__(self, shards: Shards, seed: int = 0, team: Team | None = None, held_out: float = 0.01) -> None:
        manifest = shards.manifest
        self.shards, self.seed, self.team, self._share = shards, seed, team or Team(), held_out
        self.hook_points = tuple(manifest.hook_points)
        named = ("model", "model_revision", "corpus", "chat_template", "kept")
        self.about = {name: getattr(manifest, name) for name in named} | {"shards": shards.fingerprint}
        self._samples: dict[tuple[str, int], Any] = {}

    def _read(self, size: int, split: str, **options: Any) -> Any:
        return self.shards.batches(size, split=split, held_out=self._share, **options)

    def sample(self, tokens: int) -> Batch:
        return self._first("train", tokens)

    def held_out(self, tokens: int, size: int) -> Iterator[Batch]:
        rows = self._first("validation", tokens)
        return pieces_of(rows, size)

    def _first(self, split: str, tokens: int) -> Batch:
        if (split, tokens) not in self._samples:  # which rows these are is found out by reading the whole store's index
            self._samples[split, tokens] = self._read(tokens, split, seed=self.seed + SAMPLING)
        found = self._samples[split, tokens]
        if not found.rows:
            raise BadInput(f"The store '{self.shards.path}' has no conversation for {split}: harvest more.")
        return next(found.epoch(0))

    def batches(self, size: int, position: Any = None) -> Iterator[tuple[Any, Batch]]:
        mine = {"rank": self.team.data_rank, "world": self.team.data}
        reader = self._read(size, "train", seed=self.seed, full=True, ahead=2, **mine)
        if not len(reader):
            few = f"{reader.rows:,} tokens to train on, fewer than a batch"
            raise BadInput(f"The store '{self.shards.path}' has {few}.")
        epoch, start = position or (0, 0)
        while True:
            for number, batch in enumerate(reader.epoch(epoch, start), start + 1):
                yield [epoch, number], batch
            epoch, start = epoch + 1, 0


class StreamSource:
    """Batches of pieces as a model makes them, mixed in a buffer, without a disk.

    train: gives this process's pieces from a position on, as harvest.stream does. first, validation: the whole text's,
    and the held-out text's, the same for all processes. rows: of the buffer, of this process. When the text ends it
    begins again.
    """

    def __init__(
        self,
        train: Pieces,
        first: Pieces,
        validation: Pieces,
        hook_points: Sequence[str],
        about: Mapping[str, Any],
        rows: int,
        seed: int = 0,
    ) -> None:
        self._train, self._begin, self._validation = train, first, validation
        self.hook_points, self.about, self.rows, self.seed = tuple(hook_points), about, rows, seed
        self._kept: dict[int, Batch] = {}

    def sample(self, tokens: int) -> Batch:
        return self._first(self._begin, tokens)

    def held_out(self, tokens: int, size: int) -> Iterator[Batch]:
        if tokens not in self._kept:  # the model runs over them once, not at every validation
            self._kept[tokens] = {h: rows.cpu() for h, rows in self._first(self._validation, tokens).items()}
        return pieces_of(self._kept[tokens], size)

    def _first(self, make: Pieces, tokens: int) -> Batch:
        taken, count = [], 0
        for _, piece in make(None):
            taken.append({point: piece[point] for point in self.hook_points})
            count += len(taken[-1][self.hook_points[0]])
            if count >= tokens:
                break
        if not count:
            raise BadInput("The text has no tokens that are kept.")
        return {point: torch.cat([piece[point] for piece in taken])[:tokens] for point in self.hook_points}

    def batches(self, size: int, position: Any = None) -> Iterator[tuple[Any, Batch]]:
        epoch, state = position or (0, None)
        while True:
            pieces = ((at, {h: p[h] for h in self.hook_points}) for at, p in self._train(state and state["position"]))
            buffer, given = ShuffleBuffer(pieces, self.rows, size, self.seed + epoch, state), state is not None
            for batch in buffer:
                if len(batch[self.hook_points[0]]) == size:
                    given = True
                    yield [epoch, buffer.state()], batch
            if not given:
                raise BadInput(f"The text has fewer tokens that are kept than a batch of this process: {size:,}.")
            epoch, state = epoch + 1, None


def pieces_of(rows: Batch, size: int) -> Iterator[Batch]:
    """The same rows in pieces of at most `size`."""
    length = len(next(iter(rows.values())))
    for start in range(0, length, size):
        yield {name: column[start : start + size] for name, column in rows.items()}
