"""The tensors of SAEs on disk: every failure to read is a BadFile with the path in it."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsight.disk import first_line, write_aside
from sparsight.errors import BadFile


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises BadFile where it is absent or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"Cannot read '{path}' as safetensors: {first_line(error)}") from error


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """The whole file or, if this is cut off, what was there before."""
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        tied = any(tensor.data_ptr() == other.data_ptr() for other in apart.values())
        apart[name] = tensor.clone() if tied else tensor  # safetensors refuses two names for the same memory
    write_aside(path, lambda part: save_file(apart, part))
