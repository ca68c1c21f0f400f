"""What Ember's clients send and read, as pydantic models. The bounds, and the words for what is outside them, are the
contract's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from sparsight.serve.openai.forms import ChatMessage

Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=128)]
Conversations = Annotated[list[Messages], Field(min_length=1, max_length=64)]
TopK = Annotated[int, Field(ge=1, le=8192)]
Ids = Annotated[list[str], Field(max_length=8192)]
Index = Annotated[int, Field(ge=0, lt=2**31)]
Controlling = Annotated[dict[str, Any] | None, Field(description="What `Variant.controller.json()` gives.")]


class Reranking(BaseModel):
    """POST /features/rerank."""

    query: str
    model: str
    feature_ids: Ids
    top_k: TopK = 10


class Lookup(BaseModel):
    """POST /features/lookup."""

    indices: list[Index]
    model: str


class Neighbouring(BaseModel):
    """POST /attributions/neighbors."""

    feature_indices: list[Index] = Field(min_length=1, max_length=2048)
    model: str
    top_k: TopK = 10


class Reading(BaseModel):
    """POST /chat-attribution/compute-features. aggregate_by: for the client, which itself sums up what it is told."""

    messages: Messages
    model: str
    aggregate_by: Literal["count", "mean", "max", "sum"] = "count"
    controller: Controlling = None
    include_feature_indexes: Annotated[list[Index], Field(max_length=512)] | None = None


class Contrasting(BaseModel):
    """POST /chat-attribution/contrast. k_to_add: features of dataset_2; k_to_remove: of dataset_1."""

    dataset_1: Conversations
    dataset_2: Conversations
    model: str
    k_to_add: TopK = 5
    k_to_remove: TopK = 5


class NextToken(BaseModel):
    """POST /chat-attribution/compute-logits. top_k: null for as many as there are."""

    messages: Messages
    model: str
    top_k: Annotated[int, Field(ge=1)] | None = 10
    filter_vocabulary: list[str] | None = None
    controller: Controlling = None


class Attributing(BaseModel):
    """POST /attributions/compute-logit-attribution. The tokens from startIndex to endIndex, this one too."""

    messages: Messages
    model: str
    startIndex: int
    endIndex: int


class Specification(BaseModel):
    """POST /attributions/generate-contrastive-dataset: a few words."""

    specification: str = Field(min_length=1, max_length=4000)


class Wish(Specification):
    """POST /features/auto-edits and /features/auto-conditional."""

    model: str


class Tokenizing(BaseModel):
    """POST /chat/tokenize."""

    messages: Messages
    model: str


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────


class NamedFeature(BaseModel):
    """id: a UUID. label: "feature 123" where nobody has named it."""

    id: str
    label: str
    index_in_sae: int


class FoundFeature(NamedFeature):
    """relevance: from 0 to 1. max_activation_strength: the highest raw activation that the atlas has seen."""

    relevance: float = 1.0
    max_activation_strength: float | None = None


class FoundFeatures(BaseModel):
    features: list[FoundFeature]


class LookedUp(BaseModel):
    uuid: str
    label: str
    index_in_sae: int


class LookedUpFeatures(BaseModel):
    features: list[LookedUp]


class Neighbours(BaseModel):
    neighbors: list[NamedFeature]


class ActiveFeature(BaseModel):
    """activation_strength: raw, after the controller."""

    id: str
    index_in_sae: int
    activation_strength: float


class ReadToken(BaseModel):
    token: str
    attributions: list[ActiveFeature]


class ReadTokens(BaseModel):
    tokens: list[ReadToken]


class Contrasted(BaseModel):
    dataset_1_features: list[NamedFeature]
    dataset_2_features: list[NamedFeature]


class Logits(BaseModel):
    """The text of a token -> its logit, likeliest first."""

    logits: dict[str, float]


class AtToken(BaseModel):
    index: int
    activation_strength: float


class Cause(BaseModel):
    """value: how much of the logits is due to the feature, all its tokens together."""

    id: str
    value: float
    tokens: list[AtToken]


class Causes(BaseModel):
    """to_add is empty: what is not active has no share in a logit."""

    to_ablate: list[Cause]
    to_add: list[Cause]
    num_input_tokens: int


class EmberMessage(BaseModel):
    role: str
    content: str


class Edits(BaseModel):
    """note: why there are none, where there are none."""

    edits: list[tuple[NamedFeature, float]]
    note: str = ""


class Conditional(BaseModel):
    conditional: dict[str, Any]


class Piece(BaseModel):
    value: str


class Pieces(BaseModel):
    tokens: list[Piece]


class Said(BaseModel):
    """What is wrong with a value, and where."""

    type: str
    loc: list[str | int]
    msg: str


class Refused(BaseModel):
    """An error, in FastAPI's shape."""

    detail: str | list[Said]
