"""How features are labelled, and how labels are scored: every knob, with what it means and its unit."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sparsight.config import check, knob
from sparsight.records import finite, is_whole

METHODS = ("embedded", "subject", "openai", "anthropic")
LEAST = {"before": 0, "after": 0, "firing": 1, "silent": 1, "held_out": 2, "bootstrap": 0, "control_every": 1,
         "embedding": 0, "processes": 0, "seed": 0}  # fmt: skip


@dataclass(frozen=True)
class LabelSpec:
    """Which windows a labeller is shown, and which its labels are scored on. Both come from different documents."""

    before: int = knob(24, "tokens of a window before the one that it is about")
    after: int = knob(8, "tokens of a window after that one")
    firing: int = knob(40, "windows where the feature fires that a labeller is shown, at most; half are the strongest")
    silent: int = knob(40, "windows where it is silent that a labeller is shown, at most: half random, a quarter "
                       "with the feature's own tokens, a quarter where a neighbour fires")  # fmt: skip
    held_out: int = knob(32, "windows of either sort that a label is scored on, at most")
    unclear_below: float = knob(0.6, "AUC on what the labeller is shown, below which it calls a feature unclear")
    bootstrap: int = knob(400, "draws of documents that a score's 95 % interval comes from; 0: no interval")
    control_every: int = knob(10, "where a judge is asked: the shuffled control on one of so many features")
    embedding: int = knob(0, "features whose labels are scored by embeddings too, spread evenly; about a second each")
    processes: int = knob(0, "that label side by side, where the labeller asks nobody; 0: one a core")
    seed: int = knob(0, "another number draws other windows")

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            check(value, name, is_whole(value) and value >= least, f"a whole number from {least} up")
        value = finite(self.unclear_below, "unclear_below")
        check(value, "unclear_below", 0 <= value <= 1, "an AUC, from 0 to 1")

    @classmethod
    def knobs(cls) -> dict[str, str]:
        """What each knob means."""
        return {f.name: f.metadata["says"] for f in fields(cls)}
