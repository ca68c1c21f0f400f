"""What this project's own routes take and give, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from sparsight.serve.openai.forms import ChatMessage, Controlling, Form

Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
Text = Annotated[str, Field(min_length=1)]
Conversations = Annotated[list[Messages | Text], Field(min_length=1, max_length=512)]


class Asked(Form):
    """A conversation, or a text: one of the two."""

    model: str
    messages: Messages | None = None
    text: Text | None = None


class ReadForm(Asked):
    """POST /v1/read. top_k: features of each token; all of them where it is left out."""

    controller: Controlling = None
    top_k: int | None = Field(None, ge=1)


class ContrastForm(Form):
    """POST /v1/contrast. where: which tokens count, as of an edit; the assistant's where it is left out."""

    model: str
    with_: Conversations = Field(alias="with")
    without: Conversations
    k: int = Field(10, ge=0, le=8192)
    k_without: int | None = Field(None, ge=0, le=8192)
    where: list[str] | None = None
    pool: Literal["mean", "peak"] = "mean"
    paired: bool = False


class AttributeForm(Asked):
    """POST /v1/attribute. end: one past the last token; start alone where it is left out."""

    start: int
    end: int | None = None
    k: int = Field(20, ge=1, le=8192)
    centred: bool = True


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────


class FoundFeature(BaseModel):
    """label: null where nobody has named it. The rest as the atlas has it."""

    index: int
    id: str
    label: str | None
    score: float
    density: float | None = None
    max: float | None = None
    method: str | None = None
    label_score: float | None = None
    top_tokens: list[str] = Field(default_factory=list)
    ranks: dict[str, int] = Field(default_factory=dict)


class Found(BaseModel):
    features: list[FoundFeature]


class OneFeature(BaseModel, extra="allow"):
    """With an atlas also: labels, statistics, top_tokens, top_logits, bottom_logits, neighbours, coactive, strongest,
    sample."""

    index: int
    id: str
    label: str
    sae: str
    scale: float | None


class ActiveFeature(BaseModel):
    index: int
    activation: float


class ReadToken(BaseModel):
    id: int
    token: str
    kind: list[str]
    features: list[ActiveFeature]


class ReadAnswer(BaseModel):
    """labels: of the features that occur, by index."""

    tokens: list[ReadToken]
    labels: dict[str, str]


class ContrastAnswer(BaseModel, extra="allow"):
    """Features of either side, best first; chats: how many of each they were chosen on."""

    with_: list[dict[str, Any]] = Field(alias="with")
    without: list[dict[str, Any]]
    chats: Annotated[list[int], Field(min_length=2, max_length=2)]
    note: str


class AttributeAnswer(BaseModel):
    """value: what of the logits is due to a feature; rest: what no feature has."""

    top: list[dict[str, Any]]
    bottom: list[dict[str, Any]]
    texts: list[str]
    start: int
    end: int
    logits: list[float]
    rest: float
