"""From a wish in plain English to edits, or to a condition: by what features do, not by what they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsight.edits import Condition, Controller, Feature
from sparsight.scope.contrastive import Contrastive, Writer
from sparsight.scope.scope import Scope


@dataclass(frozen=True)
class Point:
    """One strength. effect: 0 as where nobody asked, 1 as where the model was asked in words; perplexity: ratio to
    unsteered replies, under the unedited model; repetition: share of repeated runs of three tokens; coherent: whether
    both are within bounds."""

    strength: float
    effect: float
    perplexity: float
    repetition: float
    coherent: bool


@dataclass(frozen=True)
class AutoEdits:
    """controller: empty where nothing worked (note says why). edits: (feature, strength in feature units) pairs. curve:
    the sweep. asked: what asking in words does, measured alike. tried: features that were screened, best first."""

    controller: Controller
    edits: tuple[tuple[Feature, float], ...]
    curve: tuple[Point, ...]
    asked: Point
    tried: tuple[int, ...]
    made_by: str
    note: str = ""


@dataclass(frozen=True)
class AutoCondition:
    """condition: holds at tokens of chats of the wished sort. features: (feature, threshold) pairs, any of which. train,
    held_out: balanced accuracy of "holds anywhere in the chat", on chats it was made from and on others."""

    condition: Condition
    features: tuple[tuple[Feature, float], ...]
    train: float
    held_out: float | None
    made_by: str
    note: str = ""


def auto_edits(
    scope: Scope,
    text: str,
    *,
    chats: Contrastive | None = None,
    writer: Writer | str | None = None,
    most_perplexity: float = 2.5,
    seed: int = 0,
    tell: Callable[[Any], None] | None = None,
) -> AutoEdits:
    """Edits that make the model do what the text wishes."""
    raise NotImplementedError


def auto_condition(
    scope: Scope,
    text: str,
    *,
    chats: Contrastive | None = None,
    writer: Writer | str | None = None,
    most_features: int = 3,
    seed: int = 0,
) -> AutoCondition:
    """A condition that tells chats of the wished sort."""
    raise NotImplementedError
