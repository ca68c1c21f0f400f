"""Loading a model and its tokenizer: from a folder or the hub, to a device, in a dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from sparsight.errors import BadFile, BadInput


def load_pretrained(
    name: str, device: str | torch.device | None, dtype: torch.dtype | None, revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Model and tokenizer from a folder or the hub; the tokenizer is None where there is none beside the model."""
    spread = device == "auto"  # over all GPUs, by accelerate
    target = best_device() if device is None or spread else as_device(device)
    as_stored = dtype is None and (spread or target.type != "cpu")
    how: dict[str, Any] = {"dtype": "auto" if as_stored else dtype or torch.float32, "revision": revision}
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise BadFile(f"No model at '{name}': there is no such folder.")
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    try:
        with no_progress_bar():
            model = AutoModelForCausalLM.from_pretrained(name, **how, **({"device_map": "auto"} if spread else {}))
        if not spread:
            torch.nn.Module.to(model, target)
    except Exception as error:  # whatever any of transformers' loaders raises about a file
        raise BadFile(f"Cannot load the model '{name}': {first_line(error)}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:
        if Path(name).is_dir() and not list(Path(name).glob("*tokenizer*")):
            return model, None
        raise BadFile(f"Cannot load the tokenizer of '{name}': {first_line(error)}") from error
    return model, tokenizer


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Without transformers' bar over the weights; a download still shows its own."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def best_device() -> torch.device:
    """The GPU where there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def as_device(device: torch.device | str) -> torch.device:
    """A device that is there, from itself or its name."""
    try:
        found = torch.device(device)
        if found.type != "meta":
            torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # a name that there is not, or a device that this machine lacks
        raise BadInput(f"No device '{device}' here. There are, for example: cpu, cuda, cuda:1, mps, auto.") from error
    if found.type == "meta":
        raise BadInput("Device 'meta' holds no numbers: nothing can be read or written there.")
    return found


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch dtype from itself or its name."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BadInput(f"No dtype {dtype!r}. There are, for example: bfloat16, float16, float32.")
    return found


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
