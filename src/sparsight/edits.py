"""Edits: wishes about features, as values. Immutable, hashable, JSON both ways, and readable as a sentence.

    pirate.nudge(0.6) + f[27].pin(8).on("generated") + f[112].ablate().when(f[33] > 0.75)

With a the feature's activation before any edit, and each strength in feature units (1.0 = the feature's own scale,
its typical top activation) or, from `f[27].raw`, in raw activation:

    nudge    a' = a + strength        negative strengths push against the feature, below zero too
    pin      a' = strength
    scale    a' = a × factor
    ablate   a' = 0

Several edits of one feature act in the order written, each on what the one before left. The residual changes by
(a' − a) × the feature's decoder row and by nothing else: what the SAE does not explain of it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from numbers import Real

from sparsight.errors import BadInput
from sparsight.records import finite, is_whole
from sparsight.where import LARGEST, Where

OPS = ("nudge", "pin", "scale", "ablate")
COMPARISONS = (">", ">=", "<", "<=", "==", "!=")


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature of an SAE, as you hold it: makes edits and conditions.

    unit: what its numbers mean, "scale" (feature units) or "raw" (activation). sae: fingerprint of its SAE; None
    stands for whichever SAE it is used with. The label is a word for people and takes no part in equality.
    """

    index: int
    unit: str = "scale"
    sae: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.index) or not 0 <= self.index < LARGEST:
            raise BadInput(f"A feature has an index from 0 up, not {self.index!r}.")
        object.__setattr__(self, "index", int(self.index))
        if self.unit not in ("scale", "raw"):
            raise BadInput(f"No unit {self.unit!r}. There are: scale, raw.")
        if not isinstance(self.sae, str | None):
            raise BadInput(f"A feature's SAE is named by its fingerprint, a text, not {self.sae!r}.")

    @property
    def raw(self) -> Feature:
        """The same feature, its numbers read as raw activation."""
        return replace(self, unit="raw")

    def nudge(self, strength: float) -> Edit:
        """Add strength to its activation."""
        return Edit("nudge", self, strength)

    def pin(self, strength: float) -> Edit:
        """Hold its activation at strength."""
        return Edit("pin", self, strength)

    def scale(self, factor: float) -> Edit:
        """Multiply its activation."""
        return Edit("scale", self, factor)

    def ablate(self) -> Edit:
        """Set its activation to zero."""
        return Edit("ablate", self, 0.0)

    def __gt__(self, other: float | Feature) -> Condition:
        return compare(self, ">", other)

    def __ge__(self, other: float | Feature) -> Condition:
        return compare(self, ">=", other)

    def __lt__(self, other: float | Feature) -> Condition:
        return compare(self, "<", other)

    def __le__(self, other: float | Feature) -> Condition:
        return compare(self, "<=", other)

    def __eq__(self, other: object):  # type: ignore[override]
        """With a number: a Condition. With a Feature: whether they are the same one (else see `compare`)."""
        if isinstance(other, Real):
            return compare(self, "==", float(other))
        return isinstance(other, Feature) and self._key == other._key

    def __ne__(self, other: object):  # type: ignore[override]
        if isinstance(other, Real):
            return compare(self, "!=", float(other))
        return not self == other

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[int, str, str | None]:
        return self.index, self.unit, self.sae

    def __str__(self) -> str:
        name = f"feature {self.index}" + (f" ({self.label})" if self.label else "")
        return name if self.unit == "scale" else f"raw {name}"


class Condition:
    """Something about the features at a token, before any edit, that holds or does not. Join with & and |."""

    def __and__(self, other: Condition) -> Condition:
        return Group("AND", (self, other))

    def __or__(self, other: Condition) -> Condition:
        return Group("OR", (self, other))

    def __bool__(self) -> bool:
        raise BadInput("A condition holds or not at each token. Join conditions with & and |, not `and` and `or`.")

    def event(self, name: str) -> Controller:
        """A controller that changes nothing and tells `name` when the condition first holds."""
        return Controller(whens=(When(self, Controller(), name),))


