"""Trains the demo's sparse autoencoder on the output of one decoder layer.

    f = relu(W_enc x + b_enc)        x_hat = W_decᵀ f + b_dec
    loss = |x − x_hat|² + λ Σᵢ fᵢ |W_dec,ᵢ|        (the form of Anthropic's April 2024 update)

Inputs are scaled to norm √d while training. Afterwards that scale and the decoder's norms are folded into the
weights: the saved autoencoder reads the raw residual, and each decoder row has norm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from truth import Coded

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    layer: int = 3
    expansion: int = 16
    l1: float = 1.5
    tokens: int = 1_500_000
    scale_tokens: int = 300_000
    held_out_tokens: int = 150_000
    batch: int = 2048
    steps: int = 3000
    rate: float = 1e-3
    seed: int = 1

    @property
    def hook_point(self) -> str:
        return f"model.layers.{self.layer}"


# ── activations ───────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def harvest(model, documents: Sequence[Coded], plan: Plan, limit: int) -> Tensor:
    """The residual after the plan's layer at all tokens but BOS, [token, d], bfloat16."""
    parts, count = [], 0
    for batch, output in residuals(model, documents, plan.layer):
        for document, row in zip(batch, output, strict=True):
            parts.append(row[: len(document)][read_mask(document)].bfloat16())
            count += len(parts[-1])
        if count >= limit:
            break
    return torch.cat(parts)[:limit]


def read_mask(document: Coded) -> Tensor:
    """True at every token but BOS, whose residual is far off the others'. Chat headers count: what the model is about
    to say, and how, is decided there."""
    return torch.arange(len(document)) > 0


@torch.no_grad()
def residuals(model, documents: Sequence[Coded], layer: int) -> Iterator[tuple[list[Coded], Tensor]]:
    """Documents of similar length, and the output of one layer on them, [document, token, d], padded on the right."""
    with residual_at(model, layer) as residual:
        for batch in batches_by_length(documents, 16384):
            ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.int64)
            for row, document in zip(ids, batch, strict=True):
                row[: len(document)] = torch.from_numpy(document.ids.astype(np.int64))
            yield batch, residual(ids)


