"""Which conversations: every knob of reading a corpus, with what it means and its unit."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, fields
from typing import Any

from sparsight.config import check, knob
from sparsight.corpus.files import DOCUMENTS
from sparsight.corpus.schemas import SCHEMAS
from sparsight.records import finite, is_whole

CHOICES = {"schema": ("auto", *SCHEMAS), "documents": DOCUMENTS, "part": ("all", "train", "validation")}


@dataclass(frozen=True)
class CorpusSpec:
    """Which text, and which of it. A filter that is not set drops nothing."""

    source: str = field(metadata={"says": "a file, a folder, a glob, or a dataset of the hub as owner/name"})
    schema: str = knob("auto", f"how rows are read: {', '.join(CHOICES['schema'])}")
    documents: str = knob("file", f"what one text of a .txt is: {', '.join(DOCUMENTS)}")
    hub_config: str | None = knob(None, "configuration of a hub dataset that has several")
    hub_split: str = knob("train", "split of a hub dataset")
    hub_revision: str | None = knob(None, "commit, branch or tag of a hub dataset")
    hub_token: str | None = knob(
        None, "token for a gated hub dataset; None: that of the login", repr=False, compare=False
    )
    most_unreadable: float = knob(50.0, "percent of rows that may be unreadable before that is an error")

    languages: tuple[str, ...] = knob((), "keep these languages, as the rows name them, in any case")
    sources: tuple[str, ...] = knob((), "keep rows from these sources")
    models: tuple[str, ...] = knob((), "keep what these models answered")
    least_characters: int = knob(0, "drop what has fewer characters, over all messages")
    most_characters: int | None = knob(None, "drop what has more characters, over all messages")
    least_turns: int = knob(0, "drop what has fewer messages by the user; a text has 0")
    most_turns: int | None = knob(None, "drop what has more messages by the user; a text has 0")
    drop_redacted: bool = knob(False, "drop what is known to be redacted")
    drop_flagged: bool = knob(False, "drop what moderation is known to have flagged")
    drop_duplicates: bool = knob(
        True, "of conversations with the same words by the same roles, keep the first of the source"
    )

    part: str = knob("all", f"which conversations of the split: {', '.join(CHOICES['part'])}")
    validation: float = knob(1.0, "percent of conversations that are for validation")
    split_seed: int = knob(0, "another number splits otherwise")
    window: int = knob(65_536, "rows that are shuffled among each other, and held in memory; 1: as in the source")
    seed: int = knob(0, "another number shuffles otherwise")

    def __post_init__(self) -> None:
        if isinstance(self.source, os.PathLike):
            object.__setattr__(self, "source", os.fspath(self.source))
        for name in ("languages", "sources", "models"):
            object.__setattr__(self, name, _names(getattr(self, name), name))
        for name in ("source", "hub_split"):
            check(getattr(self, name), name, isinstance(getattr(self, name), str) and getattr(self, name), "a name")
        for name in ("hub_config", "hub_revision", "hub_token"):
            given = getattr(self, name)
            check("..." if name == "hub_token" else given, name, isinstance(given, str | None), "a name or None")
        for name, choices in CHOICES.items():
            check(getattr(self, name), name, getattr(self, name) in choices, f"one of: {', '.join(choices)}")
        for name in ("drop_redacted", "drop_flagged", "drop_duplicates"):
            check(getattr(self, name), name, isinstance(getattr(self, name), bool), "True or False")
        for name in ("most_unreadable", "validation"):
            value = finite(getattr(self, name), name)
            check(value, name, 0 <= value <= 100, "a percentage, from 0 to 100")
        for name, least in (("least_characters", 0), ("least_turns", 0), ("window", 1)):
            check_whole(getattr(self, name), name, least)
        for name in ("split_seed", "seed"):
            check_whole(getattr(self, name), name, 0, below=2**64)
        for name in ("most_characters", "most_turns"):
            if getattr(self, name) is not None:
                check_whole(getattr(self, name), name, getattr(self, name.replace("most", "least")))

    @property
    def identity(self) -> str:
        """What identifies the text: what is not as always, as JSON. Never the token of a login."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return json.dumps({name: value for name, value in said.items() if name not in ("hub_token", "most_unreadable")})

    @classmethod
    def knobs(cls) -> dict[str, str]:
        """What each knob means."""
        return {f.name: f.metadata["says"] for f in fields(cls)}


def check_whole(value: object, name: str, least: int, below: float = math.inf) -> None:
    """Raises BadInput for what is no whole number from `least` up, or is not below `below`."""
    most = "up" if below == math.inf else f"to {below - 1}"
    check(value, name, is_whole(value) and least <= value < below, f"a whole number from {least} {most}")  # type: ignore[operator]


def _names(given: Any, name: str) -> tuple[str, ...]:
    """One name or several, as a tuple."""
    each = (given,) if isinstance(given, str) else given
    right = isinstance(each, (list, tuple, set, frozenset)) and all(isinstance(one, str) and one for one in each)
    check(given, name, right, "names")
    return tuple(each)
