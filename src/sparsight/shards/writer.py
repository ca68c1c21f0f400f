"""Writing shards: a run that was killed goes on where its last complete shard ends, and the store is the same."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from sparsight.disk import first_line, sync, write_json
from sparsight.errors import BadFile, BadInput, DiskFull, Mismatch
from sparsight.shards.manifest import DTYPES, NAME, PAGE, SCHEMA, Manifest, as_json, read_manifest, whole
from sparsight.shards.shard import ABOUT, COLUMNS, TOKENS, header, layouts, rows_file
from sparsight.shards.store import DONE, all_shards, is_done, rank_folder, rank_shards


class ShardWriter:
    """Writes the shards of one process into a store, which several processes can share without talking.

    path: the store's folder, made if it is not there. rank: which of manifest.world processes this is. expected:
    tokens in the whole store at the end, of all processes; given, they must fit on the disk before anything is written.
    Opening a store again goes on after the last complete shard: `tokens` says how many there are, `position` from
    where to append again, `done` whether nothing is to be added. What a killed run left behind is removed.

    with ShardWriter(path, manifest) as writer:    an error inside leaves the complete shards; go on another time
        for position, piece in source(writer.position):
            writer.append(piece.rows, piece.ids, piece.kinds, piece.conversations, position)

    Raises Mismatch where the store is about something else, BadFile where it is damaged or another process writes
    this rank, DiskFull where `expected` does not fit.
    """

    def __init__(self, path: str | Path, manifest: Manifest, rank: int = 0, expected: int | None = None) -> None:
        self.path, self.rank = Path(path), whole(rank, 0, manifest.world - 1, "rank")
        self._folder = rank_folder(self.path, self.rank)
        self._lock: BinaryIO | None = None
        self._part: _Part | None = None
        with self._to_disk():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path / f"lock-{self.rank:04}")
            self.manifest = self._agreed(manifest, expected)
            self._folder.mkdir(exist_ok=True)
            shards, self.done = rank_shards(self.path, self.rank, self.manifest), is_done(self.path, self.rank)
            if shards and not self.done and shards[-1].tokens < self.manifest.tokens_per_shard:
                short = shards.pop()  # of a close() that was cut off: what is appended now may fill it up
                os.rename(short.path, short.path.with_suffix(".part"))
            for left in (*self._folder.glob("*.part"), *self.path.glob(f"manifest.rank-{self.rank:04}.*")):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        self.tokens = sum(shard.tokens for shard in shards)
        self.position = shards[-1].position if shards else None
        self._skip = shards[-1].skip if shards else 0
        self._from: tuple[Any, int] = (None, 0)  # the last piece's position, and how many of its rows are taken
        self._number = len(shards)
        if self.done:
            self.close()

    def append(
        self,
        activations: Float[Tensor, "token d_in"] | Mapping[str, Tensor],
        ids: Integer[Tensor, " token"],
        kinds: Integer[Tensor, " token"],
        conversations: Integer[Tensor, " token"],
        position: Any = None,
    ) -> None:
        """Any number of tokens. activations: of the one hook point, or {hook point: [token, d_in]}, on any device.

        kinds: records.Kind of each. conversations: numbers, one for each conversation of the whole corpus. position:
        where this piece begins in its source, as JSON. After a resume begin there again, with the same pieces: the
        rows that a shard holds already are left out. Without positions, go on with row number `tokens`.
        Raises BadInput where a row is not finite or the parts do not fit together (nothing of the piece is written
        then), DiskFull where the disk is full (all complete shards are intact).
        """
        if self._lock is None:
            raise BadInput(f"Nothing is added to '{self.path}' here: rank {self.rank} is complete, or was closed.")
        as_json(position, "position")
        rows, columns = self._fitting(activations, ids, kinds, conversations)
        tokens, used = len(columns["ids"]), 0
        if position is not None:
            used = min(self._skip, tokens)
        self._skip -= used
        with self._to_disk():
            while used < tokens:
                if self._part is None:
                    self._part = _Part(self._folder / f"{self._number:06}.part", self.manifest)
                taken = slice(used, min(tokens, used + self.manifest.tokens_per_shard - self._part.tokens))
                self._part.write(rows, columns, taken)
                self.tokens += taken.stop - used
                used = taken.stop
                self._from = (position, 0 if position is None else used)
                if self._part.tokens == self.manifest.tokens_per_shard:
                    self._complete()

    def close(self) -> None:
        """Write what is left as a last, short shard; then nothing can be added. The last process counts the store."""
        if self._lock is None:
            return
        with self._to_disk():
            if self._part is not None:
                self._complete()
            if not self.done:
                write_json(self._folder / DONE, {"schema": SCHEMA, "shards": self._number, "tokens": self.tokens})
                sync(self._folder)
                self.done = True
            if all(is_done(self.path, rank) for rank in range(self.manifest.world)):
                tokens = sum(shard.tokens for shard in all_shards(self.path, self.manifest))
                if tokens != self.manifest.tokens:
                    self._publish(replace(self.manifest, tokens=tokens), os.replace)
        self.abort()

    def abort(self) -> None:
        """Stop, and keep the complete shards alone: opened again, it goes on after them."""
        if self._part is not None:
            self._part.remove()
        if self._lock is not None:
            self._lock.close()
        self._part = self._lock = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self.close()
        self.abort()

    def _complete(self) -> None:
        """The part becomes a shard."""
        part, self._part = self._part, None
        assert part is not None
        try:
            part.finish(*self._from)
            os.rename(part.path, self._folder / f"{self._number:06}")
        except BaseException:
            part.remove()
            raise
        sync(self._folder)
        self._number += 1
        self.position = self._from[0]

    def _fitting(
        self, activations: Tensor | Mapping[str, Tensor], *columns: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """The rows of each hook point in the store's dtype, and the columns in theirs: checked, on the CPU."""
        wanted = self.manifest.hook_points
        given = activations if isinstance(activations, Mapping) else {next(iter(wanted)): activations}
        if given.keys() != wanted.keys() or (given is not activations and len(wanted) > 1):
            got = ", ".join(given) if given is activations else "rows without a name"
            raise BadInput(f"This store is of {', '.join(wanted)}; appended were {got}.")
        ids, kinds, conversations = (column.detach().cpu().numpy() for column in columns)
        made = {"conversations": conversations, "ids": ids, "kinds": kinds}
        for name, column in made.items():
            if column.shape != (len(ids),) or column.dtype.kind not in "iu":
                raise BadInput(f"{name} are whole numbers, one for each of {len(ids):,} tokens.")
            limits = np.iinfo(COLUMNS[name][1])
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) <= limits.max:
                raise BadInput(f"{name} are from 0 to {limits.max:,}, not {int(column.min())} to {int(column.max())}.")
            made[name] = column.astype(COLUMNS[name][1])
        rows = {}
        for hook_point, d_in in wanted.items():
            x = given[hook_point].detach()
            if x.shape != (len(ids), d_in) or not x.dtype.is_floating_point:
                raise BadInput(f"Rows of '{hook_point}' are [{len(ids):,}, {d_in:,}] here, not {list(x.shape)}.")
            cast = x.to(DTYPES[self.manifest.dtype])
            if len(x) and not all(end.isfinite() for end in torch.aminmax(cast)):
                row = int((~cast.isfinite()).any(1).nonzero()[0])
                why = "holds numbers that are none"
                if x[row].isfinite().all():
                    why = f"reaches {float(x[row].abs().max()):.3g}, too much for {self.manifest.dtype}"
                whose = f"token {int(ids[row])} of conversation {int(conversations[row])}"
                raise BadInput(f"Row {row} of this piece ({whose}) {why} at '{hook_point}': the piece is not written.")
            rows[hook_point] = cast.cpu().contiguous()
        return rows, made

    def _agreed(self, asked: Manifest, expected: int | None) -> Manifest:
        """The manifest of the store: the one there, if it is about the same, or the one asked for."""
        begun = any(self.path.glob("rank-*"))  # looked for first: a manifest is older than all ranks
        there = (self.path / NAME).exists()
        if begun and not there:
            raise BadFile(f"'{self.path}' holds shards but no {NAME}: what they are about is not known.")
        found = read_manifest(self.path) if there else asked
        if other := found.differences(asked):
            raise Mismatch(f"The store '{self.path}' has {'; '.join(other)}: write into another folder.")
        if expected is not None:
            have = sum(shard.tokens for shard in all_shards(self.path, found))
            _must_fit(self.path, found, max(whole(expected, 0, 2**62, "expected") - have, 0))
        if there:
            return found
        with suppress(FileExistsError):  # another process was first
            self._publish(replace(asked, tokens=None), os.link)
        return self._agreed(asked, None)

    def _publish(self, manifest: Manifest, name: Any) -> None:
        """Give the store this manifest; `name` is os.link, which fails where there is one already, or os.replace."""
        part = self.path / f"manifest.rank-{self.rank:04}.part"  # no other process writes under this name
        try:
            write_json(part, {"schema": SCHEMA, **asdict(manifest)})
            name(part, self.path / NAME)
            sync(self.path)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _to_disk(self) -> Iterator[None]:
        """Stops the writer at any failure to write, and says which."""
        try:
            yield
        except OSError as error:
            self.abort()
            if isinstance(error, DiskFull):
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                kept = "all complete shards are intact; make room, and go on by the same command"
                raise DiskFull(f"The disk is full at '{self.path}': {kept}.") from error
            raise BadFile(f"Cannot write shards to '{self.path}': {first_line(error)}") from error
        except BaseException:
            self.abort()
            raise


