"""The gradient of every objective, pair by pair, is the one that autograd finds when everything is dense."""

from dataclasses import replace

import pytest
import torch

from sparsight.train.kernels import kernels
from sparsight.train.objective import OBJECTIVE, UNIT, Work
from sparsight.train.parallel import Team
from sparsight.train.plain import Plain
from sparsight.train.spec import TrainSpec
from sparsight.train.trainer import Trainer
from sparsight.train.weights import beginning

ROWS, D_IN, D_OUT, FEATURES = 23, 11, 13, 48
DOUBLE = {"dtype": torch.float64}
BACKENDS = [Plain(), kernels(torch.device("cpu"))]


class Step(torch.autograd.Function):
    """H(pre − θ), whose slope by both is that of a rectangle of width ε: as in objective.py."""

    @staticmethod
    def forward(ctx, pre, theta, width):
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx, g):
        pre, theta = ctx.saved_tensors
        window = ((pre - theta).abs() < ctx.width / 2).to(g.dtype) / ctx.width
        return None, -(g * window).sum(0), None


def weights(objective, seed=0):
    g = torch.Generator().manual_seed(seed)
    made = {
        "W_enc": torch.randn(FEATURES, D_IN, generator=g, **DOUBLE) / D_IN**0.5,
        "b_enc": torch.randn(FEATURES, generator=g, **DOUBLE) * 0.2,
        "W_dec": torch.randn(FEATURES, D_OUT, generator=g, **DOUBLE),
        "b_dec": torch.randn(D_OUT, generator=g, **DOUBLE),
    }
    if objective != "relu":
        made["W_dec"] /= made["W_dec"].norm(dim=-1, keepdim=True)
    if objective == "jumprelu":
        made["log_threshold"] = torch.randn(FEATURES, generator=g, **DOUBLE) * 0.3 - 1
    if objective == "gated":
        made["r_mag"] = torch.randn(FEATURES, generator=g, **DOUBLE) * 0.2
        made["b_mag"] = torch.randn(FEATURES, generator=g, **DOUBLE) * 0.2
    return made, torch.randn(ROWS, D_IN, generator=g, **DOUBLE), torch.randn(ROWS, D_OUT, generator=g, **DOUBLE)


def dense_loss(spec, w, x, y, coefficient, ends, dead):
    """The objectives as they are written in objective.py, dense."""
    pre = x @ w["W_enc"].T + w["b_enc"]
    penalty = 0.0
    decoder, share = w["W_dec"], 1 / (len(x) * len(ends))

    def error(f, W=decoder, b=w["b_dec"]):
        return share * sum((f[:, :end] @ W[:end] + b - y).square().sum() for end in ends)

    if spec.objective == "relu":
        f = torch.relu(pre)
        penalty = (f * decoder.norm(dim=-1)).sum()
    elif spec.objective == "jumprelu":
        step = Step.apply(pre, w["log_threshold"].exp(), spec.bandwidth)
        theta = w["log_threshold"].exp().detach()
        f = pre * step.detach() + theta * (step - step.detach())  # the paper's slope by θ: that of pre at the jump
        penalty = step.sum()
    elif spec.objective == "gated":
        gate = torch.relu(pre)
        f = torch.relu(w["r_mag"].exp() * (x @ w["W_enc"].T) + w["b_mag"]) * (gate > 0)
        penalty = (gate * decoder.norm(dim=-1).detach()).sum()
        penalty = penalty * coefficient / len(x) + error(gate, decoder.detach(), w["b_dec"].detach())
        return error(f) + penalty
    else:
        flat = pre if spec.objective == "topk" else pre.flatten()[None]
        k = int(spec.l0) if spec.objective == "topk" else round(spec.l0 * len(x))
        kept = torch.zeros_like(flat).scatter(1, flat.topk(k).indices, 1.0).reshape(pre.shape)
        f = torch.relu(pre) * kept
        if len(dead):
            left = (y - f @ decoder - w["b_dec"]).detach()
            values, at = pre[:, dead].topk(min(spec.aux_k, len(dead)))
            made = torch.zeros_like(pre[:, dead]).scatter(1, at, values) @ decoder[dead]
            penalty = spec.aux * (made - left).square().sum() / len(x)
        return error(f) + penalty
    return error(f) + coefficient * penalty / len(x)


@pytest.mark.parametrize("do", BACKENDS, ids=lambda do: do.name)
@pytest.mark.parametrize("groups", [(FEATURES,), (5, 20, FEATURES)], ids=["plain", "matryoshka"])
@pytest.mark.parametrize("objective", OBJECTIVE)
def test_the_gradient_over_pairs_is_the_dense_one(objective, groups, do):
    check_the_gradient(objective, groups, do)


