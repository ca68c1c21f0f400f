"""Our own trainer, as the benchmarks of training drive it: the same protocol as everybody's (train_peers.Trainer)."""

from __future__ import annotations

from typing import Any

import torch
import train_peers
from torch import Tensor
from train_peers import Job, Trainer

from sparsight.train import trainer as ours_trainer
from sparsight.train.sparsity import Sparsity
from sparsight.train.spec import TrainSpec
from sparsight.train.weights import Frame

OURS = "sparsight"
OBJECTIVES = {
    "L1": "relu",
    "TopK": "topk",
    "BatchTopK": "batchtopk",
    "JumpReLU": "jumprelu",
    "Gated": "gated",
    "Matryoshka": "batchtopk",
}
EXACT = " in float32"  # after an objective: the encoder's product too


def ours(objective: str, job: Job, like: str | None = None) -> Trainer:
    """Our trainer of an objective ("L1", "TopK in float32", ...), for a job.

    like: "torch": with the maths of train_peers.minimal to the letter (no frame, one coefficient, float32), so that
    both descend the same curve.
    """
    name, exact = objective.removesuffix(EXACT), objective.endswith(EXACT) or like is not None
    made = Driven(job, OBJECTIVES[name], exact, name == "Matryoshka", like is not None)
    return Trainer(made.prepare, made.step, made.tensors, made.sae)


class Driven:
    """One of our trainers, that begins with the first batch it sees."""

    def __init__(self, job: Job, objective: str, exact: bool, nested: bool, like: bool) -> None:
        self.spec = TrainSpec(
            objective=objective,
            d_hidden=job.d_hidden,
            l0=job.l0,
            batch=job.batch,
            tokens=job.batch * job.steps,
            lr=job.lr,
            warmup=job.warmup,
            decay=job.decay,
            groups=tuple(train_peers.matryoshka_widths(job)) if nested else (),
            product="float32" if exact else "bfloat16",
            revive=0 if like else None,
            **({"rise": 0.0, "fit": False} if like else {}),
            seed=job.seed,
        )
        self.job, self.like, self.written = job, like, False
        self.trainer: Any = None
        self.last: Tensor | None = None

    def prepare(self, x: Tensor) -> None:
        if self.trainer is None:
            self.trainer = ours_trainer.Trainer(self.spec, x)
            self.last = x
            if self.like:
                self.trainer.read = self.trainer.written = Frame(torch.zeros(x.shape[1]), 1.0)
                self.trainer.sparsity = Constant(self.spec, self.job.penalty)

    def step(self, x: Tensor) -> None:
        self.prepare(x)
        if self.written:
            self.trainer.norms = self.trainer.weights["W_dec"].norm(dim=-1)
            self.trainer._rounded = self.trainer.weights["W_enc"].to(self.trainer.product)
            self.written = False
        self.trainer.step(x)
        self.last = x

    def tensors(self) -> dict[str, Any]:
        if self.trainer is None:  # a start is to be written, and the data that it would come from is not here
            self.prepare(torch.randn(4096, self.job.d_in, generator=torch.Generator().manual_seed(0)))
        self.written = True
        weights = dict(self.trainer.weights)
        if "log_threshold" in weights:
            weights["threshold"] = Exponential(weights.pop("log_threshold"))
        return weights

    def sae(self) -> Any:
        return self.trainer.sae()


class Constant(Sparsity):
    """A coefficient that is not steered."""

    def __init__(self, spec: TrainSpec, coefficient: float) -> None:
        super().__init__(spec)
        self._constant = coefficient

    @property
    def coefficient(self) -> float:
        return self._constant


class Exponential:
    """A threshold to write to, where its logarithm is what is kept."""

    def __init__(self, log: Tensor) -> None:
        self._log = log

    def fill_(self, value: float) -> None:
        self._log.fill_(max(value, 1e-6)).log_()


def names(exact: bool = False) -> list[str]:
    """Ours and the peers', those that are here. exact: ours in float32 throughout, too."""
    mine = [f"{OURS} {objective}" for objective in OBJECTIVES]
    return [*mine, *(f"{name}{EXACT}" for name in mine if exact), *train_peers.names()]


def trainer(name: str, job: Job) -> Trainer:
    """ "sparsight TopK", "SAELens TopK", ...: by name."""
    library, objective = train_peers.parts(name)
    return ours(objective, job) if library == OURS else train_peers.peer(name, job)


def chosen(wanted: list[str] | None, exact: bool = False) -> list[str]:
    """Of all names those that begin with one of these words; all where there are none."""
    here = names(exact)
    return [n for n in here if wanted is None or any(n.startswith(w) for w in wanted)]
