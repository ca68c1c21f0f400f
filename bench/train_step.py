"""What does one training step cost, against other libraries' and against the products that a dense step cannot avoid?

    python bench/train_step.py --peers peers [--big] [--only SAELens "dictionary_learning TopK" ...]

--only measures those that begin so again, and keeps the others' figures: each is a ratio to the products beside it.

512 -> 8,192 features, batches of 2,048; --big: 2,048 -> 32,768, batches of 512. float32, batches in memory, 91 features
active a row (91.0 for a TopK; the others start at a bias or a threshold that makes it so, and learn so slowly that it
stays: what was measured at the end is told). No feature is dead.

Each case has a process of its own. A sample is [products | step | products]: the step's time over the mean of the two
times of the five dense products around it (train_peers.five_products). Samples count while the products get all the
cores; the median is told, with the smallest and the largest. Memory is the process's largest, and how much of it came
with the trainer: before that stand the libraries, the batches and the products' own matrices.

curves: ours and plain, dense torch with autograd, from the same start, fed the same batches: how far apart their FVU is
at the worst moment.
How to install the peers: see train_peers.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import measure
import torch
import train_ours
import train_peers
from torch import Tensor
from train_peers import Job, Trainer

from sparsight.evaluate.synthetic import Toy

QUIET = 0.93  # of all the cores' time that the products must get, for a sample to count
LOOKED_AT = 256  # rows from which an L0 is set and measured
CURVES = ("torch L1", "torch TopK")
TOLERANCE = 0.02


@dataclass(frozen=True)
class Shape:
    d_in: int = 512
    d_hidden: int = 8192
    batch: int = 2048
    l0: float = 91.0


BIG = Shape(2048, 32768, 512)

# ── one case, in its own process ──────────────────────────────────────────────────────────────────────────


def one(name: str, shape: Shape, rounds: int) -> dict[str, Any]:
    """Times, memory and L0 of one trainer."""
    toy = Toy(d_in=shape.d_in, features=shape.d_hidden, l0=shape.l0)
    batches = [toy.sample(shape.batch, i) for i in range(4)]
    job = Job(**asdict(shape), steps=10**6, lr=1e-6, warmup=0.0, decay=0.0, penalty_warmup=0.0)
    products = train_peers.five_products(job)
    products()
    activation = warmed(name)
    before = peak()
    trainer = train_ours.trainer(name, job)
    trainer.prepare(batches[0])
    begin(trainer, toy, batches[0], 0 if "topk" in activation else shape.l0)
    for x in batches[:2]:
        trainer.step(x)
    samples: list[dict[str, float]] = []
    while sum(s["share"] > QUIET for s in samples) < rounds and len(samples) < 3 * rounds:
        samples.append(sample(products, lambda: trainer.step(batches[len(samples) % 4])))
    most = peak()
    return {
        "samples": samples,
        "peak_bytes": most,
        "trainer_bytes": most - before,
        "l0": l0_of(trainer, batches[3][:LOOKED_AT], shape.l0),
    }


def warmed(name: str) -> str:
    """A trainer's activation, after a small one has imported and compiled whatever it takes."""
    small = train_ours.trainer(name, Job(16, 64, 32, 10, 4.0))
    x = torch.randn(32, 16)
    small.prepare(x)
    small.step(x)
    return small.sae().config.activation


def begin(trainer: Trainer, toy: Toy, x: Tensor, l0: float) -> None:
    """The truth as weights, and a bias or a threshold that l0 features pass; none where l0 is 0."""
    w = trainer.tensors()
    w["W_enc"].copy_(toy.directions)
    w["W_dec"].copy_(toy.directions)
    for name in ("b_enc", "b_dec", "r_mag", "b_mag"):
        if name in w:
            w[name].zero_()
    pre = (x[:LOOKED_AT] @ toy.directions.T).flatten()
    bound = float(pre.kthvalue(pre.numel() - round(l0 * LOOKED_AT)).values) if l0 else 0.0
    if "threshold" in w:
        w["threshold"].fill_(bound)
    else:
        w["b_enc"].fill_(-bound)


def l0_of(trainer: Trainer, x: Tensor, l0: float) -> float:
    """Active features a row, measured; of a BatchTopK it is what it was asked for, which its threshold only follows."""
    sae = trainer.sae()
    return l0 if sae.config.activation == "batchtopk" else float((sae.encode(x) > 0).sum(1).float().mean())


