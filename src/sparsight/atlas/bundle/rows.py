"""Rows from files of strangers, read strictly: JSON lines, packed or not. What is none is a BadFile with file and line.

Nothing is read whole: a line has its limit, and so has what a packed file may unpack to.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sparsight.disk import first_line
from sparsight.errors import BadFile

LONGEST = 8 << 20  # bytes of a line
FREE = 64 << 20  # bytes that a file may unpack to, whatever its size
MOST = 250  # beyond that: bytes unpacked for each packed one; JSON of token windows has 10 to 60


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where its name ends in .gz. Raises BadFile."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        raise BadFile(f"Cannot read '{path}': {first_line(error)}.") from error


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of each, with its end. Raises BadFile for one that is too long, and for a gzip bomb."""
    with opened(path) as file:
        budget = max(FREE, MOST * path.stat().st_size) if path.suffix == ".gz" else None
        number = read = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            read += len(line)
            if len(line) > LONGEST:
                raise BadFile(f"'{path}', line {number}, is longer than {LONGEST >> 20} MiB: this is no such file.")
            if budget is not None and read > budget:
                raise BadFile(f"'{path}', line {number}: it unpacks to over {MOST} times its size; it is a gzip bomb.")
            yield number, line


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of each line that holds something."""
    for number, line in lines(path):
        if line.strip():
            yield number, json_row(line, f"'{path}', line {number}")


def json_row(line: bytes | str, where: str) -> dict[str, Any]:
    """A JSON object. where: what an error calls its place."""
    try:
        row = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{where}, is no JSON: {first_line(error)}.") from error
    if not isinstance(row, dict):
        raise BadFile(f"{where}, holds no JSON object.")
    return row


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