@dataclass(frozen=True)
class Comparison(Condition):
    """left op right. With several features on a side, it holds if it holds for any pair of them."""

    left: tuple[Feature, ...]
    op: str
    right: float | tuple[Feature, ...]

    def __post_init__(self) -> None:
        if self.op not in COMPARISONS:
            raise BadInput(f"No comparison {self.op!r}. There are: {' '.join(COMPARISONS)}.")
        if not self.left or self.right == ():
            raise BadInput("A comparison needs at least one feature on each side that has features.")
        if not isinstance(self.right, tuple):
            object.__setattr__(self, "right", finite(self.right, "A condition's number"))

    def __str__(self) -> str:
        left = " or ".join(map(str, self.left))
        right = " or ".join(map(str, self.right)) if isinstance(self.right, tuple) else f"{self.right:g}"
        return f"{left} {self.op} {right}"


@dataclass(frozen=True)
class Group(Condition):
    """Conditions joined by one operator. An empty AND always holds; an empty OR never."""

    op: str
    parts: tuple[Condition, ...]

    def __post_init__(self) -> None:
        if self.op not in ("AND", "OR"):
            raise BadInput(f"No operator {self.op!r}. There are: AND, OR.")
        for part in self.parts:
            a_condition(part)
        flat: list[Condition] = []
        for part in self.parts:
            flat.extend(part.parts if isinstance(part, Group) and part.op == self.op else [part])
        object.__setattr__(self, "parts", tuple(flat))

    def __str__(self) -> str:
        if not self.parts:
            return "always" if self.op == "AND" else "never"
        inner = (f"({p})" if isinstance(p, Group) else str(p) for p in self.parts)
        return f" {self.op.lower()} ".join(inner)


def compare(left: Feature, op: str, right: float | Feature) -> Condition:
    """A Comparison of one feature with a number or with another feature."""
    return Comparison((left,), op, (right,) if isinstance(right, Feature) else right)


@dataclass(frozen=True)
class Edit:
    """One change of one feature."""

    op: str
    feature: Feature
    value: float
    where: Where = field(default=Where())
    condition: Condition | None = None

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise BadInput(f"No edit {self.op!r}. There are: {', '.join(OPS)}.")
        object.__setattr__(self, "value", finite(self.value, f"The strength of a {self.op}"))
        if self.condition is not None:
            a_condition(self.condition)

    def on(self, *places: str | int) -> Edit:
        """The same edit at these tokens: names in PLACES, or token positions."""
        return replace(self, where=Where.of(places))

    def when(self, condition: Condition) -> Edit:
        """The same edit, at tokens where the condition holds too."""
        a_condition(condition)
        return replace(self, condition=condition if self.condition is None else self.condition & condition)

    def __add__(self, other: Edit | Controller) -> Controller:
        return Controller((self,)) + other

    def __radd__(self, other: int) -> Controller:
        """So that sum() of edits works: it begins with 0."""
        return NotImplemented if other != 0 else Controller((self,))

    def explain(self, scale_of: Callable[[int], float] | None = None) -> str:
        """The exact change: see Controller.explain."""
        return Controller((self,)).explain(scale_of)

    def __str__(self) -> str:
        unit = "" if self.feature.unit == "raw" else " × its scale"
        how = {
            "nudge": f"nudge {self.feature} by {self.value:+g}{unit}",
            "pin": f"pin {self.feature} at {self.value:g}{unit}",
            "scale": f"scale {self.feature} by {self.value:g}",
            "ablate": f"ablate {self.feature}",
        }[self.op]
        where = "" if self.where == Where() else f" on {self.where}"
        return how + where + ("" if self.condition is None else f" when {self.condition}")


