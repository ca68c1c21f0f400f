"""The numbers that are trained, and how they begin and end.

Training sees inputs that are centred and scaled, x' = (x − centre) / size, so that all settings mean the same on every
model. In the end both are folded into the weights: the saved SAE reads and writes raw activations.

    W_enc / size        b_enc − W_enc · centre / size        size_out · W_dec        size_out · b_dec + centre_out
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import BadInput
from sparsight.sae.sae import SaeConfig, SparseAutoEncoder
from sparsight.train.spec import TrainSpec

MATRICES = ("W_enc", "W_dec")
BEGIN = 4.0  # so many times the L0 in the end is the L0 at the beginning
SAMPLE = 2**27  # pre-activations of a sample that are computed at once, at most


@dataclass(frozen=True)
class Frame:
    """Where inputs lie: the geometric median, and the root of the median square distance from it, per dimension."""

    centre: Float[Tensor, " d"]
    size: float

    @classmethod
    def of(cls, x: Float[Tensor, "token d"]) -> Frame:
        """Robust: a few tokens of enormous norm move neither. Raises BadInput where all tokens are the same."""
        x = x.double()
        centre = geometric_median(x)
        size = float(((x - centre).square().sum(-1).median() / x.shape[1]).sqrt())
        if not 0 < size < float("inf"):
            raise BadInput(f"The activations do not differ, or are not finite: their size is {size}.")
        return cls(centre.float(), size)

    def inside(self, x: Float[Tensor, "token d"], dtype: torch.dtype) -> Float[Tensor, "token d"]:
        """Raw activations as training sees them."""
        return (x.to(dtype).contiguous() - self.centre.to(dtype)).div_(self.size)


def geometric_median(x: Float[Tensor, "token d"], rounds: int = 50) -> Float[Tensor, " d"]:
    """The point with the least sum of distances to all tokens (Weiszfeld's algorithm)."""
    centre = x.mean(0)
    for _ in range(rounds):
        weight = 1 / (x - centre).norm(dim=-1).clamp_min(1e-12)
        moved = (weight / weight.sum()) @ x
        done = (moved - centre).norm() <= 1e-6 * moved.norm()
        centre = moved
        if done:
            break
    return centre


def beginning(
    spec: TrainSpec,
    d_hidden: int,
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Weights to begin with, from a sample of inputs and targets in their frames.

    Decoder rows are random directions, the encoder their transpose. A transcoder's decoder row (y is not x) is the mean
    target where the feature is active. Thresholds (biases, for relu and gated) are set such that every feature is
    active on the same share of the sample: a few times as often as in the end. For topk and batchtopk the encoder is
    scaled to what reconstructs best: many active features of unit rows give several times the input, and gradients so
    large that Adam takes small steps for a long while after.
    """
    d_in, d_out, dtype = x.shape[1], y.shape[1], x.dtype
    rows = torch.randn(d_hidden, d_in, generator=generator, dtype=torch.float64).to(x.device, dtype)
    w = {"W_enc": rows / rows.norm(dim=-1, keepdim=True)}
    levels, out = [], []
    for part in w["W_enc"].split(max(SAMPLE // len(x), 1)):
        pre = part @ x.T
        level = first_level(spec, d_hidden, pre)
        levels.append(level)
        if y is not x:
            out.append(torch.relu(pre - level[:, None]) @ y)
    level = torch.cat(levels)
    w["W_dec"] = torch.cat(out) if out else w["W_enc"].clone()
    w["W_dec"] /= w["W_dec"].norm(dim=-1, keepdim=True).clamp_min(1e-12)
    if spec.fit and not spec.penalised:
        w["W_enc"] *= best_scale(spec, w["W_enc"], w["W_dec"], x, y)
    return {**w, "b_dec": y.new_zeros(d_out), **first_thresholds(spec, level)}


def best_scale(
    spec: TrainSpec,
    encoder: Float[Tensor, "feature d_in"],
    decoder: Float[Tensor, "feature d_out"],
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
) -> float:
    """Of all activations, where each token keeps its k largest: such that the sum of squared errors on the sample, of
    all nested dictionaries together, is the least. 1 where no scale makes it less. Of the sample the first tokens are
    taken, as many as have 2**25 pre-activations."""
    d_hidden = len(encoder)
    x, y = (part[: max(SAMPLE // 4 // d_hidden, 1)] for part in (x, y))
    pre = x @ encoder.T
    values, features = pre.relu().topk(max(round(spec.l0), 1), dim=1)
    f = torch.zeros_like(pre).scatter_(1, features, values)
    along, square, x_hat = 0.0, 0.0, torch.zeros_like(y)
    for begin, end in itertools.pairwise((0, *(spec.groups or (d_hidden,)))):
        x_hat += f[:, begin:end] @ decoder[begin:end]
        along += float((x_hat * y).sum(dtype=torch.float64))
        square += float(x_hat.square().sum(dtype=torch.float64))
    return along / square if along > 0 and square > 0 else 1.0


def first_level(spec: TrainSpec, d_hidden: int, pre: Float[Tensor, "feature token"]) -> Float[Tensor, " feature"]:
    """What each feature's pre-activation is above on the share of tokens that it is active on at first."""
    active = max(int(min(BEGIN * spec.l0 / d_hidden, 0.5) * pre.shape[1]), 1)
    return pre.topk(active, dim=1).values[:, -1]


def first_thresholds(spec: TrainSpec, level: Float[Tensor, " feature"]) -> dict[str, Tensor]:
    """All weights of a feature but its rows, such that it is active where its product with the input is above level."""
    zero = torch.zeros_like(level)
    out = {"b_enc": -level if spec.objective in ("relu", "gated") else zero}
    if spec.objective == "jumprelu":
        out["log_threshold"] = level.clamp_min(1e-3).log()
    if spec.objective == "gated":
        out |= {"r_mag": zero, "b_mag": zero.clone()}
    return out


def unit(spec: TrainSpec, weights: dict[str, Tensor]) -> float:
    """The natural unit of a penalty's coefficient: what a feature at its first threshold takes off the error, for each
    unit of its activation (relu, gated), or for being active (jumprelu)."""
    if spec.objective == "jumprelu":
        return float(weights["log_threshold"].exp().median()) ** 2
    return float(weights["b_enc"].abs().median()) or 1.0


def finished(
    weights: dict[str, Tensor], spec: TrainSpec, config: SaeConfig, read: Frame, written: Frame, threshold: float
) -> SparseAutoEncoder:
    """The SAE that reads and writes raw activations. Rows of a decoder without a fixed norm get norm 1, their features
    the difference: what it computes is the same. threshold: of batchtopk, in the frame."""
    w = {name: tensor.detach().double() for name, tensor in weights.items()}
    out = {
        "W_enc": w["W_enc"] / read.size,
        "b_enc": w["b_enc"] - w["W_enc"] @ read.centre.double() / read.size,
        "W_dec": w["W_dec"] * written.size,
        "b_dec": w["b_dec"] * written.size + written.centre.double(),
    }
    norm = out["W_dec"].norm(dim=-1)
    norm = torch.where(norm > 0, norm, 1)  # features count how far they move the output: in its units
    if spec.objective == "jumprelu":
        out["threshold"] = w["log_threshold"].exp() * norm
    if spec.objective == "batchtopk":
        out["threshold"] = threshold * norm
    if spec.objective == "gated":  # magnitude = exp(r) · (pre − b_enc) + b_mag: what b_enc took in, b_mag takes in too
        shift = out["b_enc"] - w["b_enc"]
        out["r_mag"], out["b_mag"] = w["r_mag"], (w["b_mag"] + w["r_mag"].exp() * shift) * norm
    out["W_enc"], out["b_enc"] = out["W_enc"] * norm[:, None], out["b_enc"] * norm
    out["W_dec"] = out["W_dec"] / norm[:, None]
    return SparseAutoEncoder.from_tensors(config, {name: tensor.float() for name, tensor in out.items()})
