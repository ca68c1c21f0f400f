"""Choosing the next token, row by row: greedy, or drawn from what temperature, top_k, top_p and min_p leave.

Each row draws its own noise for every token of the vocabulary and takes the token for which noise / probability is
least: an exact draw from the distribution (the Gumbel-max trick). So a row's text depends on its own logits and its
own seed, and on nothing else in the batch; and where rounding moves a probability by a hair, the draw stays the same
unless that very hair decides it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.records import Sampling


class Sampler:
    """Chooses for rows of requests; holds each row's generator. Filters act in transformers' order and sense."""

    def __init__(self, rows: Sequence[Sampling], device: torch.device):
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device, dtype=torch.float32).unsqueeze(-1)

        self.greedy = torch.tensor([r.temperature == 0 for r in rows], device=device)
        self.all_greedy = all(r.temperature == 0 for r in rows)
        tiny = torch.finfo(torch.float32).tiny
        self.temperature = column([max(r.temperature, tiny) if r.temperature else 1.0 for r in rows])
        self.top_k = column([r.top_k or math.inf for r in rows])
        self.top_p, self.min_p = column([r.top_p for r in rows]), column([r.min_p for r in rows])
        self.generators = [torch.Generator(device).manual_seed(r.seed % 2**63) for r in rows]

    @torch.no_grad()
    def __call__(self, logits: Float[Tensor, "batch vocabulary"]) -> Int[Tensor, " batch"]:
        """The next token of every row."""
        likeliest = logits.argmax(-1)
        if self.all_greedy:
            return likeliest
        kept, tokens = self.filtered(logits)
        noise = torch.stack([torch.empty_like(kept[0]).exponential_(generator=g) for g in self.generators])
        place = (noise.gather(-1, tokens) / kept).masked_fill(kept == 0, torch.inf).argmin(-1, keepdim=True)
        return torch.where(self.greedy, likeliest, tokens.gather(-1, place).squeeze(-1))

    def filtered(
        self, logits: Float[Tensor, "batch vocabulary"]
    ) -> tuple[Float[Tensor, "batch vocabulary"], Int[Tensor, "batch vocabulary"]]:
        """(probabilities, likeliest first, 0 where filtered out and not renormalised; the token ids in that order)."""
        below = logits.float() - logits.amax(-1, keepdim=True).float()  # so that a tiny temperature gives no infinity
        ranked = (below / self.temperature).sort(dim=-1, descending=True, stable=True)
        scores = ranked.values
        rank = torch.arange(scores.shape[-1], device=logits.device)
        last = scores.gather(-1, (self.top_k.clamp_max(scores.shape[-1]) - 1).long())
        probability = (scores.masked_fill(scores < last, -torch.inf)).softmax(-1)
        before = probability.cumsum(-1) - probability
        probability = probability * ((before < self.top_p) | (self.top_p >= 1) | (rank == 0))
        return probability * (probability >= self.min_p * probability[:, :1]), ranked.indices
