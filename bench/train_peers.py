"""Other libraries' trainers, each as a Trainer: what it does with a batch, and what it has learned.

    pip install 'sparsight[saelens,nnsight,evaluate]'
    pip install --no-deps --target peers \
        dictionary-learning==0.1.0 eai-sparsify==1.3.3 natsort==8.4.0 schedulefree==1.4.1
    python bench/train_peers.py --peers peers       # checks that what is read back is what the library computes

dictionary_learning pins an old nnsight, so it and sparsify go into a folder aside, without their dependencies; all
else that they import comes with the extras above. What is not installed is left out.

    SAELens               L1, TopK, BatchTopK, JumpReLU (with its loss that aims at an L0), Gated, Matryoshka
    dictionary_learning   L1 ("Standard"), April (the decoder's norm in the penalty), TopK, BatchTopK, JumpReLU, Gated,
                          Matryoshka
    sparsify              TopK, by Adam and by Signum (its own choice)
    torch                 L1, TopK in plain torch, dense, by fused Adam: the least that a dense step can be

A step is everything that a library's own loop does with a batch, logging off. Settings that a job does not name are the
library's own. Shapes of tensors are ours, by feature: W_enc, W_dec [d_hidden, d_in].
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsight.evaluate.synthetic import Toy
from sparsight.sae.sae import SaeConfig, SparseAutoEncoder

Step = Callable[[Tensor], None]


@dataclass(frozen=True)
class Job:
    """What is to be trained, by whichever library. warmup, decay and penalty_warmup are shares of the steps.

    l0: the k of a TopK, the L0 that a JumpReLU aims at. penalty: the coefficient of those that have one and no aim.
    dead_after: samples without firing after which a feature counts as dead; None for the library's own number.
    """

    d_in: int
    d_hidden: int
    batch: int
    steps: int
    l0: float
    penalty: float = 1.0
    lr: float = 1e-3
    warmup: float = 0.05
    decay: float = 0.2
    penalty_warmup: float = 0.1
    dead_after: int | None = None
    seed: int = 0

    @property
    def k(self) -> int:
        return round(self.l0)

    def of_steps(self, share: float) -> int:
        return round(self.steps * share)

    def rate(self, step: int) -> float:
        """Of the learning rate at a step, from 0: up over the warm-up, down to 0 over the decay."""
        rise, fall = self.of_steps(self.warmup), self.of_steps(self.decay)
        return min(1.0, (step + 1) / max(rise, 1), (self.steps - step) / max(fall, 1))


@dataclass
class Trainer:
    """What a benchmark needs of a trainer, ours or another's.

    prepare: what is done with the first batch before the first step (a bias from its mean, say). step: one batch,
    [batch, d_in] float32. tensors: the weights in training, live, by our names and in our shapes: writing into them
    changes what is trained. sae: the SAE as it is now, finished, a copy. own: the library's own reconstruction.
    """

    prepare: Step
    step: Step
    tensors: Callable[[], dict[str, Tensor]]
    sae: Callable[[], SparseAutoEncoder]
    own: Callable[[Tensor], Tensor] | None = None


def nothing(_x: Tensor) -> None:
    """Nothing is done with the first batch."""


def finished(tensors: Mapping[str, Tensor], activation: str, job: Job, subtract: bool = True) -> SparseAutoEncoder:
    """An SAE of copies of these tensors."""
    k = job.k if activation == "topk" else None
    config = SaeConfig(job.d_in, job.d_hidden, activation, k=k, apply_b_dec_to_input=subtract)
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return SparseAutoEncoder.from_tensors(config, copies)


def matryoshka_widths(job: Job) -> list[int]:
    """Ends of the nested parts: a sixteenth, an eighth, a quarter, a half, all."""
    return [job.d_hidden // part for part in (16, 8, 4, 2, 1)]


# ── torch ─────────────────────────────────────────────────────────────────────────────────────────────────


def minimal(objective: str, job: Job) -> Trainer:
    """Plain torch: five dense products, no bias at the input, fused Adam.

    L1      |x_hat − x|² + penalty · Σ feature · |its decoder row|
    TopK    |x_hat − x|², decoder rows of norm 1: their gradient is taken across them, and they are brought back
    """
    torch.manual_seed(job.seed)
    unit = objective == "TopK"
    W_dec = F.normalize(torch.randn(job.d_hidden, job.d_in)) * (1.0 if unit else 0.1)
    w = {"W_enc": W_dec.clone(), "b_enc": torch.zeros(job.d_hidden), "W_dec": W_dec, "b_dec": torch.zeros(job.d_in)}
    for tensor in w.values():
        tensor.requires_grad_()
    adam = torch.optim.Adam(w.values(), lr=job.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, job.rate)
    done = 0

    def loss_of(x: Tensor) -> Tensor:
        features = F.linear(x, w["W_enc"], w["b_enc"]).relu()
        if unit:
            values, indices = features.topk(job.k)
            features = torch.zeros_like(features).scatter(1, indices, values)
        loss = (torch.addmm(w["b_dec"], features, w["W_dec"]) - x).pow(2).sum(1).mean()
        penalty = job.penalty * min(1.0, (done + 1) / max(job.of_steps(job.penalty_warmup), 1))
        return loss if unit else loss + penalty * (features @ w["W_dec"].norm(dim=1)).mean()

    def step(x: Tensor) -> None:
        nonlocal done
        loss_of(x).backward()
        if unit:
            with torch.no_grad():
                w["W_dec"].grad -= (w["W_dec"].grad * w["W_dec"]).sum(1, keepdim=True) * w["W_dec"]
        adam.step()
        adam.zero_grad()
        if unit:
            with torch.no_grad():
                w["W_dec"] /= w["W_dec"].norm(dim=1, keepdim=True)
        schedule.step()
        done += 1

    def tensors() -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in w.items()}

    return Trainer(nothing, step, tensors, lambda: finished(tensors(), "topk" if unit else "relu", job, subtract=False))


def five_products(job: Job) -> Callable[[], None]:
    """The five dense products of a dense step, and nothing else: 5 · 2 · batch · d_in · d_hidden operations.

    Features, reconstruction, gradient at the features, gradients of both matrices. Other work is told in units of it.
    """
    x, error = torch.randn(2, job.batch, job.d_in).unbind()
    W_enc, W_dec = torch.randn(2, job.d_hidden, job.d_in).unbind()
    wide, out, weight = torch.empty(job.batch, job.d_hidden), torch.empty_like(x), torch.empty_like(W_dec)

    def products() -> None:
        torch.mm(x, W_enc.T, out=wide)
        torch.mm(wide, W_dec, out=out)
        torch.mm(error, W_dec.T, out=wide)
        torch.mm(wide.T, error, out=weight)
        torch.mm(wide.T, x, out=weight)

    return products


# ── SAELens ───────────────────────────────────────────────────────────────────────────────────────────────


def saelens(objective: str, job: Job) -> Trainer:
    """Its SAETrainer, as its fit() drives it."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    rise = job.of_steps(job.penalty_warmup)
    l1 = {"l1_coefficient": job.penalty, "l1_warm_up_steps": rise}
    aimed = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": job.l0, "l0_warm_up_steps": rise}
    aimed["l0_coefficient"] = job.penalty
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "L1": ("Standard", "relu", l1),
        "TopK": ("TopK", "topk", {"k": job.k}),
        "BatchTopK": ("BatchTopK", "batchtopk", {"k": job.l0}),
        "JumpReLU": ("JumpReLU", "jumprelu", aimed),
        "Gated": ("Gated", "gated", l1),
        "Matryoshka": (
            "MatryoshkaBatchTopK",
            "batchtopk",
            {"k": job.l0, "matryoshka_widths": matryoshka_widths(job)},
        ),
    }
    name, activation, more = kinds[objective]
    torch.manual_seed(job.seed)
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=job.d_in, d_sae=job.d_hidden, **more)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    dead = {} if job.dead_after is None else {"dead_feature_window": max(job.dead_after // job.batch, 1)}
    how = SAETrainerConfig(
        total_training_samples=job.steps * job.batch,
        train_batch_size_samples=job.batch,
        lr=job.lr,
        lr_end=job.lr / 10,  # where its schedules of other kinds end; as its runner has it
        lr_warm_up_steps=job.of_steps(job.warmup),
        lr_decay_steps=job.of_steps(job.decay),
        **dead,
    )
    trainer = SAETrainer(how, sae, iter(()))

    def step(x: Tensor) -> None:
        trainer.maybe_reset_sparsity()
        trainer.step(x)
        trainer.n_training_steps += 1

    def tensors() -> dict[str, Tensor]:
        w = {"W_enc": sae.W_enc.data.T, "W_dec": sae.W_dec.data, "b_dec": sae.b_dec.data}
        w["b_enc"] = (sae.b_gate if objective == "Gated" else sae.b_enc).data
        more = {"Gated": ("r_mag", "b_mag"), "JumpReLU": ("threshold",)}.get(objective, ())
        return w | {name: getattr(sae, name).data for name in more}

    def out() -> SparseAutoEncoder:
        w = tensors()
        if getattr(config, "rescale_acts_by_decoder_norm", False):  # it compares features times their rows' norms
            norms = w["W_dec"].norm(dim=1)
            w |= {"W_enc": w["W_enc"] * norms[:, None], "b_enc": w["b_enc"] * norms}
            w["W_dec"] = w["W_dec"] / norms[:, None]
        if activation == "batchtopk":
            w["threshold"] = torch.full((job.d_hidden,), float(sae.topk_threshold))
        return finished(w, activation, job)

    @torch.no_grad()
    def own(x: Tensor) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            return sae_lens.SAE.load_from_disk(folder)(x)

    return Trainer(nothing, step, tensors, out, own)


# ── dictionary_learning ───────────────────────────────────────────────────────────────────────────────────


def dictionary_learning(objective: str, job: Job) -> Trainer:
    """Its trainers, as its trainSAE() drives them, but that what is done at step 0 is done by prepare()."""
    trainer = dictionary_learning_trainer(objective, job)
    ae = trainer.ae
    linear = objective not in ("JumpReLU", "Matryoshka")
    activation = {"L1": "relu", "April": "relu", "Matryoshka": "batchtopk"}.get(objective, objective.lower())
    if job.dead_after is not None and hasattr(trainer, "dead_feature_threshold"):
        trainer.dead_feature_threshold = job.dead_after
    done = 1

    def prepare(x: Tensor) -> None:
        from dictionary_learning.trainers.top_k import geometric_median

        if objective in ("TopK", "BatchTopK", "Matryoshka"):
            ae.b_dec.data = geometric_median(x)

    def step(x: Tensor) -> None:
        nonlocal done
        trainer.update(done, x)
        done += 1

    def tensors() -> dict[str, Tensor]:
        if linear:
            w = {"W_enc": ae.encoder.weight.data, "W_dec": ae.decoder.weight.data.T}
        else:
            w = {"W_enc": ae.W_enc.data.T, "W_dec": ae.W_dec.data}
        if objective == "Gated":
            biases = {"b_enc": ae.gate_bias, "b_mag": ae.mag_bias, "r_mag": ae.r_mag, "b_dec": ae.decoder_bias}
        else:
            b_dec = ae.bias if objective in ("L1", "April") else ae.b_dec
            biases = {"b_enc": ae.encoder.bias if linear else ae.b_enc, "b_dec": b_dec}
        if objective == "JumpReLU":
            biases["threshold"] = ae.threshold
        return w | {name: bias.data for name, bias in biases.items()}

    def out() -> SparseAutoEncoder:
        w = tensors()
        if activation == "batchtopk":
            w["threshold"] = torch.full((job.d_hidden,), max(float(ae.threshold), 0.0))
        return finished(w, activation, job, subtract=objective != "JumpReLU")

    return Trainer(prepare, step, tensors, out, torch.no_grad()(lambda x: ae(x)))


def dictionary_learning_trainer(objective: str, job: Job) -> Any:
    from dictionary_learning import trainers
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    widths = [0, *matryoshka_widths(job)]
    parts = [(b - a) / job.d_hidden for a, b in itertools.pairwise(widths)]
    warm = {"sparsity_warmup_steps": job.of_steps(job.penalty_warmup)}
    l1 = {"l1_penalty": job.penalty, **warm}
    k = {"k": job.k, "threshold_start_step": min(1000, job.steps // 2)}
    make, more = {
        "L1": (trainers.StandardTrainer, l1),
        "April": (StandardTrainerAprilUpdate, l1),
        "TopK": (trainers.TopKTrainer, k),
        "BatchTopK": (trainers.BatchTopKTrainer, k),
        "JumpReLU": (trainers.JumpReluTrainer, {"target_l0": job.l0, "sparsity_penalty": job.penalty, **warm}),
        "Gated": (trainers.GatedSAETrainer, l1),
        "Matryoshka": (MatryoshkaBatchTopKTrainer, {"group_fractions": parts, **k}),
    }[objective]
    fall = job.of_steps(job.decay)
    torch.manual_seed(job.seed)
    return make(
        steps=job.steps + 1,
        activation_dim=job.d_in,
        dict_size=job.d_hidden,
        layer=0,
        lm_name="none",
        lr=job.lr,
        warmup_steps=job.of_steps(job.warmup),
        decay_start=job.steps + 1 - fall if fall else None,
        seed=job.seed,
        device="cpu",
        **more,
    )


# ── sparsify ──────────────────────────────────────────────────────────────────────────────────────────────


def sparsify(objective: str, job: Job) -> Trainer:
    """The part of its Trainer that comes after the language model, line by line."""
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder, SparseCoderConfig

    torch.manual_seed(job.seed)
    sae = SparseCoder(job.d_in, SparseCoderConfig(num_latents=job.d_hidden, k=job.k))
    if objective == "TopK by Signum":
        from schedulefree import ScheduleFreeWrapper

        lr = 5e-3 / (job.d_hidden / 2**14) ** 0.5  # its own rule: the rate of a sign is no Adam's
        optimizer, schedule = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=lr), momentum=0.95), None
        optimizer.train()
    else:
        from transformers import get_linear_schedule_with_warmup

        optimizer = torch.optim.Adam(sae.parameters(), lr=job.lr)
        schedule = get_linear_schedule_with_warmup(optimizer, job.of_steps(job.warmup), job.steps)
    since_fired = torch.zeros(job.d_hidden, dtype=torch.long)
    did_fire = torch.zeros(job.d_hidden, dtype=torch.bool)

    def prepare(x: Tensor) -> None:
        sae.b_dec.data = x.mean(0)

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x=x, y=x, total_variance=(x - x.mean(0)).pow(2).sum())
        did_fire[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
        with torch.no_grad():
            since_fired.add_(len(x))
            since_fired[did_fire] = 0
            did_fire.zero_()

    def tensors() -> dict[str, Tensor]:
        w = {"W_enc": sae.encoder.weight, "b_enc": sae.encoder.bias, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
        return {name: tensor.data for name, tensor in w.items()}

    def at_rest(what: Callable[[], Any]) -> Any:
        """Schedule-free optimisers train other weights than they evaluate."""
        if schedule is None:
            optimizer.eval()
        out = what()
        if schedule is None:
            optimizer.train()
        return out

    @torch.no_grad()
    def own(x: Tensor) -> Tensor:
        return at_rest(lambda: sae(x).sae_out)

    return Trainer(prepare, step, tensors, lambda: at_rest(lambda: finished(tensors(), "topk", job)), own)


# ── inputs of the size that a library's settings suppose ────────────────────────────────────────────────────


def sized(make: Callable[[Job], Trainer], job: Job, size: float, x: Tensor) -> Trainer:
    """A trainer that is fed rows of this root mean square norm, and whose SAE reads rows as they come.

    x: rows from which their norm is taken. Libraries scale what they train on, and fold the scale into the SAE.
    """
    factor = size / float(x.pow(2).sum(1).mean().sqrt())
    inner = make(job)

    def out() -> SparseAutoEncoder:
        sae = inner.sae()
        for name in ("b_enc", "b_dec", "b_mag", "threshold"):
            if hasattr(sae, name):
                getattr(sae, name).div_(factor)
        return sae

    return Trainer(lambda x: inner.prepare(x * factor), lambda x: inner.step(x * factor), inner.tensors, out)


def size_of(name: str, d_in: int) -> float:
    """The root mean square norm that a library's own settings are made for."""
    return 1.0 if name in UNIT else d_in**0.5


# Their bandwidths and first thresholds are small: at a norm of sqrt(d_in) a threshold, which moves by no more than the
# rate a step, would not arrive within the runs of these benchmarks.
UNIT = ("SAELens JumpReLU", "dictionary_learning JumpReLU", "dictionary_learning Gated")


# ── all of them ───────────────────────────────────────────────────────────────────────────────────────────

LIBRARIES: dict[str, tuple[str, Callable[[str, Job], Trainer], tuple[str, ...]]] = {
    "torch": ("torch", minimal, ("L1", "TopK")),
    "SAELens": ("sae_lens", saelens, ("L1", "TopK", "BatchTopK", "JumpReLU", "Gated", "Matryoshka")),
    "dictionary_learning": (
        "dictionary_learning",
        dictionary_learning,
        ("L1", "April", "TopK", "BatchTopK", "JumpReLU", "Gated", "Matryoshka"),
    ),
    "sparsify": ("sparsify", sparsify, ("TopK by Adam", "TopK by Signum")),
}
PENALISED = ("L1", "April", "Gated")  # those whose L0 is what a coefficient makes it


def aside(folder: str | None) -> None:
    """Peers that lie in a folder aside can be imported."""
    if folder:
        sys.path.append(folder)


def names() -> list[str]:
    """ "SAELens TopK", ...: of the libraries that are installed; says which are not."""
    out = []
    for library, (package, _, objectives) in LIBRARIES.items():
        if importlib.util.find_spec(package) is None:
            print(f"{library} is not installed: left out.", file=sys.stderr, flush=True)
        else:
            out += [f"{library} {objective}" for objective in objectives]
    return out


def parts(name: str) -> tuple[str, str]:
    """(library, objective)"""
    library, _, objective = name.partition(" ")
    return library, objective


def peer(name: str, job: Job) -> Trainer:
    library, objective = parts(name)
    return LIBRARIES[library][1](objective, job)


def check() -> None:
    """What is read back of every peer reconstructs as the library itself does."""
    toy = Toy(d_in=32, features=64, l0=4.0)
    job = Job(toy.d_in, 64, 256, 60, 4.0)
    for name in names():
        trainer = peer(name, job)
        trainer.prepare(toy.sample(job.batch, 0))
        for i in range(job.steps):
            trainer.step(toy.sample(job.batch, i))
        if trainer.own is not None:
            x = toy.sample(1000, 10**6)
            x_hat, features = trainer.sae()(x)
            apart, l0 = float((x_hat - trainer.own(x)).abs().max()), float((features > 0).sum(1).float().mean())
            said = "as its own" if apart < 1e-4 else "OTHER THAN ITS OWN"
            print(f"{name:32} {said}, {apart:.1e} apart at L0 {l0:.1f}", flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peers", help="folder with the libraries that lie aside")
    aside(arguments.parse_args().peers)
    check()
