"""A Controller, flattened against one SAE: every strength in raw activation, every condition in clauses.

A condition becomes an AND of clauses, a clause an OR of comparisons; nested whens add their clauses to those of what
they hold. So a token's edits follow from a few comparisons and two rounds of any(), with no branching.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sparsight.edits import Comparison, Condition, Controller, Edit, Feature, Group
from sparsight.errors import BadInput, Mismatch, NoFeature
from sparsight.sae.codes import no_feature
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.where import Where

MOST_CLAUSES = 256
MOST_COMPARISONS = 65_536  # a comparison of two groups is one of each pair: a short text can ask for millions
LARGEST = 1e15  # of a strength, raw: its square still fits float32, and no residual stream is near it


@dataclass(frozen=True)
class Side:
    """A feature in a comparison: it reads as gain · activation, and as 0 under the floor (raw)."""

    slot: int
    gain: float
    floor: float


@dataclass(frozen=True)
class Literal:
    """left op right + constant; right may be missing."""

    left: Side
    op: str
    right: Side | None
    constant: float


@dataclass(frozen=True)
class Change:
    """a' = factor · a + shift (raw), at these tokens, where every clause holds."""

    slot: int
    factor: float
    shift: float
    where: Where
    clauses: tuple[int, ...]
    entropy: tuple[float, float] = (-math.inf, math.inf)

    def then(self, other: Change) -> Change | None:
        """Both as one, where they hold at the same tokens; None where they may not."""
        if (self.slot, self.where, self.clauses, self.entropy) != (
            other.slot,
            other.where,
            other.clauses,
            other.entropy,
        ):
            return None
        return replace(self, factor=other.factor * self.factor, shift=other.factor * self.shift + other.shift)


@dataclass(frozen=True)
class Event:
    """A name to tell when every clause first holds at a token."""

    name: str
    clauses: tuple[int, ...]


