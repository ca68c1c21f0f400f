"""A scope that is elsewhere: what `sparsight.connect` gives.

scope = sparsight.connect("http://127.0.0.1:8000")     instead of sparsight.load(...)
scope.read("Once upon a time")                         which features fire, token by token
scope.chat(messages, edits=scope.features[27].nudge(0.6))
scope.compare(messages, edits)                         unsteered and steered, in one batch
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sparsight.edits import Controller, Edits
from sparsight.errors import BadInput
from sparsight.records import Kind, Message, Sampling, TokenRead
from sparsight.remote.answers import (
    Attribution,
    Chunk,
    Comparison,
    Contrast,
    Reading,
    Reply,
    kind_of,
    receipt_of,
)
from sparsight.remote.features import Features
from sparsight.remote.wire import Wire
from sparsight.wire import to_json

AT_ONCE = 16  # requests of one call
EVERY = 512  # features of a new token, where reading is asked for


class Scope:
    """A model and its SAE on a server. model: a name that it serves; None: its first one. Raises NoAnswer."""

    def __init__(self, wire: Wire, model: str | None = None) -> None:
        self.wire = wire
        self._about = wire.get("/about", model=model)
        self.model = str(self._about["name"])
        self.features = Features(wire, self.model, int(self._about["features"]), self._about["SAE fingerprint"])

    def __repr__(self) -> str:
        return f"Scope({self.model} at {self.wire.url}, {len(self.features):,} features)"

    def about(self) -> dict[str, Any]:
        """What this is, as plain data."""
        return dict(self._about)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, inputs: Any, edits: Edits = None) -> Any:
        """Which features fire, token by token: of a text or a chat a Reading, of a list of these a list. edits: what
        the features are once they have acted."""
        if _is_many(inputs):
            return self._each(lambda one: self.read(one, edits), inputs)
        told = self.wire.post("/read", {"model": self.model, **_prompt(inputs), **_controller(edits)})
        tokens = (
            TokenRead(one["id"], one["token"], kind_of(one["kind"]), _pairs(one["features"])) for one in told["tokens"]
        )
        return Reading(tuple(tokens), {int(index): text for index, text in told["labels"].items()})

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def chat(
        self,
        messages: Any,
        edits: Any = None,
        *,
        stream: bool = False,
        read: bool = False,
        on_token: Callable[[Chunk], None] | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Any:
        """Answer a chat: a Reply; for a list of chats a list of them, written at once; with stream, an iterator of
        Chunks of one chat. edits: one wish, or a list with one (or None) each. read: tell the features of new tokens.
        on_token: called with each Chunk. sampling: how tokens are chosen, or its fields as keywords."""
        if _is_many(messages):
            if stream or on_token is not None:
                raise BadInput("One chat at a time is streamed from a server.")
            wishes = edits if isinstance(edits, (list, tuple)) else [edits] * len(messages)
            if len(wishes) != len(messages):
                raise BadInput(f"{len(wishes)} edits for {len(messages)} prompts: give one for all, or one each.")
            more = {"read": read, "sampling": sampling, **options}
            return self._each(
                lambda pair: self.chat(pair[0], pair[1], **more), list(zip(messages, wishes, strict=True))
            )
        text = isinstance(messages, str)
        body = {"model": self.model, **_sampled(sampling, options, text), **_controller(edits)}
        body |= {"prompt": messages} if text else _prompt(messages)
        if read:
            body["features"] = {"top_k": EVERY}
        path = "/completions" if text else "/chat/completions"
        if stream:
            chunks = self._chunks(path, body)
            return chunks if on_token is None else _telling(chunks, on_token)
        if on_token is not None:
            return self._told(path, body, on_token)
        told = self.wire.post(path, body)
        return _reply(told, 0)

    def complete(self, text: Any, edits: Any = None, **more: Any) -> Any:
        """Go on with a plain text, or a list of them; everything else as for `chat`."""
        if not all(isinstance(one, str) for one in (text if isinstance(text, (list, tuple)) else [text])):
            raise BadInput("complete() goes on with text; for messages there is chat().")
        return self.chat(text, edits, **more)

    def compare(self, messages: Any, edits: Edits, sampling: Sampling | None = None, **options: Any) -> Comparison:
        """Unsteered and steered, side by side in one batch, with the same seed."""
        body = {"model": self.model, **_prompt(messages), **_sampled(sampling, options, False)}
        told = self.wire.post("/compare", body | {"controller": to_json(Controller.of(edits))})
        return Comparison(_reply(told, 0), _reply(told, 1))

    # ── why ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def contrast(self, with_: Sequence[Any], without: Sequence[Any], k: int = 10, **how: Any) -> Contrast:
        """Features that tell two sets of chats apart: see sparsight.scope.contrast.contrast."""
        sides = {"with": list(map(_plain, with_)), "without": list(map(_plain, without))}
        told = self.wire.post("/contrast", {"model": self.model, **sides, "k": k, **how})
        return Contrast(tuple(told["with"]), tuple(told["without"]), tuple(told["chats"]), told["note"])

    def attribute(self, messages: Any, start: int, end: int | None = None, **how: Any) -> Attribution:
        """Which features raised the logits of these tokens: see sparsight.scope.attribution.attribute."""
        body = {"model": self.model, **_prompt(messages), "start": start, "end": end, **how}
        told = self.wire.post("/attribute", body)
        return Attribution(
            tuple(told["top"]),
            tuple(told["bottom"]),
            tuple(told["texts"]),
            told["start"],
            told["end"],
            tuple(told["logits"]),
            told["rest"],
        )

    # ── the parts ────────────────────────────────────────────────────────────────────────────────────────────────

    def _each(self, ask: Callable[[Any], Any], inputs: Sequence[Any]) -> list[Any]:
        """Several requests at once, which the server writes in one batch."""
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            return list(pool.map(ask, inputs))

    def _chunks(self, path: str, body: Mapping[str, Any], usage: dict[str, int] | None = None) -> Iterator[Chunk]:
        """usage: is filled with the numbers of tokens at the end."""
        for event in self.wire.events(path, {**body, "stream_options": {"include_usage": True}}):
            if usage is not None:
                usage.update(event.get("usage") or {})
            for choice in event["choices"]:
                text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
                read, events = choice.get("features") or [], tuple(event.get("gf_event_names") or ())
                features = _active(read[0]) if read else ()
                index, receipt = choice.get("gf_token_index", 0), receipt_of(event.get("receipt"))
                yield Chunk(choice["index"], index, text, choice["finish_reason"], features, events, receipt)

    def _told(self, path: str, body: Mapping[str, Any], on_token: Callable[[Chunk], None]) -> Reply:
        """Each chunk told as it comes, and the Reply that they make."""
        every, usage = [], dict[str, int]()
        for chunk in self._chunks(path, body, usage):
            on_token(chunk)
            every.append(chunk)
        text, events = "".join(chunk.text for chunk in every), tuple(name for chunk in every for name in chunk.events)
        receipt = next((chunk.receipt for chunk in reversed(every) if chunk.receipt), None)
        return Reply(text, every[-1].finish or "", usage["prompt_tokens"], len(every), receipt, events)


def _telling(chunks: Iterator[Chunk], on_token: Callable[[Chunk], None]) -> Iterator[Chunk]:
    for chunk in chunks:
        on_token(chunk)
        yield chunk


def _reply(told: Mapping[str, Any], row: int) -> Reply:
    choice, usage = told["choices"][row], told["usage"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    read = tuple(
        TokenRead(one["id"], one["text"], Kind.GENERATED | Kind.ASSISTANT, _active(one))
        for one in choice.get("features") or ()
    )
    steered = len(told["choices"]) == 1 or row == 1  # of a comparison, the second
    events = tuple(told.get("gf_event_names") or ()) if steered else ()
    receipt = receipt_of(told.get("receipt")) if steered else None
    tokens = usage["completion_tokens"] if len(told["choices"]) == 1 else None
    return Reply(text, choice["finish_reason"], usage["prompt_tokens"], tokens, receipt, events, read)


def _active(one: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    return _pairs(one["active"])


def _pairs(features: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, float], ...]:
    return tuple((one["index"], one["activation"]) for one in features)


def _is_many(inputs: Any) -> bool:
    """Whether this is a list of prompts, rather than one."""
    return isinstance(inputs, (list, tuple)) and bool(inputs) and isinstance(inputs[0], (str, list, tuple))


def _plain(one: Any) -> Any:
    """A text as it is; a chat as OpenAI's messages."""
    if isinstance(one, str):
        return one
    said = [Message.of(message) for message in one]
    return [{"role": message.role, "content": message.content} for message in said]


def _prompt(one: Any) -> dict[str, Any]:
    return {"text": one} if isinstance(one, str) else {"messages": _plain(one)}


def _controller(edits: Any) -> dict[str, Any]:
    controller = Controller.of(edits)
    return {"controller": to_json(controller)} if controller else {}


def _sampled(sampling: Sampling | None, options: Mapping[str, Any], text: bool) -> dict[str, Any]:
    """Sampling in OpenAI's words. Raises BadInput for what those cannot say."""
    if sampling is not None and options:
        raise BadInput("Give either `sampling` or its fields as keywords, not both.")
    asked, usual = sampling or Sampling.of(**options), Sampling()
    for name in ("top_k", "min_p", "stop_tokens"):
        if getattr(asked, name) != getattr(usual, name):
            raise BadInput(
                f"A server takes no {name}: its requests are OpenAI's. Load the model here, or leave it out."
            )
    return {
        "max_tokens" if text else "max_completion_tokens": asked.max_new_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "seed": asked.seed,
        "stop": list(asked.stop) or None,
        "logit_bias": {str(token): value for token, value in asked.logit_bias} or None,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
    }
