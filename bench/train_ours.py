"""Our own trainer, as the benchmarks of training drive it: the same protocol as everybody's (train_peers.Trainer)."""

from __future__ import annotations

import sys

import train_peers
from train_peers import Job, Trainer

OURS = "sparsight"
OBJECTIVES: tuple[str, ...] = ("L1", "TopK", "BatchTopK", "JumpReLU", "Gated", "Matryoshka")


def ours(objective: str, job: Job, like: str | None = None) -> Trainer:
    """Our trainer of an objective ("L1", "TopK", ...), for a job.

    What it returns is a train_peers.Trainer:

        prepare(x)   what is done with the first batch before the first step; may do nothing
        step(x)      one batch [batch, d_in], float32: all that train/ does for it, its schedules too, logging off
        tensors()    {name: tensor} of the weights in training, float32: W_enc, W_dec [d_hidden, d_in], b_enc, b_dec;
                     threshold (JumpReLU), r_mag and b_mag (Gated). Live: the benchmarks write another start into them
        sae()        the SparseAutoEncoder as it is now, a copy, with the threshold of a BatchTopK in place
        own          None

    Of the job: job.l0 is the L0 to land at, whatever the objective (job.penalty is not needed where we aim); the rate
    is job.lr · job.rate(step). job.dead_after: None takes our own.
    like: "torch", "SAELens", "dictionary_learning" or "sparsify": with its loss, constraints and optimiser, exactly,
    and job.penalty as the coefficient, so that both descend the same curve. Only asked for TopK and L1 (and "April").
    """
    raise NotImplementedError


def names() -> list[str]:
    """Ours and the peers', those that are here."""
    try:
        ours(OBJECTIVES[0], Job(8, 16, 4, 10, 2.0))
    except NotImplementedError:
        print("sparsight's own trainer is not here yet: left out.", file=sys.stderr, flush=True)
        return train_peers.names()
    return [*(f"{OURS} {objective}" for objective in OBJECTIVES), *train_peers.names()]


def trainer(name: str, job: Job) -> Trainer:
    """ "sparsight TopK", "SAELens TopK", ...: by name."""
    library, objective = train_peers.parts(name)
    return ours(objective, job) if library == OURS else train_peers.peer(name, job)


def chosen(wanted: list[str] | None) -> list[str]:
    """Of all names those that begin with one of these words; all where there are none."""
    here = names()
    return [n for n in here if wanted is None or any(n.startswith(w) for w in wanted)]
