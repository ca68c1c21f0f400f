"""What travels: frozen plain data, without torch. Edits and conditions have a file of their own, edits.py."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from sparsight.errors import BadInput


class Kind(enum.IntFlag):
    """What a token is. A token has several: a word of the user's is USER and PROMPT."""

    BOS = enum.auto()  # the first token of all, where much of a model's attention rests
    TEMPLATE = enum.auto()  # what the chat template adds around the messages
    SYSTEM = enum.auto()
    USER = enum.auto()
    ASSISTANT = enum.auto()
    TOOL = enum.auto()
    TEXT = enum.auto()  # of a plain text, that is no chat
    PROMPT = enum.auto()  # given to the model
    GENERATED = enum.auto()  # written by the model

    def __str__(self) -> str:
        return ", ".join((kind.name or "").lower() for kind in self) or "padding"


SPECIAL = Kind.BOS | Kind.TEMPLATE
ROLES = {"system": Kind.SYSTEM, "user": Kind.USER, "assistant": Kind.ASSISTANT, "tool": Kind.TOOL}
KINDS = tuple(str(kind) for kind in (*SPECIAL, *ROLES.values(), Kind.TEXT))  # a token is of exactly one of these


@dataclass(frozen=True)
class Message:
    """One message of a chat. role: system, user, assistant or tool."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise BadInput(f"No role {self.role!r}. A message is by one of: {', '.join(ROLES)}.")
        if not isinstance(self.content, str):
            raise BadInput(f"A message's content is text, not {type(self.content).__name__}.")

    @classmethod
    def of(cls, message: Message | Mapping[str, Any]) -> Message:
        """From OpenAI's form, {"role": ..., "content": ...}."""
        if isinstance(message, Message):
            return message
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise BadInput(f'A message is {{"role": ..., "content": ...}}, not {message!r}.')
        return cls(message["role"], message["content"])


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop. Applied in this order, as in transformers.

    max_new_tokens: at most so many. temperature: 0 takes the likeliest token. top_k: 0 keeps all. top_p: smallest
    set with this probability. min_p: at least this share of the likeliest token's probability. seed: the same seed
    gives the same text, whatever else is in the batch. stop: strings that end the text and are not part of it.
    stop_tokens: token ids that end it, besides the model's own. logit_bias: (token id, number from -100 to 100) pairs,
    or a mapping, added to the logits before all else. presence_penalty, frequency_penalty: taken from the logit of a
    token that the model has written already: once, and as often as it was written (OpenAI's).
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _several(self.stop, str, "stop", "strings"))
        object.__setattr__(self, "stop_tokens", _several(self.stop_tokens, int, "stop_tokens", "token ids"))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        for name in ("max_new_tokens", "top_k", "seed"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise BadInput(f"{name} must be a whole number, not {getattr(self, name)!r}.")
        bounds: dict[str, tuple[float, float]] = {
            "max_new_tokens": (1, math.inf),
            "temperature": (0, 100),
            "top_k": (0, math.inf),
            "top_p": (0, 1),
            "min_p": (0, 1),
            "presence_penalty": (-2, 2),
            "frequency_penalty": (-2, 2),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise BadInput(f"{name} must be a number from {low} to {high}, not {value!r}.")
        if not all(self.stop):
            raise BadInput("A stop string must not be empty.")

    @classmethod
    def of(cls, **options: Any) -> Sampling:
        """From keywords; an unknown one is refused by name."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise BadInput(f"No sampling option {name!r}. There are: {', '.join(known)}.")
        return cls(**options)


def _several(given: Any, kind: type, name: str, what: str) -> tuple[Any, ...]:
    """None, one, or several of a kind, as a tuple."""
    each = () if given is None else (given,) if isinstance(given, kind) else given
    if not isinstance(each, (list, tuple, set, frozenset)) or not all(isinstance(one, kind) for one in each):
        raise BadInput(f"{name} takes {what}, not {given!r}.")
    return tuple(each)


def _biases(given: Any) -> tuple[tuple[int, float], ...]:
    """Biases by token id, in the order of the ids; one of zero says nothing and is left out."""
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(one, (list, tuple)) and len(one) == 2 for one in pairs
    ):
        raise BadInput(f"logit_bias maps token ids to numbers, not {str(given)[:60]!r}.")
    biases: dict[int, float] = {}
    for token, bias in pairs:
        if not is_whole(token) or token < 0:
            raise BadInput(f"logit_bias is for token ids, whole numbers from 0 up, not {str(token)[:40]!r}.")
        if not -100 <= finite(bias, "A logit bias") <= 100:
            raise BadInput(f"A logit bias is a number from -100 to 100, not {bias!r}.")
        if int(token) in biases:
            raise BadInput(f"logit_bias names token {token} twice.")
        biases[int(token)] = float(bias)
    return tuple((token, bias) for token, bias in sorted(biases.items()) if bias)


@dataclass(frozen=True)
class Receipt:
    """Proof that an edit acted: what was done to one row of a batch.

    controller: fingerprint of the Controller. touched: tokens whose residual was changed. seen: tokens that flowed
    through the hook point. change: mean over the touched tokens of |change| / |residual|.
    """

    controller: str
    hook_point: str
    touched: int
    seen: int
    change: float

    def __str__(self) -> str:
        share = f"{self.touched} of {self.seen} tokens at {self.hook_point}"
        return f"edit {self.controller}: changed {share}, by {self.change:.1%} of the residual on average"


@dataclass(frozen=True)
class Progress:
    """How far a long stage is. total: None where it is not known. seconds: since this run began. facts: what else can
    be said by now, by name, with the unit in the name."""

    stage: str
    done: int
    total: int | None
    unit: str
    seconds: float
    facts: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenRead:
    """One token and the features active there: (feature, activation) pairs, strongest first."""

    id: int
    text: str
    kind: Kind
    features: tuple[tuple[int, float], ...] = field(default=())


def is_whole(value: object) -> bool:
    """Whether it is a whole number of any kind, Python's or numpy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def finite(value: object, what: str) -> float:
    """A finite number, or BadInput; there is one zero."""
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value) + 0.0
            if math.isfinite(number):
                return number
    raise BadInput(f"{what} must be a finite number, not {str(value)[:40]!r}.")
