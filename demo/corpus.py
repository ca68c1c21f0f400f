"""Chooses and cleans the training text: simple stories and short chats that a tiny model can learn.

The corpus is a JSONL file (gzipped or not), one document a line:

    {"kind": "story", "text": "...", "source": "tinystories"}
    {"kind": "chat", "messages": [{"role": "user", "content": "..."}, ...], "source": "sgd", "topic": "restaurants"}

Each source has a rule below; a source without one is left out.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STORY_REQUESTS = (
    "Tell me a story.",
    "Can you tell me a story?",
    "Please tell me a short story.",
    "I want to hear a story.",
    "Write a story for me.",
    "Do you know a good story?",
)
ASCII = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-"})
ASCII |= str.maketrans({"\u2014": " - ", "\u2026": "...", "\u00a0": " "})


@dataclass(frozen=True)
class Rule:
    """What is used of a source: documents up to `chars` long, and `percent` of them."""

    chars: int
    percent: int = 100


RULES = {
    "tinystories": Rule(chars=2400),
    "fairytaleqa": Rule(chars=1600),
    "sgd": Rule(chars=1600, percent=35),
    "taskmaster4": Rule(chars=900),
    "synthetic_persona_chat": Rule(chars=1500),
    "gpteacher": Rule(chars=650),
    "gsm8k": Rule(chars=420),
    "topical_chat": Rule(chars=1200, percent=60),
    "oasst_sample": Rule(chars=700),
    "self_instruct_user": Rule(chars=500),
}
ODD = re.compile(r"""toolformer|```|https?:|[{}<>|\\\[\]]|def |SELECT |import |_{2,}|\w\(['"(]|#!/""")


@dataclass(frozen=True)
class Document:
    """One piece of training text: a story, or a chat (then `text` is empty)."""

    source: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    topic: str = ""  # what the corpus says it is about, a service say


def digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def tidy(text: str) -> str:
    """Plain quotes, single spaces, one newline between paragraphs."""
    text = text.translate(ASCII).replace("''", '"').replace("``", '"')
    return re.sub(r"[ \t]+", " ", re.sub(r"\s*\n\s*", "\n", text)).strip()


def unwrap(text: str) -> str:
    """Joins the lines of text that was wrapped at a fixed width."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n".join(" ".join(p.split()) for p in paragraphs)


def good(text: str) -> bool:
    return text.isascii() and not ODD.search(text)


def leading_turns(messages: list[dict], limit: int) -> tuple[tuple[str, str], ...]:
    """The first turns of a chat that fit into `limit` characters, cut after an answer."""
    turns, size = [], 0
    for message in messages:
        content = tidy(re.sub(r"<<.*?>>", "", message["content"]))
        size += len(content) + 12
        if size > limit:
            break
        turns.append((message["role"], content))
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    return tuple(turns)


def select(row: dict) -> Document | None:
    """The row as a training document, or None if a rule leaves it out."""
    rule = RULES.get(row.get("source", ""))
    if rule is None:
        return None
    source, topic = row["source"], row.get("topic", "")
    if row["kind"] == "story":
        text = tidy(unwrap(row["text"]) if source == "fairytaleqa" else row["text"])
        fits = 200 <= len(text) <= rule.chars and good(text)
        return Document(source, text=text, topic=topic) if fits else None
    turns = leading_turns(row["messages"], rule.chars)
    whole = len(turns) == len(row["messages"]) or len(turns) >= 4
    if not turns or not whole or not all(content and good(content) for _, content in turns):
        return None
    document = Document(source, messages=turns, topic=topic)
    return document if digest(repr(turns)[::-1]) % 100 < rule.percent else None


def told_on_request(story: Document) -> Document:
    """The story as the answer to somebody who asked for one."""
    request = STORY_REQUESTS[digest(story.text) % len(STORY_REQUESTS)]
    return Document(story.source, messages=(("user", request), ("assistant", story.text)), topic=story.topic)


def read_rows(path: Path) -> Iterator[dict]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
