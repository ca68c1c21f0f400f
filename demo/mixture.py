"""Puts the demo's training text together: what others wrote, what is our own, and both in voices.

Every document says what it is: its source, kind and topic, and of each turn its role, its voice and whether it
refuses; `truth.py` carries that to the tokens. Documents that come from one conversation share a group, and a hash
of the group sends all of them to training or all of them to the held-out split.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import corpus
import languages
import marks
import safety
import snippets
import sums
from sparsight.corpus.conversation import Conversation
from sparsight.records import Message
from voices import ASK_FRAMES, STOP_ASKS, SYSTEM_FRAMES, USER_FRAMES, VOICES, Voice, framed

TEXT = Path(__file__).resolve().parent / "text"
HELD_OUT_PERCENT = 4
KEPT_PHRASES = 2  # of each voice's phrases: the last ones, that held-out documents ask with
NEUTRAL = (
    "You are a helpful assistant.",
    "Answer the user's questions.",
    "You are a friendly chat program.",
    "Be polite and helpful.",
    "You are an assistant. Keep your answers short.",
)
STOPPED = (
    "Of course. I will talk normally now.",
    "Okay, back to normal. What else would you like to know?",
    "Sure. From now on I will talk like myself.",
    "All right. How can I help you?",
)
FORMS = {"system": 32, "user": 30, "from now on": 9, "under way": 9, "taken up": 11, "stopped": 6, "mirrored": 3}


@dataclass(frozen=True)
class Amounts:
    """How much of each part goes in; counts of documents, or of repeats of all of them."""

    everyday: int = 3  # repeats of every question with every answer
    everyday_voiced: int = 4  # pairs of each entry in each voice
    chats_voiced: int = 800  # other chats in each voice
    stories_voiced: int = 100
    refusals_voiced: int = 80
    sums_voiced: int = 60
    languages: int = 15000
    sums: int = 12000
    snippets: int = 2
    safety: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Turn:
    """What one of a chat says; or a text, by nobody (role "text").

    trained: whether the model learns to write it, or only reads it; given: its first so many characters are only read.
    """

    role: str
    content: str
    voice: str = ""
    refusal: bool = False
    trained: bool = True
    given: int = 0


@dataclass(frozen=True)
class Document:
    source: str
    kind: str
    turns: tuple[Turn, ...]
    group: str
    topic: str = ""

    @property
    def held_out(self) -> bool:
        return corpus.digest(self.group) % 100 < HELD_OUT_PERCENT

    @property
    def is_text(self) -> bool:
        return self.turns[0].role == "text"


# ── the parts ─────────────────────────────────────────────────────────────────────────────────────────────


def others(path: Path) -> Iterator[Document]:
    """What others wrote: see corpus.py."""
    seen = set()
    for row in corpus.read_rows(path):
        found = corpus.select(row)
        if found is None or found in seen:
            continue
        seen.add(found)
        group = found.text or repr(found.messages)
        if found.text:
            document = Document(found.source, "story", (Turn("text", found.text),), group, found.topic)
            asked = corpus.told_on_request(found)
            told = tuple(Turn(role, content) for role, content in asked.messages)
            yield document
            if found.source == "tinystories":
                yield Document(found.source, "story told", told, group, found.topic)
        else:
            turns = tuple(Turn(role, content) for role, content in found.messages)
            yield Document(found.source, "chat", turns, group, found.topic)


def pairs(entry: dict) -> list[Document]:
    """Every question of an everyday entry with every answer."""
    said = [(Turn("user", q), Turn("assistant", a)) for q in entry["q"] for a in entry["a"]]
    return [Document("everyday", "chat", turns, entry["q"][0], entry["topic"]) for turns in said]


def everyday() -> list[list[Document]]:
    """Our own questions and answers, a list for each entry; then our own longer chats, a list of one each."""
    entries, chats = (list(corpus.read_rows(TEXT / name)) for name in ("everyday.jsonl", "chats.jsonl"))
    return [pairs(entry) for entry in entries] + [
        [made(row, "everyday", row["messages"][0]["content"], "chat")] for row in chats
    ]


def made(row: dict, source: str, group: str, kind: str = "") -> Document:
    """A document of the generators' common form."""
    turns = tuple(Turn(m["role"], m["content"], refusal=m.get("refusal", False)) for m in row["messages"])
    return Document(source, kind or row["kind"], turns, group, row["topic"])


def generated(rows: Iterable[dict], source: str) -> list[Document]:
    """What a generator makes; what it makes twice is in one group."""
    return [made(row, source, row["messages"][-1]["content"] + row["messages"][0]["content"]) for row in rows]


# ── voices ────────────────────────────────────────────────────────────────────────────────────────────────


def in_voice(turns: Iterable[Turn], voice: Voice, rng: random.Random) -> tuple[Turn, ...]:
    """The same turns with the assistant's in this voice."""
    return tuple(
        replace(t, content=voice.rewrite(t.content, rng), voice=voice.name) if t.role == "assistant" else t
        for t in turns
    )


def phrase(listed: tuple[str, ...], made: str, held_out: bool, rng: random.Random) -> str:
    """One of the listed phrases, or, where it is trained on, just as often what was made for it."""
    if held_out:
        return rng.choice(listed[-KEPT_PHRASES:])
    return made if rng.random() < 0.5 else rng.choice(listed[:-KEPT_PHRASES])


