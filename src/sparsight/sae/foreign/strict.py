"""Reading strangers' files: tensors and nothing else, under the names and in the shapes that their format has."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsight.disk import first_line, read_json
from sparsight.errors import BadFile, BadInput
from sparsight.sae.config import SaeConfig
from sparsight.sae.sae import FLOATS, SparseAutoEncoder


def read_state(path: Path) -> dict[Any, Any]:
    """The state dict in a .pt or .pth. Raises BadFile for one that is damaged, is none, or holds code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickles of other protocols
            state = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:  # torch's own words advise to load it all the same
        raise BadFile(f"Refused '{path}': it is damaged, or holds code that loading it could run.") from error
    except Exception as error:  # a damaged pickle raises nearly anything: IndexError, KeyError, struct.error, ...
        raise BadFile(f"Cannot read '{path}' as a PyTorch state dict: {first_line(error)}") from error
    if not isinstance(state, dict):
        raise BadFile(f"'{path}' is no SAE: it holds a {type(state).__name__}, not a state dict.")
    return state


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a .npz; an array of Python objects would be a pickle, and is refused."""
    try:
        with path.open("rb") as handle:
            found = np.load(handle)  # numpy unpickles only where asked to
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array, not several by name")
            with found:
                return {name: torch.from_numpy(found[name]) for name in found.files}
    except Exception as error:  # a damaged zip raises nearly anything: zlib.error, EOFError, NotImplementedError, ...
        raise BadFile(f"Cannot read '{path}' as .npz: {first_line(error)}") from error


def settings(path: Path, kind: str, read: Callable[[dict[str, Any]], Any]) -> Any:
    """What `read` makes of a JSON file; a key that it misses, or a value of a wrong kind, is a BadFile."""
    said = read_json(path)
    try:
        return read(said)
    except KeyError as error:
        raise BadFile(f"{taken(path, kind)}: it has no {error}.") from error
    except (BadInput, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise BadFile(f"{taken(path, kind)}: {first_line(error)}") from error


def fit(path: Path, kind: str, tensors: Mapping[Any, Any], shapes: Mapping[str, str]) -> dict[str, int]:
    """The sizes of the axes, where the tensors are just those of the format: {name: axes}, as in "d_hidden d_in".

    Raises BadFile that names what is missing, surplus, of another shape or no floating-point tensor.
    """
    if tensors.keys() != shapes.keys():
        missing, surplus = sorted(shapes.keys() - tensors.keys()), sorted(map(str, tensors.keys() - shapes.keys()))
        raise BadFile(f"{taken(path, kind)}: missing tensors {missing}, surplus {surplus[:8]}.")
    sizes: dict[str, int] = {}
    for name, axes in shapes.items():
        tensor, named = tensors[name], axes.split()
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in FLOATS:
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            allowed = ", ".join(map(str, FLOATS))
            raise BadFile(f"{taken(path, kind)}: {name} is {found}, must be a dense tensor of {allowed}.")
        wanted = [sizes.get(axis) for axis in named]
        if tensor.ndim != len(named) or any(not n or n != (w or n) for n, w in zip(tensor.shape, wanted, strict=True)):
            shape = ", ".join(f"{axis} {size}" if size else axis for axis, size in zip(named, wanted, strict=True))
            raise BadFile(f"{taken(path, kind)}: {name} is {list(tensor.shape)}, must be [{shape}].")
        sizes |= dict(zip(named, tensor.shape, strict=True))
    return sizes


def whole(state: Mapping[Any, Any], name: str) -> int:
    """A whole number that is stored as such or as a tensor of one. Raises ValueError for anything else."""
    value = state[name]
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = int(value)
    if type(value) is not int:
        raise ValueError(f"{name} must be a whole number, not {str(value)[:40]}.")
    return value


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least: what is folded into weights shall not round them once more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit_rows(w: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same x_hat with decoder rows of length 1, their features counting what the rows' lengths were."""
    norm = wide(w["W_dec"]).norm(dim=-1)
    return w | {
        "W_enc": wide(w["W_enc"]) * norm.unsqueeze(-1),
        "b_enc": wide(w["b_enc"]) * norm,
        "W_dec": wide(w["W_dec"]) / norm.clamp_min(torch.finfo(norm.dtype).tiny).unsqueeze(-1),
    }


def sound(path: Path, kind: str, config: SaeConfig, tensors: dict[str, Tensor]) -> SparseAutoEncoder:
    """The SAE, or a BadFile that says which format the file was taken for."""
    try:
        return SparseAutoEncoder.from_tensors(config, tensors)
    except BadInput as error:
        raise BadFile(f"{taken(path, kind)}: {error}") from error


def taken(path: Path, kind: str) -> str:
    """How a refusal begins."""
    return f"'{path}' was taken for {kind}, but"
