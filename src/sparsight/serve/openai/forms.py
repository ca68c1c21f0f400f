"""What OpenAI's clients send, as pydantic models. Fields that are not known are left alone, as OpenAI does; those that
ask for what this server cannot do are refused, by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsight.serve.engine import FeatureWish

MOST_INCLUDED = 512  # features asked for by index
LONG = 2**63
Bias = Annotated[float, Field(ge=-100, le=100)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
TokenIds = Annotated[list[int], Field(min_length=1)]
Controlling = Annotated[
    dict[str, Any] | None, Field(description="Edits of features: this project's JSON, or Ember's. See the docs.")
]


class Form(BaseModel):
    """Lenient about more, strict about what is known: no number from a text, no text from a number."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @model_validator(mode="before")
    @classmethod
    def with_whole_numbers(cls, form: Any) -> Any:
        """1.0 is a whole number in JSON."""
        return {name: whole(value) for name, value in form.items()} if isinstance(form, dict) else form


def whole(value: Any) -> Any:
    """A float without a fraction as an int, in lists too."""
    if isinstance(value, list):
        return [whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class StreamOptions(Form):
    """include_usage: a last chunk with the numbers of tokens."""

    include_usage: bool | None = None


class FeaturesWanted(Form):
    """Which features to tell of each new token: the strongest, and those of `include` wherever they are active."""

    top_k: int = Field(8, ge=0, le=MOST_INCLUDED)
    include: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(default_factory=list, max_length=MOST_INCLUDED)

    def wish(self) -> FeatureWish:
        return FeatureWish(self.top_k, tuple(dict.fromkeys(self.include)))


class Writing(Form):
    """What chats and completions have in common. Numbers that are not given are OpenAI's."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1, lt=LONG)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    stop: str | Annotated[list[Text], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-LONG, lt=LONG)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Bias] | None = None
    controller: Controlling = None
    features: FeaturesWanted | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """An empty text stops nothing, as with OpenAI."""
        return (self.stop,) if isinstance(self.stop, str) and self.stop else tuple(self.stop or ())


class Part(Form):
    """A part of a message's content: text."""

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(Form):
    """One message. developer is another word for system. content: a text, or parts of text."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None


class ResponseFormat(Form):
    """Only text is written freely here."""

    type: str


class ChatForm(Writing):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(None, ge=1, lt=LONG)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Of an answer, by whichever of its two spellings was given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to tell beside each; None where no log-probabilities are wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None


class EmberChatForm(ChatForm):
    """POST /api/inference/v1/chat/completions: the same, with Ember's bound on messages."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=128)


class CompletionForm(Writing):
    """POST /v1/completions. prompt: a text, token ids, or a list of either."""

    prompt: str | list[str] | TokenIds | list[TokenIds]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=128)
    suffix: str | None = None
