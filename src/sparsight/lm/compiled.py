"""The fast decode step: a static KV cache and one compiled graph, with the interventions inside it.

Python dispatch, not arithmetic, is what makes a small step slow. Compiled, a step is one call; the interventions'
numbers and the cache are buffers that the graph reads, so other edits are other numbers and nothing is compiled
again. On CUDA the graph is captured. The token ids are those of the eager path, as far as rounding allows: in float32
they differ only where two tokens are all but tied.
"""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, StaticCache, StaticLayer
from transformers.integrations import sdpa_attention

from sparsight.errors import NotReached
from sparsight.lm.batch import Batch
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.lm.tap import grafted
from sparsight.lm.thin import ThinProducts

STEPPING = threading.RLock()  # a step changes a library that is one for the whole process
BUCKET = 128  # capacities are multiples of this, so that few graphs serve all lengths
KEPT = 4  # idle steps that a model keeps, each with its KV cache


@runtime_checkable
class Compilable(Protocol):
    """An intervention that can live in a compiled step: see scope/steering.py for what each does."""

    acts: bool
    signature: Any

    def apply(self, flow: Tensor, kinds: Tensor, positions: Tensor) -> Tensor: ...
    def twin(self) -> Any: ...
    def load(self, other: Any) -> None: ...
    def hand_back(self, other: Any) -> None: ...


class CompiledStep:
    """One decode step for fixed rows, capacity, hook points and shapes of interventions."""

    @torch.inference_mode(False)  # its buffers outlive a caller's inference mode
    def __init__(
        self,
        lm: ObservableLanguageModel,
        rows: int,
        capacity: int,
        interventions: Mapping[str, Any],
        read_at: Sequence[str],
    ):
        self.lm = lm
        self.interventions = {point: i.twin() for point, i in interventions.items()}
        self.cache = StaticCache(config=lm.config, max_cache_len=capacity)
        numbers = {"dtype": torch.int64, "device": lm.device}
        self.mask = torch.ones(rows, capacity, **numbers)
        self.positions, self.kinds = torch.zeros(rows, 1, **numbers), torch.zeros(rows, 1, **numbers)
        self.flowed = torch.zeros((), **numbers)
        self.read: dict[str, Tensor] = {}
        for point in read_at:
            self.read[point] = torch.zeros(rows, 1, lm.width(point), dtype=lm.dtype, device=lm.device)
        self.taps = {point: functools.partial(self._tap, point) for point in {*self.interventions, *read_at}}
        self.proved = False
        static = [self.mask, self.positions, self.kinds, self.flowed, *self.read.values()]
        for tensor in [*static, *(t for i in self.interventions.values() for t in i.b.values())]:
            torch._dynamo.mark_static_address(tensor)
        told = compiler_options(lm.device)
        self._graph = torch.compile(own_code(self._step), fullgraph=True, dynamic=False, options=told)

    @torch.inference_mode(False)
    @torch.no_grad()
    def load(self, past: Cache, batch: Batch, interventions: Mapping[str, Any]) -> None:
        """Take over what an eager prefill left: `batch` is the next token of each row, not yet in the cache."""
        length = past.get_seq_length()
        for mine, theirs in zip(self.cache.layers, past.layers, strict=True):
            assert isinstance(mine, StaticLayer)
            assert isinstance(theirs, DynamicLayer)
            keys, values = theirs.keys, theirs.values
            assert keys is not None
            assert values is not None
            if not mine.is_initialized:
                mine.lazy_initialization(keys, values)
            assert mine.keys is not None
            assert mine.values is not None
            mine.keys[:, :, :length].copy_(keys)
            mine.values[:, :, :length].copy_(values)
            mine.cumulative_length.fill_(length)
        self.mask.fill_(1)
        self.mask[:, : batch.mask.shape[1]].copy_(batch.mask)
        self.positions.copy_(batch.positions)
        for point, intervention in interventions.items():
            self.interventions[point].load(intervention)

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, ids: Tensor, kinds: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits [batch, vocabulary], hook point -> activations [batch, 1, d] before any edit)."""
        self.kinds.copy_(kinds)
        with self.lm.turn, grafted(self.lm.model, self.taps), grouped_heads():
            logits = self._graph(ids.clone())  # never an inference tensor
        if not self.proved:
            if int(self.flowed) != len(self.taps):
                raise NotReached(f"The compiled step ran past its hook points ({', '.join(self.taps)}).")
            self.proved = True
        return logits.clone(), {point: t.clone() for point, t in self.read.items()}

    def _step(self, ids: Tensor) -> Tensor:
        out = self.lm.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.lm.within_context(self.positions),
            use_cache=True,
            **{self.lm.cache_word: self.cache},
        )
        self.positions.add_(1)
        return out.logits[:, -1]

    def _tap(self, point: str, flow: Tensor) -> Tensor:
        self.flowed.add_(1)
        if point in self.read:
            self.read[point].copy_(flow)
        if point in self.interventions:
            return self.interventions[point].apply(flow, self.kinds, self.positions)
        return flow


@contextmanager
def compiled_step(
    lm: ObservableLanguageModel,
    batch: Batch,
    past: Cache,
    room: int,
    interventions: Mapping[str, Any],
    read_at: Sequence[str],
) -> Iterator[CompiledStep]:
    """A step of the right shape, loaded, for one generation alone; afterwards it waits for the next of its shape.

    room: tokens that may still be written. What the interventions tallied is given back to them at the end.
    """
    acting = {point: i for point, i in interventions.items() if i.acts}
    capacity = -(-(past.get_seq_length() + room + 1) // BUCKET) * BUCKET
    shapes = tuple((point, i.signature) for point, i in sorted(acting.items()))
    key = (len(batch.ids), capacity, shapes, tuple(read_at), lm.dtype, str(lm.device), modules_now(lm.model))
    step = lm.compiled_steps.pop(key, None) or CompiledStep(lm, len(batch.ids), capacity, acting, read_at)
    step.load(past, batch, acting)
    try:
        yield step
    finally:
        for point, intervention in acting.items():
            step.interventions[point].hand_back(intervention)
        if step.proved:  # also where the caller stopped listening in the middle
            lm.compiled_steps[key] = step
        while len(lm.compiled_steps) > KEPT:
            lm.compiled_steps.pop(next(iter(lm.compiled_steps)))


def why_not_compiled(lm: ObservableLanguageModel, past: Cache, interventions: Mapping[str, Any]) -> str | None:
    """Why this generation must be decoded eagerly; None where it can be compiled."""
    if not all(isinstance(i, Compilable) for i in interventions.values()):
        return "an intervention is a plain function, which cannot be compiled"
    if lm.cleanup_intervention_layer and interventions:
        return "a cleanup layer takes direct effects off, which cannot be compiled"
    if any(type(layer) is not DynamicLayer for layer in past.layers):
        return "this model's KV cache is not of plain full attention (a sliding window, a state)"
    if not getattr(lm.model, "_can_compile_fullgraph", False):  # transformers' word for it; some write wrong tokens
        return "transformers says that this model cannot be compiled with a cache of fixed size"
    if lm.device.type == "cpu" and not cpp_compiler():
        return "no C++ compiler was found (install g++ or clang)"
    return None


@functools.cache
def cpp_compiler() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU; None where there is none that works."""
    from torch._inductor import cpp_builder, exc

    try:
        return cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError, OSError):
        return None


