"""Rows as people publish them, read as conversations: one function for each schema, known by its keys.

    lmsys       conversation   [{role, content}]   LMSYS-Chat-1M, WildChat
    messages    messages       [{role, content}]   OpenAI; a content may be a list of text parts
    sharegpt    conversations  [{from, value}]
    pairs       prompt + response, prompt + completion, instruction (+ input) + output
    text        text

A row that fits several is read as the first of them. A key with null is as good as none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsight.corpus.conversation import Conversation, Unreadable
from sparsight.errors import BadInput
from sparsight.records import Message

ROLE_OF = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"))


def read_row(row: object, schema: str = "auto", origin: str | None = None) -> Conversation:
    """The conversation of a row. origin: the source, where the row does not say.

    Raises Unreadable where the row has no keys of this schema (auto: of any), or not what they should hold.
    """
    if not isinstance(row, Mapping):
        raise Unreadable("not an object", type(row).__name__)
    readers = SCHEMAS.values() if schema == "auto" else (SCHEMAS[schema],)
    said = next((found for reader in readers if (found := reader(row)) is not None), None)
    if said is None:
        keys = [repr(str(key)[:40]) for key, value in row.items() if value is not None]
        more = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
        raise Unreadable("no known keys", (", ".join(keys[:12]) + more) or "no keys at all")
    words = [said] if isinstance(said, str) else [message.content for message in said]
    if not any(map(str.strip, words)):
        raise Unreadable("empty")
    content: dict[str, Any] = {"text": said} if isinstance(said, str) else {"messages": said}
    try:
        conversation = Conversation(**content, **_about(row, origin))
        conversation.key  # noqa: B018 - what cannot be hashed is no text
    except BadInput:
        raise Unreadable("not valid Unicode") from None
    return conversation


def lmsys(row: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """LMSYS-Chat-1M: conversation_id, model, conversation, turn, language, openai_moderation, redacted."""
    return _chat(row, "conversation")


def messages(row: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """OpenAI's messages."""
    return _chat(row, "messages")


def sharegpt(row: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """ShareGPT's conversations; by human and gpt, or by user and assistant."""
    return _chat(row, "conversations")


def pairs(row: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """One question and its answer."""
    for asked, answered in PAIRS:
        if row.get(asked) is not None and row.get(answered) is not None:
            question = _words(row[asked])
            if asked == "instruction" and row.get("input"):
                question += "\n\n" + _words(row["input"])
            return Message("user", question), Message("assistant", _words(row[answered]))
    return None


def text(row: Mapping[str, Any]) -> str | None:
    """A plain text."""
    return None if row.get("text") is None else _words(row["text"])


Reader = Callable[[Mapping[str, Any]], tuple[Message, ...] | str | None]
SCHEMAS: dict[str, Reader] = {
    "lmsys": lmsys,
    "messages": messages,
    "sharegpt": sharegpt,
    "pairs": pairs,
    "text": text,
}


def _chat(row: Mapping[str, Any], key: str) -> tuple[Message, ...] | None:
    said = row.get(key)
    if said is None:
        return None
    if not isinstance(said, list):
        raise Unreadable("messages that are no list", f"'{key}' is {type(said).__name__}")
    return tuple(map(_message, said))


def _message(said: object) -> Message:
    if not isinstance(said, Mapping):
        raise Unreadable("a message that is no object", type(said).__name__)
    role = said.get("from") if said.get("role") is None else said["role"]
    known = ROLE_OF.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise Unreadable("unknown role", repr(role[:40]) if isinstance(role, str) else type(role).__name__)
    return Message(known, _words(said.get("value") if said.get("content") is None else said["content"]))


def _words(content: object) -> str:
    """A content that is text, or a list of text parts, which are joined as they stand."""
    if isinstance(content, list):
        return "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise Unreadable("content that is no text", type(content).__name__)
    return content


def _part(part: object) -> str:
    words = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(words, str):
        raise Unreadable("content that is no text", f"a part of it is {type(words).__name__}")
    return words


def _about(row: Mapping[str, Any], origin: str | None) -> dict[str, Any]:
    """What the row says about its conversation. What is not of the right type is not known."""
    names = (row.get(key) for key in ("conversation_id", "id", "conversation_hash"))
    given = (str(name) for name in names if isinstance(name, (str, int)) and not isinstance(name, bool))
    redacted = row.get("redacted")
    return {
        "id": next(filter(None, given), ""),
        "language": _name(row.get("language")),
        "source": _name(row.get("source")) or origin,
        "model": _name(row.get("model")),
        "redacted": redacted if isinstance(redacted, bool) else None,
        "flagged": _flagged(row.get("openai_moderation")),
    }


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _flagged(moderation: object) -> bool | None:
    """Whether moderation objected to any message; None where it did not look."""
    looked = moderation if isinstance(moderation, list) else [moderation]
    flags = [one["flagged"] for one in looked if isinstance(one, Mapping) and isinstance(one.get("flagged"), bool)]
    return any(flags) if flags else None
