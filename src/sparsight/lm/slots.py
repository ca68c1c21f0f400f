"""A KV cache for rows that join and leave between steps: each row's tokens lie in a slot of their own, from its start.

    keys, values    [row, head, capacity, d] of each layer; the rows that are written are the first n
    a step          writes each row's new token at that row's own place, and lets it see the places before
    a window        is a ring: a layer that sees the last w tokens alone has w places, and token t lies at t mod w

So nothing is padded, rows of any length stand side by side, and a row that leaves makes room for the last one. Prompts
are run apart, and what they left is copied in.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from sparsight.errors import BadInput, TooLong
from sparsight.lm.cache import own_cache, pairs
from sparsight.lm.lm import ObservableLanguageModel

WINDOW_MASK = "create_sliding_window_causal_mask"  # what transformers' models with windows make their masks with
SMALLEST = 128  # tokens of a row's first capacity; it grows by doubling


class Slots:
    """The KV of so many rows of up to `limit` tokens. Memory is taken when the first row comes, and when a longer row
    than before comes; `capacity` says for how many tokens it is there. whole: take all of it at once, since a compiled
    step needs it to stay where it is.
    """

    def __init__(self, lm: ObservableLanguageModel, rows: int, limit: int, whole: bool = False):
        self.lm, self.rows, self.limit = lm, rows, limit
        self.capacity = limit if whole else min(SMALLEST, limit)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.windows: list[int | None] = []  # of each layer, tokens; None where it sees all

    @property
    def bytes(self) -> int:
        """What it takes of the device's memory."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    @torch.inference_mode(False)
    @torch.no_grad()
    def put(self, row: int, past: Cache, room: int) -> None:
        """Copies in what a pass over one prompt left in a `full_cache`. room: tokens that the row will have at most."""
        if room > self.limit:
            raise TooLong(f"A row holds {self.limit:,} tokens, prompt and answer together; this one wants {room:,}.")
        if not self.keys:
            self._take(past)
        self._reserve(room)
        for (*mine, window), theirs in zip(self._layers(), pairs(past), strict=True):
            for slot, given in zip(mine, theirs, strict=True):
                tokens = given.shape[2]
                if window is None or tokens <= window:
                    slot[row, :, :tokens].copy_(given[0])
                else:
                    slot[row].copy_(given[0, :, -window:].roll(tokens % window, 1))

    @torch.no_grad()
    def fill(self, row: int, length: int, last: int, last_length: int) -> None:
        """Frees a row of so many tokens, by moving the last one in. What is left behind is forgotten: numbers that
        overflowed there would spoil the next row, which they are masked from but multiplied with, by zero."""
        for tensor in (*self.keys, *self.values):  # past its end a slice is the whole, which a ring is
            tensor[row, :, :length].zero_()
            if row != last:
                tensor[row, :, :last_length].copy_(tensor[last, :, :last_length])
                tensor[last, :, :last_length].zero_()

    def view(self, positions: Tensor, width: int) -> Cache:
        """The first rows as the cache of one step. positions: [row], where each row's new token goes; width: so many
        places of each are looked at."""
        rows = torch.arange(len(positions), device=positions.device)
        return Cache(layers=[SlotLayer(k, v, rows, positions, width, window) for k, v, window in self._layers()])

    def _layers(self) -> list[tuple[Tensor, Tensor, int | None]]:
        return list(zip(self.keys, self.values, self.windows, strict=True))

    def _take(self, past: Cache) -> None:
        self.windows = windows(self.lm)
        layers = list(zip(pairs(past), self.windows, strict=True))
        self.keys, self.values = (
            [self._zeros(pair[which], self.capacity, window) for pair, window in layers] for which in (0, 1)
        )

    def _reserve(self, room: int) -> None:
        """Doubles the capacity until a row of so many tokens fits."""
        capacity = self.capacity
        while capacity < room:
            capacity = min(capacity * 2, self.limit)
        if capacity != self.capacity:
            self.keys, self.values = (
                [self._wider(tensor, capacity, window) for tensor, window in zip(tensors, self.windows, strict=True)]
                for tensors in (self.keys, self.values)
            )  # all or none: without memory for one they stay as they are
            self.capacity = capacity

    def _wider(self, tensor: Tensor, capacity: int, window: int | None) -> Tensor:
        """One layer's keys or values, with more room; a whole ring is wide enough."""
        if tensor.shape[2] == window:
            return tensor
        wider = self._zeros(tensor, capacity, window)
        wider[:, :, : tensor.shape[2]].copy_(tensor)
        return wider

    def _zeros(self, like: Tensor, capacity: int, window: int | None) -> Tensor:
        """One layer's keys or values. Raises BadInput where the device has no memory for it."""
        size = self.rows, like.shape[1], capacity if window is None else min(capacity, window), like.shape[3]
        try:
            return like.new_zeros(size)
        except RuntimeError as error:
            places = sum(min(capacity, of or capacity) for of in self.windows)
            gib = math.prod((size[0], size[1], places, size[3])) * like.element_size() * 2 / 2**30
            needs = f"{self.rows:,} rows of {capacity:,} tokens ({gib:,.1f} GiB of keys and values)"
            raise BadInput(f"No memory for {needs}: take fewer rows, or shorter ones (`longest=`).") from error


