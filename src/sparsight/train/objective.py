"""What is minimised, and its gradient, pair by pair. In the frame of the inputs, per token, with g groups (1: no
Matryoshka) and x_hat_m the reconstruction by the first ends[m] features:

    error      1/g Σ_m |x_hat_m − y|²

    relu       error + λ Σ f |W_dec|          f = relu(pre)                  (Anthropic, April 2024 update)
    jumprelu   error + λ Σ H(pre − θ)         f = pre · H(pre − θ)           (Rajamanoharan et al. 2024b)
    topk       error + α aux                  f = pre, of the k largest of a token       (Gao et al. 2024)
    batchtopk  error + α aux                  f = pre, of the k · batch largest of all   (Bussmann et al. 2024)
    gated      error + λ Σ relu(gate) |W_dec| + error of relu(gate) through a frozen decoder
                                              f = relu(magnitude) · H(gate)  (Rajamanoharan et al. 2024a)

The gradient of every one of them is zero outside of active pairs (and those within the window around a threshold), so
the decoder, its gradient and the encoder's gradient are sums over pairs; only pre = W_enc x is a product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.train.pairs import Columns, More, Pairs
from sparsight.train.parallel import Team
from sparsight.train.plain import Plain
from sparsight.train.spec import TrainSpec


@dataclass
class Work:
    """What an objective works with: the weights, this batch in its frame, and how the run is set.

    tokens: of the batch, of all processes. ends: of the groups. coefficient: λ. dead: indices of dead features;
    dead_everywhere: how many there are in all processes. bound: a guess at the least pre-activation that is among the k
    strongest; it saves time and changes nothing.
    """

    spec: TrainSpec
    do: Plain
    team: Team
    weights: dict[str, Tensor]
    norms: Float[Tensor, " feature"]
    ends: Int[Tensor, " group"]
    x: Float[Tensor, "row d_in"]
    y: Float[Tensor, "row d_out"]
    pre: Float[Tensor, "row feature"]
    tokens: int
    coefficient: float = 0.0
    dead: Int[Tensor, " dead"] | None = None
    dead_everywhere: int = 0
    bound: float = 0.0

    @property
    def share(self) -> float:
        """The weight of one token's, and one group's, error in the loss."""
        return 1 / (self.tokens * len(self.ends))

    def above(self, least: Tensor) -> Pairs:
        """Pairs with pre + b_enc > least."""
        return self.refined(self.do.above(self.pre, self.weights["b_enc"], least))

    def refined(self, pairs: Pairs) -> Pairs:
        """The same pairs, their pre exact where the product was rounded."""
        if self.pre.dtype != torch.bfloat16:
            return pairs
        w, ends = self.weights, self.ends[-1:]
        exact = self.do.dots(pairs, self.x[None], ends, w["W_enc"]) + w["b_enc"][pairs.features.long()]
        return Pairs(pairs.offsets, pairs.features, exact)

    def decode(self, pairs: Pairs, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Plain.decode with the decoder that all processes of the team hold together."""
        w = self.weights
        return self.team.decode(self.do, pairs, values, w["W_dec"], w["b_dec"], self.y, self.ends)


@dataclass
class Gradient:
    """Of the loss by all weights. Of W_enc: Σ enc · x; of W_dec: Σ dec · err + pull · W_dec, over the pairs of each
    feature. vectors: of the others. l0, losses: sums over tokens of this process; extra: of a few features."""

    pairs: Pairs
    columns: Columns
    enc: Float[Tensor, " pair"]
    dec: Float[Tensor, " pair"]
    err: Float[Tensor, "group row d_out"]
    pull: Float[Tensor, " feature"]
    vectors: dict[str, Tensor]
    active: Float[Tensor, ""]
    fired: Float[Tensor, " feature"]
    losses: dict[str, Tensor] = field(default_factory=dict)
    more: More | None = None
    bound: float = 0.0


def relu(work: Work) -> Gradient:
    """ReLU with an L1 penalty on features, each counted by how far it moves the output."""
    pairs = work.above(torch.zeros_like(work.norms))
    value = pairs.pre.clamp_min(0)
    on = (value > 0).to(value.dtype)
    err, latent, losses = work.decode(pairs, value)
    columns = work.do.columns(pairs, len(work.norms))
    penalty = work.coefficient / work.tokens
    norms = work.norms[pairs.features.long()]
    enc = (2 * work.share * latent + penalty * norms) * on
    mass = work.do.sums(columns, value)
    return Gradient(
        pairs,
        columns,
        enc,
        2 * work.share * value,
        err,
        penalty * mass / work.norms.clamp_min(1e-12),
        {"b_enc": work.do.sums(columns, enc), "b_dec": 2 * work.share * err[0].sum(0)},
        on.sum(),
        work.do.sums(columns, on),
        {"error": losses[-1], "penalty": (mass * work.norms).sum()},
    )


