"""Which conversations are kept, and the count of why the others are not. Every choice is a function of content.

A conversation is for training or for validation, and belongs to one process or another, by hashes of its words alone.
So neither depends on the order of rows nor on the other rows, and duplicates always fall together: no words are on
both sides of the split, and a process that drops duplicates among its own drops exactly those that a single process
would.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from sparsight.corpus.conversation import Conversation, Unreadable
from sparsight.corpus.spec import CorpusSpec


@dataclass
class Tally:
    """Rows read so far; the conversations kept of them; and the others, by the reason they were dropped for.

    unreadable: rows that are no conversation, by reason; first: where the first of each was.
    """

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def skip(self, place: str, why: Unreadable) -> None:
        """Count a row that is no conversation."""
        self.unreadable[why.reason] += 1
        self.first.setdefault(why.reason, f"{place}: {why}")

    def __str__(self) -> str:
        said = [f"{self.rows:,} rows", f"{self.kept:,} kept"]
        said += [f"{count:,} dropped: {why}" for why, count in self.dropped.most_common()]
        said += [f"{count:,} unreadable, first {self.first[why]}" for why, count in self.unreadable.most_common()]
        return "; ".join(said)


class Selection:
    """The filters of a spec, for one of several processes, with the memory that finding duplicates takes."""

    def __init__(self, spec: CorpusSpec, rank: int = 0, world: int = 1) -> None:
        self.spec = spec
        self.rank = rank
        self.world = world
        self.languages = {language.casefold() for language in spec.languages}
        self.seen: set[bytes] = set()

    def why_not(self, conversation: Conversation) -> str | None:
        """Why the conversation is dropped; None where it is kept, which makes its words seen."""
        return self._unwanted(conversation) or self._elsewhere(conversation) or self._again(conversation)

    def _unwanted(self, conversation: Conversation) -> str | None:
        spec = self.spec
        if self.languages and (conversation.language or "").casefold() not in self.languages:
            return "language"
        if spec.sources and conversation.source not in spec.sources:
            return "source"
        if spec.models and conversation.model not in spec.models:
            return "model"
        if spec.drop_redacted and conversation.redacted:
            return "redacted"
        if spec.drop_flagged and conversation.flagged:
            return "flagged"
        if conversation.characters < spec.least_characters:
            return "too few characters"
        if spec.most_characters is not None and conversation.characters > spec.most_characters:
            return "too many characters"
        if conversation.turns < spec.least_turns:
            return "too few turns"
        if spec.most_turns is not None and conversation.turns > spec.most_turns:
            return "too many turns"
        return None

    def _elsewhere(self, conversation: Conversation) -> str | None:
        if self.spec.part != "all":
            held_out = draw(conversation.key, "split", self.spec.split_seed) < self.spec.validation / 100 * 2**64
            if held_out != (self.spec.part == "validation"):
                return "the other part of the split"
        if self.world > 1 and draw(conversation.key, "rank") % self.world != self.rank:
            return "another process'"
        return None

    def _again(self, conversation: Conversation) -> str | None:
        if not self.spec.drop_duplicates:
            return None
        if conversation.key in self.seen:
            return "duplicate"
        self.seen.add(conversation.key)
        return None


def draw(what: bytes, purpose: str, seed: int = 0) -> int:
    """A number below 2^64 that is always the same for the same three, and tells nothing of any other."""
    drawn = hashlib.blake2b(what, digest_size=8, person=purpose.encode(), key=str(seed).encode())
    return int.from_bytes(drawn.digest(), "big")
