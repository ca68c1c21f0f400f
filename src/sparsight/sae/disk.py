"""Reading the files that SAEs come in: every failure is a BadFile with the path in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparsight.errors import BadFile


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises BadFile where it is absent or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"Cannot read '{path}' as safetensors: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises BadFile where it is absent or is not one."""
    try:
        out = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"Cannot read '{path}' as JSON: {error}") from error
    if not isinstance(out, dict):
        raise BadFile(f"'{path}' holds no JSON object.")
    return out


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
