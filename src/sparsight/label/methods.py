"""The ways to label, by name: each is made from an atlas and settings, with its judge where its labels are prose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsight.atlas.atlas import Atlas
from sparsight.label.judge import Judge
from sparsight.label.labeller import Labeller
from sparsight.label.methods_llm import anthropic, openai, subject
from sparsight.label.spec import LabelSpec


@dataclass(frozen=True)
class Setting:
    """What a labeller is made from. options: those of the verb that are its own, by name."""

    atlas: Atlas
    tokenizer: Any
    spec: LabelSpec
    options: Mapping[str, Any] = field(default_factory=dict)


Make = Callable[[Setting], tuple[Labeller, Judge | None]]


def embedded(setting: Setting) -> tuple[Labeller, None]:
    """No network and no model: rules, and sentences that say them."""
    from sparsight.label.embedded import EmbeddedLabeller
    from sparsight.label.gather import Gatherer

    background = Gatherer(setting.atlas, setting.tokenizer, setting.spec).background()
    return EmbeddedLabeller(background, setting.spec.unclear_below), None


labellers: dict[str, Make] = {"embedded": embedded, "subject": subject, "openai": openai, "anthropic": anthropic}