def jumprelu(work: Work) -> Gradient:
    """JumpReLU with an L0 penalty. H has no slope: within a window of width ε around θ, that of a rectangle, 1/ε,
    stands for it, by θ alone, in the penalty and in the error."""
    theta, width = work.weights["log_threshold"].exp(), work.spec.bandwidth
    pairs = work.above(theta - width / 2)
    own = theta[pairs.features.long()]
    on = (pairs.pre > own).to(own.dtype)
    value = pairs.pre * on
    err, latent, losses = work.decode(pairs, value)
    columns = work.do.columns(pairs, len(theta))
    g = 2 * work.share * latent
    window = ((pairs.pre - own).abs() < width / 2).to(own.dtype) / width
    slope = (own * g + work.coefficient / work.tokens) * window
    enc = g * on
    return Gradient(
        pairs,
        columns,
        enc,
        2 * work.share * value,
        err,
        torch.zeros_like(theta),
        {
            "b_enc": work.do.sums(columns, enc),
            "b_dec": 2 * work.share * err[0].sum(0),
            "log_threshold": -theta * work.do.sums(columns, slope),
        },
        on.sum(),
        work.do.sums(columns, on),
        {"error": losses[-1], "penalty": on.sum()},
    )


def topk(work: Work) -> Gradient:
    """The k strongest features of each token."""
    pairs, bound = work.team.strongest(work, int(work.spec.l0))
    return chosen(work, pairs, bound)


def batchtopk(work: Work) -> Gradient:
    """The strongest features of the batch, k for each token on average."""
    pairs, bound = work.team.strongest_of_all(work, round(work.spec.l0 * work.tokens))
    return chosen(work, pairs, bound)


def gated(work: Work) -> Gradient:
    """Which features are active is decided apart from how much: gate = W_enc x + b_enc; magnitude = exp(r) W_enc x +
    b_mag. The penalty, and an error of its own through a frozen decoder, teach the gate."""
    w = work.weights
    pairs = work.above(torch.zeros_like(work.norms))
    features = pairs.features.long()
    gate = pairs.pre.clamp_min(0)
    gain, product = w["r_mag"].exp()[features], pairs.pre - w["b_enc"][features]
    value = (gain * product + w["b_mag"][features]).clamp_min(0) * (gate > 0)
    on = (value > 0).to(value.dtype)
    err, latent, losses = work.decode(pairs, value)
    _, taught, lessons = work.decode(pairs, gate)
    columns = work.do.columns(pairs, len(work.norms))
    g = 2 * work.share * latent * on
    penalty = work.coefficient / work.tokens * work.norms[features]
    by_gate = (2 * work.share * taught + penalty) * (gate > 0)
    return Gradient(
        pairs,
        columns,
        g * gain + by_gate,
        2 * work.share * value,
        err,
        torch.zeros_like(work.norms),
        {
            "b_enc": work.do.sums(columns, by_gate),
            "b_dec": 2 * work.share * err[0].sum(0),
            "r_mag": work.do.sums(columns, g * gain * product),
            "b_mag": work.do.sums(columns, g),
        },
        on.sum(),
        work.do.sums(columns, on),
        {"error": losses[-1], "penalty": (gate * work.norms[features]).sum(), "gate error": lessons[-1]},
    )


def chosen(work: Work, pairs: Pairs, bound: float) -> Gradient:
    """Of objectives that keep the strongest."""
    err, latent, losses = work.decode(pairs, pairs.pre)
    columns = work.do.columns(pairs, len(work.norms))
    on = torch.ones_like(pairs.pre)
    enc = 2 * work.share * latent
    out = Gradient(
        pairs,
        columns,
        enc,
        2 * work.share * pairs.pre,
        err,
        torch.zeros_like(work.norms),
        {"b_enc": work.do.sums(columns, enc), "b_dec": 2 * work.share * err[0].sum(0)},
        on.sum(),
        work.do.sums(columns, on),
        {"error": losses[-1]},
        bound=bound,
    )
    if work.spec.aux and work.dead is not None and work.dead_everywhere:
        _left_over(work, out)
    return out


def _left_over(work: Work, out: Gradient) -> None:
    """aux: what the dead features that are nearest to being active, aux_k for each token, would make of what is left
    over: |Σ pre W_dec − (y − x_hat)|² (AuxK, Gao et al. 2024). By pre as it is, below zero too: a feature that were
    cut off at zero would have no gradient, and stay dead."""
    dead, w = work.dead, work.weights
    assert dead is not None
    most = min(work.spec.aux_k or max(work.x.shape[1] // 2, 1), work.dead_everywhere)
    pre, k = work.pre[:, dead].to(work.x.dtype) + w["b_enc"][dead], min(most, len(dead))
    best, features = pre.topk(k, dim=1)
    order = features.argsort(dim=1)
    offsets = torch.arange(len(pre) + 1, device=pre.device) * k
    pairs = Pairs(offsets, features.gather(1, order).flatten().to(torch.int32), best.gather(1, order).flatten())
    pairs, _ = work.team.pruned(work.do, pairs, most)
    rows, ends = w["W_dec"][dead], torch.tensor([len(dead)], dtype=torch.int32, device=pre.device)
    last = out.err[-1]
    err, latent, losses = work.team.decode(work.do, pairs, pairs.pre, rows, torch.zeros_like(w["b_dec"]), -last, ends)
    weight = 2 * work.spec.aux / work.tokens
    columns = work.do.columns(pairs, len(dead))
    enc, dec = work.do.gradients(columns, weight * latent, weight * pairs.pre, work.x, err, ends)
    out.more = More(dead, enc, dec)
    out.vectors["b_enc"][dead] += work.do.sums(columns, weight * latent)
    out.losses["aux"] = losses[-1]


OBJECTIVE: dict[str, Callable[[Work], Gradient]] = {
    "relu": relu,
    "jumprelu": jumprelu,
    "topk": topk,
    "batchtopk": batchtopk,
    "gated": gated,
}
UNIT = ("jumprelu", "topk", "batchtopk", "gated")  # whose decoder rows keep norm 1
