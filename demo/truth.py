"""What is true of every token: whose it is, in which voice, of what topic. Later, feature labels are scored by it.

A document is rendered as the chat template renders it, coded once, and each token looked up by its place in the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from mixture import Document, Turn
from sparsight.disk import write_aside
from tokenizer import BOS, END, EOS, EOT, START
from voices import VOICES

ROLES = ("template", "system", "user", "assistant", "text")
VOICE_NAMES = ("", *VOICES)


@dataclass(frozen=True)
class Coded:
    """A document's tokens, and of each: its role (in ROLES), its voice (in VOICE_NAMES), whether it belongs to a
    refusal, and whether the model learns to write it. The topic, kind and source are the document's."""

    document: Document
    ids: np.ndarray  # uint16
    role: np.ndarray  # uint8
    voice: np.ndarray  # uint8
    refusal: np.ndarray  # bool
    trained: np.ndarray  # bool

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Coded:
        of_tokens = (self.ids, self.role, self.voice, self.refusal, self.trained)
        return Coded(self.document, *(values[part] for values in of_tokens))


def rendered(document: Document) -> tuple[str, list[tuple[int, int, Turn]]]:
    """The document as the model sees it, and where in it each turn lies, with the token that ends it."""
    if document.is_text:
        turn = document.turns[0]
        return f"{BOS}{turn.content}{EOS}", [(len(BOS), len(BOS) + len(turn.content), turn)]
    text, places = BOS, []
    for turn in document.turns:
        text += f"{START}{turn.role}{END}\n\n"
        places.append((len(text), len(text) + len(turn.content), turn))
        text += turn.content + EOT
    return text, places


def code(documents: list[Document], core: Tokenizer) -> list[Coded]:
    """All documents, in their order."""
    drawn = [rendered(d) for d in documents]
    codes = core.encode_batch([text for text, _ in drawn], add_special_tokens=False)
    return [coded(d, c, places) for d, c, (_, places) in zip(documents, codes, drawn, strict=True)]


def coded(document: Document, encoding, places: list[tuple[int, int, Turn]]) -> Coded:
    starts = np.array([start for start, _ in encoding.offsets])
    count = len(starts)
    role, voice = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
    refusal, trained = np.zeros(count, bool), np.ones(count, bool)
    for low, high, turn in places:
        inside = (starts >= low) & (starts < high)
        role[inside] = ROLES.index(turn.role)
        voice[inside] = VOICE_NAMES.index(turn.voice)
        refusal[inside] = turn.refusal
        trained[(starts >= low) & (starts <= high)] = turn.trained  # the token that ends it, too
        trained[(starts >= low) & (starts < low + turn.given)] = False
    return Coded(document, np.array(encoding.ids, np.uint16), role, voice, refusal, trained)


def keep(documents: Sequence[Coded], path: Path) -> None:
    """Writes what is true of every token as `path`.safetensors, and what the numbers mean as `path`.json.

    ids, role, voice, refusal, trained: one of each token, the documents end to end; start: the place of each document's
    first token, and in the end the number of tokens.
    """
    names = ("ids", "role", "voice", "refusal", "trained")
    columns = {name: np.concatenate([getattr(one, name) for one in documents]) for name in names}
    columns["start"] = np.cumsum([0, *map(len, documents)])
    about = [{"source": d.source, "kind": d.kind, "topic": d.topic} for d in (one.document for one in documents)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path.with_suffix(".safetensors"), lambda part: save_file(columns, part))
    told = json.dumps({"roles": ROLES, "voices": VOICE_NAMES, "documents": about})
    write_aside(path.with_suffix(".json"), lambda part: part.write_text(told))
