"""Arriving at an L0 by steering a penalty's coefficient while the SAE is trained.

L0 falls as the coefficient λ rises, roughly as a power of it, and with a delay. So log λ is moved by the error of
log L0: a little by the error itself, and by its sum over time (a proportional and an integral part),

    e = log(L0 / wanted)        log λ = log λ₀ + P · e + I · Σ √rate · e

where L0 is an average over the last steps, corrected by how far the last validation's was from it, `rate` the learning
rate, and `wanted` falls, as a straight line of
logarithms, from what the SAE begins with to the target over the first part of the run.

λ has a natural unit: what is gained by a feature at its first threshold. Far below it the penalty does nothing, far
above it nothing is left active; the sum stops at either end, so that it is soon back when L0 is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsight.train.spec import TrainSpec

PROPORTIONAL = 2.0
INTEGRAL = 1.0  # for each square root of the learning rate: L0 follows as fast as biases move, which is by the rate
MEMORY = 0.01  # share of the run over which L0 is averaged, up to so many steps:
LONGEST = 50
DOUBT = 2000  # held-out tokens that are half believed
RANGE = (0.02, 20.0)  # of λ, in its natural unit


@dataclass
class Sparsity:
    """The steering. unit: the natural unit of λ. sum: of the integral part, in log λ. level: the average of log L0,
    None before the first step. apart: by how much log L0 is higher on held-out tokens."""

    spec: TrainSpec
    unit: float = 1.0
    sum: float = 0.0
    level: float | None = None
    begun_at: float | None = None
    error: float = 0.0
    apart: float = 0.0

    @property
    def coefficient(self) -> float:
        """λ of the next step."""
        return self.unit * math.exp(self._begun + self.sum + PROPORTIONAL * self.error)

    @property
    def _begun(self) -> float:
        return math.log(min(max(self.spec.coefficient, RANGE[0]), RANGE[1]))

    def wanted(self, step: int) -> float:
        """The L0 that is steered at after so many steps."""
        done = min(step / max(self.spec.settle * self.spec.steps, 1), 1.0)
        begun = max(self.begun_at or self.spec.l0, self.spec.l0)
        return math.exp((1 - done) * math.log(begun) + done * math.log(self.spec.l0))

    def saw(self, l0: float, step: int, rate: float) -> None:
        """Take in the L0 of a step, and its learning rate."""
        now = math.log(max(l0, 1e-3))
        memory = min(max(MEMORY * self.spec.steps, 1), LONGEST)
        self.level = now if self.level is None else self.level + (now - self.level) / memory
        self.begun_at = self.begun_at or l0
        self.error = max(min(self.level + self.apart - math.log(self.wanted(step)), 2.0), -2.0)
        low, high = (math.log(end) - self._begun for end in RANGE)
        self.sum = max(min(self.sum + INTEGRAL * rate**0.5 * self.error, high), low)

    def validated(self, l0: float, tokens: int) -> None:
        """Take in the L0 of so many held-out tokens: of few of them, little."""
        if self.level is not None:
            self.apart = (math.log(max(l0, 1e-3)) - self.level) * tokens / (tokens + DOUBT)

    def facts(self) -> dict[str, float | None]:
        """What a checkpoint keeps."""
        return {
            "unit": self.unit,
            "sum": self.sum,
            "level": self.level,
            "begun_at": self.begun_at,
            "error": self.error,
            "apart": self.apart,
        }