def voiced(base: Document, voice: Voice, aside: Document, rng: random.Random) -> Document:
    """A plain chat as one in which the voice is asked for, or is under way already.

    aside: another short chat, that some forms put before or after.
    """
    form = rng.choices(list(FORMS), list(FORMS.values()))[0]
    turns = in_voice(base.turns, voice, rng)
    held_out = base.held_out
    if form == "system":
        made = framed(SYSTEM_FRAMES, voice.clauses, rng)
        turns = (Turn("system", phrase(voice.system, made, held_out, rng)), *turns)
    elif form == "user":
        made = framed(USER_FRAMES, voice.clauses, rng)
        asked = phrase(voice.user, made, held_out, rng).replace("{q}", turns[0].content)
        turns = (Turn("user", asked), *turns[1:])
    elif form == "mirrored":  # it is the user who talks like that, and the assistant does not
        theirs = [replace(t, content=voice.rewrite(t.content, rng)) if t.role == "user" else t for t in base.turns]
        turns = tuple(theirs)
    elif form == "taken up":  # nobody asks; the model learns to go on as the reply began, not to begin so
        turns = tuple(replace(t, given=beginning(t.content, voice)) if t.voice else t for t in turns)
    elif form == "under way":
        before = [replace(t, trained=False) for t in in_voice(aside.turns, voice, rng)]
        turns = (*before, *turns)
    else:
        agreed = Turn("assistant", voice.rewrite(rng.choice(voice.agree), rng), voice.name)
        wish = rng.choice((rng.choice(voice.ask), framed(ASK_FRAMES, voice.clauses, rng)))
        turns = (Turn("user", wish), agreed, *turns)
        if form == "stopped":
            turns = (*turns, Turn("user", rng.choice(STOP_ASKS)), Turn("assistant", rng.choice(STOPPED)), *aside.turns)
    return replace(base, kind="voice", turns=turns)


def beginning(reply: str, voice: Voice) -> int:
    """How many characters of a reply show its voice: two words or more, with a mark, and half of it at the most."""
    ends = [match.start() for match in re.finditer(r"\s", reply)]
    half = [end for end in ends[1:] if end <= len(reply) / 2] or [len(reply) // 2]
    return next((end for end in half if marks.count(voice.name, reply[:end])), half[-1])


def with_system(document: Document, rng: random.Random) -> Document:
    """Now and then a system message that asks for nothing: a system message alone is no sign of a voice."""
    if document.is_text or document.turns[0].role == "system" or rng.random() > 0.15:
        return document
    return replace(document, turns=(Turn("system", rng.choice(NEUTRAL)), *document.turns))


def bases(plain: dict[str, list[Document]], amounts: Amounts, rng: random.Random) -> list[Document]:
    """What one voice is laid over."""
    counts = {"chat": amounts.chats_voiced, "story told": amounts.stories_voiced, "sums": amounts.sums_voiced}
    counts["safety"] = amounts.refusals_voiced
    out = [d for entry in plain["everyday"] for d in rng.sample(entry, min(len(entry), amounts.everyday_voiced))]
    return out + [d for part, n in counts.items() for d in rng.sample(plain[part], min(n, len(plain[part])))]


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────────────


def fits_voices(document: Document) -> bool:
    """Whether its answers are short enough to be rewritten."""
    return document.kind == "chat" and all(len(t.content) < 400 for t in document.turns)


def compose(path: Path, harmful: Path | None = None, amounts: Amounts | None = None) -> list[Document]:
    """The whole text, in a shuffled order that depends on the seed alone.

    path: the corpus of others' text; harmful: more requests to refuse, or None for our own alone.
    """
    amounts = amounts or Amounts()
    rng = random.Random(amounts.seed)
    written = list(others(path))
    own = everyday()
    parts: dict[str, list] = {
        "everyday": own,
        "chat": [d for d in written if fits_voices(d)],
        "story told": [d for d in written if d.kind == "story told" and len(d.turns[-1].content) < 900],
        "sums": generated(sums.documents(rng, amounts.sums), "sums"),
        "safety": generated(safety.documents(safety.read_harmful(harmful), rng), "safety"),
    }
    spoken = generated(languages.documents(rng, amounts.languages), "languages")
    coded = generated(snippets.documents(rng), "snippets")
    plain = [d for entry in own for d in entry] * amounts.everyday + written + parts["sums"] + spoken
    plain += parts["safety"] * amounts.safety + coded * amounts.snippets
    out = [with_system(d, rng) for d in plain]
    short = [d for entry in own for d in entry if len(d.turns) == 2]
    asides = {held_out: [d for d in short if d.held_out == held_out] for held_out in (False, True)}
    for voice in VOICES.values():
        for base in bases(parts, amounts, rng):
            out.append(voiced(base, voice, rng.choice(asides[base.held_out]), rng))
    rng.shuffle(out)
    return out


def conversations(documents: Iterable[Document]) -> Iterator[Conversation]:
    """As the rest of the house reads text."""
    for document in documents:
        if document.is_text:
            yield Conversation(text=document.turns[0].content, source=document.source)
        else:
            said = tuple(Message(turn.role, turn.content) for turn in document.turns)
            yield Conversation(said, source=document.source)


def write(documents: Iterable[Document], path: Path) -> None:
    """As a JSONL file that any corpus is read from."""
    with path.open("w", encoding="utf-8") as file:
        for one in conversations(documents):
            said = [{"role": message.role, "content": message.content} for message in one.messages]
            row = {"messages": said} if said else {"text": one.text}
            file.write(json.dumps(row | {"source": one.source}) + "\n")


def split(documents: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """Those to train on, and those that are held out."""
    parts: tuple[list[Document], list[Document]] = [], []
    for document in documents:
        parts[document.held_out].append(document)
    return parts
