"""Which code does the sparse parts of a step: compiled, by Numba for a CPU and by Triton for an NVIDIA GPU, where those
are installed; else torch's operators."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsight.train.pairs import Columns, More, Pairs
from sparsight.train.plain import Plain

BROUGHT = {
    "cpu": ("Numba", "`pip install 'sparsight[train]'`"),
    "cuda": ("Triton", "PyTorch's CUDA build for Linux"),
}


def kernels(device: torch.device) -> Plain:
    """The best there is for a device. Where it is not the best that there could be, a warning says so."""
    if device.type not in ("cpu", "cuda"):
        return Plain()
    try:
        if device.type == "cpu":
            from sparsight.train import compiled

            return Compiled(compiled)
        from sparsight.train.kernels_cuda import Triton

        return Triton()
    except ImportError:
        compiler, todo = BROUGHT[device.type]
        slow = "the sparse parts of a training step run as torch operators, several times slower"
        warnings.warn(f"{compiler} is not installed: {slow}. {todo} brings it.", stacklevel=2)
        return Plain()


class Compiled(Plain):
    """The same functions, compiled: see Plain for what they take and give."""

    name = "numba"

    def __init__(self, compiled: Any) -> None:
        self._do, threads = compiled, torch.get_num_threads()
        compiled.set_num_threads(min(threads, compiled.config.NUMBA_NUM_THREADS))
        torch.set_num_threads(threads)  # Numba's pool, which begins here, gives torch all cores

    def above(self, pre: Tensor, bias: Tensor, least: Tensor) -> Pairs:
        return self._take(pre, bias, least, torch.full((len(pre),), -torch.inf, dtype=bias.dtype))

    def candidates(self, pre: Tensor, bias: Tensor, k: int, bound: float = 0.0) -> Pairs:
        least, floor = torch.zeros_like(bias), torch.full((len(pre),), bound, dtype=bias.dtype)
        if bound > 0:
            floor[self._count(pre, bias, least, floor) < k] = 0
        return self._take(pre, bias, least, floor)

    def strongest(self, pairs: Pairs, k: int) -> tuple[Pairs, Tensor]:
        kept = torch.empty(len(pairs), dtype=torch.bool)
        bounds = pairs.pre.new_empty(len(pairs.offsets) - 1)
        self._do.keep_strongest(*_numpy(pairs.offsets, pairs.pre), k, *_numpy(kept, bounds))
        return pairs.where(kept), bounds

    def _count(self, pre: Tensor, bias: Tensor, least: Tensor, floor: Tensor) -> Tensor:
        counts = torch.empty(len(pre), dtype=torch.int64)
        self._do.count_above(*_numpy(_bits(pre), bias, least, floor, counts))
        return counts

    def _take(self, pre: Tensor, bias: Tensor, least: Tensor, floor: Tensor) -> Pairs:
        offsets = torch.zeros(len(pre) + 1, dtype=torch.int64)
        torch.cumsum(self._count(pre, bias, least, floor), 0, out=offsets[1:])
        features = torch.empty(int(offsets[-1]), dtype=torch.int32)
        values = torch.empty(len(features), dtype=bias.dtype)
        self._do.take_above(*_numpy(_bits(pre), bias, least, floor, offsets, features, values))
        return Pairs(offsets, features, values)

    def dots(self, pairs: Pairs, data: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty(len(pairs), dtype=weight.dtype)
        where = pairs.offsets.numpy(), pairs.features.numpy()
        self._do.dots(*where, data.numpy(), ends.numpy(), weight.numpy(), out.numpy())
        return out

    def decode(
        self, pairs: Pairs, values: Tensor, weight: Tensor, bias: Tensor, target: Tensor, ends: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        err = torch.empty(len(ends), *target.shape, dtype=weight.dtype)
        latent, losses = torch.empty_like(values), torch.empty(len(ends), len(target), dtype=weight.dtype)
        given = (pairs.offsets, pairs.features, values, weight, bias, target, ends, err, latent, losses)
        self._do.decode(*(t.numpy() for t in given))
        return err, latent, losses.double().sum(-1)

    def columns(self, pairs: Pairs, d_hidden: int) -> Columns:
        starts = torch.empty(d_hidden + 1, dtype=torch.int64)
        rows, places = torch.empty_like(pairs.features), torch.empty_like(pairs.features)
        self._do.by_feature(*(t.numpy() for t in (pairs.offsets, pairs.features, starts, rows, places)))
        return Columns(starts, rows, places)

    def sums(self, columns: Columns, values: Tensor) -> Tensor:
        out = values.new_empty(len(columns.starts) - 1)
        self._do.sums(columns.starts.numpy(), columns.places.numpy(), values.numpy(), out.numpy())
        return out

    def gradients(
        self,
        columns: Columns,
        enc: Tensor,
        dec: Tensor,
        x: Tensor,
        err: Tensor,
        ends: Tensor,
        more: More | None = None,
    ) -> tuple[Tensor, Tensor]:
        features = len(columns.starts) - 1
        g_enc, g_dec = x.new_empty(features, x.shape[1]), x.new_empty(features, err.shape[2])
        given = _numpy(columns.starts, columns.rows, columns.places, enc, dec, x, err, ends)
        self._do.gradients(*given, *_more(more, features, x, err), g_enc.numpy(), g_dec.numpy())
        return g_enc, g_dec

    def descend(
        self,
        w: Tensor,
        g: Tensor,
        m: Tensor,
        v: Tensor,
        hyper: Tensor,
        pull: Tensor | None = None,
        unit: bool = False,
    ) -> Tensor:
        pull = w.new_zeros(len(w)) if pull is None else pull
        norms = w.new_empty(len(w))
        self._do.descend(*_numpy(w, g, m, v, pull, hyper), unit, norms.numpy())
        return norms

    def step(
        self,
        columns: Columns,
        enc: Tensor,
        dec: Tensor,
        x: Tensor,
        err: Tensor,
        ends: Tensor,
        more: More | None,
        encoder: tuple[Tensor, Tensor, Tensor],
        decoder: tuple[Tensor, Tensor, Tensor],
        hyper: Tensor,
        pull: Tensor,
        unit: bool,
    ) -> Tensor:
        features = len(columns.starts) - 1
        norms = x.new_empty(features)
        given = _numpy(columns.starts, columns.rows, columns.places, enc, dec, x, err, ends)
        weights = _numpy(*encoder, *decoder, pull, hyper)
        self._do.step(*given, *_more(more, features, x, err), *weights, unit, norms.numpy())
        return norms


def _bits(pre: Tensor) -> Tensor:
    """NumPy has no bfloat16: its bits."""
    return pre.view(torch.uint16) if pre.dtype == torch.bfloat16 else pre


def _numpy(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.numpy() for tensor in tensors)


def _more(more: More | None, features: int, x: Tensor, err: Tensor) -> tuple[np.ndarray, ...]:
    """Where each feature's rows of `more` are, −1 for none, and the rows."""
    at = np.full(features, -1, np.int32)
    if more is None:
        return at, x[:0].numpy(), err[0, :0].numpy()
    at[more.features.numpy()] = np.arange(len(more.features), dtype=np.int32)
    return at, more.enc.numpy(), more.dec.numpy()
