"""What a remote scope gives back: frozen plain data, named as a scope's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsight.edits import Feature
from sparsight.records import SPECIAL, Kind, Receipt, TokenRead


@dataclass(frozen=True)
class Chunk:
    """A piece of a reply while it is written. See sparsight.scope.scope.Chunk. features: (feature, raw activation)
    pairs, strongest first, where asked for."""

    row: int
    index: int
    text: str
    finish: str | None = None
    features: tuple[tuple[int, float], ...] = ()
    events: tuple[str, ...] = ()
    receipt: Receipt | None = None


@dataclass(frozen=True)
class Reply:
    """What was written. tokens: how many; None of a comparison. read: the features of each of them, where asked for.
    receipt: None where there was no edit."""

    text: str
    finish: str
    prompt_tokens: int
    tokens: int | None
    receipt: Receipt | None = None
    events: tuple[str, ...] = ()
    read: tuple[TokenRead, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Comparison:
    """One prompt, written on without and with the edits, in one batch."""

    plain: Reply
    steered: Reply

    def __str__(self) -> str:
        return f"plain:   {self.plain.text}\nsteered: {self.steered.text}\n{self.steered.receipt}"


@dataclass(frozen=True)
class Reading:
    """The features of a text, token by token, strongest first in each. labels: feature -> words, where it has any."""

    read: tuple[TokenRead, ...]
    labels: dict[int, str]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(token.text for token in self.read)

    def __len__(self) -> int:
        return len(self.read)

    def __getitem__(self, feature: Feature | int) -> list[float]:
        """One feature's activation at every token."""
        index = feature.index if isinstance(feature, Feature) else feature
        return [dict(token.features).get(index, 0.0) for token in self.read]

    def top(self, k: int = 10, special: bool = False) -> list[tuple[int, float]]:
        """The k features that fire strongest anywhere. Template and BOS tokens count only if special is set."""
        peaks: dict[int, float] = {}
        for token in self.tokens(content=not special):
            for feature, value in token.features:
                peaks[feature] = max(peaks.get(feature, 0.0), value)
        return sorted(peaks.items(), key=lambda pair: -pair[1])[:k]

    def tokens(self, k: int | None = None, content: bool = False) -> Sequence[TokenRead]:
        """Every token with its (k strongest) features; content: without template and BOS tokens."""
        kept = (token for token in self.read if not (content and token.kind & SPECIAL))
        return [TokenRead(token.id, token.text, token.kind, token.features[:k]) for token in kept]


@dataclass(frozen=True)
class Found:
    """A feature that was found. score: the higher, the better, within one search."""

    index: int
    id: str
    label: str | None
    score: float


@dataclass(frozen=True)
class Contrast:
    """Features of either side, best first, each as a mapping: see sparsight.scope.contrast.Contrasted for its fields.
    chats: how many of each they were chosen on. note: what could not be said, and why."""

    with_: tuple[dict[str, Any], ...]
    without: tuple[dict[str, Any], ...]
    chats: tuple[int, int]
    note: str = ""


@dataclass(frozen=True)
class Attribution:
    """Which features raised the logits of the tokens start .. end − 1, and which lowered them, each as a mapping: see
    sparsight.scope.attribution.Attributed."""

    raised: tuple[dict[str, Any], ...]
    lowered: tuple[dict[str, Any], ...]
    texts: tuple[str, ...]
    start: int
    end: int
    logits: tuple[float, ...]
    rest: float

    def top(self, k: int = 20) -> list[dict[str, Any]]:
        return list(self.raised[:k])

    def bottom(self, k: int = 20) -> list[dict[str, Any]]:
        return list(self.lowered[:k])


def kind_of(names: Sequence[str]) -> Kind:
    """Kinds by their names."""
    out = Kind(0)
    for name in names:
        out |= Kind[name.upper()]
    return out


def receipt_of(told: Any) -> Receipt | None:
    """From the wire."""
    return None if told is None else Receipt(**told)