@contextmanager
def residual_at(model, layer: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from token ids to the output of one layer. The layers after it are not run."""
    caught: list[Tensor] = []
    whole = model.model.layers
    hook = whole[layer].register_forward_hook(lambda _m, _i, output: caught.append(output))
    model.model.layers = whole[: layer + 1]

    def residual(ids: Tensor) -> Tensor:
        caught.clear()
        model.model(input_ids=ids, use_cache=False)
        return caught[0]

    try:
        yield residual
    finally:
        model.model.layers = whole
        hook.remove()


def batches_by_length(documents: Sequence[Coded], tokens: int) -> Iterator[list[Coded]]:
    """Documents of similar length together (in a shuffled order of batches), so that little is padded."""
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    batches, batch = [], []
    for i in order:
        batch.append(documents[i][:512])
        if len(batch) * len(batch[-1]) >= tokens:
            batches.append(batch)
            batch = []
    if batch:
        batches.append(batch)
    for i in np.random.default_rng(0).permutation(len(batches)):
        yield batches[i]


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────


def initial(x: Tensor, width: int, seed: int) -> Tensors:
    """Decoder rows of norm 0.1 in random directions, the encoder its transpose, centred on the mean input."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(width, x.shape[1], generator=generator)
    rows = 0.1 * rows / rows.norm(dim=1, keepdim=True)
    mean = x.mean(0)
    tensors = {"W_enc": rows.clone(), "b_enc": -(rows @ mean), "W_dec": rows.clone(), "b_dec": mean.clone()}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def encode(t: Tensors, x: Tensor) -> Tensor:
    return torch.relu(x @ t["W_enc"].T + t["b_enc"])


def decode(t: Tensors, f: Tensor) -> Tensor:
    return f @ t["W_dec"] + t["b_dec"]


def ramp(step: int, steps: int, begin: float, end: float) -> float:
    """0 before `begin`, 1 after `end` (parts of the run), a straight line between."""
    return min(max((step / steps - begin) / (end - begin), 0.0), 1.0)


def train(activations: Tensor, plan: Plan) -> Tensors:
    """Trains to the end of the plan (λ ramps up over the first tenth, the rate falls over the last fifth)."""
    sample = activations[:100_000].float()
    size = float(sample.shape[1] ** 0.5 / sample.norm(dim=1).mean())
    t = initial(sample * size, plan.expansion * sample.shape[1], plan.seed)
    optimizer = torch.optim.Adam(t.values(), lr=plan.rate, betas=(0.9, 0.999), fused=True)
    picks = torch.Generator().manual_seed(plan.seed)
    for step in range(plan.steps):
        x = activations[torch.randint(len(activations), (plan.batch,), generator=picks)].float() * size
        with torch.autocast("cpu", torch.bfloat16):
            f = encode(t, x)
            error = (decode(t, f) - x).float().square().sum(1).mean()
            penalty = (f @ t["W_dec"].norm(dim=1)).float().mean()
        loss = error + plan.l1 * ramp(step, plan.steps, 0.0, 0.1) * penalty
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * ramp(step, plan.steps, -0.01, 0.02) * (1 - ramp(step, plan.steps, 0.8, 1.0))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(t.values(), 1.0)
        optimizer.step()
        if (step + 1) % 500 == 0:
            fvu = error.item() / float((x - x.mean(0)).square().sum(1).mean())
            l0 = float((f > 0).float().sum(1).mean())
            print(f"step {step + 1} fvu {fvu:.3f} L0 {l0:.1f}", flush=True)
    return fold({name: tensor.detach() for name, tensor in t.items()}, size)


def fold(t: Tensors, size: float) -> Tensors:
    """The same autoencoder for raw inputs, its decoder rows of norm 1, its matrices rounded to bfloat16."""
    norm = t["W_dec"].norm(dim=1, keepdim=True)
    return {
        "W_enc": (t["W_enc"] * norm).bfloat16(),
        "b_enc": t["b_enc"] * norm[:, 0] / size,
        "W_dec": (t["W_dec"] / norm).bfloat16(),
        "b_dec": t["b_dec"] / size,
    }


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def typical_top(t: Tensors, activations: Tensor, share: float = 0.99) -> Tensor:
    """Each feature's unit: the 99th percentile of its activations above zero; 0 if it has too few of them."""
    exact = {name: tensor.float() for name, tensor in t.items()}
    features, values = [], []
    for x in activations.split(4096):
        f = encode(exact, x.float())
        features.append(f.nonzero()[:, 1])
        values.append(f[f > 0])
    feature, value = torch.cat(features), torch.cat(values)
    order = value.argsort()
    order = order[feature[order].argsort(stable=True)]  # by feature, then by value
    count = feature.bincount(minlength=len(t["b_enc"]))
    place = count.cumsum(0) - count + (share * (count - 1)).long().clamp(min=0)
    unit = value[order[place.clamp(max=len(order) - 1)]]
    return torch.where(count >= 10, unit, 0.0)


@torch.no_grad()
def quality(t: Tensors, activations: Tensor) -> dict[str, float]:
    """L0, fraction of variance unexplained and the share of features that never fire."""
    exact = {name: tensor.float() for name, tensor in t.items()}
    mean = activations.float().mean(0)
    wrong = spread = active = 0.0
    fired = torch.zeros(len(t["b_enc"]), dtype=torch.bool)
    for x in activations.split(4096):
        x = x.float()
        f = encode(exact, x)
        wrong += float((x - decode(exact, f)).square().sum())
        spread += float((x - mean).square().sum())
        active += float((f > 0).sum())
        fired |= (f > 0).any(0)
    return {
        "tokens": len(activations),
        "l0": active / len(activations),
        "fvu": wrong / spread,
        "dead_share": float((~fired).float().mean()),
    }


@torch.no_grad()
def loss_recovered(model, t: Tensors, documents: Sequence[Coded], plan: Plan) -> float:
    """Share of the loss that the layer's text tokens are worth, kept when x_hat takes their place.

    1: as good as the residual itself; 0: as bad as its mean (b_dec).
    """
    exact = {name: tensor.float() for name, tensor in t.items()}
    layer = model.model.layers[plan.layer]
    losses = []
    for change in (
        lambda x: x,
        lambda x: decode(exact, encode(exact, x)),
        lambda x: exact["b_dec"].expand_as(x),
    ):
        total = 0.0
        for document in documents:
            row = torch.from_numpy(document.ids[:512].astype(np.int64))
            mask = read_mask(document)[None, :512, None]
            hook = layer.register_forward_hook(lambda _m, _i, x, c=change, m=mask: torch.where(m, c(x), x))
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
            hook.remove()
            total += float(cross_entropy(logits.float(), row[1:], reduction="sum"))
        losses.append(total)
    whole, replaced, nothing = losses
    return (nothing - replaced) / (nothing - whole)
