"""How well do SAEs of each objective reconstruct at each L0, ours and other libraries', on the very same activations?

    sparsight harvest ... --to store                # activations of a hook point; see docs/shards.md
    python bench/pareto.py store --peers peers [--model demo --text chats.jsonl] [--l0 16 32 64 91 200] [--only ...]

store: shards of one hook point (or --hook-point). Every trainer gets the same batches in the same order, from the
training split, of a root mean square norm of sqrt(d_in), or 1 where a library's settings suppose that; the same rate,
warm-up and decay; and as many features. What has no L0 to aim at, but a coefficient, is run with a ladder of them: each
is a point on its curve, wherever it lands.

On rows of held-out conversations: FVU (centred), L0, and the share of features that do not fire. With --model and
--text (conversations that nothing was trained on), also the share of the loss that is recovered with the SAE spliced
in, counted from zero and from the mean (sparsight.evaluate).

Each run is written to bench/results/pareto.json as it ends, and not run again: a run that was stopped goes on.
How to install the peers: see train_peers.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import torch
import train_ours
import train_peers
from torch import Tensor
from train_peers import Job

from sparsight.corpus.spec import CorpusSpec
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.shards.shards import Shards

L0S = (16.0, 32.0, 64.0, 91.0, 200.0)
LADDER = (0.5, 1.0, 2.0, 4.0, 8.0)
HELD_OUT = 65_536


def points(name: str, l0s: list[float], ladder: list[float]) -> list[tuple[float, float]]:
    """(L0 aimed at, coefficient) of each run of a trainer; the first is 0 where only the coefficient decides."""
    library, objective = train_peers.parts(name)
    if library != train_ours.OURS and objective in train_peers.PENALISED:
        shrunk = 0.1 if name in train_peers.UNIT else 1.0  # features of smaller inputs are smaller
        return [(0.0, coefficient * shrunk) for coefficient in ladder]
    return [(l0, 0.01 if name == "SAELens JumpReLU" else 1.0) for l0 in l0s]


class Rows:
    """Rows of one hook point of a store: batches to train on, epoch after epoch, and some that are held out."""

    def __init__(self, path: str, hook_point: str | None, batch: int, seed: int = 0):
        store = Shards(path)
        (self.hook_point,) = store.manifest.some(hook_point) if hook_point else store.manifest.some()
        self.d_in = store.manifest.hook_points[self.hook_point]
        given = {"seed": seed, "hook_points": self.hook_point, "full": True}
        self._train = store.batches(batch, split="train", **given)
        held_out = store.batches(min(batch, 1024), split="validation", seed=seed, hook_points=self.hook_point)
        taken: list[Tensor] = []
        for rows in held_out.epoch(0):
            taken.append(rows[self.hook_point].float())
            if sum(map(len, taken)) >= HELD_OUT:
                break
        self.held_out = torch.cat(taken)[:HELD_OUT]

    def batches(self, steps: int) -> Iterator[Tensor]:
        """So many batches, float32, always the same."""
        epoch = 0
        while True:
            for rows in self._train.epoch(epoch):
                yield rows[self.hook_point].float()
                steps -= 1
                if not steps:
                    return
            epoch += 1


def run(name: str, rows: Rows, job: Job) -> tuple[SparseAutoEncoder, dict[str, Any]]:
    """Train one SAE; what it makes of the held-out rows."""
    first = next(rows.batches(1))
    size = train_peers.size_of(name, job.d_in)
    trainer = train_peers.sized(lambda job: train_ours.trainer(name, job), job, size, first)
    trainer.prepare(first)
    seconds = 0.0
    for x in rows.batches(job.steps):
        begin = time.perf_counter()
        trainer.step(x)
        seconds += time.perf_counter() - begin
    sae = trainer.sae()
    return sae, {**quality(sae, rows.held_out), "seconds": seconds}


@torch.no_grad()
def quality(sae: SparseAutoEncoder, x: Tensor) -> dict[str, float]:
    """FVU, L0 and the share of features that do not fire, of rows."""
    lost = active = 0.0
    fired = torch.zeros(sae.d_hidden, dtype=torch.bool)
    for part in x.split(2048):
        x_hat, features = sae(part)
        lost += float((x_hat - part).pow(2).sum(dtype=torch.float64))
        active += float((features > 0).sum())
        fired |= (features > 0).any(0)
    spread = float((x.double() - x.double().mean(0)).pow(2).sum())
    return {"fvu": lost / spread, "l0": active / len(x), "dead": 1 - float(fired.double().mean())}


def recovered(sae: SparseAutoEncoder, lm: Any, text: str, hook_point: str, tokens: int) -> dict[str, float | None]:
    """Share of the loss that is recovered, by sparsight.evaluate; BOS and template tokens are left as they are."""
    from sparsight.evaluate.evaluate import evaluate
    from sparsight.evaluate.spec import EvaluateSpec

    only = ("no-special",)
    spec = EvaluateSpec(tokens=tokens, loss_tokens=tokens, selections=only, splice=only, check=False)
    loss = evaluate(lm, sae, CorpusSpec(text), spec, hook_point=hook_point).loss["no-special"]
    return {"loss_recovered": loss.recovered, "loss_recovered_from_mean": loss.recovered_from_mean}


def language_model(name: str | None) -> Any:
    from sparsight import load
    from sparsight.lm.lm import ObservableLanguageModel

    if name is None:
        return None
    return load("demo").lm if name == "demo" else ObservableLanguageModel(name)


def main() -> None:
    say = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say.add_argument("store", help="folder of shards")
    say.add_argument("--hook-point", help="of a store that has several")
    say.add_argument("--peers", help="folder with the libraries that lie aside")
    say.add_argument("--only", nargs="*", help="names that begin so")
    say.add_argument("--l0", nargs="*", type=float, default=list(L0S))
    say.add_argument("--ladder", nargs="*", type=float, default=list(LADDER), help="coefficients of penalties")
    say.add_argument("--features", type=int, default=4096)
    say.add_argument("--samples", type=int, default=2_048_000)
    say.add_argument("--batch", type=int, default=1024)
    say.add_argument("--lr", type=float, default=3e-3)
    say.add_argument("--seed", type=int, default=0)
    say.add_argument("--model", help="'demo', or a model's folder or name: for the loss recovered")
    say.add_argument("--text", help="held-out conversations: for the loss recovered")
    say.add_argument("--tokens", type=int, default=20_000, help="of that text")
    say.add_argument("--into", default="pareto", help="name of the file of results")
    asked = say.parse_args()
    train_peers.aside(asked.peers)
    rows = Rows(asked.store, asked.hook_point, asked.batch)
    settings = {n: getattr(asked, n) for n in ("features", "samples", "batch", "lr", "tokens")}
    settings |= {n: Path(getattr(asked, n) or "").name for n in ("model", "text")}
    store = {"store": Shards(asked.store).fingerprint, "hook_point": rows.hook_point, "d_in": rows.d_in}
    result = measure.resumed(asked.into, settings | store | {"held_out": len(rows.held_out)})
    lm = language_model(asked.model)
    runs, steps = result["runs"], max(asked.samples // asked.batch, 10)
    for name in (n for n in train_ours.chosen(asked.only) if not n.startswith("torch")):
        for aim, coefficient in points(name, asked.l0, asked.ladder):
            place = f"{name}, " + (f"L0 {aim:g}" if aim else f"coefficient {coefficient:g}") + f", seed {asked.seed}"
            if place in runs:
                continue
            shape = {"d_in": rows.d_in, "d_hidden": asked.features, "batch": asked.batch, "steps": steps}
            given = {"lr": asked.lr, "dead_after": asked.samples // 10, "seed": asked.seed}
            sae, told = run(name, rows, Job(**shape, l0=aim or asked.l0[0], penalty=coefficient, **given))
            if lm is not None and asked.text:
                told |= recovered(sae, lm, asked.text, rows.hook_point, asked.tokens)
            about = {"name": name, "aim": aim or None, "coefficient": coefficient, "seed": asked.seed}
            runs[place] = about | told
            measure.save(asked.into, result | {"machine": measure.machine()})
            said = "  ".join(f"{key} {value:.4g}" for key, value in told.items() if value is not None)
            print(f"{place:58} {said}", flush=True)


if __name__ == "__main__":
    main()
