"""The sparse parts of a training step on an NVIDIA GPU: what `compiled_cuda.py` is given, and what it fills.

Never run on a GPU so far: its tests run in Triton's interpreter, and compile every kernel for one.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sparsight.train import compiled_cuda
from sparsight.train.pairs import Columns, More, Pairs
from sparsight.train.plain import Plain


class Triton(Plain):
    """The same functions, compiled for a GPU: see Plain for what they take and give.

    The host waits for the GPU where pairs are found and where the strongest are kept: it must know how many to make
    room for.
    """

    name = "triton"
    columns_of_a_part = 2048  # a row of pre is searched in such parts
    columns_at_once = 1024  # of an input, of which all rows then lie in the cache while features gather them

    def above(self, pre: Tensor, bias: Tensor, least: Tensor) -> Pairs:
        return self._take(pre, bias, least, bias.new_full((len(pre),), -torch.inf))

    def candidates(self, pre: Tensor, bias: Tensor, k: int, bound: float = 0.0) -> Pairs:
        least = torch.zeros_like(bias)
        if bound > 0:
            floor = bias.new_full((len(pre),), bound)
            counts = self._count(pre, bias, least, floor).view(len(pre), -1).sum(1)
        else:
            floor = pre.amax(1).to(bias.dtype) + bias.amax()
            counts = torch.zeros(len(pre), dtype=torch.int64, device=pre.device)
        given = (pre, bias, least, floor, counts, k, 2 * k, pre.shape[1])
        self._run("lower_floors", (len(pre),), *given, BLOCK=self.columns_of_a_part)
        return self._take(pre, bias, least, floor)

    def _count(self, pre: Tensor, bias: Tensor, least: Tensor, floor: Tensor) -> Tensor:
        parts = -(-pre.shape[1] // self.columns_of_a_part)
        counts = torch.empty(len(pre) * parts, dtype=torch.int32, device=pre.device)
        given = (pre, bias, least, floor, counts, pre.shape[1], parts)
        self._run("count_above", (len(counts),), *given, BLOCK=self.columns_of_a_part)
        return counts

    def _take(self, pre: Tensor, bias: Tensor, least: Tensor, floor: Tensor) -> Pairs:
        before = _offsets(self._count(pre, bias, least, floor))
        parts = (len(before) - 1) // max(len(pre), 1)
        features = torch.empty(int(before[-1]), dtype=torch.int32, device=pre.device)
        values = bias.new_empty(len(features))
        given = (pre, bias, least, floor, before, features, values, pre.shape[1], parts)
        self._run("take_above", (len(before) - 1,), *given, BLOCK=self.columns_of_a_part)
        return Pairs(before[:: max(parts, 1)].contiguous(), features, values)

    def strongest(self, pairs: Pairs, k: int) -> tuple[Pairs, Tensor]:
        whole, bits = (torch.int32, 31) if pairs.pre.dtype == torch.float32 else (torch.int64, 63)
        keys = (pairs.pre + 0).view(whole)  # + 0: there are two zeros
        keys = (keys ^ ((keys >> bits) & (2**bits - 1))).long()  # floats below zero ascend where their bits descend
        to = _offsets(pairs.offsets.diff().clamp_max(k))
        features = pairs.features.new_empty(int(to[-1]))
        values, bounds = pairs.pre.new_empty(len(features)), pairs.pre.new_zeros(len(to) - 1)
        given = (pairs.offsets, keys, pairs.features, pairs.pre, k, to, features, values, bounds)
        self._run("take_strongest", (len(bounds),), *given, BLOCK=256)
        return Pairs(to, features, values), bounds

    def dots(self, pairs: Pairs, data: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
        out = weight.new_empty(len(pairs))
        given = (_cuts(pairs, ends), pairs.features, data, weight, out, weight.shape[1])
        self._run("dots", (data.shape[1],), *given, GROUPS=len(ends), **_whole_row(weight))
        return out

    def decode(
        self, pairs: Pairs, values: Tensor, weight: Tensor, bias: Tensor, target: Tensor, ends: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        err, latent = weight.new_empty(len(ends), *target.shape), torch.empty_like(values)
        losses = weight.new_empty(len(ends), len(target))
        given = (_cuts(pairs, ends), pairs.features, values, weight, bias, target, err, latent, losses)
        self._run("decode", (len(target),), *given, weight.shape[1], GROUPS=len(ends), **_whole_row(weight))
        for group in reversed(range(len(ends) - 1)):
            err[group] += err[group + 1]
        latent = latent if len(ends) == 1 else self.dots(pairs, err, ends, weight)
        return err, latent, losses.double().sum(-1)

    def columns(self, pairs: Pairs, d_hidden: int) -> Columns:
        features, places = pairs.features.sort(stable=True)
        every = torch.arange(d_hidden + 1, dtype=torch.int32, device=features.device)
        rows = pairs.rows[places].to(torch.int32)
        return Columns(torch.searchsorted(features, every), rows, places.to(torch.int32))

    def sums(self, columns: Columns, values: Tensor) -> Tensor:
        out = values.new_empty(len(columns.starts) - 1)
        self._run("sums", (len(out),), columns.starts, columns.places, values, out, BLOCK=32)
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
        out = x.new_empty(features, x.shape[1]), err.new_empty(features, err.shape[2])
        for given, g in zip(self._gathered(columns, enc, dec, x, err, ends, more), out, strict=True):
            self._run("gradients", self._grid(g), *given, g, g.shape[1], **self._part_of_row(g), GROUPS=len(given[6]))
        return out

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
        pull, norms = w.new_zeros(len(w)) if pull is None else pull, w.new_empty(len(w))
        block = _power(w.shape[1])
        rows = max(self.columns_at_once // block, 1)
        given = (w, g, m, v, pull, hyper.to(w.device, non_blocking=True), norms, *w.shape)
        self._run("descend", (-(-len(w) // rows),), *given, UNIT=unit, ROWS=rows, BLOCK=block)
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
        hyper, norms = hyper.to(x.device, non_blocking=True), torch.empty_like(pull)
        by_enc, by_dec = self._gathered(columns, enc, dec, x, err, ends, more)
        w = encoder[0]
        given = (*by_enc, *encoder, torch.zeros_like(pull), hyper, norms, w.shape[1])
        self._run("step", self._grid(w), *given, **self._part_of_row(w), GROUPS=1, WHOLE=False, UNIT=False)
        w = decoder[0]
        given = (*by_dec, *decoder, pull, hyper, norms, w.shape[1])
        self._run("step", (len(w),), *given, **_whole_row(w), GROUPS=len(ends), WHOLE=True, UNIT=unit)
        return norms

    def _gathered(
        self, columns: Columns, enc: Tensor, dec: Tensor, x: Tensor, err: Tensor, ends: Tensor, more: More | None
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What a gradient is gathered from: the encoder's, and the decoder's."""
        order = columns.starts.diff().argsort(descending=True)  # who has most to do begins first
        at = torch.full_like(order, -1, dtype=torch.int32)
        if more is not None:
            at[more.features] = torch.arange(len(more.features), dtype=torch.int32, device=at.device)
        lists = (order, columns.starts, columns.rows, columns.places)
        enc_more, dec_more = (x[:0], err[0, :0]) if more is None else (more.enc, more.dec)
        one = (*lists, enc, x, ends[-1:], len(x), at, enc_more)
        return one, (*lists, dec, err, ends, len(x), at, dec_more)

    def _grid(self, w: Tensor) -> tuple[int, int]:
        return len(w), -(-w.shape[1] // self.columns_at_once)

    def _part_of_row(self, w: Tensor) -> dict[str, int]:
        return _whole_row(w[:, : self.columns_at_once])

    def _run(self, name: str, grid: tuple[int, ...], *given: Any, **constants: Any) -> None:
        """Start a kernel on the device of what it is given, which need not be the current one."""
        device = given[0].device
        how = {"num_warps": _warps(constants), "enable_fp_fusion": True}
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            getattr(compiled_cuda, name)[grid](*given, **constants, **how)


def _power(size: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(size - 1, 0).bit_length()


def _warps(constants: dict[str, Any]) -> int:
    """Warps of a program: a thread has eight numbers or more."""
    return min(max(constants["BLOCK"] * constants.get("ROWS", 1) // 256, 1), 8)


def _whole_row(weight: Tensor) -> dict[str, int]:
    """The columns of a program, and how many rows it gathers at once: up to 64 numbers a thread."""
    block = _power(weight.shape[1])
    return {"BLOCK": block, "PAIRS": min(max(2048 * _warps({"BLOCK": block}) // block, 1), 16)}


def _offsets(counts: Tensor) -> Tensor:
    """Where the first begins, the second, ..., and where the last one ends."""
    out = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=out[1:])
    return out


def _cuts(pairs: Pairs, ends: Tensor) -> Tensor:
    """Where each row's pairs of each group begin, and the last one's end, [row, group + 1]."""
    starts, stops = pairs.offsets[:-1, None], pairs.offsets[1:, None]
    if len(ends) == 1:
        return torch.cat([starts, stops], 1)
    of_row = 2**32
    found = torch.searchsorted(
        pairs.rows * of_row + pairs.features,
        torch.arange(len(starts), device=starts.device)[:, None] * of_row + ends.long(),
    )
    return torch.cat([starts, found], 1)
