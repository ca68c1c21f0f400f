"""Two sets of chats that differ in one thing, from a few words that say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sparsight.scope.scope import Scope

Chat = list[dict[str, str]]
Writer = Callable[[str], str]  # a question to an answer, as a language model elsewhere gives it


@dataclass(frozen=True)
class Contrastive:
    """without, with_: chats, pairs of the same user message. made_by: "model" (this one, told so by a system message,
    and not), "writer" (whoever was given), or "template" (nobody: words put together, which is weak)."""

    without: tuple[Chat, ...]
    with_: tuple[Chat, ...]
    made_by: str
    specification: str

    def __iter__(self) -> Iterator[tuple[Chat, ...]]:
        return iter((self.without, self.with_))


def contrastive(
    scope: Scope,
    specification: str,
    writer: Writer | str | None = None,
    n: int = 8,
    *,
    questions: Sequence[str] | None = None,
    seed: int = 0,
    max_new_tokens: int = 48,
) -> Contrastive:
    """n pairs of chats. writer: a function; "model", "template"; None: the model itself where it has a chat template.
    Raises BadInput; NoAnswer where a writer's answer is not what was asked for."""
    raise NotImplementedError
