"""Small files, whole or not at all, and JSON that is read strictly: each failure is a BadFile with its path."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsight.errors import BadFile

PART = ".part"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises BadFile where it is absent or is not one."""
    try:
        out = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"Cannot read '{path}' as JSON: {first_line(error)}") from error
    if not isinstance(out, dict):
        raise BadFile(f"'{path}' holds no JSON object.")
    return out


def write_json(path: Path, value: dict[str, Any]) -> None:
    """The whole file or, if this is cut off, what was there before."""
    write_aside(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    """Write in a folder beside the file, bring it to the disk, and only then move it to its place.

    A folder, since libraries write aside too, under names of their own: whatever one that was killed left is in there,
    and goes when the file is written again.
    """
    aside = path.with_name(path.name + PART)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        part = aside / path.name
        write(part)
        part.chmod(0o644)  # safetensors makes files that only their maker can read
        sync(part)
        os.replace(part, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