def sample(products: Callable[[], None], step: Callable[[], None]) -> dict[str, float]:
    """One bracketed step: seconds of it, its ratio to the products, and the share of the cores that those got."""
    before, work, after = timed(products), timed(step), timed(products)
    wall, cpu = before[0] + after[0], before[1] + after[1]
    share = cpu / (wall * torch.get_num_threads())
    return {"seconds": work[0], "cpu": work[1], "ratio": 2 * work[0] / wall, "share": share}


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def peak() -> int:
    """The largest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ── the same curve ────────────────────────────────────────────────────────────────────────────────────────


def curve(name: str, steps: int = 300) -> dict[str, Any]:
    """FVU of the peer and of ours along the way, and how far they are apart at worst, as a share of the peer's."""
    library, objective = train_peers.parts(name)
    toy = Toy(d_in=64, features=256, l0=6.0)
    constant = {"warmup": 0.0, "decay": 0.0, "penalty_warmup": 0.0}  # everybody counts a schedule's steps otherwise
    job = Job(toy.d_in, toy.features, 512, 10**6, toy.l0, penalty=3.0, **constant)
    peer = train_peers.peer(name, job)
    peer.prepare(toy.sample(job.batch, 0))
    ours = train_ours.ours(objective, job, like=library)
    for tensor, start in ((ours.tensors()[n], t) for n, t in peer.tensors().items()):
        tensor.copy_(start)
    held_out = toy.sample(4096, 2**40)
    told: list[tuple[float, float]] = []
    for i in range(steps):
        x = toy.sample(job.batch, i)
        peer.step(x)
        ours.step(x)
        if (i + 1) % 20 == 0:
            told.append((fvu(peer, held_out), fvu(ours, held_out)))
    worst = max(abs(b / a - 1) for a, b in told)
    return {"peer": [a for a, _ in told], "ours": [b for _, b in told], "apart": worst, "same": worst < TOLERANCE}


def fvu(trainer: Trainer, x: Tensor) -> float:
    """Fraction of variance unexplained, centred."""
    return float((trainer.sae()(x)[0] - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


# ── all cases ─────────────────────────────────────────────────────────────────────────────────────────────


def summary(case: dict[str, Any], batch: int) -> dict[str, Any]:
    """The medians beside the samples; where the machine was never quiet, of all samples."""
    quiet = [s for s in case["samples"] if s["share"] > QUIET]
    counted = quiet or case["samples"]
    seconds = statistics.median(s["seconds"] for s in counted)
    return {
        "ms": 1e3 * seconds,
        "rows_per_second": batch / seconds,
        "ratio": measure.spread([s["ratio"] for s in counted]),
        "quiet": len(quiet),
        **case,
    }


def main() -> None:
    say = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say.add_argument("--peers", help="folder with the libraries that lie aside")
    say.add_argument("--big", action="store_true")
    say.add_argument("--rounds", type=int, default=7, help="quiet samples of each case")
    say.add_argument("--only", nargs="*", help="names that begin so")
    say.add_argument("--tiny", action="store_true", help="see whether all of it runs; nothing is saved")
    say.add_argument("--one", help=argparse.SUPPRESS)
    asked = say.parse_args()
    train_peers.aside(asked.peers)
    shape = BIG if asked.big else Shape()
    if asked.tiny:
        shape = replace(shape, d_in=64, d_hidden=512, batch=256, l0=8.0)
    if asked.one:
        print(json.dumps(one(asked.one, shape, asked.rounds)))
        return
    file = "train_step_big" if asked.big else "train_step"
    result: dict[str, Any] = {"machine": measure.machine(), "shape": asdict(shape), "cases": {}, "curves": {}}
    if asked.only is not None:  # the others stay as they were measured
        there = measure.read(file)
        if there.get("shape") == measure.rounded(asdict(shape)):
            result |= {"cases": there["cases"], "curves": there["curves"]}
    for name in train_ours.chosen(asked.only, exact=True):
        words = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
        if told.returncode:
            print(f"{name:32} failed: left out.", flush=True)
            continue
        case = summary(json.loads(told.stdout.splitlines()[-1]), shape.batch) | {"measured": measure.machine()}
        result["cases"][name] = case
        ratio, low, high = case["ratio"]
        said = f"{case['ms']:8.1f} ms  x{ratio:5.2f} ({low:.2f}-{high:.2f})  L0 {case['l0']:.1f}"
        print(f"{name:32} {said}  {case['trainer_bytes'] / 1e6:6.0f} MB", flush=True)
    ours_here = any(n.startswith(train_ours.OURS) for n in result["cases"])
    for name in CURVES if ours_here and not asked.big else ():
        if name in result["cases"]:
            result["curves"][name] = curve(name)
            told = result["curves"][name]
            said = "the same curve" if told["same"] else "ANOTHER CURVE"
            print(f"like {name:27} {said}, {told['apart']:.2%} apart at worst", flush=True)
    if not asked.tiny:
        measure.save(file, result)


if __name__ == "__main__":
    main()
