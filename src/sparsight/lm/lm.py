"""A language model that can be looked at and changed at any hook point, for one pass, and that keeps no trace of it.

The one primitive is the model card's call:

    logits, kv_cache, cache = lm.forward(inputs, cache_activations_at=[...], interventions={hook_point: f})

and it does what the card's code means, on any Hugging Face causal model, with the batch kept.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from sparsight.errors import BadInput, TooLong
from sparsight.lm.batch import Batch, Place, Prompt, as_tensor
from sparsight.lm.cache import branch, cache_word, remember, seen_mask
from sparsight.lm.chat import chat_prompt, text_prompt
from sparsight.lm.intervene import Intervention, Placed, intervention_taps
from sparsight.lm.pretrained import as_device, as_dtype, load_pretrained
from sparsight.lm.tap import Tap, find, tapped
from sparsight.records import Kind, is_whole

Activations = Float[Tensor, "batch pos ..."]
TURNS: WeakKeyDictionary[PreTrainedModel, threading.RLock] = WeakKeyDictionary()  # hooks sit on the model: one pass of
# it at a time, whoever holds it, or threads would see each other's


class ObservableLanguageModel:
    """Any Hugging Face causal language model.

    model: a name on the hub, a folder, or a loaded model (then give its tokenizer too, where text is wanted).
    device: None takes the GPU where there is one; "auto" spreads the layers over all of them (needs accelerate).
    dtype: None takes the checkpoint's own on a GPU and float32 on a CPU.
    cleanup_intervention_layer: a later hook point at whose output the direct effect of every intervention is taken off
    again, so that only its effect through the layers between remains.
    Raises BadFile where the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        cleanup_intervention_layer: str | None = None,
        revision: str | None = None,
    ):
        if isinstance(model, PreTrainedModel):
            self.model: PreTrainedModel = model
            if device is not None or dtype is not None:
                target = None if device is None else as_device(device)
                torch.nn.Module.to(model, device=target, dtype=as_dtype(dtype))  # in place
            self.name = model.config.name_or_path or type(model).__name__
        else:
            self.name = str(model)
            self.model, loaded = load_pretrained(self.name, device, as_dtype(dtype), revision)
            tokenizer = tokenizer or loaded
        self.model.eval()
        self._tokenizer = tokenizer
        self.cleanup_intervention_layer = cleanup_intervention_layer
        self.d_model = int(self.config.hidden_size)
        self.compiled_steps: dict[Any, Any] = {}  # idle decode steps that lm/compiled.py keeps
        self.turn: AbstractContextManager[Any] = TURNS.setdefault(self.model, threading.RLock())
        self.cache_word = cache_word(self.model)
        accepted = inspect.signature(self.model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self._takes_logits_to_keep = "logits_to_keep" in accepted

    @cached_property
    def config(self) -> Any:
        """The text part of the model's configuration."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer. Raises BadInput where the model was given without one."""
        if self._tokenizer is None:
            raise BadInput("This model came without a tokenizer: give `tokenizer=`, or token ids instead of text.")
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def device(self) -> torch.device:
        """Where its input goes; a model spread over several GPUs begins here."""
        return self._embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def context(self) -> int | None:
        """How many tokens it can read, prompt and answer together; None where its configuration does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def n_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        return f"ObservableLanguageModel({self.name}, {size / 1e6:,.1f}M parameters, {self.dtype}, {self.device})"

    # ── one pass ─────────────────────────────────────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def forward(
        self,
        inputs: Any,
        cache_activations_at: Sequence[str] | None = None,
        interventions: Mapping[str, Intervention | Placed | None] | None = None,
        use_cache: bool = True,
        past_key_values: Cache | None = None,
        *,
        attention_mask: Tensor | None = None,
        kinds: Int[Tensor, "batch pos"] | None = None,
        all_logits: bool = False,
    ) -> tuple[Float[Tensor, "batch *pos vocabulary"], Cache | None, dict[str, Activations]]:
        """One pass: (logits of each row's last token, KV cache, {hook point: activations}).

        inputs: token ids [batch, pos] or [pos]; a text or a list of texts; a list of messages, or of chats; or the
        tokenizer's BatchEncoding. Rows may be padded on either side, with an attention_mask.
        cache_activations_at: hook points to read, [batch, pos, ...], as the rest of the model sees them: after the
        interventions there.
        interventions: hook point -> a function of its activations, [batch, pos, d] on all rows, that returns what
        shall flow on, or (that, direct_effect). With `cleanup_intervention_layer` set, the direct effect is
        subtracted at that layer's output; a function that returns no direct effect has the change it made, one
        that returns None for it has none.
        past_key_values: what an earlier call returned. It is not changed: the same cache may be continued twice. A
        text that continues one begins without BOS. attention_mask: [batch, pos] over these tokens, or over the cached
        ones too; of those, a cache that forward returned knows better. kinds: Kind bits of each token, where
        interventions should know more than that it is text. all_logits: logits of all tokens, [batch, pos, vocabulary].
        """
        seen = None if past_key_values is None else seen_mask(past_key_values, attention_mask)
        batch = self.batch(inputs, attention_mask, seen, kinds, prompt=past_key_values is None)
        cache: dict[str, Tensor] = {}
        taps = self.taps(interventions or {}, batch)
        for point in cache_activations_at or ():
            taps.setdefault(point, []).append(self._reader(cache, point, batch))
        logits, past = self.run(batch, taps, branch(past_key_values), use_cache, all_logits)
        return (batch.as_given(logits) if all_logits else logits), past, cache

    @torch.no_grad()
    def activations(self, inputs: Any, at: Sequence[str], attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """{hook point: activations [batch, pos, ...]}, running no more of the model than they need."""
        batch = self.batch(inputs, attention_mask)
        cache: dict[str, Tensor] = {}
        self.run(batch, {point: [self._reader(cache, point, batch)] for point in at}, stop=True)
        return cache

    def width(self, hook_point: str) -> int:
        """How many numbers per token flow at a hook point, by a pass over one token."""
        ids = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        return int(self.activations(ids, [hook_point])[hook_point].shape[-1])

    @torch.inference_mode(False)  # what is kept of a pass may be used outside of a caller's inference mode
    @torch.no_grad()
    def run(
        self,
        batch: Batch,
        taps: Mapping[str, Sequence[Tap]],
        past: Cache | None = None,
        use_cache: bool = False,
        all_logits: bool = False,
        stop: bool = False,
    ) -> tuple[Tensor, Cache | None]:
        """The pass itself: (logits [batch, vocabulary] or [batch, pos, vocabulary], the cache, grown in place).

        stop: end at the last tap; logits are then empty.
        """
        options: dict[str, Any] = {}
        if self.takes_positions and not batch.even:
            options["position_ids"] = self.within_context(batch.positions)
        unembedding = self.model.get_output_embeddings()
        at_logits = any(find(self.model, point)[0] is unembedding for point in taps)
        if self._takes_logits_to_keep and not all_logits and not at_logits:
            options["logits_to_keep"] = 1
        mask, logits = None if batch.even else batch.mask.to(torch.int64), torch.empty(0)
        with self.turn, tapped(self.model, taps, stop):
            options[self.cache_word] = past
            out = self.model(input_ids=batch.ids, attention_mask=mask, use_cache=use_cache, **options)
            past, logits = (getattr(out, self.cache_word) if use_cache else None), out.logits
            logits = logits if all_logits else logits[:, -1]
        if past is not None:
            remember(past, batch.mask)
        return logits, past

    def within_context(self, positions: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """Positions that the model has: a row that has ended is run on beside the others, past the context's end."""
        return positions if self.context is None else positions.clamp(max=self.context - 1)

    def batch(
        self,
        inputs: Any,
        attention_mask: Tensor | None = None,
        seen: Tensor | None = None,
        kinds: Tensor | None = None,
        prompt: bool = True,
    ) -> Batch:
        """Whatever forward takes as a Batch on this model's device. Raises TooLong beyond the model's context."""
        if isinstance(inputs, Batch):
            return inputs
        if isinstance(inputs, Mapping):
            if "input_ids" not in inputs:
                raise BadInput("A mapping of inputs holds 'input_ids'; a chat is a list of messages.")
            attention_mask = inputs.get("attention_mask") if attention_mask is None else attention_mask
            inputs = inputs["input_ids"]
        if attention_mask is not None:
            inputs, attention_mask = as_tensor(inputs), as_tensor(attention_mask)
        if isinstance(inputs, Tensor):
            batch = Batch.of_tensor(inputs.to(self.device), attention_mask, seen, kinds)
        elif attention_mask is not None or kinds is not None:
            raise BadInput("attention_mask and kinds go with token ids, [batch, pos]; text brings its own.")
        else:
            prompts = self.prompts(inputs)
            prompts = prompts if prompt else [without_bos(one) for one in prompts]
            batch = Batch.of_prompts(prompts, self.pad_token, self.device)
            batch = batch if seen is None else batch.after(seen)
        batch = replace(batch, prompt=prompt)
        if not prompt and kinds is None:
            batch = replace(batch, kinds=torch.where(batch.kinds != 0, int(Kind.GENERATED | Kind.ASSISTANT), 0))
        if int(batch.ids.max()) >= self.vocabulary or int(batch.ids.min()) < 0:
            raise BadInput(f"A token id lies outside this model's vocabulary (0 to {self.vocabulary - 1}).")
        if self.context and batch.mask.shape[1] > self.context:
            longest = int(batch.mask.sum(-1).max())
            if longest > self.context:
                raise TooLong(f"The prompt has {longest:,} tokens; this model's context holds {self.context:,}.")
        return batch

    @property
    def vocabulary(self) -> int:
        """How many token ids it can read."""
        return int(self._embeddings.shape[0])

    @property
    def _embeddings(self) -> Float[Tensor, "vocabulary d"]:
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def pad_token(self) -> int:
        """The id that fills rows; it is masked, so any that the model has will do."""
        token: Any = None if self._tokenizer is None else self._tokenizer.pad_token_id
        return int(token) if token is not None and token < self.vocabulary else 0

    def prompts(self, inputs: Any, **template: Any) -> list[Prompt]:
        """A text, a chat (list of messages), token ids, a Prompt, or a list of these, as Prompts. template: keywords
        for the chat template."""
        if isinstance(inputs, Mapping) and "input_ids" in inputs:
            ids, mask = as_tensor(inputs["input_ids"]), inputs.get("attention_mask")
            rows = as_rows(ids), as_rows(torch.ones_like(ids) if mask is None else as_tensor(mask))
            inputs = [[i for i, real in zip(*row, strict=True) if real] for row in zip(*rows, strict=True)]
        elif isinstance(inputs, Tensor):
            inputs = as_rows(inputs)
        return [self.prompt(one, **template) for one in (inputs if is_many(inputs) else [inputs])]

    def prompt(self, one: Any, **template: Any) -> Prompt:
        """One text, chat, Prompt or list of token ids as a Prompt. template: keywords for the chat template."""
        if isinstance(one, Prompt):
            return one
        if isinstance(one, str):
            return text_prompt(self.tokenizer, one)
        if not isinstance(one, Sequence) or isinstance(one, (bytes, bytearray)):
            raise BadInput(f"A prompt is a text, a list of messages or of token ids, not {type(one).__name__}.")
        if one and all(map(is_whole, one)):
            return Prompt(tuple(map(int, one)), (Kind.PROMPT | Kind.TEXT,) * len(one))
        return chat_prompt(self.tokenizer, one, **template)

    def _reader(self, cache: dict[str, Tensor], point: str, batch: Batch) -> Tap:
        def read(flow: Tensor) -> None:
            cache[point] = batch.as_given(flow).detach().clone()

        return read

    def taps(
        self, interventions: Mapping[str, Intervention | Placed | None], batch: Batch, place: Place | None = None
    ) -> dict[str, list[Tap]]:
        """Interventions as taps for a pass over this batch."""
        cleanup = self.cleanup_intervention_layer
        return intervention_taps(self.model, interventions, batch, place or batch.place, cleanup)

    def generate(self, prompts: Any, *args: Any, **options: Any) -> Any:
        """Write on from a prompt or several: see `sparsight.lm.generate.generate`, whose arguments it takes."""
        from sparsight.lm.generate import generate

        return generate(self, prompts, *args, **options)

    # ── neighbours ───────────────────────────────────────────────────────────────────────────────────────────────

    def nnsight(self) -> Any:
        """The wrapped nnsight model over the same weights. Needs the extra `sparsight[nnsight]`."""
        from sparsight.lm.nnsight import wrap

        return wrap(self)


def is_many(inputs: Any) -> bool:
    """Whether this is a list of prompts, rather than one (a text, a chat, a list of token ids)."""
    if isinstance(inputs, Mapping) and "input_ids" in inputs:
        inputs = inputs["input_ids"]
    if isinstance(inputs, Tensor):
        return inputs.ndim > 1
    if not isinstance(inputs, (list, tuple)):
        return False
    first = inputs[0] if inputs else None
    return not inputs or isinstance(first, (str, Prompt, list, tuple))


def as_rows(ids: Tensor) -> list[list[int]]:
    """Token ids [pos] or [batch, pos] as lists of rows."""
    return (ids if ids.ndim > 1 else ids.unsqueeze(0)).tolist()


def without_bos(prompt: Prompt) -> Prompt:
    """A text that goes on where another ended: the tokenizer's BOS has no place there."""
    if len(prompt) > 1 and prompt.kinds[0] & Kind.BOS:
        return Prompt(prompt.ids[1:], prompt.kinds[1:])
    return prompt
