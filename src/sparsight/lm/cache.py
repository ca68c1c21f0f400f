"""KV caches: what a model calls its own, which of its tokens are real, and how one is continued twice."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from sparsight.errors import BadInput
from sparsight.lm.batch import as_tensor

if TYPE_CHECKING:
    from sparsight.lm.lm import ObservableLanguageModel

CACHE_WORDS = ("cache", "past_key_values", "cache_params")  # since transformers 5.24; before; of states, before


def cache_word(model: PreTrainedModel) -> str:
    """What this model's forward calls its KV cache, given and returned. Raises BadInput where it has none."""
    accepted = inspect.signature(model.forward).parameters
    word = next((word for word in CACHE_WORDS if word in accepted), None)
    if word is None:
        raise BadInput(f"{type(model).__name__} keeps its state in a way that sparsight cannot follow.")
    return word


def remember(past: Cache, mask: Tensor) -> None:
    """Notes on a cache which of its tokens are real, [batch, seen], and which keys that is true of."""
    past.seen_mask, past.seen_keys = mask, first_keys(past)  # type: ignore[attr-defined]


def first_keys(past: Cache) -> Tensor | None:
    """The keys of the first layer of attention, [batch, head, seen, d]; None in a cache of states alone."""
    keys = (getattr(layer, "keys", None) for layer in past.layers if isinstance(layer, CacheLayerMixin))
    return next((k for k in keys if isinstance(k, Tensor)), None)


def own_cache(lm: ObservableLanguageModel) -> Cache:
    """The cache that a model makes itself, after one token: its layers' types say what each of them keeps."""
    batch = lm.batch(torch.zeros(1, 1, dtype=torch.int64, device=lm.device))
    past = lm.run(batch, {}, use_cache=True)[1]
    assert past is not None
    return past


def full_cache() -> Cache:
    """A cache that keeps all tokens of all layers, where a model's own would keep those of a sliding window alone: so
    any beginning of it can be gone on from. What a window hides is masked all the same."""
    return DynamicCache()


def pairs(past: Cache) -> list[tuple[Tensor, Tensor]]:
    """(keys, values) of each layer, [batch, head, seen, d], of a cache of attention alone."""
    out = []
    for layer in past.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        assert isinstance(keys, Tensor)
        assert isinstance(values, Tensor)
        out.append((keys, values))
    return out


def seen_mask(past: Cache, attention_mask: Any = None) -> Tensor:
    """Which of the cached tokens are real, [batch, seen].

    A cache that forward returned knows, also when it was cropped. Of another, and of one that was changed since, the
    part of the attention_mask that covers the cached tokens says; without one all are real. Raises BadInput where
    that cannot be told: a cache with padding, that was changed.
    """
    if not isinstance(past, Cache):
        raise BadInput(f"past_key_values is the cache that forward() returned, not a {type(past).__name__}.")
    keys, known, of = first_keys(past), getattr(past, "seen_mask", None), getattr(past, "seen_keys", None)
    if keys is None:
        if known is None:
            raise BadInput(
                "A cache of states alone does not say which tokens it has seen: continue one from forward()."
            )
        return known
    length = int(past.get_seq_length())
    if known is not None and of is not None and len(of) == len(keys) and of.data_ptr() == keys.data_ptr():
        return known[:, :length]  # less where the caller cropped it
    told = as_tensor(attention_mask)
    if isinstance(told, Tensor) and told.shape[-1] > length:
        return told.reshape(-1, told.shape[-1])[:, :length].to(device=keys.device, dtype=torch.bool)
    if known is not None and not known.all():
        how = "give an attention_mask over all its tokens and the new ones"
        raise BadInput(f"This KV cache has padding and was changed after forward() returned it: {how}.")
    return torch.ones(keys.shape[0], length, dtype=torch.bool, device=keys.device)


def branch(past: Cache | None) -> Cache | None:
    """A cache that grows without touching the one it came from. Costs no copy of tensors where appending makes new
    ones, as transformers' dynamic layers do."""
    if past is None:
        return None
    out = copy.copy(past)
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in past.layers)
    out.layers = [copy.copy(layer) if plain else copy.deepcopy(layer) for layer in past.layers]
    return out
