"""This machine: what sparsight would run on, and which models would fit."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sparsight import __version__
from sparsight.errors import SparsightError
from sparsight.lm.compiled import cpp_compiler
from sparsight.lm.pretrained import best_device
from sparsight.scope.load import demo_folder

CONTEXT = 8192  # tokens of KV cache that a fit counts in
EXTRAS = ("nnsight", "sae-lens", "matplotlib")
WIDTHS = {"bfloat16": 2, "float32": 4}  # bytes a number
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # cgroup 2, and 1
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Known:
    """Enough of a model's configuration to say what it needs. params: in billions."""

    name: str
    params: float
    layers: int
    d_model: int
    kv_width: int  # kv heads × head size
    d_hidden: int  # of its SAE

    def needs(self, dtype: str = "bfloat16") -> float:
        """GB: weights, SAE, KV cache."""
        numbers = self.params * 1e9 + 2 * self.d_model * self.d_hidden + CONTEXT * 2 * self.layers * self.kv_width
        return numbers * WIDTHS[dtype] / 1e9


MODELS = (
    Known("Llama-3.2-1B-Instruct", 1.24, 16, 2048, 512, 32_768),
    Known("Llama-3.2-3B-Instruct", 3.21, 28, 3072, 1024, 49_152),
    Known("Llama-3.1-8B-Instruct", 8.03, 32, 4096, 1024, 65_536),
    Known("Llama-3.3-70B-Instruct", 70.6, 80, 8192, 1024, 65_536),
)


def examine() -> dict[str, Any]:
    """Plain data about this machine."""
    device = best_device()
    free = memory(device)
    dtype = "float32" if device.type == "cpu" else "bfloat16"  # what a model is loaded in if --dtype does not say
    versions = {name: _version(name) for name in ("torch", "transformers", *EXTRAS)}
    return {
        "sparsight": __version__,
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": str(device) + (f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""),
        "memory": f"{free / 1e9:.1f} GB available" if free else "unknown",
        "torch threads": torch.get_num_threads(),
        "compiled decoding": _compiling(device),
        "embedded demo": _demo(),
        "disk": f"{shutil.disk_usage(os.getcwd()).free / 1e9:.1f} GB free here",
        "dtype": dtype,
        "fits": [fit(model, dtype, free) for model in MODELS],
    }


def fit(model: Known, dtype: str, free: int) -> dict[str, Any]:
    """What a model needs in each dtype, and whether that of `dtype` is there."""
    needs = {name: round(model.needs(name), 2) for name in WIDTHS}
    return {"model": model.name, "needs_gb": needs, "fits": needs[dtype] * 1e9 < 0.95 * free}


def memory(device: torch.device) -> int:
    """Bytes that a model can have on this device now; 0 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([_available(), *filter(None, map(_limit, LIMITS))])


def _available() -> int:
    """What the system could give; where it does not say, all it has."""
    lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    if found or "SC_PAGE_SIZE" not in names or "SC_PHYS_PAGES" not in names:
        return found[0] if found else 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limit(path: Path) -> int | None:
    """A container's limit, where there is one."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _compiling(device: torch.device) -> str:
    if device.type == "cuda":
        return "yes, with CUDA graphs"
    compiler = cpp_compiler()
    return f"yes, with {compiler}" if compiler else "no: install a C++ compiler (g++ or clang); eager decoding works"


def _demo() -> str:
    try:
        return str(demo_folder())
    except SparsightError as error:
        return f"no: {error}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
