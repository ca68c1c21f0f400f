"""Choosing the next token, row by row: greedy, or drawn from what temperature, top_k, top_p and min_p leave.

Before all else the logits are weighed, by OpenAI's definitions, where a row asks for it:

    logit of a token  +=  bias  −  presence_penalty · (it was written)  −  frequency_penalty · (how often)

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


class Draws:
    """What one row's choices depend on besides its logits: its wish, its noise, and what it has written so far."""

    def __init__(self, wish: Sampling, device: torch.device):
        self.wish = wish
        self.generator = torch.Generator(device).manual_seed(wish.seed % 2**63)
        self.counts: dict[int, int] = {}  # how often each token was written
        self.penalised = bool(wish.presence_penalty or wish.frequency_penalty)
        ids, biases = zip(*wish.logit_bias, strict=True) if wish.logit_bias else ((), ())
        self.biased = torch.tensor(ids, dtype=torch.int64, device=device)
        self.biases = torch.tensor(biases, dtype=torch.float32, device=device)

    @property
    def weighs(self) -> bool:
        """Whether it changes logits at all."""
        return self.penalised or len(self.biased) > 0

    def weigh(self, logits: Float[Tensor, " vocabulary"]) -> None:
        """Adds its biases to its row, in place, and takes its penalties off."""
        if len(self.biased):
            logits.index_add_(0, self.biased, self.biases.to(logits.dtype))
        if self.penalised and self.counts:
            written = torch.tensor(list(self.counts), device=logits.device)
            often = torch.tensor(list(self.counts.values()), device=logits.device, dtype=logits.dtype)
            taken = self.wish.presence_penalty + self.wish.frequency_penalty * often
            logits.index_add_(0, written, -taken)

    def wrote(self, token: int) -> None:
        """One more token, of which penalties will know."""
        if self.penalised:
            self.counts[token] = self.counts.get(token, 0) + 1


class Sampler:
    """Chooses for rows of requests. Filters act in transformers' order and sense.

    rows: a Sampling each, or the Draws of rows that have been written for a while.
    """

    def __init__(self, rows: Sequence[Sampling | Draws], device: torch.device):
        self.draws = [row if isinstance(row, Draws) else Draws(row, device) for row in rows]
        wishes = [draws.wish for draws in self.draws]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device, dtype=torch.float32).unsqueeze(-1)

        self.drawn = [row for row, wish in enumerate(wishes) if wish.temperature]
        self.drawn_rows = torch.tensor(self.drawn, dtype=torch.int64, device=device)
        tiny = torch.finfo(torch.float32).tiny
        self.temperature = column([max(r.temperature, tiny) if r.temperature else 1.0 for r in wishes])
        self.top_k = column([r.top_k or math.inf for r in wishes])
        self.top_p, self.min_p = column([r.top_p for r in wishes]), column([r.min_p for r in wishes])
        self.weighing = [(row, draws) for row, draws in enumerate(self.draws) if draws.weighs]

    @torch.no_grad()
    def __call__(self, logits: Float[Tensor, "batch vocabulary"]) -> Int[Tensor, " batch"]:
        """The next token of every row."""
        chosen = self.choose(self.weigh(logits))
        self.wrote(chosen)
        return chosen

    @torch.no_grad()
    def weigh(self, logits: Float[Tensor, "batch vocabulary"]) -> Float[Tensor, "batch vocabulary"]:
        """The logits with biases and penalties, in float32 at least; the very same where no row has any."""
        if not self.weighing:
            return logits
        out = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        for row, draws in self.weighing:
            draws.weigh(out[row])
        return out

    def wrote(self, chosen: Int[Tensor, " batch"]) -> None:
        """Notes what was chosen, where a penalty will ask for it."""
        for row, draws in self.weighing:
            if draws.penalised:
                draws.wrote(int(chosen[row]))

    @torch.no_grad()
    def choose(self, logits: Float[Tensor, "batch vocabulary"]) -> Int[Tensor, " batch"]:
        """The next token of every row, of weighed logits."""
        likeliest = logits.argmax(-1)
        if not self.drawn:
            return likeliest
        rows = self.drawn_rows
        kept, tokens = self.filtered(logits[rows], rows)
        noise = torch.stack(
            [torch.empty_like(kept[0]).exponential_(generator=self.draws[r].generator) for r in self.drawn]
        )
        place = (noise.gather(-1, tokens) / kept).masked_fill(kept == 0, torch.inf).argmin(-1, keepdim=True)
        return likeliest.index_copy(0, rows, tokens.gather(-1, place).squeeze(-1))

    def filtered(
        self, logits: Float[Tensor, "batch vocabulary"], rows: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch vocabulary"], Int[Tensor, "batch vocabulary"]]:
        """(probabilities, likeliest first, 0 where filtered out and not renormalised; the token ids in that order).
        rows: whose logits these are; None for all."""
        columns = (self.temperature, self.top_k, self.top_p, self.min_p)
        temperature, top_k, top_p, min_p = columns if rows is None else (column[rows] for column in columns)
        below = logits.float() - logits.amax(-1, keepdim=True).float()  # so that a tiny temperature gives no infinity
        ranked = (below / temperature).sort(dim=-1, descending=True, stable=True)
        scores = ranked.values
        rank = torch.arange(scores.shape[-1], device=logits.device)
        last = scores.gather(-1, (top_k.clamp_max(scores.shape[-1]) - 1).long())
        probability = (scores.masked_fill(scores < last, -torch.inf)).softmax(-1)
        before = probability.cumsum(-1) - probability
        probability = probability * ((before < top_p) | (top_p >= 1) | (rank == 0))
        return probability * (probability >= min_p * probability[:, :1]), ranked.indices