@dataclass(frozen=True)
class When:
    """A controller that holds where a condition does; event: a name to tell when it first holds."""

    condition: Condition
    controller: Controller
    event: str | None = None

    def __post_init__(self) -> None:
        a_condition(self.condition)
        if self.event is not None and not isinstance(self.event, str):
            raise BadInput(f"An event's name is text, not {self.event!r}.")

    def __str__(self) -> str:
        if self.condition == ALWAYS and not self.event:
            return f"then {self.controller}"
        does = str(self.controller) if self.controller != Controller() else ""
        tells = f"tell {self.event!r}" if self.event else ""
        return f"when {self.condition}: " + (" and ".join(filter(None, (does, tells))) or "nothing")


@dataclass(frozen=True)
class Controller:
    """Edits that act in the order written, then the whens in theirs. The empty controller changes nothing, to the bit.

    nonzero_strength_threshold: activations under it (in feature units) read as zero in conditions.
    min_nudge_entropy, max_nudge_entropy: nudges hold only where the entropy of the unedited model's next token
    (nats) lies between. A nested controller that leaves one of the three unset takes its parent's.
    """

    edits: tuple[Edit, ...] = ()
    whens: tuple[When, ...] = ()
    name: str | None = field(default=None, compare=False)
    nonzero_strength_threshold: float | None = None
    min_nudge_entropy: float | None = None
    max_nudge_entropy: float | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not isinstance(self.name, str):
            raise BadInput(f"A controller's name is text, not {self.name!r}.")
        for name in ("nonzero_strength_threshold", "min_nudge_entropy", "max_nudge_entropy"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, finite(getattr(self, name), name))

    @classmethod
    def of(cls, wish: Controller | Edit | Iterable[Edit] | None) -> Controller:
        """From whatever a person may hold: nothing, an edit, several, a controller."""
        if isinstance(wish, Controller):
            return wish
        if wish is None:
            return cls()
        edits = (wish,) if isinstance(wish, Edit) else tuple(wish) if isinstance(wish, Iterable) else (wish,)
        if not all(isinstance(edit, Edit) for edit in edits):
            raise BadInput(f"Edits are made from features, as in features[27].nudge(0.5); this is {wish!r}.")
        return cls(edits)

    @property
    def plain(self) -> bool:
        """Whether it is only edits and whens, so that it can be joined with another."""
        return self == Controller(self.edits, self.whens)

    def __bool__(self) -> bool:
        return bool(self.edits or self.whens)

    def __add__(self, other: Edit | Controller) -> Controller:
        """Both, in this order. Thresholds stay with the one they were given to."""
        other, name = Controller.of(other), self.name or Controller.of(other).name
        first = self if self.plain else Controller(whens=(When(ALWAYS, replace(self, name=None)),))
        if not other.plain:
            return Controller(first.edits, (*first.whens, When(ALWAYS, replace(other, name=None))), name)
        if not first.whens:
            return Controller(first.edits + other.edits, other.whens, name)
        later = (When(ALWAYS, Controller(other.edits)),) if other.edits else ()  # whens of the first act before them
        return Controller(first.edits, (*first.whens, *later, *other.whens), name)

    def __radd__(self, other: int) -> Controller:
        return NotImplemented if other != 0 else self

    def on(self, *places: str | int) -> Controller:
        """Every edit at these tokens."""
        whens = tuple(replace(w, controller=w.controller.on(*places)) for w in self.whens)
        return replace(self, edits=tuple(e.on(*places) for e in self.edits), whens=whens)

    def when(self, condition: Condition) -> Controller:
        """All of it only where the condition holds."""
        return Controller(whens=(When(condition, replace(self, name=None)),), name=self.name)

    def called(self, name: str) -> Controller:
        """The same controller with a name."""
        return replace(self, name=name)

    def walk(self) -> Iterable[Edit]:
        """Every edit, nested ones too."""
        yield from self.edits
        for when in self.whens:
            yield from when.controller.walk()

    @property
    def touches_prompt(self) -> bool:
        """Whether it may change tokens of the prompt."""
        return any(edit.where.touches_prompt for edit in self.walk())

    def __str__(self) -> str:
        parts = [str(edit) for edit in self.edits] + [str(when) for when in self.whens]
        bounds = "; ".join(_bounds(self))
        return ("; ".join(parts) or "no edit") + (f" ({bounds})" if bounds else "")

    def explain(self, scale_of: Callable[[int], float] | None = None) -> str:
        """The exact change, line by line; with scale_of (feature index -> its scale) in raw numbers too."""
        return "\n".join(explain(self, scale_of)) or "No edit: the residual passes unchanged, to the bit."


