"""The ways to label that ask a language model: each is made from an atlas and options, with a judge of its labels.

options: endpoint, an EndpointSpec; for the subject scope, the model with its SAE, and way, "inject" or "prompt".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sparsight.atlas.atlas import Atlas
from sparsight.config import check
from sparsight.errors import BadInput
from sparsight.label.clients.client import Client
from sparsight.label.clients.ledger import Ledger
from sparsight.label.clients.spec import WAYS, EndpointSpec
from sparsight.label.labeller import Labeller
from sparsight.label.prose import PromptedLabeller, ProseJudge


class Setting(Protocol):
    """What a labeller is made from (label.methods.Setting)."""

    @property
    def atlas(self) -> Atlas: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


def openai(setting: Setting) -> tuple[PromptedLabeller, ProseJudge]:
    """Any OpenAI-compatible endpoint. Raises BadInput, Missing."""
    from sparsight.label.clients.openai import OpenAIClient

    spec = setting.options.get("endpoint", EndpointSpec())
    return _asking(setting.atlas, OpenAIClient(spec), spec)


def anthropic(setting: Setting) -> tuple[PromptedLabeller, ProseJudge]:
    """Anthropic's messages API. Raises BadInput, Missing."""
    from sparsight.label.clients.anthropic import AnthropicClient

    spec = setting.options.get("endpoint", EndpointSpec())
    return _asking(setting.atlas, AnthropicClient(spec), spec)


def subject(setting: Setting) -> tuple[Labeller, ProseJudge]:
    """The model itself. Raises BadInput where there is none or no such way, Mismatch where the atlas is of another
    SAE."""
    from sparsight.label.subject import InjectedLabeller, SubjectClient

    scope, way = setting.options.get("scope"), setting.options.get("way") or WAYS[0]
    if scope is None:
        raise BadInput("The subject is the model itself: load it, with its SAE.")
    check(way, "way", way in WAYS, f"one of: {', '.join(WAYS)}")
    setting.atlas.about.check(str(setting.atlas.folder), sae=scope.sae.fingerprint)
    labeller, judge = _asking(setting.atlas, SubjectClient(scope), None)
    return (InjectedLabeller(scope) if way == "inject" else labeller), judge


def _asking(atlas: Atlas, client: Client, spec: EndpointSpec | None) -> tuple[PromptedLabeller, ProseJudge]:
    """Both ask the same client, and one ledger keeps account of both."""
    ledger = Ledger(atlas, client, spec)
    return PromptedLabeller(ledger), ProseJudge(ledger)
