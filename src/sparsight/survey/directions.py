"""What the weights say of features: which tokens each makes likelier, how long its directions are, which are like it.

    logits(f) = W_U (g · d_f / |d_f|)

with d_f the feature's decoder row, g what the model's final norm multiplies by, and W_U its unembedding; where that
norm subtracts the mean (LayerNorm), d_f has its own subtracted first. This is the logit lens (nostalgebraist 2020):
what the direction adds to the logits if it goes straight from the hook point to the end, but for the norm's common
factor. Nothing of [feature, feature] or [feature, vocabulary] is ever held, only blocks of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsight.lm.lm import ObservableLanguageModel
from sparsight.sae.sae import SparseAutoEncoder

ROWS, COLUMNS = 1024, 4096  # features, and entries of what they are compared with, that are held at once


@dataclass(frozen=True)
class Directions:
    """Of each feature, on the CPU. above, below: (token ids, logits) [feature, k], strongest first; empty where the
    decoder does not write what the model's unembedding reads. near: (features, cosines) of decoder rows."""

    decoder_norm: Float[Tensor, " feature"]
    encoder_norm: Float[Tensor, " feature"]
    above: tuple[Int[Tensor, "feature k"], Float[Tensor, "feature k"]]
    below: tuple[Int[Tensor, "feature k"], Float[Tensor, "feature k"]]
    near: tuple[Int[Tensor, "feature n"], Float[Tensor, "feature n"]]


@torch.no_grad()
def directions(
    lm: ObservableLanguageModel,
    sae: SparseAutoEncoder,
    logits: int,
    neighbours: int,
    tell: Callable[[int], None] = lambda done: None,
) -> Directions:
    """Read from the weights; tell: hears how many features are done."""
    table, found = _unembedding(lm, sae), []
    reads = final_norm(lm)
    for start in range(0, sae.d_hidden, ROWS):
        rows = _unit(sae.W_dec[start : start + ROWS])
        seen = reads(rows)
        above, below = (_best(seen, table, logits, sign) for sign in (1, -1))
        found.append((above, below, _best(rows, sae.W_dec, min(neighbours, sae.d_hidden - 1), 1, _unit, start)))
        tell(min(start + ROWS, sae.d_hidden))
    pairs = [tuple(torch.cat(each) for each in zip(*column, strict=True)) for column in zip(*found, strict=True)]
    (above, below, near) = ((each[0], each[1]) for each in pairs)
    return Directions(_norms(sae.W_dec), _norms(sae.W_enc), above, below, near)


def final_norm(lm: ObservableLanguageModel) -> Callable[[Tensor], Tensor]:
    """What the model's last norm does to directions, but for the factor that depends on the whole residual.

    It is found by what it does: g from the images of a vector of ones with alternating signs and of its opposite, which
    every norm takes for one of mean 0 and size 1; and that it subtracts the mean, from the images of ones all alike.
    """
    norm = _last_norm(lm)
    if norm is None:
        return lambda rows: rows
    weight = next(norm.parameters())
    signs = torch.ones(lm.d_model, device=weight.device, dtype=weight.dtype)
    ones = signs.clone()
    signs[1::2] = -1

    def odd(vector: Tensor) -> Tensor:
        return (norm(vector[None, None]) - norm(-vector[None, None])).flatten().float() / 2

    gain = odd(signs) * signs.float()
    centres = bool(odd(ones).norm() < 0.1 * gain.norm())
    return lambda rows: (rows - rows.mean(-1, keepdim=True) if centres else rows) * gain.to(rows)


def _last_norm(lm: ObservableLanguageModel) -> nn.Module | None:
    """The last part of the model's body that has one parameter of the residual's width, or two."""
    body = lm.model.get_decoder() if hasattr(lm.model, "get_decoder") else lm.model.base_model
    norms = [
        module
        for module in (body or lm.model.base_model).children()
        if not isinstance(module, nn.ModuleList)
        and [tuple(p.shape) for p in module.parameters()] in ([(lm.d_model,)], [(lm.d_model,)] * 2)
    ]
    return norms[-1] if norms else None


def _unembedding(lm: ObservableLanguageModel, sae: SparseAutoEncoder) -> Float[Tensor, "vocabulary d"]:
    """Its rows for tokens that there are (some models have more than that); none where it does not read what the
    decoder writes."""
    found = lm.model.get_output_embeddings()
    if found is None or found.weight.shape[1] != sae.d_out:
        return sae.W_dec[:0]
    tokens = len(lm.tokenizer) if lm.has_tokenizer else len(found.weight)
    return found.weight[:tokens].to(sae.device)


def _norms(weight: Float[Tensor, "feature d"]) -> Float[Tensor, " feature"]:
    return torch.cat([rows.float().norm(dim=1) for rows in weight.split(COLUMNS)]).cpu()


def _unit(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    """Rows of norm 1; a row of zeros stays one."""
    return F.normalize(_wide(rows), dim=1)


def _wide(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _best(
    rows: Float[Tensor, "row d"],
    table: Float[Tensor, "entry d"],
    k: int,
    sign: int,
    read: Callable[[Tensor], Tensor] = _wide,
    own: int | None = None,
) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"]]:
    """(entries, products) of the k entries of the table with the largest product with each row, or the smallest where
    sign is -1; on the CPU. own: the entry that is the first of these rows itself, and so on: those are left out."""
    value = rows.new_zeros(len(rows), 0)
    index = torch.zeros(len(rows), 0, dtype=torch.int64, device=rows.device)
    for start in range(0, len(table), COLUMNS):
        product = rows @ read(table[start : start + COLUMNS]).to(rows.dtype).T
        entries = torch.arange(start, start + product.shape[1], device=rows.device)
        if own is not None:
            mine = torch.arange(own, own + len(rows), device=rows.device)
            product[mine.unsqueeze(1) == entries] = -2.0 * sign
        best, at = product.topk(min(k, product.shape[1]), dim=1, largest=sign > 0)
        value, index = torch.cat([value, best], 1), torch.cat([index, entries[at]], 1)
        value, at = value.topk(min(k, value.shape[1]), dim=1, largest=sign > 0)
        index = index.gather(1, at)
    return index.cpu(), value.float().cpu()
