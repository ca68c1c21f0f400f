"""Interventions, for one pass: run at their hook points, and their direct effects taken off again further up.

An intervention is a function of the activations, in the caller's own layout; or an object with `edit`, that is told
which tokens it is given (see Placed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from sparsight.errors import BadInput
from sparsight.lm.batch import Batch, Place
from sparsight.lm.tap import Tap, find

Intervention = Callable[[Tensor], Tensor | tuple[Tensor, Tensor | None]]


@runtime_checkable
class Placed(Protocol):
    """An intervention that wants to know which tokens it is given. It must not write into them."""

    def edit(self, activations: Tensor, place: Place) -> Tensor | tuple[Tensor, Tensor | None]:
        """What shall flow on; with it, if not None, the direct effect to take off at the cleanup layer."""
        ...


def intervention_taps(
    model: nn.Module,
    interventions: Mapping[str, Intervention | Placed | None],
    batch: Batch,
    place: Place,
    cleanup: str | None,
) -> dict[str, list[Tap]]:
    """Taps that run interventions on a batch and, where a cleanup layer is named, take their direct effects off."""
    if not isinstance(interventions, Mapping):
        raise BadInput(f"interventions= is {{hook point: intervention}}, not a {type(interventions).__name__}.")
    taps: dict[str, list[Tap]] = {}
    for point, intervention in interventions.items():
        if intervention is None:
            continue
        if not callable(intervention) and not isinstance(intervention, Placed):
            raise BadInput(f"The intervention at '{point}' must be a function, not a {type(intervention).__name__}.")
        acting = _Acting(point, intervention, batch, place, cleanup)
        taps.setdefault(point, []).append(acting.change)
        if cleanup:
            if find(model, cleanup) == find(model, point):
                raise BadInput(f"The cleanup layer '{cleanup}' would undo the intervention there: it must come after.")
            taps.setdefault(cleanup, []).append(acting.clean)
    return taps


@dataclass
class _Acting:
    """One intervention in one pass."""

    point: str
    intervention: Any
    batch: Batch
    place: Place
    cleanup: str | None
    reached: bool = False
    direct: Tensor | None = None

    def change(self, flow: Tensor) -> Tensor | None:
        self.reached = True
        if isinstance(self.intervention, Placed):
            return self._after(flow, self.intervention.edit(flow, self.place), lambda t: t)
        given = self.batch.as_given(flow)
        return self._after(given, self.intervention(given.clone()), self.batch.as_run)  # it may write into its own

    def clean(self, flow: Tensor) -> Tensor | None:
        if not self.reached:
            raise BadInput(f"The cleanup layer '{self.cleanup}' runs before '{self.point}': it must come after it.")
        if self.direct is not None and self.direct.shape != flow.shape:
            shapes = f"{list(self.direct.shape)} at '{self.point}', {list(flow.shape)} at '{self.cleanup}'"
            raise BadInput(f"The cleanup layer needs activations of the intervention's own shape: {shapes}.")
        return None if self.direct is None else flow - self.direct.to(flow)

    def _after(self, given: Tensor, out: Any, as_run: Callable[[Tensor], Tensor]) -> Tensor | None:
        pair: tuple[Any, Any] = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
        after, effect = pair
        self._check(given, after)
        if self.cleanup and not isinstance(out, tuple) and after is not given:
            effect = after - given
        if effect is not None:
            self._check(given, effect)
            self.direct = as_run(effect)
        return None if after is given else as_run(after).to(given)

    def _check(self, given: Tensor, out: Any) -> None:
        if isinstance(out, Tensor) and out.shape == given.shape:
            return
        said = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        wanted = f"{list(given.shape)}, alone or with its direct effect"
        raise BadInput(f"The intervention at '{self.point}' must return {wanted}; it returned {said}.")