@pytest.mark.parametrize("rise", [0.0, 0.5])
@pytest.mark.parametrize("clip", [None, 1e9])
@pytest.mark.parametrize("objective", OBJECTIVE)
def test_a_training_is_that_of_autograd_and_torchs_adam(objective, clip, rise):
    """clip: with a number the gradients are stored and Adam goes over them; without, each row has both at once."""
    made = {"d_hidden": FEATURES, "l0": 6.0, "batch": 64, "tokens": 640, "lr": 3e-3, "product": "float32", "aux": 0.0}
    spec = TrainSpec(objective=objective, clip=clip, rise=rise, groups=(16, FEATURES), **made)
    g = torch.Generator().manual_seed(1)
    trainer = Trainer(spec, torch.randn(512, D_IN, generator=g, **DOUBLE) * 3 + 5, dtype=torch.float64)
    w = {name: tensor.clone().requires_grad_() for name, tensor in trainer.weights.items()}
    adam = torch.optim.Adam(w.values(), betas=(spec.beta1, spec.beta2), eps=1e-8)
    for _ in range(spec.steps):
        x = torch.randn(spec.batch, D_IN, generator=g, **DOUBLE) * 3 + 5
        inside = trainer.read.inside(x, torch.float64)
        adam.param_groups[0]["lr"] = trainer.rate
        if rise and not spec.penalised:  # its correction is for a constant: what it divides by is multiplied in again
            t = trainer.steps + 1
            beta2 = min(spec.beta2, 1 - t**-rise)
            adam.param_groups[0] |= {"betas": (spec.beta1, beta2), "eps": 1e-8 / (1 - beta2**t) ** 0.5}
            adam.param_groups[0]["lr"] /= (1 - beta2**t) ** 0.5
        adam.zero_grad()
        dense_loss(spec, w, inside, inside, trainer.sparsity.coefficient, spec.groups, []).backward()
        rows = w["W_dec"]
        if objective in UNIT:
            rows.grad -= (rows.grad * rows.detach()).sum(-1, keepdim=True) * rows.detach()
        adam.step()
        if objective in UNIT:
            rows.data /= rows.data.norm(dim=-1, keepdim=True)
        trainer.step(x)
    for name, tensor in w.items():
        torch.testing.assert_close(trainer.weights[name], tensor.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("groups", [(), (5, 16, FEATURES)], ids=["plain", "matryoshka"])
@pytest.mark.parametrize("transcodes", [False, True])
def test_where_the_strongest_are_kept_a_training_begins_at_the_scale_that_reconstructs_best(transcodes, groups):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(300, D_IN, generator=g, **DOUBLE)
    y = x @ torch.randn(D_IN, 5, generator=g, **DOUBLE) if transcodes else x
    spec = TrainSpec(objective="topk", l0=9.0, groups=groups, batch=64, tokens=64)
    w = beginning(spec, FEATURES, x, y, g)

    def error(factor):
        pre = factor * (x @ w["W_enc"].T)
        f = torch.zeros_like(pre).scatter(1, pre.topk(9).indices, 1.0) * pre.relu()
        return sum(float((f[:, :end] @ w["W_dec"][:end] - y).square().sum()) for end in groups or (FEATURES,))

    assert error(1.0) < min(error(0.999), error(1.001))
    norms = w["W_enc"].norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))
    for other in (replace(spec, fit=False), replace(spec, objective="relu")):
        norms = beginning(other, FEATURES, x, y, g)["W_enc"].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(FEATURES, **DOUBLE))


def check_the_gradient(objective, groups, do, device="cpu"):
    spec = TrainSpec(objective=objective, l0=6.0, groups=groups, aux_k=3, bandwidth=0.5, batch=ROWS, tokens=ROWS)
    w, x, y = weights(objective)
    w, x, y = {name: tensor.to(device) for name, tensor in w.items()}, x.to(device), y.to(device)
    dead = torch.tensor([2, 7, 19, 30, 41] if objective in ("topk", "batchtopk") else [], dtype=int, device=device)
    w["b_enc"][dead] -= 9  # never active, and below zero wherever they are looked at
    ends, pre = torch.tensor(groups, dtype=torch.int32, device=device), x @ w["W_enc"].T
    norms = w["W_dec"].norm(dim=-1)
    work = Work(spec, do, Team(), w, norms, ends, x, y, pre, ROWS, 0.7, dead, len(dead), bound=0.1)
    g = OBJECTIVE[objective](work)
    enc, dec = do.gradients(g.columns, g.enc, g.dec, x, g.err, ends, g.more)
    found = {"W_enc": enc, "W_dec": dec + g.pull[:, None] * w["W_dec"], **g.vectors}

    asked = {name: tensor.clone().requires_grad_() for name, tensor in w.items()}
    dense_loss(spec, asked, x, y, 0.7, groups, dead).backward()
    for name, tensor in asked.items():
        torch.testing.assert_close(found[name], tensor.grad, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
        assert tensor.grad.abs().sum() > 0, f"nothing was compared at {name}"
    if len(dead):
        assert (asked["W_enc"].grad[dead].abs().sum(-1) > 0).any(), "dead features are taught"
