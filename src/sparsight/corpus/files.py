"""Files as rows: one object for each conversation, not yet read as one. Yields (place, row) pairs.

The `datasets` library does not read files here. Of lines it takes the types of the first block for all that follow,
and a broken one ends the reading without its number; here that costs one line, told by file and number. Parquet it
reads as pyarrow does, and contacts a server before it opens a file.

A line that cannot be read is an Unreadable in place of the row. A file that breaks off (packed data cut short, a
damaged Parquet file, a broken JSON array) is a BadFile: what should have followed cannot be known.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from sparsight.corpus.conversation import Unreadable
from sparsight.disk import first_line
from sparsight.errors import BadFile, Missing

KINDS = (".jsonl", ".json", ".txt", ".parquet")
DOCUMENTS = ("file", "paragraph", "line")
LONGEST = 64 << 20  # bytes of a line, and of a text
AT_ONCE = 100  # rows of Parquet; with more the garbage collector's time doubles the whole

Row = tuple[str, object]


def from_extra(module: str) -> Any:
    """A module of the extra that reading text needs. Raises Missing where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise Missing(f"{module} is not installed: pip install 'sparsight[harvest]'.") from error


def kind_of(path: Path) -> tuple[str, str] | None:
    """(kind, packing) by the name: (".jsonl", ".gz"). None for what is not read here."""
    last = path.suffix.lower()
    packing = last if last in PACKINGS else ""
    kind = Path(path.stem).suffix.lower() if packing else last
    return (kind, packing) if kind in KINDS and not (kind == ".parquet" and packing) else None


def rows_of(path: Path, documents: str) -> Iterator[Row]:
    """Every row of a file. documents: what one text of a .txt is.

    Raises BadFile, with the file and the place, where it cannot be read on; Missing for Parquet and .zst without the
    extra.
    """
    kind, packing = kind_of(path) or ("", "")
    if kind == ".parquet":
        yield from _parquet(path)
        return
    place = "its beginning"
    try:
        with PACKINGS[packing](path) as file:
            reader = {".jsonl": _jsonl, ".json": _json, ".txt": partial(_texts, documents=documents)}[kind]
            for place, row in reader(file):
                yield f"{path}, {place}", row
    except json.JSONDecodeError as error:
        raise BadFile(f"'{path}' is not JSON (line {error.lineno}): {error.msg}.") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, RecursionError) as error:
        raise BadFile(f"'{path}' cannot be read on after {place}: {first_line(error)}") from error


def _zstd(path: Path) -> IO[bytes]:
    # Not with zstandard, whose stream of a file that was cut off ends as if it were whole.
    return BufferedReader(from_extra("pyarrow").input_stream(str(path), compression="zstd"))


PACKINGS: dict[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}


def _lines(file: IO[bytes], number: int = 0) -> Iterator[tuple[int, bytes | Unreadable]]:
    """(number, line) after so many lines. Of a line that is too long only a part is ever held."""
    while line := file.readline(LONGEST + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > LONGEST:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST)
            yield number, _too_long()
        elif line and not line.isspace():
            yield number, line


def _jsonl(file: IO[bytes], number: int = 0) -> Iterator[Row]:
    for at, line in _lines(file, number):
        yield f"line {at}", line if isinstance(line, Unreadable) else _parsed(line)


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unreadable("not UTF-8", f"at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Unreadable("not JSON", str(error)[:80])


def _json(file: IO[bytes]) -> Iterator[Row]:
    """An array of rows, which is held whole; a single row; or JSON lines, which go by this name too."""
    first = file.readline(LONGEST).removeprefix(codecs.BOM_UTF8)
    if isinstance(row := _parsed(first), dict):
        yield "line 1", row
        yield from _jsonl(file, 1)
        return
    whole = json.loads((first + file.read()).decode("utf-8"))
    for number, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
        yield f"row {number}", row


def _texts(file: IO[bytes], documents: str) -> Iterator[Row]:
    if documents == "file":
        yield "line 1", _text(file.read(LONGEST + 1).removeprefix(codecs.BOM_UTF8))
    elif documents == "line":
        for number, line in _lines(file):
            yield f"line {number}", line if isinstance(line, Unreadable) else _text(line.rstrip(b"\r\n"))
    else:
        yield from _paragraphs(file)


def _paragraphs(file: IO[bytes]) -> Iterator[Row]:
    """Lines with no blank one between them, which are those whose numbers follow each other."""
    for _, run in groupby(enumerate(_lines(file)), key=lambda at: at[1][0] - at[0]):
        begun, held, fits = 0, bytearray(), True
        for _, (number, line) in run:
            begun = begun or number
            if isinstance(line, Unreadable) or len(held) + len(line) > LONGEST:
                fits = False
            elif fits:
                held += line
        yield f"line {begun}", _text(bytes(held).rstrip(b"\r\n")) if fits else _too_long()


def _text(data: bytes) -> object:
    if len(data) > LONGEST:
        return _too_long()
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError as error:
        return Unreadable("not UTF-8", f"at byte {error.start}")


def _too_long() -> Unreadable:
    return Unreadable(f"a line or text over {LONGEST:,} bytes")


def _parquet(path: Path) -> Iterator[Row]:
    pyarrow, parquet = from_extra("pyarrow"), from_extra("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(AT_ONCE):
                for row in _unpacked(batch):
                    number += 1
                    yield f"{path}, row {number}", row
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise BadFile(f"'{path}' cannot be read on as Parquet after row {number}: {first_line(error)}") from error


def _unpacked(batch: Any) -> list[object]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [Unreadable("not UTF-8", f"at byte {error.start}")]
        return [_unpacked(batch.slice(row, 1))[0] for row in range(len(batch))]
