"""The same functions for batches in which many features are active, as at the beginning of a training: products of
matrices, which are faster than sums over pairs as soon as more than DENSE of all pairs are there. That depends on who
does the sums: compiled ones are faster up to some 60 %, torch's operators only up to 2 %.

Matrices of rows × features are made a block at a time, and none is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsight.train.pairs import Columns, More, Pairs
from sparsight.train.plain import Plain

DENSE = {"numba": 0.6, "triton": 0.2, "torch": 0.02}  # share of all (row, feature) pairs; triton's is a guess
BLOCK = 2**23  # numbers of a block


class Dense(Plain):
    """Products of matrices, for what takes most of a step."""

    name = "dense"

    def dots(self, pairs: Pairs, data: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty(len(pairs), dtype=weight.dtype, device=weight.device)
        for rows, cut in _blocks(pairs.offsets, len(weight)):
            features, at = pairs.features[cut].long(), _places(pairs.offsets, rows)
            products = [data[g, rows] @ weight[a:b].T for g, (a, b) in enumerate(_spans(ends))]
            out[cut] = torch.cat(products, dim=1)[at, features]
        return out

    def decode(
        self, pairs: Pairs, values: Tensor, weight: Tensor, bias: Tensor, target: Tensor, ends: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        errors = weight.new_empty(len(ends), *target.shape)
        for rows, cut in _blocks(pairs.offsets, len(weight)):
            matrix = weight.new_zeros(rows.stop - rows.start, len(weight))
            matrix[_places(pairs.offsets, rows), pairs.features[cut].long()] = values[cut]
            x_hat = bias - target[rows]
            for group, (a, b) in enumerate(_spans(ends)):
                x_hat = x_hat + matrix[:, a:b] @ weight[a:b]
                errors[group, rows] = x_hat
        losses = errors.double().square().sum((1, 2)).to(weight.dtype)
        err = errors.flip(0).cumsum(0).flip(0)
        return err, self.dots(pairs, err, ends, weight), losses

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
        groups = torch.zeros(features, dtype=torch.long, device=x.device)
        for _, b in _spans(ends):
            groups[b:] += 1
        for chosen, cut in _blocks(columns.starts, len(x)):
            at, rows, places = _places(columns.starts, chosen), columns.rows[cut].long(), columns.places[cut].long()
            matrix = x.new_zeros(chosen.stop - chosen.start, len(x))
            matrix[at, rows] = enc[places]
            g_enc[chosen] = matrix @ x
            matrix[at, rows] = dec[places]
            for group in groups[chosen].unique().tolist():
                mine = groups[chosen] == group
                g_dec[chosen][mine] = matrix[mine] @ err[group]
        if more is not None:
            g_enc[more.features] += more.enc
            g_dec[more.features] += more.dec
        return g_enc, g_dec


class Choosing(Plain):
    """Some kernels for few pairs, products of matrices for many: each call counts."""

    def __init__(self, sparse: Plain) -> None:
        self.sparse, self.dense, self.name = sparse, Dense(), sparse.name
        for name in ("above", "candidates", "strongest", "columns", "sums", "descend"):
            setattr(self, name, getattr(sparse, name))

    def _for(self, pairs: int, rows: int, features: int) -> Plain:
        return self.dense if pairs > DENSE[self.name] * rows * features else self.sparse

    def dots(self, pairs: Pairs, data: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
        do = self._for(len(pairs), data.shape[1], len(weight))
        return do.dots(pairs, data, ends, weight)

    def decode(
        self, pairs: Pairs, values: Tensor, weight: Tensor, bias: Tensor, target: Tensor, ends: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        do = self._for(len(pairs), len(target), len(weight))
        return do.decode(pairs, values, weight, bias, target, ends)

    def gradients(self, columns: Columns, enc: Tensor, dec: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        do = self._for(len(columns.rows), len(x), len(columns.starts) - 1)
        return do.gradients(columns, enc, dec, x, *rest)

    def step(self, columns: Columns, enc: Tensor, dec: Tensor, x: Tensor, *rest: Any) -> Tensor:
        do = self._for(len(columns.rows), len(x), len(columns.starts) - 1)
        if do is self.sparse:
            return do.step(columns, enc, dec, x, *rest)
        err, ends, more, encoder, decoder, hyper, pull, unit = rest
        g_enc, g_dec = do.gradients(columns, enc, dec, x, err, ends, more)
        self.descend(encoder[0], g_enc, encoder[1], encoder[2], hyper)
        return self.descend(decoder[0], g_dec, decoder[1], decoder[2], hyper, pull, unit)


def _spans(ends: Tensor) -> Iterator[tuple[int, int]]:
    """(first, end) of each group's features."""
    begin = 0
    for end in ends.tolist():
        yield begin, end
        begin = end


def _blocks(offsets: Tensor, width: int) -> Iterator[tuple[slice, slice]]:
    """(lines, their pairs) of blocks of lines, each with `width` numbers a line."""
    lines, each = len(offsets) - 1, max(BLOCK // max(width, 1), 1)
    for start in range(0, lines, each):
        stop = min(start + each, lines)
        yield slice(start, stop), slice(int(offsets[start]), int(offsets[stop]))


def _places(offsets: Tensor, lines: slice) -> Tensor:
    """The line of each pair in a block, counted from the block's first."""
    return torch.repeat_interleave(offsets[lines.start : lines.stop + 1].diff())