class _Part:
    """A shard in the making: rows go to the disk as they come, the few bytes of columns wait in memory."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest, self.tokens = path, manifest, 0
        self.columns: list[dict[str, np.ndarray]] = []
        self.files: dict[str, BinaryIO] = {}
        self.sums = {hook_point: hashlib.sha256() for hook_point in manifest.hook_points}
        path.mkdir()
        try:
            for hook_point in manifest.hook_points:
                self.files[hook_point] = (path / rows_file(hook_point)).open("xb")
                self.files[hook_point].seek(PAGE)
        except BaseException:
            self.remove()
            raise

    def write(self, rows: dict[str, Tensor], columns: dict[str, np.ndarray], taken: slice) -> None:
        for hook_point, file in self.files.items():
            data = rows[hook_point][taken].view(torch.uint8).numpy().data
            file.write(data)
            self.sums[hook_point].update(data)
        self.columns.append({name: column[taken] for name, column in columns.items()})
        self.tokens += taken.stop - taken.start

    def finish(self, position: Any, skip: int) -> None:
        """All files whole and on the disk itself."""
        files = layouts(self.manifest, self.tokens)
        data = b"".join(np.concatenate([c[name] for c in self.columns]).tobytes() for name in COLUMNS)
        sums = {TOKENS: hashlib.sha256(data).hexdigest()}
        with (self.path / TOKENS).open("xb") as file:
            file.write(header(files[TOKENS]) + data)
            _settle(file)
        for hook_point, file in self.files.items():
            name = rows_file(hook_point)
            file.seek(0)
            file.write(header(files[name]))
            _settle(file)
            file.close()
            sums[name] = self.sums[hook_point].hexdigest()
        about = {"schema": SCHEMA, "tokens": self.tokens, "position": position, "skip": skip, "sha256": sums}
        write_json(self.path / ABOUT, about)
        sync(self.path)

    def remove(self) -> None:
        for file in self.files.values():
            with suppress(OSError):  # what could not be written before cannot be now
                file.close()
        shutil.rmtree(self.path, ignore_errors=True)


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _locked(path: Path) -> BinaryIO:
    """A file that no other process holds until this closes it, or ends."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise BadFile(f"Another process holds '{path}': each that writes to a store has its own rank.") from error
    except OSError:
        pass  # some network disks have no locks
    return file


def _must_fit(path: Path, manifest: Manifest, tokens: int) -> None:
    """Raises DiskFull where so many tokens have no room."""
    needed, free = manifest.bytes_for(tokens), shutil.disk_usage(path).free
    if needed > free:
        sizes = f"{needed / 1e9:,.1f} GB in '{path}'; that disk has {free / 1e9:,.1f} GB free"
        raise DiskFull(f"{tokens:,} tokens more take {sizes}.")
