"""The model's loss with something else in place of what flows at a hook point, on chosen tokens.

    loss = mean over predicted tokens of −log p(token | those before it)              [nats per token]
    KL   = mean over the same of Σ p log(p / q), p clean, q with the replacement       [nats per token]

A selection of tokens says both where x is replaced and which predicted tokens count. Whole logits, [batch, pos,
vocabulary], are held of at most two passes, clean and replaced; their softmax is taken a few positions at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.errors import BadInput
from sparsight.lm.batch import Batch
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.lm.tap import Tap
from sparsight.sae.quality import BLOCK, reconstruct
from sparsight.sae.sae import SparseAutoEncoder

LOGITS = 2**30  # bytes of logits of two passes: 2,093 tokens of a vocabulary of 128,256 in bf16
SOFTMAX = 2**24  # logits whose softmax is taken at once


def most_tokens(lm: ObservableLanguageModel) -> int:
    """How many tokens of one pass have their logits within LOGITS."""
    return max(1, LOGITS // (2 * lm.vocabulary * lm.dtype.itemsize))


@dataclass
class Sums:
    """Over the predicted tokens of one selection: Σ −log p of each pass, and Σ KL."""

    tokens: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    kl: float = 0.0

    def mean(self, name: str) -> float:
        return self.losses[name] / self.tokens


@torch.no_grad()
def add_losses(
    sums: Sums,
    lm: ObservableLanguageModel,
    batch: Batch,
    clean: Float[Tensor, "batch pos vocabulary"],
    chosen: Bool[Tensor, "batch pos"],
    points: tuple[str, str],
    replacements: dict[str, Callable[[Tensor], Tensor]],
) -> None:
    """Run the batch once with each replacement, and add what it loses.

    points: where x is read, and where what stands in for it goes, the same one for most SAEs. replacements: name ->
    from x [token, d_in] to what flows on: [token, d_out], or the same for all, [d_out] or a number. The KL is taken
    of the one called "spliced".
    """
    row, column = (batch.mask[:, 1:] & batch.mask[:, :-1] & chosen[:, 1:]).nonzero(as_tuple=True)
    if not len(row):
        return
    targets = Targets(row, column, batch.ids[row, column + 1])
    sums.tokens += len(row)
    sums.losses["clean"] = sums.losses.get("clean", 0.0) + targets.loss(clean)[0]
    for name, replacement in replacements.items():
        taps = replaced(*points, chosen, replacement)
        loss, kl = targets.loss(lm.run(batch, taps, all_logits=True)[0], clean if name == "spliced" else None)
        sums.losses[name] = sums.losses.get(name, 0.0) + loss
        sums.kl += kl


@dataclass(frozen=True)
class Targets:
    """Predicted tokens, [target] each: the row and the position that predicts, and the id to predict."""

    row: Tensor
    column: Tensor
    ids: Tensor

    def loss(self, logits: Tensor, clean: Tensor | None = None) -> tuple[float, float]:
        """(Σ −log p, Σ KL(clean || these)) over the targets; KL 0 where clean is None."""
        loss = kl = 0.0
        step = max(1, SOFTMAX // logits.shape[-1])
        for start in range(0, len(self.ids), step):
            here = slice(start, start + step)
            now = self._log_p(logits, here)
            ids = self.ids[here].to(now.device)
            loss -= float(now.gather(-1, ids[:, None]).sum(dtype=torch.float64))
            if clean is not None:
                was = self._log_p(clean, here)
                apart = (was - now).masked_fill_(was == -torch.inf, 0)  # a token that the model has forbidden
                kl += float((was.exp_() * apart).sum(dtype=torch.float64))
        return loss, kl

    def _log_p(self, logits: Tensor, here: slice) -> Tensor:
        row, column = self.row[here].to(logits.device), self.column[here].to(logits.device)
        some = logits[row, column]
        return some.to(torch.promote_types(some.dtype, torch.float32)).log_softmax(-1)


def replaced(
    read: str, put: str, chosen: Bool[Tensor, "batch pos"], replacement: Callable[[Tensor], Tensor]
) -> dict[str, Sequence[Tap]]:
    """Taps that put replacement(x of the chosen tokens) in the place of what flows at the second hook point."""
    seen: list[Tensor] = []  # x, from the first hook point

    def look(flow: Tensor) -> None:
        seen[:] = [flow[chosen.to(flow.device)]]

    def swap(flow: Tensor) -> Tensor:
        if not seen:
            raise BadInput(f"What flows at '{put}' is made before anything is read at '{read}'.")
        out = flow.clone()
        out[chosen.to(flow.device)] = replacement(seen[0]).to(out)
        return out

    return {put: [look, swap]} if read == put else {read: [look], put: [swap]}


def x_hat(sae: SparseAutoEncoder) -> Callable[[Tensor], Tensor]:
    """From x to the SAE's reconstruction, a block of tokens at a time."""

    def blocks(x: Tensor) -> Iterator[Tensor]:
        for part in x.to(sae.device).split(BLOCK):
            yield reconstruct(sae, part)[0]

    return lambda x: torch.cat(list(blocks(x)))
