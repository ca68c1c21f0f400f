"""What is asked of a language model, what it answers, and who can be asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from sparsight.errors import BadFile

Hold = Callable[[], AbstractContextManager[None]]
"""What is entered around each attempt to send a request: it may refuse, and it sees whether the attempt failed."""
Chances = tuple[tuple[str, Mapping[str, float]], ...]


@dataclass(frozen=True)
class Question:
    """purpose: "explain", "detect", "fuzz". shared: what all questions of its kind begin with; text: its own part.
    most_tokens: that the answer may have; likely_tokens: that it will have. chances: whether the probabilities of
    each token of the answer are wanted, where they are to be had."""

    purpose: str
    shared: str
    text: str
    most_tokens: int
    likely_tokens: int
    chances: bool = False

    def key(self, settings: Mapping[str, Any]) -> str:
        """What identifies it, and how it was asked: 16 hex digits."""
        told = [self.shared, self.text, self.most_tokens, self.chances, dict(settings)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Answer:
    """tokens_in, tokens_out: as they were counted by whoever answered. billed_in: the tokens that were sent, each by
    its share of the full price (those read from a cache cost less). chances: of each token of the answer its text,
    and {text: log probability} of what could have stood there."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    billed_in: float = 0.0
    chances: Chances = field(default=())

    def to_json(self) -> str:
        return json.dumps({"text": self.text, "chances": [[token, dict(others)] for token, others in self.chances]})

    @classmethod
    def from_json(cls, kept: str) -> Answer:
        """Raises BadFile."""
        try:
            told = json.loads(kept)
            return cls(str(told["text"]), chances=tuple((token, others) for token, others in told["chances"]))
        except (ValueError, KeyError, TypeError) as error:
            raise BadFile(f"An answer that the atlas keeps is damaged: {kept[:60]!r}.") from error


class Client(Protocol):
    """Somebody who answers questions. method: as labels name it; model: who answers; settings: what else an answer
    depends on. at_once: how many may be asked at a time."""

    method: str
    model: str
    settings: Mapping[str, Any]
    at_once: int

    def ask(self, question: Question, hold: Hold = nullcontext) -> Answer:
        """Raises NoAnswer where there is none, after as many attempts as it was told to make."""
        ...

    def most(self, question: Question) -> tuple[float, int]:
        """At most how many tokens in (as billed) and out one attempt can cost."""
        ...

    def fits(self, question: Question) -> bool:
        """Whether it can read so much."""
        ...

    def close(self) -> None: ...
