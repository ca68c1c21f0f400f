"""The ways to label that ask a language model, each made from an atlas and options: a labeller, and a judge of it.

options: knobs of EndpointSpec, of Wording and, for the subject, of Injection, by their names; for the subject also
scope, the model with its SAE, and way, "inject" or "prompt".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sparsight.atlas.atlas import Atlas
from sparsight.config import check, knobs
from sparsight.errors import BadInput
from sparsight.label.clients.client import Client
from sparsight.label.clients.ledger import Ledger
from sparsight.label.clients.spec import EndpointSpec
from sparsight.label.labeller import Labeller
from sparsight.label.prompts import Wording
from sparsight.label.prose import PromptedLabeller, ProseJudge

WAYS = ("inject", "prompt")


class Setting(Protocol):
    """What a labeller is made from."""

    @property
    def atlas(self) -> Atlas: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


def openai(setting: Setting) -> tuple[PromptedLabeller, ProseJudge]:
    """Any OpenAI-compatible endpoint. Raises BadInput, Missing."""
    from sparsight.label.clients.openai import OpenAIClient

    return _asked(setting, OpenAIClient(_of(EndpointSpec, setting.options)))


def anthropic(setting: Setting) -> tuple[PromptedLabeller, ProseJudge]:
    """Anthropic's messages API. Raises BadInput, Missing."""
    from sparsight.label.clients.anthropic import AnthropicClient

    return _asked(setting, AnthropicClient(_of(EndpointSpec, setting.options)))


def subject(setting: Setting) -> tuple[Labeller, ProseJudge]:
    """The loaded model itself. Raises BadInput where there is none, or no such way."""
    from sparsight.label.subject import InjectedLabeller, Injection, SubjectClient

    scope, way = setting.options.get("scope"), setting.options.get("way", WAYS[0])
    if scope is None:
        raise BadInput("The subject is the model itself: load it with its SAE (--model, --sae).")
    check(way, "way", way in WAYS, f"one of: {', '.join(WAYS)}")
    labeller, judge = _asked(setting, SubjectClient(scope), EndpointSpec())
    return (InjectedLabeller(scope, _of(Injection, setting.options)) if way == "inject" else labeller), judge


def _asked(setting: Setting, client: Client, spec: EndpointSpec | None = None) -> tuple[PromptedLabeller, ProseJudge]:
    """Both ask the same client, and one ledger keeps account of both."""
    ledger = Ledger(setting.atlas, client, spec or _of(EndpointSpec, setting.options))
    wording = _of(Wording, setting.options)
    return PromptedLabeller(ledger, wording), ProseJudge(ledger, wording)


def _of(kind: type, options: Mapping[str, Any]) -> Any:
    """Settings from the options that are theirs."""
    return kind(**{name: options[name] for name in knobs(kind) if options.get(name) is not None})
