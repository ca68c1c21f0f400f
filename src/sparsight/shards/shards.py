"""Shards: a store of activations, read without loading it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sparsight.errors import BadFile, BadInput
from sparsight.shards.batches import Batches
from sparsight.shards.buffer import opaque
from sparsight.shards.manifest import DTYPES, as_json, read_manifest
from sparsight.shards.shard import COLUMNS, TOKENS, rows_file
from sparsight.shards.store import all_shards, is_done


@dataclass(frozen=True, eq=False)
class Tokens:
    """Of some rows: their token ids, their records.Kind as bits, and the numbers of their conversations."""

    ids: Int[Tensor, " token"]
    kinds: Int[Tensor, " token"]
    conversations: Int[Tensor, " token"]


class Shards:
    """What ShardWriters wrote: the complete shards of all processes, in the order of ranks and shards.

    A store that is still being written is read as it is now; `complete` says whether all of it is there.
    Raises BadFile where the store is damaged: a shard in the middle that is missing, a file of another size, garbage
    in its JSON. The data itself is compared with its checksums by verify() alone.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.shards = all_shards(self.path, self.manifest)
        self.starts = np.cumsum([0, *(shard.tokens for shard in self.shards)])  # the row that each begins with
        self.complete = all(is_done(self.path, rank) for rank in range(self.manifest.world))
        if self.manifest.tokens not in (None, len(self)):
            raise BadFile(f"'{self.path}' has {len(self):,} tokens; its manifest says {self.manifest.tokens:,}.")

    def __len__(self) -> int:
        """Rows: tokens whose activations are here."""
        return int(self.starts[-1])

    def __repr__(self) -> str:
        what = ", ".join(f"{name} [{d_in}]" for name, d_in in self.manifest.hook_points.items())
        state = "" if self.complete else ", incomplete"
        return f"Shards({len(self):,} tokens of {self.manifest.model} at {what}, {self.manifest.dtype}{state})"

    @property
    def d_in(self) -> int:
        """Numbers of a row, where all hook points have equally many."""
        sizes = set(self.manifest.hook_points.values())
        if len(sizes) > 1:
            raise BadInput(f"The hook points of this store differ in d_in: {dict(self.manifest.hook_points)}.")
        return sizes.pop()

    @property
    def fingerprint(self) -> str:
        """Of all that is stored, by its checksums. Notes take no part."""
        said = {name: value for name, value in asdict(self.manifest).items() if name not in ("notes", "tokens")}
        content = as_json([said, [shard.sums for shard in self.shards]], "a fingerprint")
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def batches(self, size: int, **options: Any) -> Batches:
        """All rows in shuffled batches of so many. options: as Batches takes them (seed, split, rank, ahead, ...)."""
        return Batches(self.manifest, self.shards, size, **options)

    def rows(self, index: int | slice | Int[Tensor, " token"], hook_point: str | None = None) -> Tensor:
        """Rows by their numbers, [token, d_in]; the one row [d_in] for an int. Negative numbers count from the end.

        hook_point: may be left out where there is only one.
        """
        names = self.manifest.some(hook_point)
        if len(names) > 1:
            raise BadInput(f"Say which hook point: {', '.join(names)}.")
        ((name, d_in),) = names.items()
        numbers = self._numbers(index)
        out = torch.empty(len(numbers), d_in, dtype=DTYPES[self.manifest.dtype])
        self._gather(numbers, rows_file(name), "rows", opaque(out))
        return out[0] if isinstance(index, int) else out

    def tokens(self, index: int | slice | Int[Tensor, " token"]) -> Tokens:
        """Whose rows they are, [token] each. index: as of rows()."""
        numbers, columns = self._numbers(index), {}
        for name, (_, dtype) in COLUMNS.items():
            column = np.empty(len(numbers), dtype)
            self._gather(numbers, TOKENS, name, column)
            columns[name] = torch.from_numpy(column.astype(np.int64))
        return Tokens(**columns)

    def verify(self) -> None:
        """Read everything, and compare it with the checksums. Raises BadFile, with all files that are damaged."""
        damaged = []
        for shard in self.shards:
            for name, said in shard.sums.items():
                try:
                    if shard.checksum(name) != said:
                        damaged.append(f"'{shard.path / name}' has other data than its checksum says.")
                except BadFile as error:
                    damaged.append(str(error))
        if damaged:
            raise BadFile(" ".join(damaged))

    def _gather(self, numbers: np.ndarray, file: str, column: str, out: np.ndarray) -> None:
        """Values of a column at these rows, into out."""
        owners = self.starts.searchsorted(numbers, "right") - 1
        for owner in np.unique(owners):
            mine = owners == owner
            mapped = self.shards[owner].mapped(file, column, out.dtype)
            out[mine] = mapped[numbers[mine] - self.starts[owner]]

    def _numbers(self, index: int | slice | Int[Tensor, " token"]) -> np.ndarray:
        """Row numbers, int64. Raises BadInput for one that is not here."""
        if isinstance(index, slice):
            return np.arange(*index.indices(len(self)))
        numbers = torch.as_tensor(index).reshape(-1).cpu().numpy()
        for worst in (numbers.min(), numbers.max()) if len(numbers) else ():
            if not -len(self) <= worst < len(self):
                raise BadInput(f"No row {worst}: there are {len(self):,} (0 to {len(self) - 1}).")
        return np.where(numbers < 0, numbers + len(self), numbers)
