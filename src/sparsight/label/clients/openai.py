"""OpenAI's chat completions, as OpenAI, vLLM, llama.cpp, Ollama, LM Studio, OpenRouter and others speak them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from sparsight.errors import BadInput
from sparsight.label.clients.client import Answer, Chances, Hold, Question
from sparsight.label.clients.endpoint import Endpoint, Shape, Unsaid, most_tokens, whole
from sparsight.label.clients.spec import EndpointSpec

SERVICE, KEY = "https://api.openai.com/v1", "OPENAI_API_KEY"
ALTERNATIVES, FEWER = 20, 5  # tokens whose probability is asked for; the most that the API gives, and that some do
DISPENSABLE = {
    "max_tokens": r"max_tokens.*max_completion_tokens",  # models that think have another word for it
    "temperature": r"temperature",
    "many alternatives": r"top_logprobs",
    "logprobs": r"logprobs",
    "system": r"system.*role|role.*system|developer",  # templates without a system role
}


class OpenAIClient:
    """Asks an OpenAI-compatible endpoint. Raises BadInput without a model or a key, Missing without httpx."""

    method = "openai"

    def __init__(self, spec: EndpointSpec) -> None:
        if not spec.model:
            raise BadInput("Which model? Say model (--ask), by the endpoint's name for it.")
        key = spec.key_of(KEY)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.endpoint = Endpoint(spec, spec.url(SERVICE, "chat/completions"), headers, key, DISPENSABLE)
        self.spec, self.model, self.at_once = spec, spec.model, spec.concurrency
        self.temperature = spec.temperature or 0.0
        self.settings: Mapping[str, Any] = {"temperature": self.temperature, "thinking": spec.thinking}

    def ask(self, question: Question, hold: Hold = nullcontext) -> Answer:
        """Raises NoAnswer."""
        return self.endpoint.post(lambda without: self.body(question, without), self._read, hold)

    def body(self, question: Question, without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """The request, without what this endpoint does not take."""
        said = [{"role": "system", "content": question.shared}, {"role": "user", "content": question.text}]
        if "system" in without:
            said = [{"role": "user", "content": f"{question.shared}\n\n{question.text}"}]
        limit = "max_completion_tokens" if "max_tokens" in without else "max_tokens"
        body = {"model": self.model, "messages": said, limit: question.most_tokens + self.spec.thinking}
        if "temperature" not in without:
            body["temperature"] = self.temperature
        if question.chances and "logprobs" not in without:
            body |= {"logprobs": True, "top_logprobs": FEWER if "many alternatives" in without else ALTERNATIVES}
        return body

    def _read(self, told: Any) -> Answer:
        answer = read(told)
        if not answer.text and not self.spec.thinking and told["choices"][0].get("finish_reason") == "length":
            raise Unsaid
        return answer

    def most(self, question: Question) -> tuple[float, int]:
        return most_tokens(question, self.spec.thinking)

    def fits(self, question: Question) -> bool:
        return True

    def close(self) -> None:
        self.endpoint.close()


def read(told: Any) -> Answer:
    """A chat completion as an Answer. Raises Shape for anything else."""
    try:
        choice = told["choices"][0]
        text = choice["message"]["content"]
    except (LookupError, TypeError) as error:
        raise Shape("no choices[0].message.content") from error
    if not isinstance(text, str | None):
        raise Shape("its content is no text")
    usage = told.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    sent = whole(usage.get("prompt_tokens"))
    return Answer(text or "", sent, whole(usage.get("completion_tokens")), float(sent), _chances(choice))


def _chances(choice: Mapping[str, Any]) -> Chances:
    """The log probabilities of each token and of what could have stood there; none where they are not all there."""
    try:
        found = []
        for one in choice["logprobs"]["content"]:
            others = {str(o["token"]): float(o["logprob"]) for o in one.get("top_logprobs") or ()}
            others[str(one["token"])] = float(one["logprob"])
            found.append((str(one["token"]), {t: p for t, p in others.items() if not math.isnan(p)}))
        return tuple(found)
    except (LookupError, TypeError, ValueError, AttributeError):
        return ()
