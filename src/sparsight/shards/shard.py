"""One shard: a folder with its number for a name, that appears whole.

    000042/
      shard.json                          tokens, position, skip, and the SHA-256 of the data in each file
      tokens.safetensors                  conversations int64, ids uint32, kinds uint16, each [token]
      rows.model.layers.19.safetensors    rows [token, d_in]; one such file for each hook point

A file for each hook point: a trainer reads one hook point and never touches the others. The header of a file is padded
with spaces to 4,096 bytes, as safetensors allows: so it can be written last, when the number of rows is known, and rows
begin on a page. What it must say is known from shard.json and the manifest: it is compared, never parsed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.disk import first_line
from sparsight.errors import BadFile, BadInput
from sparsight.shards.manifest import PAGE, Manifest, read_schema, whole

ABOUT, TOKENS = "shard.json", "tokens.safetensors"
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8, "U32": 4, "U16": 2}
CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
COLUMNS = {"conversations": ("I64", np.int64), "ids": ("U32", np.uint32), "kinds": ("U16", np.uint16)}
NUMBER = re.compile(r"\d{6,}")

Layout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""The tensors of a file, in order: name, dtype, shape."""


@dataclass(frozen=True)
class Shard:
    """A complete shard. files: their layouts; sums: their SHA-256; position, skip: see ShardWriter.append."""

    path: Path
    tokens: int
    position: Any
    skip: int
    files: dict[str, Layout]
    sums: dict[str, str]

    def opened(self, name: str) -> FileIO:
        """A file of the shard, read up to its data. Raises BadFile where it is not what the shard says."""
        path, layout = self.path / name, self.files[name]
        try:
            file = FileIO(path)
            sound = file.read(PAGE) == header(layout)
        except OSError as error:
            raise BadFile(f"Cannot read '{path}': {first_line(error)}") from error
        if not sound:
            file.close()
            raise BadFile(f"'{path}' was changed or damaged: its header is not that of {self.tokens:,} tokens' data.")
        return file

    def read(self, name: str, start: int, out: np.ndarray) -> None:
        """Fill an array with the data of a file, from this byte of it on. Raises BadFile where it is cut short."""
        view, got = out.view(np.uint8).data, 0
        with self.opened(name) as file:
            try:
                file.seek(start, os.SEEK_CUR)
                while got < len(view) and (more := file.readinto(view[got:])):
                    got += more
            except OSError as error:
                raise BadFile(f"Cannot read '{self.path / name}': {first_line(error)}") from error
        if got < len(view):
            raise BadFile(f"'{self.path / name}' was cut short after it was opened.")

    def checksum(self, name: str) -> str:
        """The SHA-256 of the data that a file has. Raises BadFile where it cannot be read."""
        try:
            with self.opened(name) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BadFile(f"Cannot read '{self.path / name}': {first_line(error)}") from error

    def mapped(self, name: str, column: str, dtype: Any) -> np.ndarray:
        """A tensor of a file, memory-mapped to be read, as this numpy dtype, [token]. Raises BadFile."""
        self.opened(name).close()
        start = PAGE
        for other, code, shape in self.files[name]:
            if other == column:
                break
            start += SIZES[code] * math.prod(shape)
        try:
            return np.memmap(self.path / name, dtype, "r", start, (self.tokens,))
        except (OSError, ValueError) as error:
            raise BadFile(f"Cannot read '{self.path / name}': {first_line(error)}") from error


def rows_file(hook_point: str) -> str:
    """The name of the file with a hook point's rows."""
    return f"rows.{hook_point}.safetensors"


def layouts(manifest: Manifest, tokens: int) -> dict[str, Layout]:
    """The files of a shard of so many tokens, by name."""
    columns = tuple((name, code, (tokens,)) for name, (code, _) in COLUMNS.items())
    code = CODES[manifest.dtype]
    rows = {rows_file(h): (("rows", code, (tokens, d_in)),) for h, d_in in manifest.hook_points.items()}
    return {TOKENS: columns, **rows}


def data_bytes(layout: Layout) -> int:
    """Of a file, without its header."""
    return sum(SIZES[code] * math.prod(shape) for _, code, shape in layout)


@lru_cache(maxsize=64)
def header(layout: Layout) -> bytes:
    """The first 4,096 bytes of a safetensors file with these tensors, one after the other."""
    said, end = {}, 0
    for name, code, shape in layout:
        start, end = end, end + SIZES[code] * math.prod(shape)
        said[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(said, separators=(",", ":")).encode()
    return (PAGE - 8).to_bytes(8, "little") + text.ljust(PAGE - 8)


def shards_of(rank_folder: Path, manifest: Manifest) -> list[Shard]:
    """The complete shards that one process wrote, in order.

    Raises BadFile where one in the middle is missing, or a file is missing or has not the size that it must have.
    """
    try:
        names = sorted((p.name for p in rank_folder.iterdir() if NUMBER.fullmatch(p.name)), key=int)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadFile(f"Cannot read '{rank_folder}': {first_line(error)}") from error
    found = []
    for number, name in enumerate(names):
        if name != f"{number:06}":
            raise BadFile(f"A shard is missing: '{rank_folder}' holds {name}, but no {number:06}.")
        found.append(read_shard(rank_folder / name, manifest))
        if number and found[-2].tokens != manifest.tokens_per_shard:
            raise BadFile(f"'{found[-2].path}' has {found[-2].tokens:,} tokens, and only a last shard may be short.")
    return found


def read_shard(path: Path, manifest: Manifest) -> Shard:
    """What a shard says of itself, if its files have the sizes for it. Raises BadFile. No data is read."""
    about = path / ABOUT
    said = read_schema(about)
    try:
        tokens = whole(said.get("tokens"), 1, manifest.tokens_per_shard, "tokens")
        skip = whole(said.get("skip"), 0, 2**62, "skip")
    except BadInput as error:
        raise BadFile(f"'{about}' is not sound: {error}") from error
    files, sums = layouts(manifest, tokens), said.get("sha256")
    if not isinstance(sums, dict) or sums.keys() != files.keys() or not all(map(_is_sum, sums.values())):
        raise BadFile(f"'{about}' is not sound: it has no SHA-256 for each of {', '.join(files)}.")
    for name, layout in files.items():
        try:
            found = (path / name).stat()
        except OSError as error:
            raise BadFile(f"Cannot read '{path / name}': {first_line(error)}") from error
        right = PAGE + data_bytes(layout)
        if not stat.S_ISREG(found.st_mode) or found.st_size != right:
            raise BadFile(f"'{path / name}' is cut short or damaged: {found.st_size:,} bytes, and not {right:,}.")
    return Shard(path, tokens, said.get("position"), skip, files, sums)


def _is_sum(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64
