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

ENTRIES = 2**25  # of a block that is held at once


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
    norm = torch.cat([block.float().norm(dim=1) for block in sae.W_dec.split(4096)])
    unembedding = _unembedding(lm, sae)
    reads = final_norm(lm) if unembedding is not None else None
    near, found = min(neighbours, sae.d_hidden - 1), []
    width = len(sae.W_dec) if unembedding is None else max(len(unembedding), sae.d_hidden)
    size = max(1, ENTRIES // width)
    for start in range(0, sae.d_hidden, size):
        rows = _unit(sae.W_dec[start : start + size])
        above = below = (torch.zeros(len(rows), 0, dtype=torch.int64), torch.zeros(len(rows), 0))
        if unembedding is not None and reads is not None:
            lens = reads(rows) @ unembedding.to(rows.dtype).T
            k = min(logits, lens.shape[1])
            above, below = _largest(lens, k, 1), _largest(lens, k, -1)
        cosine = rows @ _unit(sae.W_dec).T
        own = torch.arange(start, start + len(rows), device=cosine.device)
        cosine[torch.arange(len(rows), device=cosine.device), own] = -2.0
        found.append((above, below, _largest(cosine, near, 1)))
        tell(start + len(rows))
    pairs = [tuple(torch.cat(each) for each in zip(*column, strict=True)) for column in zip(*found, strict=True)]
    encoder = torch.cat([block.float().norm(dim=1) for block in sae.W_enc.split(4096)])
    return Directions(norm.cpu(), encoder.cpu(), *((each[0], each[1]) for each in pairs))


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


def _unembedding(lm: ObservableLanguageModel, sae: SparseAutoEncoder) -> Float[Tensor, "vocabulary d"] | None:
    """Its rows for tokens that there are; some models have more rows than that."""
    found = lm.model.get_output_embeddings()
    if found is None or found.weight.shape[1] != sae.d_out:
        return None
    tokens = len(lm.tokenizer) if lm.has_tokenizer else len(found.weight)
    return found.weight[:tokens].to(sae.device)


def _unit(rows: Float[Tensor, "feature d"]) -> Float[Tensor, "feature d"]:
    """Rows of norm 1, in float32; a row of zeros stays one."""
    wide = torch.promote_types(rows.dtype, torch.float32) if rows.device.type == "cpu" else torch.float32
    return F.normalize(rows.to(wide), dim=1)


def _largest(block: Float[Tensor, "feature n"], k: int, sign: int) -> tuple[Tensor, Tensor]:
    """(indices, values) of the k largest of each row, or smallest where sign is -1; on the CPU."""
    value, index = block.topk(k, dim=1, largest=sign > 0)
    return index.cpu(), value.float().cpu()