class SlotLayer(CacheLayerMixin):
    """One layer of a step's view: writes a token per row, each at its own place, and shows the first `width` places;
    of a window all its places, once they are written, whose order does not matter to attention."""

    is_compileable = True

    def __init__(
        self, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor, width: int, window: int | None = None
    ):
        super().__init__()
        self.keys, self.values, self.rows, self.positions, self.window = keys, values, rows, positions, window
        self.width = width if window is None else min(width, window)
        self.is_sliding = window is not None
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to do: the slots are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """key_states, value_states: [row, head, 1, d], of the new tokens."""
        keys, values = self.keys, self.values
        assert isinstance(keys, Tensor)
        assert isinstance(values, Tensor)
        rows, places, many = self.rows.to(keys.device), self.positions.to(keys.device), len(key_states)
        if self.window is not None:
            places = places % self.window
        keys[rows, :, places] = key_states[:, :, 0]
        values[rows, :, places] = value_states[:, :, 0]
        return keys[:many, :, : self.width], values[:many, :, : self.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(how many places are shown, the first of them)."""
        return self.width, 0

    def get_seq_length(self) -> int:
        """As if each row's new token stood in the last place: what a row may see, its mask says."""
        return self.width - 1

    def get_max_length(self) -> int:
        return self.width


def windows(lm: ObservableLanguageModel) -> list[int | None]:
    """How many tokens each layer of the model's KV cache sees; None where it is all of them."""
    return [
        layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None for layer in own_cache(lm).layers
    ]


def why_no_slots(lm: ObservableLanguageModel) -> str | None:
    """Why rows of this model cannot be written side by side in slots; None where they can."""
    layers = [type(layer) for layer in own_cache(lm).layers]
    if any(layer not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return "its KV cache holds more than keys and values (a state)"
    if DynamicSlidingWindowLayer in layers and not hasattr(sys.modules[type(lm.model).__module__], WINDOW_MASK):
        return "its configuration has a sliding window, and its attention has none"
    config = lm.model.config.get_text_config(decoder=True)
    if "chunked_attention" in (getattr(config, "layer_types", None) or []):
        return "it attends in chunks"
    if DynamicSlidingWindowLayer in layers and "flash" in str(config._attn_implementation):
        return "flash attention takes a sliding window's tokens in order (load it with attn_implementation='sdpa')"
    if not getattr(lm.model, "_can_compile_fullgraph", False):  # transformers' word for it; some write wrong tokens
        return "transformers says that it does not work with a cache of fixed size"
    if not lm.takes_positions:
        return "it does not take each token's position"
    if lm.cleanup_intervention_layer:
        return "it has a cleanup layer, which takes direct effects off again"
    return None
