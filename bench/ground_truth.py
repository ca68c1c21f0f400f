"""How much of the truth do trainers find, ours and other libraries', where the truth is known?

    python bench/ground_truth.py --peers peers [--toys iid zipf ...] [--seeds 0 1 2] [--only SAELens ...] [--quick]

The toys of sparsight.evaluate.synthetic: 128 dimensions, 512 features, 8 active. Every trainer learns 512 features from
the same 6.1 million samples of a seed, with Adam's rate warmed up over 5 % of the steps and decayed over the last 20 %;
sparsify's decays all the way, and Signum has its own rate and no schedule, as its Trainer has them. A feature counts as
dead for a library's own revival after a tenth of the samples: the libraries' numbers are made for longer runs (ours
follows the run's length by itself). Inputs have a mean square norm of d_in, as most libraries make them, or 1 where a
library's settings suppose that (train_peers.UNIT).

Every trainer is run in batches of 4,096 at a rate of 1e-3 and in batches of 1,024 at 3e-3 on the first seed, and each
time with several coefficients where L0, or how well it is kept, depends on one. Of the runs whose L0 is within a tenth
of 8 (or else of those nearest to it) the one with the best MMCS is told, and its settings are run on the other seeds.
On 65,536 held-out samples: FVU (centred) and L0 of the finished SAE; its features that do not fire there are dead.
Recovery is against the toy's directions (evaluate.synthetic.score).

Each run is written to bench/results/ground_truth_KIND.json as it ends, and not run again: a run that was stopped goes
on. Delete the file to begin anew. --quick: a tenth of the samples, in files of their own.
How to install the peers: see train_peers.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import measure
import torch
import train_ours
import train_peers
from train_peers import Job, Trainer

from sparsight.evaluate.synthetic import KINDS, Toy, score
from sparsight.sae.sae import SparseAutoEncoder

SAMPLES, HELD_OUT, PIECE = 6_144_000, 65_536, 4096
SETTINGS = ((4096, 1e-3), (1024, 3e-3))  # rows of a batch, learning rate
QUICK = 614_400
AFTER = 2**40  # batch numbers from here on are held out
COEFFICIENTS = {  # of a trainer, or of an objective
    "L1": (5.0, 6.0),
    "SAELens L1": (4.0, 5.0, 6.0),
    "April": (5.0, 6.0),
    "Gated": (5.0, 6.0),
    "dictionary_learning Gated": (0.35, 0.45, 0.6),
    "SAELens JumpReLU": (0.01, 0.1),  # of its loss that aims at an L0; with 1, a fifth of the features die
}


def coefficients(name: str) -> Sequence[float]:
    """Those to try; one that means nothing where an L0 is aimed at. Ours aims."""
    library, objective = train_peers.parts(name)
    return (1.0,) if library == train_ours.OURS else COEFFICIENTS.get(name, COEFFICIENTS.get(objective, (1.0,)))


def run(name: str, toy: Toy, job: Job) -> dict[str, Any]:
    """Train one SAE on a toy, and look at what it has learned."""
    first = toy.sample(job.batch, 0)
    size = train_peers.size_of(name, job.d_in)
    trainer = train_peers.sized(lambda job: train_ours.trainer(name, job), job, size, first)
    trainer.prepare(first)
    seconds = trained(trainer, toy, job)
    sae = trainer.sae()
    told = held_out(sae, toy)
    found = score(toy, sae.W_dec, told.pop("fired"))
    return {**asdict(found), **told, "seconds": seconds}


def trained(trainer: Trainer, toy: Toy, job: Job) -> float:
    """Seconds of all steps; drawing the samples does not count."""
    seconds = 0.0
    for i in range(job.steps):
        x = toy.sample(job.batch, i)
        begin = time.perf_counter()
        trainer.step(x)
        seconds += time.perf_counter() - begin
    return seconds


@torch.no_grad()
def held_out(sae: SparseAutoEncoder, toy: Toy) -> dict[str, Any]:
    """FVU, L0, and which features fire."""
    lost = spread = active = 0.0
    fired = torch.zeros(sae.d_hidden, dtype=torch.bool)
    for i in range(HELD_OUT // PIECE):
        x = toy.sample(PIECE, AFTER + i)
        x_hat, features = sae(x)
        lost += float((x_hat - x).pow(2).sum(dtype=torch.float64))
        spread += float((x - x.mean(0)).pow(2).sum(dtype=torch.float64))
        active += float((features > 0).sum())
        fired |= (features > 0).any(0)
    return {"fvu": lost / spread, "l0": active / HELD_OUT, "fired": fired}


def best(runs: Iterable[dict[str, Any]], l0: float) -> dict[str, Any] | None:
    """Of some runs of one trainer, the one to tell: that with the highest MMCS of those with the L0 asked for."""
    runs = list(runs)
    fitting = [r for r in runs if abs(r["l0"] / l0 - 1) < 0.1]
    if fitting:
        return max(fitting, key=lambda r: r["mmcs"])
    return min(runs, key=lambda r: abs(r["l0"] - l0)) if runs else None


def wanted(runs: dict[str, Any], names: Sequence[str], seeds: Sequence[int], l0: float) -> Iterator[Any]:
    """(name, coefficient, batch, rate, seed) of all runs, in order; the later seeds take what the first has found."""
    for seed in seeds:
        for name in names:
            mine = (r for r in runs.values() if (r["name"], r["seed"]) == (name, seeds[0]))
            found = best(mine, l0) if seed != seeds[0] else None
            if found:
                yield name, found["coefficient"], found["batch"], found["rate"], seed
                continue
            for coefficient, (batch, rate) in product(coefficients(name), SETTINGS):
                yield name, coefficient, batch, rate, seed


def main() -> None:
    say = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say.add_argument("--peers", help="folder with the libraries that lie aside")
    say.add_argument("--toys", nargs="*", default=list(KINDS), choices=KINDS)
    say.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    say.add_argument("--only", nargs="*", help="names that begin so")
    say.add_argument("--quick", action="store_true", help="a tenth of the samples")
    say.add_argument("--samples", type=int, help="so many samples")
    asked = say.parse_args()
    train_peers.aside(asked.peers)
    samples = asked.samples or (QUICK if asked.quick else SAMPLES)
    for kind in asked.toys:
        of_a_toy(kind, samples, asked)


def of_a_toy(kind: str, samples: int, asked: argparse.Namespace) -> None:
    """All runs on one toy."""
    into = f"ground_truth_{kind}{'_quick' if samples < SAMPLES else ''}"
    result = measure.resumed(into, {"samples": samples, "toy": asdict(Toy(kind))})
    runs = result["runs"]
    for name, coefficient, batch, rate, seed in wanted(runs, train_ours.chosen(asked.only), asked.seeds, Toy().l0):
        place = f"{name}, coefficient {coefficient:g}, batch {batch}, seed {seed}"
        if place in runs:
            continue
        toy = replace(Toy(kind), seed=seed)
        steps, dead = max(samples // batch, 10), samples // 10
        job = Job(toy.d_in, toy.features, batch, steps, toy.l0, coefficient, rate, dead_after=dead, seed=seed)
        about = {"name": name, "coefficient": coefficient, "batch": batch, "rate": rate, "seed": seed}
        runs[place] = about | run(name, toy, job)
        measure.save(into, result | {"machine": measure.machine()})
        r = runs[place]
        print(
            f"{kind}, {place:56} MMCS {r['mmcs']:.3f}  MCC {r['mcc']:.3f}  found {r['recovered']:.2f}  "
            f"dead {r['dead']:.3f}  FVU {r['fvu']:.3f}  L0 {r['l0']:5.2f}  {r['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
