"""What is answered, as pydantic models: for the OpenAPI page, and for clients that are made from it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from sparsight.serve.refusals import ErrorAnswer


class PromptTokensDetails(BaseModel):
    """cached_tokens: those that were not run again."""

    cached_tokens: int


class Usage(BaseModel):
    """Numbers of tokens. A prompt counts once, however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(BaseModel):
    """A token that could have stood there. logprob: natural, at least -9999. bytes: of its text, in UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was written."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of every token of an answer, its last one, which may be no text, too."""

    content: list[TokenLogprob]
    refusal: None = None


class ActiveFeature(BaseModel):
    """activation: raw, before any edit. edited: whether this request's edits changed it at this token."""

    id: str
    index: int
    label: str | None
    activation: float
    edited: bool


class TokenFeatures(BaseModel):
    """A new token's active features, strongest first. token: its place in the answer; id: in the vocabulary."""

    token: int
    id: int
    text: str
    active: list[ActiveFeature]


class ReceiptAnswer(BaseModel):
    """Proof that edits acted, of all choices together. change: mean of |change| / |residual| over touched tokens."""

    controller: str
    hook_point: str
    touched: int
    seen: int
    change: float


class AssistantMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    features: list[TokenFeatures] | None = None


class Head(BaseModel):
    """What all answers have. created: seconds since 1970. receipt: where it was steered."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    gf_event_names: list[str] | None = None
    receipt: ReceiptAnswer | None = None


class ChatAnswer(Head):
    """An answered chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionLogprobsAnswer(BaseModel):
    """Token by token. text_offset: characters before it."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobsAnswer | None = None
    finish_reason: Literal["stop", "length"]
    features: list[TokenFeatures] | None = None


class CompletionAnswer(Head):
    """Texts, gone on with."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelAnswer(BaseModel):
    """A name that may be asked for: a model, or a model with a saved variant."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelsAnswer(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class VariantAnswer(BaseModel):
    """A saved controller. model: to be asked for under this name. owner: whose key saved it. created: seconds."""

    name: str
    model: str
    controller: dict[str, Any]
    fingerprint: str
    says: str
    owner: str
    created: int


class VariantsAnswer(BaseModel):
    """All of them, by name."""

    object: Literal["list"] = "list"
    data: list[VariantAnswer]


class DeletedAnswer(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["variant.deleted"] = "variant.deleted"
    deleted: bool = True


REASONS = {
    400: "Something in the request cannot be used",
    401: "No key, or one that is not known",
    403: "It belongs to another key",
    404: "It is not there",
    413: "The body is too large",
    408: "The body did not arrive in time",
    429: "Over a limit, or too much waits: come again after `Retry-After` seconds",
    500: "The server failed",
    502: "A model elsewhere gave no answer",
    503: "The server is stopping",
    504: "The answer took too long",
}


def answers(
    good: type[BaseModel] | None, *more: int, streams: bool = False, embers: bool = False, status: int = 200
) -> dict[int | str, dict[str, Any]]:
    """The answers of a route, for OpenAPI. more: statuses besides those that every route has."""
    told: dict[int | str, dict[str, Any]] = {status: {} if good is None else {"model": good}}
    if streams:
        told[status] |= {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
    for code in sorted({400, 401, 408, 413, 429, 500, 503, 504, *more, *((404,) if streams else ())}):
        told[code] = {"description": REASONS[code]} | ({} if embers else {"model": ErrorAnswer})
    return told
