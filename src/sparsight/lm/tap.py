"""Taps: look at, or change, what flows through a module, for the length of one pass. The only hooks in the house.

A hook point is a module path: "model.layers.19" is that module's output, as on the model card, and so is
"model.layers.19.output"; "model.layers.19.input" is what goes in. A module may take and give a tensor, a tuple or
a dataclass of tensors: the first tensor is meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from sparsight.errors import BadInput, NoHookPoint, NotReached

Tap = Callable[[Tensor], Tensor | None]  # given what flows; returns what shall flow on, or None for no change


class Stop(Exception):
    """All that was wanted has been seen: the rest of the pass is not needed."""


def find(model: nn.Module, hook_point: str) -> tuple[nn.Module, bool]:
    """(the module, whether its input is meant). Raises NoHookPoint, naming the neighbours."""
    if not isinstance(hook_point, str):
        raise BadInput(f"A hook point is a module path such as 'model.layers.19', not {hook_point!r}.")
    for path, is_input in ((hook_point, False), _side(hook_point)):
        try:
            if path:
                return model.get_submodule(path), is_input
        except AttributeError:
            continue
    raise NoHookPoint(f"No hook point '{hook_point}'. {_neighbours(model, hook_point)}")


@contextmanager
def tapped(model: nn.Module, taps: Mapping[str, Sequence[Tap]], stop: bool = False) -> Iterator[None]:
    """Within: a pass of the model runs these taps, in the order given at each hook point; after it, no trace is left.

    stop: end the pass as soon as every hook point has been reached once; the rest of the model does not run.
    Raises NotReached at the end where nothing flowed through one of them.
    """
    found = {point: find(model, point) for point in taps}
    waiting = set(taps)
    handles: list[Any] = []
    try:
        for point, place in found.items():
            handles.append(_hook(place, _flow(taps[point], point, waiting, stop)))
        with suppress(Stop):
            yield
    finally:
        for handle in handles:
            handle.remove()
    if waiting:
        missed = ", ".join(f"'{point}'" for point in sorted(waiting))
        raise NotReached(f"Nothing flowed through {missed} in this pass: nothing was read or changed there.")


@contextmanager
def grafted(model: nn.Module, taps: Mapping[str, Tap]) -> Iterator[None]:
    """The same for a pass that is traced into a graph: one tap a hook point, and no bookkeeping that a graph would
    freeze. Whoever uses it must see for himself that something flowed through."""
    handles: list[Any] = []
    try:
        for point, tap in taps.items():
            handles.append(_hook(find(model, point), _bare_flow(tap, point)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(place: tuple[nn.Module, bool], flow: Callable[[Any], Any]) -> Any:
    module, is_input = place
    if is_input:
        return module.register_forward_pre_hook(_on_input(flow), with_kwargs=True)
    return module.register_forward_hook(_on_output(flow))


def _bare_flow(tap: Tap, point: str) -> Callable[[Any], Any]:
    def flow(value: Any) -> Any:
        tensor, put = _open(value, point)
        after = tap(tensor)
        return None if after is None else put(after)

    return flow


def _flow(taps: Sequence[Tap], point: str, waiting: set[str], stop: bool) -> Callable[[Any], Any]:
    def flow(value: Any) -> Any:
        tensor, put = _open(value, point)
        changed = tensor
        for tap in taps:
            after = tap(changed)
            changed = changed if after is None else after
        waiting.discard(point)
        if stop and not waiting:
            raise Stop
        return None if changed is tensor else put(changed)

    return flow


def _open(value: Any, point: str) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The first tensor of what flows, and how to put another in its place."""
    if isinstance(value, Tensor):
        return value, lambda tensor: tensor
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return value[0], lambda tensor: (tensor, *value[1:])
    if isinstance(value, dict) and value and isinstance(next(iter(value.values())), Tensor):  # a ModelOutput
        name = next(iter(value))
        return value[name], lambda tensor: type(value)(**{**value, name: tensor})
    raise BadInput(f"What flows at '{point}' is no tensor and does not begin with one: {type(value).__name__}.")


def _on_output(flow: Callable[[Any], Any]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return flow(output)

    return hook


def _on_input(flow: Callable[[Any], Any]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            changed = flow(args)
            return None if changed is None else (changed, kwargs)
        name = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
        changed = None if name is None else flow(kwargs[name])
        return None if changed is None else (args, {**kwargs, name: changed})

    return hook


def _side(hook_point: str) -> tuple[str, bool]:
    path, _, side = hook_point.rpartition(".")
    return (path, side == "input") if side in ("input", "output") else ("", False)


def _neighbours(model: nn.Module, hook_point: str) -> str:
    """What this model has in the place where the path goes wrong."""
    parts, known = hook_point.split("."), []
    module = model
    for part in parts:
        child = module._modules.get(part)
        if child is None:
            break
        known.append(part)
        module = child
    here, wrong = ".".join(known), parts[len(known)] if len(known) < len(parts) else ""
    children = list(module._modules)
    if children and all(name.isdigit() for name in children):
        return f"'{here}' of this model has 0 to {len(children) - 1}."
    paths = [name for name, _ in model.named_modules() if name]
    close = difflib.get_close_matches(hook_point, paths, n=3, cutoff=0.7)
    within = f"'{here}' has" if here else "This model has"
    listed = f"{within} no '{wrong}', it has: {', '.join(children[:12]) or 'nothing inside'}"
    return listed + (f". Close to it: {', '.join(close)}." if close else ".")
