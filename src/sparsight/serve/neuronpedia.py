"""Three of Neuronpedia's calls, in its shapes, so that notebooks made for it run here: what fires on a text, token by
token and over all of it, and a chat steered and not.

modelId, sourceSet and source name nothing here but a served model; a feature's `layer` is the hook point. Strengths are
raw, times strength_multiplier, as Neuronpedia's are.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from sparsight.edits import Controller, Feature
from sparsight.errors import BadInput
from sparsight.lm.batch import Prompt
from sparsight.records import SPECIAL, Kind, Sampling
from sparsight.scope.edited import read_edited
from sparsight.scope.scope import Scope
from sparsight.serve.ember import aside, known_of, texts_of
from sparsight.serve.engine import Request as Row
from sparsight.serve.openai.answers import answers
from sparsight.serve.openai.forms import ChatMessage, Form
from sparsight.serve.openai.rows import Rows
from sparsight.serve.openai.wishes import message_of
from sparsight.serve.refusals import Json
from sparsight.serve.service import Served
from sparsight.serve.visit import Visit, Visitor

router = APIRouter(prefix="/api", tags=["neuronpedia"])
Number = Annotated[int, Field(ge=0, lt=2**31)]


class SearchAll(Form):
    """POST /api/search-all. sortIndexes: sort by these tokens' activations together; none: by the highest anywhere."""

    modelId: str
    text: str = Field(min_length=1)
    sourceSet: str | None = None
    selectedLayers: list[str] = Field(default_factory=list)
    sortIndexes: list[Number] = Field(default_factory=list)
    ignoreBos: bool = True
    densityThreshold: float = -1
    numResults: int = Field(50, ge=1, le=100)


class SearchTopK(Form):
    """POST /api/search-topk-by-token."""

    modelId: str
    text: str = Field(min_length=1)
    source: str | None = None
    numResults: int = Field(10, ge=1, le=20)
    ignoreBos: bool = True
    densityThreshold: float = 0.01


class SteeredFeature(Form):
    """strength: raw, times strength_multiplier."""

    index: Number
    strength: float
    modelId: str | None = None
    layer: str | None = None


class SteerChat(Form):
    """POST /api/steer-chat. Two histories: one goes on unsteered, one steered."""

    modelId: str
    defaultChatMessages: list[ChatMessage] = Field(min_length=1, max_length=128)
    steeredChatMessages: list[ChatMessage] = Field(min_length=1, max_length=128)
    features: list[SteeredFeature] = Field(min_length=1, max_length=64)
    temperature: float = Field(0.5, ge=0, le=2)
    n_tokens: int = Field(48, ge=1, le=4096)
    freq_penalty: float = Field(0, ge=-2, le=2)
    seed: int = Field(16, ge=0)
    strength_multiplier: float = Field(1, ge=0, le=1000)
    steer_special_tokens: bool = False
    steer_method: str = "SIMPLE_ADDITIVE"


@router.post("/search-all", responses=answers(None, 404))
async def search_all(visit: Visitor, form: SearchAll) -> Response:
    """The features that fire strongest on a text, each with its activations."""
    served, prompt, tokens = await _read(visit, form.modelId, form.text)
    return Json(await aside(_all, served, prompt, tokens, form))


def _all(served: Served, prompt: Prompt, tokens: list[list[tuple[int, float]]], form: SearchAll) -> dict[str, Any]:
    scope, length = served.engine.scope, len(tokens)
    if any(index >= length for index in form.sortIndexes):
        raise BadInput(f"sortIndexes {form.sortIndexes}: the text has tokens 0 to {length - 1}.")
    values: dict[int, dict[int, float]] = {}
    for at, pairs in enumerate(tokens):
        for feature, value in pairs if not (form.ignoreBos and prompt.kinds[at] & Kind.BOS) else ():
            values.setdefault(feature, {})[at] = value
    values = _rare(scope, values, form.densityThreshold)

    def weight(feature: int) -> float:
        at = values[feature]
        return sum(at.get(i, 0.0) for i in form.sortIndexes) if form.sortIndexes else max(at.values())

    best = sorted(values, key=lambda feature: (-weight(feature), feature))[: form.numResults]
    named = known_of(scope).told(best)
    result = [
        {
            "modelId": form.modelId,
            "layer": scope.hook_point,
            "index": str(feature),
            "values": [values[feature].get(at, 0.0) for at in range(length)],
            "maxValue": max(values[feature].values()),
            "maxValueIndex": max(values[feature], key=values[feature].__getitem__),
            "neuron": {"explanations": [{"description": one["label"]}]},
        }
        for feature, one in zip(best, named, strict=True)
    ]
    return {"tokens": list(texts_of(scope, prompt)), "result": result, "sortIndexes": form.sortIndexes}


