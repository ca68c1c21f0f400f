"""What an atlas holds of a feature: its statistics, its examples, its labels. Frozen, without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

METHODS = ("human", "embedded", "subject", "openai", "anthropic", "imported")
FLAGS = ("dead", "dense", "single-token", "special-token", "position", "duplicate")
POSITIONS = 12  # buckets: the first token of a document, the second, the next two, the next four, ...


def is_held_out(key: str) -> bool:
    """Whether a document is kept from whoever writes labels, and labels are scored on it: one of two is.

    key: the document's id. Decided by its hash alone, so that every process and every run says the same.
    """
    return bool(hashlib.blake2b(key.encode(), digest_size=1).digest()[0] & 1)


@dataclass(frozen=True)
class Document:
    """One text that was surveyed. number: from 0, in the order of the tokens file; start: its first token there;
    length: in tokens. roles: runs of (tokens, records.Kind bits) that are its tokens, one after the other. id: the
    conversation's."""

    number: int
    start: int
    length: int
    id: str
    source: str | None = None
    language: str | None = None
    roles: tuple[tuple[int, int], ...] = ()

    @property
    def held_out(self) -> bool:
        return is_held_out(self.id)


@dataclass(frozen=True)
class Statistics:
    """What a feature does, over all tokens that were surveyed; and what its directions say.

    fires: tokens where it is above zero, of `tokens`. mean, deviation, max: of its activations above zero, in raw
    activation. quantiles: {share: activation} of those. histogram: {bin: count} of those, by HISTOGRAM of the survey.
    documents: in how many it fires. positions: fires by bucket of POSITIONS. roles: {"user": fires, ...}; languages
    likewise. top_tokens: (token id, fires there), most first, as a summary of bounded size counts them. top_logits,
    bottom_logits: (token id, logit per unit of the decoder's direction through the final norm). neighbours: (feature,
    cosine of decoder directions). coactive: (feature, pointwise mutual information in bits). scale: the feature unit
    (a high quantile of its activations). duplicate_of: a feature that does the same. flags: of FLAGS.
    """

    feature: int
    fires: int = 0
    tokens: int = 0
    mean: float = 0.0
    deviation: float = 0.0
    max: float = 0.0
    documents: int = 0
    scale: float = 0.0
    quantiles: Mapping[float, float] = field(default_factory=dict)
    histogram: Mapping[int, int] = field(default_factory=dict)
    positions: tuple[int, ...] = ()
    roles: Mapping[str, int] = field(default_factory=dict)
    languages: Mapping[str, int] = field(default_factory=dict)
    top_tokens: tuple[tuple[int, int], ...] = ()
    top_logits: tuple[tuple[int, float], ...] = ()
    bottom_logits: tuple[tuple[int, float], ...] = ()
    decoder_norm: float = 0.0
    encoder_norm: float = 0.0
    neighbours: tuple[tuple[int, float], ...] = ()
    coactive: tuple[tuple[int, float], ...] = ()
    duplicate_of: int | None = None
    flags: tuple[str, ...] = ()

    @property
    def density(self) -> float:
        """The share of tokens where it fires."""
        return self.fires / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, eq=False)
class Example:
    """One place where a feature fires, and its activations around it.

    at: the token of its peak, and start: the first of the window, in the tokens file. values: its activation at each
    token of the window, zero where it is silent. top: of the strongest; sampled: of a fair sample of all places where
    it fires (an example may be both). held_out: of a document that labels are scored on.
    """

    feature: int
    at: int
    value: float
    start: int
    values: Float[np.ndarray, " token"]
    top: bool
    sampled: bool
    document: int
    held_out: bool


@dataclass(frozen=True)
class Score:
    """How well a label predicts, on windows never shown to whoever wrote it. low, high: 95 % interval; number: of
    windows judged."""

    value: float
    low: float | None = None
    high: float | None = None
    number: int | None = None


@dataclass(frozen=True)
class Label:
    """What somebody says that a feature means.

    method: of METHODS. model: that wrote it; prompt: hash of what it was asked by. type: "single token", "phrase",
    "context", "output", "position", "role", "format", ...; rule: how it could be tested without anybody (plain data).
    confidence: 0 to 1, of whoever wrote it. scores: by name; `score` is the one that labels are compared by. created:
    ISO 8601, UTC.
    """

    feature: int
    text: str
    method: str
    model: str = ""
    prompt: str = ""
    type: str = ""
    rule: Mapping[str, Any] | None = None
    confidence: float | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    created: str = ""
    id: int | None = field(default=None, compare=False)

    @property
    def score(self) -> float | None:
        """Balanced accuracy or AUC of detection, whichever kind of judge there was; None where nobody scored it."""
        found = self.scores.get("detection")
        return None if found is None else found.value
