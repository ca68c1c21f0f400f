"""One conversation, or one plain text, and what is known about it."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property

from sparsight.errors import BadInput
from sparsight.records import Message


class Unreadable(Exception):
    """A row that is no conversation. The reason is one of few, to count by; the detail is this row's."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Conversation:
    """Messages of a chat, or a plain text; never both.

    id: as given, else a hash of the content. source: where it is from, as its row says, else the name of its file or
    dataset. model: which model answered. redacted: personal data was taken out. flagged: moderation objected to some
    of it. None: not known. position: rows of its corpus done with it; reading that corpus with skip=position goes on
    after it.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    id: str = ""
    language: str | None = None
    source: str | None = None
    model: str | None = None
    redacted: bool | None = None
    flagged: bool | None = None
    position: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.messages, (list, tuple)) or not isinstance(self.text, str | None):
            raise BadInput("A conversation has a list of messages, or is a text.")
        object.__setattr__(self, "messages", tuple(Message.of(message) for message in self.messages))
        if (self.text is None) == (not self.messages):
            raise BadInput("A conversation has messages, or is a text: one of the two.")
        for name in ("id", "language", "source", "model"):  # a file's name may be no Unicode, a row's text likewise
            if isinstance(told := getattr(self, name), str):
                object.__setattr__(self, name, told.encode("utf-8", "backslashreplace").decode())
        if not self.id:
            object.__setattr__(self, "id", self.key.hex())

    @cached_property
    def key(self) -> bytes:
        """16 bytes of hash of the content: roles and words, whatever the white space and the Unicode form."""
        parts = [("text", self.text)] if self.text is not None else [(m.role, m.content) for m in self.messages]
        # What split() leaves has no \x1f in it, so that no content can pass for two.
        plain = "\x1f".join(part for role, words in parts for part in (role, " ".join(words.split())))
        try:
            return hashlib.blake2b(unicodedata.normalize("NFC", plain).encode(), digest_size=16).digest()
        except UnicodeEncodeError as error:
            raise BadInput(f"The text is not valid Unicode (at character {error.start}).") from None

    @property
    def characters(self) -> int:
        """Characters of all its messages, or of its text."""
        return len(self.text) if self.text is not None else sum(len(message.content) for message in self.messages)

    @property
    def turns(self) -> int:
        """Messages by the user; a text has none."""
        return sum(message.role == "user" for message in self.messages)
