"""Anthropic's messages API. What all questions of a kind share is marked for its cache."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from sparsight.errors import BadInput
from sparsight.label.clients.client import Answer, Hold, Question
from sparsight.label.clients.endpoint import Endpoint, Shape, Unsaid, most_tokens, whole
from sparsight.label.clients.spec import EndpointSpec

SERVICE, KEY, VERSION = "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", "2023-06-01"
WRITTEN, CACHED = 1.25, 0.1  # of the price of a token in, for one that goes into the cache and one that comes from it
DISPENSABLE = {"temperature": r"temperature", "thinking": r"thinking", "cache": r"cache_control"}


class AnthropicClient:
    """Asks an endpoint that speaks Anthropic's messages. Raises BadInput without a model or a key, Missing without
    httpx."""

    method = "anthropic"

    def __init__(self, spec: EndpointSpec) -> None:
        if not spec.model:
            raise BadInput("Which model? Say model (--ask), by the endpoint's name for it.")
        key = spec.key_of(KEY)
        headers = {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})
        self.endpoint = Endpoint(spec, spec.url(SERVICE, "messages"), headers, key, DISPENSABLE)
        self.spec, self.model, self.at_once = spec, spec.model, spec.concurrency
        self.settings: Mapping[str, Any] = {"temperature": spec.temperature, "thinking": spec.thinking}

    def ask(self, question: Question, hold: Hold = nullcontext) -> Answer:
        """Raises NoAnswer."""
        return self.endpoint.post(lambda without: self.body(question, without), self._read, hold)

    def body(self, question: Question, without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """The request, without what this endpoint does not take."""
        shared: dict[str, Any] = {"type": "text", "text": question.shared}
        if "cache" not in without:
            shared["cache_control"] = {"type": "ephemeral"}
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": question.most_tokens + self.spec.thinking,
            "system": [shared],
            "messages": [{"role": "user", "content": question.text}],
        }
        if self.spec.temperature is not None and "temperature" not in without:  # newer models have none
            body["temperature"] = self.spec.temperature
        if not self.spec.thinking and "thinking" not in without:  # newer models think unless they are told not to
            body["thinking"] = {"type": "disabled"}
        return body

    def _read(self, told: Any) -> Answer:
        answer = read(told)
        if not answer.text and not self.spec.thinking and told.get("stop_reason") == "max_tokens":
            raise Unsaid
        return answer

    def most(self, question: Question) -> tuple[float, int]:
        sent, answered = most_tokens(question, self.spec.thinking)
        return sent * WRITTEN, answered

    def fits(self, question: Question) -> bool:
        return True

    def close(self) -> None:
        self.endpoint.close()


def read(told: Any) -> Answer:
    """A message as an Answer: its text, without what was thought before. Raises Shape for anything else."""
    blocks = told.get("content") if isinstance(told, Mapping) else None
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise Shape("no content")
    texts = [block.get("text") for block in blocks if block.get("type") == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise Shape("its content is no text")
    usage = told.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    fresh = whole(usage.get("input_tokens"))
    written, cached = (whole(usage.get(f"cache_{how}_input_tokens")) for how in ("creation", "read"))
    billed = fresh + WRITTEN * written + CACHED * cached
    return Answer("".join(map(str, texts)), fresh + written + cached, whole(usage.get("output_tokens")), billed)