@dataclass
class Program:
    """One row's work: slots are the features it needs; changes act in order."""

    features: list[int] = field(default_factory=list)
    literals: list[Literal] = field(default_factory=list)
    clauses: list[frozenset[int]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def touches_prompt(self) -> bool:
        """Whether prompt tokens must be looked at: an event may come true there."""
        return bool(self.events) or any(change.where.touches_prompt for change in self.changes)

    @property
    def needs_entropy(self) -> bool:
        return any(change.entropy != (-math.inf, math.inf) for change in self.changes)


def compile_controller(controller: Controller, sae: SparseAutoEncoder) -> Program:
    """The program of a controller for this SAE.

    Raises NoFeature for an index it does not have, Mismatch for an edit made for another SAE, BadInput where feature
    units are used and the SAE has none.
    """
    program = Program()
    try:
        _Compiler(sae, program).add(controller, ())
    except RecursionError:
        raise BadInput("The controller is nested too deep.") from None
    return program


class _Compiler:
    def __init__(self, sae: SparseAutoEncoder, program: Program):
        self.sae, self.program = sae, program
        self.places: dict[
            int | Literal | frozenset[int], int
        ] = {}  # of features, literals and clauses, each in its list
        self.last: dict[int, int] = {}  # of each slot, the place of its last change

    def add(self, controller: Controller, held: tuple[int, ...]) -> None:
        """The controller's edits and whens, under clauses that hold already."""
        entropy = (_or(controller.min_nudge_entropy, -math.inf), _or(controller.max_nudge_entropy, math.inf))
        threshold = controller.nonzero_strength_threshold
        for edit in controller.edits:
            clauses = held if edit.condition is None else held + self.clauses(edit.condition, threshold)
            self.change(edit, clauses, entropy if edit.op == "nudge" else (-math.inf, math.inf))
        for when in controller.whens:
            clauses = held + self.clauses(when.condition, threshold)
            if when.event is not None:
                self.program.events.append(Event(when.event, clauses))
            self.add(_inheriting(when.controller, controller), clauses)

    def change(self, edit: Edit, clauses: tuple[int, ...], entropy: tuple[float, float]) -> None:
        slot, value = self.slot(edit.feature), edit.value
        if edit.feature.unit == "scale" and edit.op in ("nudge", "pin"):
            value *= self.scale(edit.feature)
        affine = {"nudge": (1.0, value), "pin": (0.0, value), "scale": (value, 0.0), "ablate": (0.0, 0.0)}
        factor, shift = affine[edit.op]
        change = Change(slot, factor, shift, edit.where, clauses, entropy)
        if not abs(shift) <= LARGEST or not abs(factor) <= LARGEST:
            raise BadInput(f"The strength of '{edit}' is beyond what a residual stream holds.")
        before = self.last.get(slot)
        if before is not None and (folded := self.program.changes[before].then(change)):
            self.program.changes[before] = folded
        else:
            self.last[slot] = len(self.program.changes)
            self.program.changes.append(change)

    def clauses(self, condition: Condition, threshold: float | None) -> tuple[int, ...]:
        """Indices of the clauses that must all hold."""
        return tuple(self.place(self.program.clauses, clause) for clause in self.normal_form(condition, threshold))

    def place(self, among: list[Any], one: Any) -> int:
        """Where something stands in its list; at the end, if it was not there."""
        if one not in self.places:
            self.places[one] = len(among)
            among.append(one)
        return self.places[one]

    def normal_form(self, condition: Condition, threshold: float | None) -> list[frozenset[int]]:
        """Conjunctive normal form: a list of clauses, each a set of literals."""
        if isinstance(condition, Comparison):
            return [frozenset(self.literals(condition, threshold))]
        assert isinstance(condition, Group)
        parts = [self.normal_form(part, threshold) for part in condition.parts]
        if condition.op == "AND":
            out = list(itertools.chain.from_iterable(parts))
        elif math.prod(map(len, parts)) > MOST_CLAUSES:
            raise BadInput(f"The condition is too deep: written flat it has more than {MOST_CLAUSES} clauses.")
        else:
            out = [frozenset().union(*choice) for choice in itertools.product(*parts)]
        return list(dict.fromkeys(out))

    def literals(self, comparison: Comparison, threshold: float | None) -> Iterable[int]:
        """One literal for each pair of a left and a right feature: any of them makes the comparison hold."""
        rights = len(comparison.right) if isinstance(comparison.right, tuple) else 1
        if len(self.program.literals) + len(comparison.left) * rights > MOST_COMPARISONS:
            raise BadInput(f"The conditions compare more than {MOST_COMPARISONS:,} pairs of features: name fewer.")
        for left in comparison.left:
            if isinstance(comparison.right, tuple):
                pairs = [(self.side(right, threshold), 0.0) for right in comparison.right]
            else:
                pairs = [(None, comparison.right)]
            for right, constant in pairs:
                literal = Literal(self.side(left, threshold), comparison.op, right, constant)
                yield self.place(self.program.literals, literal)

    def side(self, feature: Feature, threshold: float | None) -> Side:
        gain = 1.0 if feature.unit == "raw" else 1.0 / self.scale(feature)
        floor = -math.inf if threshold is None else threshold * self.scale(feature)
        return Side(self.slot(feature), gain, floor)

    def slot(self, feature: Feature) -> int:
        if feature.sae is not None and feature.sae != self.sae.fingerprint:
            made = f"{feature} was taken from the SAE {feature.sae}; this one is {self.sae.fingerprint}"
            raise Mismatch(f"{made}: its features mean other things.")
        if feature.index >= self.sae.d_hidden:
            raise NoFeature(no_feature(feature.index, self.sae.d_hidden))
        return self.place(self.program.features, feature.index)

    def scale(self, feature: Feature) -> float:
        self.slot(feature)
        todo = f"say it in raw activation: features[{feature.index}].raw"
        if self.sae.scale is None:
            raise BadInput(f"This SAE has no feature scales, so strengths in feature units mean nothing: {todo}.")
        scale = float(self.sae.scale[feature.index])
        if not scale > 0:
            raise BadInput(f"Feature {feature.index} never fired where the scales were measured: {todo}.")
        return scale


def _inheriting(child: Controller, parent: Controller) -> Controller:
    """The nested controller with what it leaves unset taken from its parent."""
    names = ("nonzero_strength_threshold", "min_nudge_entropy", "max_nudge_entropy")
    return replace(child, **{n: getattr(parent, n) for n in names if getattr(child, n) is None})


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
