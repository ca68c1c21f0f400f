"""Greedy decoding by others, on the same weights: each is a case (see measure.py) that returns the new token ids.

plain       transformers' generate
hook        the same, with the model card's formula in a forward hook: encode, edit, decode, add what was not explained
nnsight     a trace per token, or its generate; adding a vector, or the card's formula
lens        TransformerLens' bridge; the same two
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from measure import Case, Clock
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from sparsight.edits import Edit
from sparsight.lm.lm import cache_word
from sparsight.sae.sae import SparseAutoEncoder

Change = Callable[[Tensor], Tensor]  # of the residual, [row, pos, d_in]


class Ticker:
    """A streamer for transformers' generate: given the prompt first, then each step's tokens."""

    def __init__(self, clock: Clock):
        self.clock, self.prompt = clock, True

    def put(self, _tokens: Tensor) -> None:
        if not self.prompt:
            self.clock()
        self.prompt = False

    def end(self) -> None:
        pass


def generate(model: PreTrainedModel, ids: Tensor, tokens: int, clock: Clock) -> list[list[int]]:
    """transformers' own loop."""
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, streamer=Ticker(clock))
    return out[:, ids.shape[1] :].tolist()


def plain(model: PreTrainedModel, ids: Tensor, tokens: int) -> Case:
    return lambda clock: generate(model, ids, tokens, clock)


def hook(model: PreTrainedModel, point: str, change: Change, ids: Tensor, tokens: int) -> Case:
    def case(clock: Clock) -> list[list[int]]:
        handle = model.get_submodule(point).register_forward_hook(lambda _module, _args, flow: change(flow))
        try:
            return generate(model, ids, tokens, clock)
        finally:
            handle.remove()

    return case


def vector(sae: SparseAutoEncoder, edits: list[list[Edit]]) -> Change:
    """What nudges alone come to: a vector to add, one a row. The least that anybody can do."""
    rows = [sum((e.value * sae.W_dec[e.feature.index] for e in row), torch.zeros_like(sae.b_dec)) for row in edits]
    added = torch.stack(rows).unsqueeze(1)
    return lambda flow: flow + added


AFFINE = {  # a' = factor * a + shift
    "nudge": lambda value: (1.0, value),
    "pin": lambda value: (0.0, value),
    "scale": lambda value: (value, 0.0),
    "ablate": lambda value: (0.0, 0.0),
}


def card(sae: SparseAutoEncoder, edits: list[list[Edit]]) -> Change:
    """decode(f') + (x - decode(f)), with each row's own edits; every row has as many."""
    to = {"device": sae.device, "dtype": sae.dtype}
    index = torch.tensor([[e.feature.index for e in row] for row in edits], device=sae.device).unsqueeze(1)
    factor, shift = torch.tensor([[AFFINE[e.op](e.value) for e in row] for row in edits], **to).unsqueeze(1).unbind(-1)

    @torch.no_grad()
    def change(flow: Tensor) -> Tensor:
        features = sae.encode(flow)
        where = index.expand(-1, flow.shape[1], -1)
        edited = features.scatter(-1, where, factor * features.gather(-1, where) + shift)
        return sae.decode(edited) + (flow - sae.decode(features))

    return change


def installed(package: str) -> bool:
    """Whether this peer is here to be measured; says so where it is not."""
    here = importlib.util.find_spec(package) is not None
    if not here:
        print(f"{package} is not installed: left out.", flush=True)
    return here


def nnsight_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    from nnsight import TransformersModel

    return TransformersModel(model, tokenizer=tokenizer, task="text-generation")


def nnsight_generate(lm: Any, layer: int, change: Change, ids: Tensor, tokens: int) -> Case:
    def case(clock: Clock) -> list[list[int]]:
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with lm.generate(given, max_new_tokens=tokens, do_sample=False, streamer=Ticker(clock)) as tracer:
            for _step in tracer.iter[:tokens]:
                lm.model.layers[layer].output = change(lm.model.layers[layer].output)
            out = tracer.result.save()
        return out[:, ids.shape[1] :].tolist()

    return case


def nnsight_traces(lm: Any, layer: int, change: Change, ids: Tensor, tokens: int) -> Case:
    @torch.no_grad()
    def case(clock: Clock) -> list[list[int]]:
        past, given, out = {cache_word(lm._module): DynamicCache()}, ids, []
        for _step in range(tokens):
            with lm.trace({"input_ids": given}, use_cache=True, logits_to_keep=1, **past):
                lm.model.layers[layer].output = change(lm.model.layers[layer].output)
                logits = lm.lm_head.output.save()
            given = logits[:, -1].argmax(-1, keepdim=True)
            out.append(given)
            clock()
        return torch.cat(out, 1).tolist()

    return case


def lens_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The bridge rebuilds the model that it is given, so give it one of its own."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:  # it reads the configuration from there
        model.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=tokenizer)


def lens(bridge: Any, layer: int, change: Change, ids: Tensor, tokens: int) -> Case:
    options = {"max_tokens_per_yield": 1, "stop_at_eos": False, "do_sample": False, "verbose": False}

    def case(clock: Clock) -> list[list[int]]:
        out = []
        with bridge.hooks(fwd_hooks=[(f"blocks.{layer}.hook_out", lambda flow, hook: change(flow))]):
            for new in bridge.generate_stream(ids, max_new_tokens=tokens, return_type="tokens", **options):
                out.append(new[:, -1:])
                clock()
        return torch.cat(out, 1).tolist()

    return case