ALWAYS = Group("AND", ())
Edits = Edit | Controller | None  # what chat, compare and complete take


def explain(
    controller: Controller,
    scale_of: Callable[[int], float] | None,
    indent: str = "",
    seen: set[int] | None = None,
) -> Iterable[str]:
    """The lines of Controller.explain. seen: features that an edit before has changed."""
    seen = set() if seen is None else seen
    yield from (f"{indent}{bound}" for bound in _bounds(controller))
    for edit in controller.edits:
        index, value, raw = edit.feature.index, edit.value, edit.feature.unit == "raw"
        amount = f"{value:g}" if raw or edit.op == "scale" else f"{value:g} × scale[{index}]"
        if scale_of and not raw and edit.op in ("nudge", "pin"):
            amount += f" (= {value * scale_of(index):.4g})"
        after = {"nudge": f"a + {amount}", "pin": amount, "scale": f"{amount} × a", "ablate": "0"}[edit.op]
        name = f"feature {index}" + (f" ({edit.feature.label})" if edit.feature.label else "")
        a = "what the edits above left of its activation" if index in seen else "its activation"
        condition = "" if edit.condition is None else f", when {edit.condition}{_raw(edit.condition, scale_of)}"
        yield f"{indent}{name}: a = {a}; a' = {after}; x' = x + (a' − a) · W_dec[{index}]"
        kinds = set(edit.where.kinds)
        spared = ", BOS and template spared" if kinds and not kinds & {"template", "bos"} else ""
        yield f"{indent}    at {edit.where}{spared}{condition}"
        seen.add(index)
    for when in controller.whens:
        tells = f", tell {when.event!r} once" if when.event else ""
        where = f"where {when.condition}{_raw(when.condition, scale_of)}{tells}:"
        yield f"{indent}then:" if when.condition == ALWAYS and not tells else f"{indent}{where}"
        yield from explain(when.controller, scale_of, indent + "    ", seen)


def _raw(condition: Condition, scale_of: Callable[[int], float] | None) -> str:
    """The numbers of a condition as raw activations."""
    if isinstance(condition, Group):
        return "".join(_raw(part, scale_of) for part in condition.parts)
    if scale_of is None or not isinstance(condition, Comparison) or isinstance(condition.right, tuple):
        return ""
    right = condition.right
    scaled = [feature.index for feature in condition.left if feature.unit == "scale"]
    return "".join(f" ({right:g} × scale[{index}] = {right * scale_of(index):.4g})" for index in scaled)


def _bounds(controller: Controller) -> Iterable[str]:
    """What a controller's thresholds mean, in words."""
    low, high = controller.min_nudge_entropy, controller.max_nudge_entropy
    if controller.nonzero_strength_threshold is not None:
        yield f"activations under {controller.nonzero_strength_threshold:g} × scale read as 0 in conditions"
    if low is not None or high is not None:
        between = f"from {'0' if low is None else f'{low:g}'} to {'any' if high is None else f'{high:g}'} nats"
        yield f"nudges only where the unedited model's next-token entropy is {between}"


def a_condition(given: object) -> None:
    """Raises BadInput for what is no condition."""
    if not isinstance(given, Condition):
        how = "made by comparing, as in f[1] > 0.5; two features are compared by compare(f[1], '==', f[2])"
        raise BadInput(f"A condition is {how}. This is {given!r}.")
