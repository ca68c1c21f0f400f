"""The sparse parts of a training step with torch alone: on any device, and slower than compiled code.

Each function is said once, here; `kernels.py` has the same ones for a CPU, compiled.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.train.pairs import Columns, More, Pairs

GATHERED = 2**26  # numbers that are gathered at once, at most


class Plain:
    """Kernels of torch operators."""

    name = "torch"

    def above(
        self, pre: Float[Tensor, "row feature"], bias: Float[Tensor, " feature"], least: Float[Tensor, " feature"]
    ) -> Pairs:
        """The pairs with pre + bias > least. pre may be bfloat16."""
        pre = pre.to(bias.dtype) + bias
        found = pre > least
        return Pairs(_offsets(found.sum(-1)), found.nonzero()[:, 1].to(torch.int32), pre[found])

    def candidates(
        self, pre: Float[Tensor, "row feature"], bias: Float[Tensor, " feature"], k: int, bound: float = 0.0
    ) -> Pairs:
        """Pairs above 0 among which are the k strongest of each row, if it has so many. bound: a guess at the k-th
        strongest, a little too low for nearly all rows; it may save time."""
        values, features = (pre.to(bias.dtype) + bias).topk(min(k, pre.shape[1]))
        features, order = features.sort(dim=1)
        values = values.gather(1, order)
        found = values > 0
        return Pairs(_offsets(found.sum(-1)), features[found].to(torch.int32), values[found])

    def strongest(self, pairs: Pairs, k: int) -> tuple[Pairs, Float[Tensor, " row"]]:
        """(of each row the k pairs of highest pre, the k-th highest pre: 0 in a row that has no more than k). Of equal
        ones the lower feature."""
        order = pairs.pre.argsort(descending=True, stable=True)
        rows = pairs.rows
        order = order[rows[order].argsort(stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - pairs.offsets[:-1][rows[order]]
        bounds = pairs.pre.new_zeros(len(pairs.offsets) - 1)
        last = rank == k - 1
        bounds[rows[last]] = pairs.pre[last]
        return pairs.where(rank < k), torch.where(pairs.offsets.diff() > k, bounds, 0)

    def dots(
        self,
        pairs: Pairs,
        data: Float[Tensor, "group row d"],
        ends: Int[Tensor, " group"],
        weight: Float[Tensor, "feature d"],
    ) -> Float[Tensor, " pair"]:
        """data[group of its feature, its row] · weight[its feature], of each pair."""
        out = torch.empty(len(pairs), dtype=weight.dtype, device=weight.device)
        rows, features = pairs.rows, pairs.features.long()
        groups = torch.searchsorted(ends.long(), features, right=True)
        for at in torch.arange(len(pairs), device=weight.device).split(max(GATHERED // weight.shape[1], 1)):
            out[at] = (data[groups[at], rows[at]] * weight[features[at]]).sum(-1)
        return out

    def decode(
        self,
        pairs: Pairs,
        values: Float[Tensor, " pair"],
        weight: Float[Tensor, "feature d_out"],
        bias: Float[Tensor, " d_out"],
        target: Float[Tensor, "row d_out"],
        ends: Int[Tensor, " group"],
    ) -> tuple[Float[Tensor, "group row d_out"], Float[Tensor, " pair"], Float[Tensor, " group"]]:
        """(err, latent, losses): x_hat_m decodes the pairs whose feature is below ends[m];

        err[g] = Σ_{m ≥ g} (x_hat_m − target);  latent = err[group of its feature] · weight[feature], of each pair;
        losses[m] = Σ_row |x_hat_m − target|². The gradient of Σ losses is 2 latent, by a pair's value, and 2 value ·
        err, by the decoder row of its feature.
        """
        features = pairs.features.long()
        errors = []
        for end in ends.tolist():
            shown = torch.where(features < end, values, 0)
            x_hat = F.embedding_bag(features, weight, pairs.offsets[:-1], mode="sum", per_sample_weights=shown)
            errors.append(x_hat + bias - target)
        losses = torch.stack([e.square().sum() for e in errors])
        err = torch.stack(errors).flip(0).cumsum(0).flip(0)
        return err, self.dots(pairs, err, ends, weight), losses

    def columns(self, pairs: Pairs, d_hidden: int) -> Columns:
        """The pairs by feature."""
        places = pairs.features.argsort(stable=True)
        starts = _offsets(torch.bincount(pairs.features, minlength=d_hidden))
        return Columns(starts, pairs.rows[places].to(torch.int32), places.to(torch.int32))

    def sums(self, columns: Columns, values: Float[Tensor, " pair"]) -> Float[Tensor, " feature"]:
        """Σ of the values of each feature's pairs."""
        features = torch.repeat_interleave(columns.starts.diff(), output_size=len(values))
        out = values.new_zeros(len(columns.starts) - 1)
        return out.index_add_(0, features, values[columns.places.long()])

    def gradients(
        self,
        columns: Columns,
        enc: Float[Tensor, " pair"],
        dec: Float[Tensor, " pair"],
        x: Float[Tensor, "row d_in"],
        err: Float[Tensor, "group row d_out"],
        ends: Int[Tensor, " group"],
        more: More | None = None,
    ) -> tuple[Float[Tensor, "feature d_in"], Float[Tensor, "feature d_out"]]:
        """(Σ enc · x[row], Σ dec · err[group, row]) over the pairs of each feature, and `more`."""
        g_enc = self._weighted(columns, enc, x)
        parts, begin = [], 0
        for group, end in enumerate(ends.tolist()):
            starts = columns.starts[begin : end + 1]
            cut = slice(int(starts[0]), int(starts[-1]))
            part = Columns(starts - starts[0], columns.rows[cut], columns.places[cut])
            parts.append(self._weighted(part, dec, err[group]))
            begin = end
        g_dec = torch.cat(parts)
        if more is not None:
            g_enc[more.features] += more.enc
            g_dec[more.features] += more.dec
        return g_enc, g_dec

    def descend(
        self,
        w: Float[Tensor, "feature d"],
        g: Float[Tensor, "feature d"],
        m: Float[Tensor, "feature d"],
        v: Float[Tensor, "feature d"],
        hyper: Float[Tensor, " 5"],
        pull: Float[Tensor, " feature"] | None = None,
        unit: bool = False,
    ) -> Float[Tensor, " feature"]:
        """Adam on rows, in place; their norms after it. hyper: rate / (1 − β₁ᵗ), β₁, β₂, ε, 1 / √(1 − β₂ᵗ).

        pull: adds pull · w to a row's gradient. unit: rows have norm 1 and keep it: what lies along a row is taken off
        its gradient, and the row is brought back to norm 1. g is used up.
        """
        rate, b1, b2, eps, root = hyper.tolist()
        if pull is not None:
            g += pull[:, None] * w
        if unit:
            g -= (g * w).sum(-1, keepdim=True) * w
        m += (g - m) * (1 - b1)
        v += (g * g - v) * (1 - b2)
        w -= rate * m / (v.sqrt() * root + eps)
        norms = w.norm(dim=-1)
        if unit:
            w /= norms[:, None]
            return torch.ones_like(norms)
        return norms

    def step(
        self,
        columns: Columns,
        enc: Float[Tensor, " pair"],
        dec: Float[Tensor, " pair"],
        x: Float[Tensor, "row d_in"],
        err: Float[Tensor, "group row d_out"],
        ends: Int[Tensor, " group"],
        more: More | None,
        encoder: tuple[Tensor, Tensor, Tensor],
        decoder: tuple[Tensor, Tensor, Tensor],
        hyper: Float[Tensor, " 5"],
        pull: Float[Tensor, " feature"],
        unit: bool,
    ) -> Float[Tensor, " feature"]:
        """`gradients`, and `descend` on (weight, m, v) of the encoder and of the decoder; the decoder's norms."""
        g_enc, g_dec = self.gradients(columns, enc, dec, x, err, ends, more)
        w, m, v = encoder
        self.descend(w, g_enc, m, v, hyper)
        w, m, v = decoder
        return self.descend(w, g_dec, m, v, hyper, pull, unit)

    def _weighted(self, columns: Columns, values: Tensor, data: Tensor) -> Tensor:
        chosen = values[columns.places.long()]
        size = (len(columns.starts) - 1, len(data))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            matrix = torch.sparse_csr_tensor(columns.starts, columns.rows.long(), chosen, size, check_invariants=False)
        return matrix @ data


def _offsets(counts: Int[Tensor, " row"]) -> Int[Tensor, " row_plus_1"]:
    """Where each row's pairs begin, and the last one's end."""
    out = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=out[1:])
    return out
