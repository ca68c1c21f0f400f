"""Reading and writing the files that SAEs come in: every failure to read is a BadFile with the path in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsight.errors import BadFile


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises BadFile where it is absent or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"Cannot read '{path}' as safetensors: {first_line(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises BadFile where it is absent or is not one."""
    try:
        out = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"Cannot read '{path}' as JSON: {first_line(error)}") from error
    if not isinstance(out, dict):
        raise BadFile(f"'{path}' holds no JSON object.")
    return out


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """The whole file or, if this is cut off, what was there before."""
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        tied = any(tensor.data_ptr() == other.data_ptr() for other in apart.values())
        apart[name] = tensor.clone() if tied else tensor  # safetensors refuses two names for the same memory
    write_aside(path, lambda part: save_file(apart, part))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """The whole file or, if this is cut off, what was there before."""
    write_aside(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    """Write next to the file, bring it to the disk, and only then give it its name."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.chmod(0o644)  # safetensors makes files that only their maker can read
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