@router.post("/search-topk-by-token", responses=answers(None, 404))
async def search_topk_by_token(visit: Visitor, form: SearchTopK) -> Response:
    """The strongest features of each token of a text."""
    served, prompt, tokens = await _read(visit, form.modelId, form.text)
    return Json(await aside(_topk, served, prompt, tokens, form))


def _topk(served: Served, prompt: Prompt, tokens: list[list[tuple[int, float]]], form: SearchTopK) -> dict[str, Any]:
    scope, results = served.engine.scope, []
    frequent = {feature: {} for pairs in tokens for feature, _ in pairs}
    kept = _rare(scope, frequent, form.densityThreshold)
    labels = known_of(scope).labels([*kept])
    for at, (text, pairs) in enumerate(zip(texts_of(scope, prompt), tokens, strict=True)):
        if form.ignoreBos and prompt.kinds[at] & Kind.BOS:
            continue
        top = [pair for pair in pairs if pair[0] in kept][: form.numResults]
        features = [
            {
                "activationValue": value,
                "featureIndex": feature,
                "feature": {
                    "modelId": form.modelId,
                    "layer": scope.hook_point,
                    "index": str(feature),
                    "explanations": [{"description": labels[feature]}] if feature in labels else [],
                },
            }
            for feature, value in top
        ]
        special = bool(prompt.kinds[at] & SPECIAL)
        results.append({"position": at, "token": text, "isSpecial": special, "topFeatures": features})
    return {"source": form.source or scope.hook_point, "results": results}


@router.post("/steer-chat", responses=answers(None, 404))
async def steer_chat(visit: Visitor, form: SteerChat) -> Response:
    """A chat gone on with twice, in one batch: as it is, and with features pushed."""
    if form.steer_method != "SIMPLE_ADDITIVE":
        raise BadInput(f"No steer_method {form.steer_method!r} here. There is: SIMPLE_ADDITIVE.")
    served = visit.served(form.modelId)
    rows = Rows(visit, served, await asyncio.to_thread(_steered, form, visit, served), 1)
    await rows.submit()
    texts = ["", ""]
    try:
        async for row, update in rows.updates():
            texts[row] += update.text
    finally:
        await rows.close()
    sides = zip(("DEFAULT", "STEERED"), texts, (form.defaultChatMessages, form.steeredChatMessages), strict=True)
    told = {name: _as_chat(said, text) for name, text, said in sides}
    return Json({**told, "receipt": rows.receipt})


def _steered(form: SteerChat, visit: Visit, served: Served) -> list[Row]:
    scope, places = served.engine.scope, ("all", "template", "bos") if form.steer_special_tokens else ("all",)
    edits = (
        Feature(one.index, "raw").nudge(one.strength * form.strength_multiplier).on(*places) for one in form.features
    )
    wish = Controller(tuple(edits))
    scope.steering([wish], [Prompt((), ())])  # raises NoFeature
    rows = []
    for name, said in (
        ("defaultChatMessages", form.defaultChatMessages),
        ("steeredChatMessages", form.steeredChatMessages),
    ):
        prompt = scope.lm.prompt([message_of(one, f"{name}[{i}]") for i, one in enumerate(said)])
        room = scope.lm.context - len(prompt) if scope.lm.context else form.n_tokens
        sampling = Sampling(
            max_new_tokens=max(1, min(form.n_tokens, room)),
            temperature=form.temperature,
            seed=form.seed,
            frequency_penalty=form.freq_penalty,
        )
        rows.append(Row(prompt, sampling, owner=visit.owner))
    return [rows[0], replace(rows[1], controller=wish)]


def _as_chat(said: list[ChatMessage], text: str) -> dict[str, Any]:
    chat = [{"role": one.role, "content": one.content} for one in said]
    return {"raw": text, "chatTemplate": [*chat, {"role": "model", "content": text}]}


async def _read(visit: Visit, model: str, text: str) -> tuple[Served, Prompt, list[list[tuple[int, float]]]]:
    """A text, and the features of its tokens, strongest first."""
    served = visit.served(model)
    prompt = await aside(served.engine.scope.lm.prompt, text)
    visit.charge(len(prompt))
    return served, prompt, await served.engine.run(lambda scope: read_edited(scope, prompt, None))


def _rare(scope: Scope, features: dict[int, Any], most: float) -> dict[int, Any]:
    """Those that fire on a smaller share of the atlas's tokens than this; all where it is negative, or there is no
    atlas."""
    atlas = scope.features.atlas
    if atlas is None or most < 0:
        return features
    density = atlas.column("density")
    return {feature: value for feature, value in features.items() if density[feature] < most}