def modules_now(model: PreTrainedModel) -> int:
    """A hash of what a graph takes for granted of the model: its modules, their plain attributes, their hooks."""
    plain = (bool, int, float, str, type(None))

    def of(m: nn.Module) -> tuple[Any, ...]:
        attributes = frozenset((name, value) for name, value in vars(m).items() if isinstance(value, plain))
        return id(m), attributes, tuple(m._forward_hooks), tuple(m._forward_pre_hooks)

    return hash((getattr(model.config, "_attn_implementation", None), *map(of, model.modules())))


@contextmanager
def grouped_heads() -> Iterator[None]:
    """Within: heads that share keys and values read them where they lie. While it is compiled, transformers copies
    the cache out to every head instead, all of it at every step: at 32 rows a third of the step's time. The graph is
    guarded by it, so it holds at every step."""
    if not hasattr(sdpa_attention, "pack_gqa"):  # a transformers that does not know how
        yield
        return
    with STEPPING:
        asks = sdpa_attention.is_torchdynamo_compiling
        sdpa_attention.is_torchdynamo_compiling = _no
        try:
            yield
        finally:
            sdpa_attention.is_torchdynamo_compiling = asks


def _no() -> bool:
    return False


def compiler_options(device: torch.device) -> dict[str, Any]:
    """What the compiler is told: leave out what is checked at each step and cannot change within a generation. At 32
    layers its guards on every module's attributes, and its checks of every tensor's layout, took a third of the step.
    """
    told: dict[str, Any] = {"triton.cudagraphs": device.type == "cuda", "size_asserts": False}
    if device.type == "cpu":
        told["post_grad_custom_pre_pass"] = ThinProducts()
    skip = getattr(torch.compiler, "skip_guard_on_all_nn_modules_unsafe", None)  # newer than our oldest torch
    return told if skip is None else told | {"guard_filter_fn": skip}


def own_code(method: Any) -> Any:
    """The same method with a code object of its own: torch.compile keeps its graphs by code object, and two steps
    must never share one, since a graph holds the buffers of the step that it was made for."""
    of = method.__func__
    own = types.FunctionType(of.__code__.replace(), of.__globals__, of.__name__, of.__defaults__, of.__closure__)
    return types.MethodType(own, method.__self__)
