"""The instrument: a model with an SAE attached. Read what fires, write, write otherwise.

scope = sparsight.load("demo")
scope.read("Once upon a time")                       which features fire, token by token
scope.chat(messages, edits=f[27].nudge(0.6))         words, and the receipt of the edit
scope.compare(messages, edits)                       unsteered and steered, in one batch
scope.contrast(chats, others)                        the features that tell them apart
scope.attribute(messages, 12)                        the features that made its token 12 likely
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsight.atlas.atlas import Atlas
from sparsight.edits import Controller, Edits
from sparsight.errors import BadInput, Mismatch
from sparsight.lm.batch import Prompt
from sparsight.lm.generate import Piece, sampling_of, stream
from sparsight.lm.lm import ObservableLanguageModel, is_many
from sparsight.lm.tap import find
from sparsight.lm.text import vocabulary
from sparsight.records import Message, Receipt, Sampling
from sparsight.sae.codes import Codes
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.scope.features import Features
from sparsight.scope.reading import Reading
from sparsight.scope.steering import Steering

if TYPE_CHECKING:
    from sparsight.scope.attribution import Attribution
    from sparsight.scope.auto import AutoEdits
    from sparsight.scope.auto_condition import AutoCondition
    from sparsight.scope.contrast import Contrast
    from sparsight.scope.next_logits import TokenLogit


@dataclass(frozen=True)
class Chunk:
    """A piece of a reply while it is written.

    features: the active features of this token, strongest first, before any edit, where asked for. events: names
    that came true at it. finish: None, "stop" or "length". receipt: of the row, with its last chunk, where it was
    steered.
    """

    row: int
    index: int
    id: int
    text: str
    finish: str | None = None
    features: tuple[tuple[int, float], ...] = ()
    events: tuple[str, ...] = ()
    receipt: Receipt | None = None


@dataclass(frozen=True)
class Reply:
    """What was written. ids hold every token, a final stop token too; codes, where reading was asked for, one row
    for each of them. receipt is None where there was no edit."""

    text: str
    finish: str
    ids: tuple[int, ...]
    prompt_tokens: int
    receipt: Receipt | None = None
    events: tuple[str, ...] = ()
    codes: Codes | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Comparison:
    """One prompt, written on without and with the edits, in one batch."""

    plain: Reply
    steered: Reply

    def __str__(self) -> str:
        return f"plain:   {self.plain.text}\nsteered: {self.steered.text}\n{self.steered.receipt}"


class Scope:
    """A model and the SAE that reads it.

    hook_point: where; None takes the SAE's own. labels: feature index -> words. atlas: of this SAE, or its folder: what
    it says of features are their labels, where `labels` says nothing, and its scale is the feature unit where the SAE
    has none of its own. Raises Mismatch where the SAE was made for another width, or the atlas for another SAE or
    tokenizer; NoHookPoint for a place that the model does not have.
    """

    def __init__(
        self,
        lm: ObservableLanguageModel,
        sae: SparseAutoEncoder,
        hook_point: str | None = None,
        labels: Mapping[int, str] | None = None,
        atlas: str | Path | Atlas | None = None,
    ):
        point = hook_point or sae.config.hook_point
        if point is None:
            todo = "say where it reads: hook_point='model.layers.19'"
            raise BadInput(f"This SAE does not say which hook point it was trained on: {todo}.")
        module, _ = find(lm.model, point)
        width = lm.width(point)
        if width != sae.d_in:
            raise Mismatch(f"This SAE reads {sae.d_in:,} numbers; '{point}' of this model gives {width:,}.")
        device = next((p.device for p in module.parameters()), lm.device)
        self.lm, self.hook_point = lm, point
        self.sae = sae if (sae.device, sae.dtype) == (device, lm.dtype) else sae.moved(device, lm.dtype)
        self.atlas = None if atlas is None else self._opened(atlas)
        if self.atlas is not None and self.sae.scale is None:
            scale = torch.from_numpy(self.atlas.column("scale"))
            self.sae = self.sae.altered(scale=scale.to(self.sae.device, torch.float32))
        named = (self.atlas.texts() if self.atlas else {}) | dict(labels or {})
        self.features = Features(self.sae, named, self.atlas)

    def _opened(self, atlas: str | Path | Atlas) -> Atlas:
        """The atlas, if it is of this SAE and this tokenizer."""
        folder = atlas.folder if isinstance(atlas, Atlas) else atlas
        tokenizer = vocabulary(self.lm.tokenizer) if self.lm.has_tokenizer else None
        return Atlas(folder, sae=self.sae.fingerprint, tokenizer=tokenizer)

    def __repr__(self) -> str:
        return f"Scope({self.lm.name}, {self.hook_point}, {self.sae.d_hidden:,} features)"

    def about(self) -> dict[str, Any]:
        """What this is, as plain data."""
        lm, sae = self.lm, self.sae
        return {
            "model": lm.name,
            "parameters": sum(p.numel() for p in lm.model.parameters()),
            "layers": lm.n_layers,
            "width": lm.d_model,
            "context": lm.context,
            "chat template": lm.has_tokenizer and bool(lm.tokenizer.chat_template),
            "device": str(lm.device),
            "dtype": str(lm.dtype).removeprefix("torch."),
            "hook point": self.hook_point,
            "features": sae.d_hidden,
            "activation": sae.config.activation + (f" (k {sae.config.k})" if sae.config.k else ""),
            "feature scales": sae.scale is not None,
            "labels": len(self.features.labels),
            "atlas": None if self.atlas is None else str(self.atlas.folder),
            "SAE made for": sae.config.model,
            "SAE fingerprint": sae.fingerprint,
            **{f"SAE {name}": value for name, value in flat(sae.config.notes)},
        }

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def read(self, inputs: Any, **template: Any) -> Reading | list[Reading]:
        """Which features fire, token by token. Runs the model up to the hook point and no further.

        inputs: a text, a chat (list of messages), or a list of these, read in one batch. template: keywords for the
        chat template, such as add_generation_prompt (here False unless asked for).
        """
        template.setdefault("add_generation_prompt", False)
        prompts = self.lm.prompts(inputs, **template)
        batch = self.lm.batch(prompts)
        flow = self.lm.activations(batch, [self.hook_point])[self.hook_point]
        real = batch.mask.to(flow.device)
        codes = self.sae.encode_codes(flow[real]).to("cpu")
        ends = real.sum(-1).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        readings = [
            Reading.of(self.lm, prompt, codes[start:end], self.features.labels)
            for prompt, start, end in zip(prompts, starts, ends, strict=True)
        ]
        return readings if is_many(inputs) else readings[0]

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def chat(
        self,
        messages: Any,
        edits: Edits | Sequence[Edits] = None,
        *,
        stream: bool = False,
        read: bool = False,
        on_token: Callable[[Chunk], None] | None = None,
        compiled: bool = False,
        sampling: Sampling | Sequence[Sampling] | None = None,
        template: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Answer a chat: a Reply; for a list of chats a list of them; with stream, an iterator of Chunks.

        edits: one wish for all rows, or a list with one (or None) each. read: keep the features of each new token.
        on_token: called with each Chunk, its features in it. sampling: how tokens are chosen, or its fields as
        keywords (temperature=0.7, seed=1, max_new_tokens=200, ...). compiled: see sparsight.lm.compiled.
        template: keywords for the chat template.
        """
        prompts = self.lm.prompts(messages, **(template or {}))
        return self._write(prompts, is_many(messages), edits, stream, read, on_token, compiled, sampling, options)

    def complete(self, text: Any, edits: Edits | Sequence[Edits] = None, **more: Any) -> Any:
        """Go on with a plain text or token ids, or a list of these; everything else as for `chat`."""
        for one in text if is_many(text) else [text]:
            if isinstance(one, (list, tuple)) and any(isinstance(part, (Mapping, Message)) for part in one):
                raise BadInput("complete() goes on with text; for messages there is chat().")
        return self.chat(text, edits, **more)

    def compare(self, messages: Any, edits: Edits, **more: Any) -> Comparison:
        """Unsteered and steered, side by side in one batch, with the same seed."""
        if more.get("stream"):
            raise BadInput(
                "compare() gives both answers at the end. To stream, chat([m, m], [None, edits], stream=True)."
            )
        plain, steered = self.chat([messages, messages], [None, edits], **more)
        return Comparison(plain, steered)

    # ── why ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def contrast(self, with_: Sequence[Any], without: Sequence[Any], k: int = 10, **how: Any) -> Contrast:
        """Features that tell two sets of chats apart: see sparsight.scope.contrast, whose arguments it takes."""
        from sparsight.scope.contrast import contrast

        return contrast(self, with_, without, k, **how)

    def attribute(self, messages: Any, start: int, end: int | None = None, **how: Any) -> Attribution:
        """Features that raised the logits of a prompt's tokens: see sparsight.scope.attribution."""
        from sparsight.scope.attribution import attribute

        return attribute(self, messages, start, end, **how)

    def next_logits(self, messages: Any, top_k: int = 10, **how: Any) -> list[TokenLogit]:
        """What would be said next: see sparsight.scope.next_logits."""
        from sparsight.scope.next_logits import next_logits

        return next_logits(self, messages, top_k, **how)

    def auto_edits(self, text: str, **how: Any) -> AutoEdits:
        """Edits from a wish in words: see sparsight.scope.auto."""
        from sparsight.scope.auto import auto_edits

        return auto_edits(self, text, **how)

    def auto_condition(self, text: str, **how: Any) -> AutoCondition:
        """A condition from a wish in words: see sparsight.scope.auto_condition."""
        from sparsight.scope.auto_condition import auto_condition

        return auto_condition(self, text, **how)

    # ── the parts ────────────────────────────────────────────────────────────────────────────────────────────────

    def steering(self, controllers: Sequence[Controller], prompts: Sequence[Prompt]) -> Steering:
        """Controllers compiled for rows: what goes into a pass at this scope's hook point."""
        return Steering(self.sae, controllers, [len(p) for p in prompts], self.hook_point)

    def _write(
        self,
        prompts: list[Prompt],
        many: bool,
        edits: Any,
        streaming: bool,
        read: bool,
        on_token: Callable[[Chunk], None] | None,
        compiled: bool,
        sampling: Any,
        options: Mapping[str, Any],
    ) -> Any:
        asked = sampling_of(sampling, options, len(prompts))
        controllers = controllers_of(edits, len(prompts), many)
        steering = self.steering(controllers, prompts)
        one_by_one = on_token is not None or (read and streaming)
        pieces = stream(
            self.lm,
            prompts,
            asked,
            {self.hook_point: steering},
            read_at=(self.hook_point,) if read or one_by_one else (),
            compiled=compiled,
            entropy=steering.needs_entropy,
        )
        spans: list[list[Tensor]] = [[] for _ in prompts]
        chunks = self._chunks(pieces, steering, one_by_one, spans if read and not streaming else None)
        chunks = chunks if on_token is None else _telling(chunks, on_token)
        if streaming:
            return chunks
        rows: list[list[Chunk]] = [[] for _ in prompts]
        for chunk in chunks:
            rows[chunk.row].append(chunk)
        replies = [self._reply(*of) for of in zip(prompts, rows, spans, strict=True)]
        return replies if many else replies[0]

    def _chunks(
        self, pieces: Iterator[Piece], steering: Steering, one_by_one: bool, spans: list[list[Tensor]] | None
    ) -> Iterator[Chunk]:
        """Chunks of pieces. one_by_one: with each token's features; spans: rows to keep residuals in, for later."""
        for piece in pieces:
            residual, features = piece.activations.get(self.hook_point), ()
            if residual is not None and one_by_one:
                features = tuple(self.sae.encode_codes(residual.unsqueeze(0)).at(0))
            if residual is not None and spans is not None:
                spans[piece.row].append(residual)
            events = tuple(steering.new_events(piece.row))
            receipt = steering.receipt(piece.row) if piece.finish and steering.controllers[piece.row] else None
            yield Chunk(piece.row, piece.index, piece.id, piece.text, piece.finish, features, events, receipt)

    def _reply(self, prompt: Prompt, row: list[Chunk], span: list[Tensor]) -> Reply:
        """One row, ended. What was read is encoded at once: the SAE is read once for a span, not for each token."""
        text, events = "".join(c.text for c in row), tuple(name for c in row for name in c.events)
        codes = self.sae.encode_codes(torch.stack(span)).to("cpu") if span else None
        ids, last = tuple(c.id for c in row), row[-1]
        return Reply(text, last.finish or "", ids, len(prompt), last.receipt, events, codes)


def flat(notes: Mapping[str, Any]) -> Iterator[tuple[str, str | int | float]]:
    """Notes as names and plain values; those of a note inside another follow its name."""
    for name, value in notes.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {inner}", each) for inner, each in flat(value))
        elif isinstance(value, (str, int, float)):
            yield name, value


def controllers_of(edits: Any, rows: int, many: bool) -> list[Controller]:
    """One controller per row, from one wish for all or a list of one each."""
    if many and isinstance(edits, (list, tuple)):
        if len(edits) != rows:
            raise BadInput(f"{len(edits)} edits for {rows} prompts: give one for all, or one (or None) each.")
        return [Controller.of(wish) for wish in edits]
    return [Controller.of(edits)] * rows


def _telling(chunks: Iterator[Chunk], on_token: Callable[[Chunk], None]) -> Iterator[Chunk]:
    for chunk in chunks:
        on_token(chunk)
        yield chunk
