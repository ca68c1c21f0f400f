"""What a labeller is shown of a feature, and what its label is scored on: never the same documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sparsight.atlas.entries import Statistics

Why = Literal["top", "sample", "random", "near miss", "neighbour"]


@dataclass(frozen=True)
class Window:
    """Some tokens in a row, and what the feature does at each.

    pieces: each token's text; together they are the text of the window. ids, values, roles: of each token: its id, the
    feature's activation (0 where it is silent), and its records.Kind bits. focus: the token of the peak where it
    fires; where it is silent, the token that could have been one. why: "top" or "sample" of where it fires; where it
    is silent "random", "near miss" (its own token, yet silent) or "neighbour" (a feature with a like direction fires).
    start: how many tokens of the document are before it. earlier: the words, in lower case, that the document has
    before it; later: those that come after it, up to the end of the turn that its last token belongs to.
    """

    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    values: tuple[float, ...]
    roles: tuple[int, ...]
    focus: int
    why: Why
    document: int
    language: str | None = None
    start: int = 0
    earlier: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    @property
    def fires(self) -> bool:
        return any(value > 0 for value in self.values)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class Evidence:
    """All that is known of a feature when it is labelled: windows of documents that are not held out, and statistics.

    firing: strongest first. silent: of all three kinds. above, below: the texts of the tokens that its decoder
    direction makes likelier and less likely, strongest first; words: the texts of the tokens that it fires on most
    in those documents, with their share of its activations above zero there. covers: {token without case and space:
    share of its places in those documents where the feature fires}. roles: {role: share of all tokens}; languages
    likewise.
    """

    feature: int
    statistics: Statistics
    firing: tuple[Window, ...]
    silent: tuple[Window, ...]
    above: tuple[tuple[str, float], ...] = ()
    below: tuple[tuple[str, float], ...] = ()
    words: tuple[tuple[str, float], ...] = ()
    covers: Mapping[str, float] = field(default_factory=dict)
    roles: Mapping[str, float] = field(default_factory=dict)
    languages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Background:
    """The text at large. words: {word: share of random places that have it before them}; later: {word: share that have
    it in the rest of their turn}."""

    words: Mapping[str, float] = field(default_factory=dict)
    later: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOut:
    """What a label is scored on: windows of the documents that no labeller sees, where the feature fires (a fair
    sample of all activations, not the strongest ones) and where it is silent."""

    feature: int
    firing: tuple[Window, ...]
    silent: tuple[Window, ...]
