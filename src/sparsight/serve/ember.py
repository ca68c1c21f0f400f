"""Ember's API, as the client goodfire 0.3.5 uses it: find features, read them in a conversation, tell conversations
apart, ask why a token was said. Chat completions are OpenAI's room's.

Whatever needs the model goes through the engine, between two steps of what is being written; whatever needs an atlas
alone goes through a thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Query, Request

from sparsight.edits import Controller, When
from sparsight.errors import BadInput
from sparsight.lm.batch import Prompt
from sparsight.lm.text import pieces
from sparsight.scope.attribution import Attribution, attribute
from sparsight.scope.auto import auto_edits
from sparsight.scope.auto_condition import auto_condition
from sparsight.scope.contrast import contrast
from sparsight.scope.contrastive import contrastive
from sparsight.scope.edited import edited_logits, read_edited
from sparsight.scope.nearest import nearest
from sparsight.scope.scope import Scope
from sparsight.serve import ember_shapes as shapes
from sparsight.serve.engine import Engine
from sparsight.serve.known import Known
from sparsight.serve.openai.wishes import controller_of, message_of
from sparsight.serve.refusals import EMBER, Json
from sparsight.serve.service import Served
from sparsight.serve.visit import Visit, Visitor, unless_gone
from sparsight.wire import to_ember

T = TypeVar("T")
CAUSES = 64  # features that a logit is shared out among, at most
REFUSED: dict[int | str, dict[str, Any]] = {
    401: {"model": shapes.Refused, "description": "No key, or a wrong one."},
    422: {"model": shapes.Refused, "description": "A value that cannot be used."},
    429: {"model": shapes.Refused, "description": "More than the key allows, or more than waits here."},
    503: {"model": shapes.Refused, "description": "This server is stopping."},
}
router = APIRouter(prefix=EMBER, tags=["ember"], responses=REFUSED)


# ── which features there are ─────────────────────────────────────────────────────────────────────────────────────


@router.get("/features/search", response_model=shapes.FoundFeatures)
async def search(
    visit: Visitor,
    query: str,
    model: str,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    per_page: Annotated[int, Query(alias="perPage", ge=1, le=100)] = 10,
) -> Json:
    """Features whose labels fit a few words, best first. The first page is 1."""
    known = known_of(visit.served(model).engine.scope)
    found = await aside(known.found, query, (page - 1) * per_page, page * per_page)
    return Json({"features": found})


@router.post("/features/rerank", response_model=shapes.FoundFeatures)
async def rerank(visit: Visitor, asked: shapes.Reranking) -> Json:
    """The top_k of these features whose labels are nearest to a few words. Ids that are not known are left out."""
    known = known_of(visit.served(asked.model).engine.scope)
    features = [index for index in map(known.index, asked.feature_ids) if index is not None]
    return Json({"features": await aside(known.reranked, asked.query, features, asked.top_k)})


@router.get("/features/", response_model=shapes.FoundFeatures)
async def by_ids(visit: Visitor, feature_id: Annotated[list[str], Query(max_length=8192)] = []) -> Json:  # noqa: B006
    """Features by their ids, of whichever model. Ids that are not known are left out."""
    return Json({"features": await aside(_by_ids, [engine.scope for engine in visit.catalog.each()], feature_id)})


def _by_ids(scopes: Sequence[Scope], ids: Sequence[str]) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}  # by place among the ids
    for known in map(known_of, scopes):
        mine = {place: index for place, id in enumerate(ids) if (index := known.index(id)) is not None}
        told = known.told([index for place, index in mine.items() if place not in found])
        found |= zip((place for place in mine if place not in found), told, strict=True)
    return [found[place] | {"relevance": 1.0} for place in sorted(found)]


@router.post("/features/lookup", response_model=shapes.LookedUpFeatures)
async def lookup(visit: Visitor, asked: shapes.Lookup) -> Json:
    """Features by their indices."""
    told = await aside(known_of(visit.served(asked.model).engine.scope).named, asked.indices)
    return Json({"features": [{"uuid": one.pop("id"), **one} for one in told]})


@router.post("/attributions/neighbors", response_model=shapes.Neighbours)
async def neighbors(visit: Visitor, asked: shapes.Neighbouring) -> Json:
    """Features whose directions are nearest to the centre of these, which are left out."""
    engine = visit.served(asked.model).engine
    near = await engine.run(lambda scope: nearest(scope.sae, asked.feature_indices, asked.top_k))
    return Json({"neighbors": await _named(engine, [feature for feature, _ in near])})


# ── what they do in a conversation ───────────────────────────────────────────────────────────────────────────────


@router.post("/chat-attribution/compute-features", response_model=shapes.ReadTokens)
async def compute_features(visit: Visitor, asked: shapes.Reading) -> Json:
    """The features that are active at each token of a conversation, strongest first, once the controller has acted."""
    served = visit.served(asked.model)
    prompt = await _prompt(visit, served.engine, asked.messages)
    wish = _controller(served, asked.controller)
    only = asked.include_feature_indexes
    tokens = await served.engine.run(lambda scope: read_edited(scope, prompt, wish, only))
    return await aside(_as_tokens, served.engine.scope, prompt, tokens)


def _as_tokens(scope: Scope, prompt: Prompt, tokens: Sequence[Sequence[tuple[int, float]]]) -> Json:
    ids = known_of(scope).ids
    told = [
        {
            "token": text,
            "attributions": [{"id": ids[f], "index_in_sae": f, "activation_strength": value} for f, value in pairs],
        }
        for text, pairs in zip(texts_of(scope, prompt), tokens, strict=True)
    ]
    return Json({"tokens": told})


@router.post("/chat/tokenize", response_model=shapes.Pieces)
async def tokenize(visit: Visitor, asked: shapes.Tokenizing) -> Json:
    """The tokens that the model reads of a conversation, as text; together they are the whole prompt."""
    engine = visit.served(asked.model).engine
    prompt = await _prompt(visit, engine, asked.messages)
    return Json({"tokens": [{"value": text} for text in texts_of(engine.scope, prompt)]})


@router.post("/chat-attribution/contrast", response_model=shapes.Contrasted)
async def contrast_(visit: Visitor, asked: shapes.Contrasting) -> Json:
    """What each set of conversations has and the other lacks: k_to_add features of dataset_2, k_to_remove of dataset_1,
    best first."""
    engine = visit.served(asked.model).engine
    first, second = [
        [await _prompt(visit, engine, chat, f"{name}[{i}]") for i, chat in enumerate(dataset)]
        for name, dataset in (("dataset_1", asked.dataset_1), ("dataset_2", asked.dataset_2))
    ]
    found = await engine.run(lambda scope: contrast(scope, second, first, asked.k_to_add, asked.k_to_remove), long=True)
    sides = {"dataset_1_features": found.without, "dataset_2_features": found.with_}
    return Json({name: await _named(engine, [one.feature for one in side]) for name, side in sides.items()})


@router.post("/chat-attribution/compute-logits", response_model=shapes.Logits)
async def compute_logits(visit: Visitor, asked: shapes.NextToken) -> Json:
    """The logits of the token that an answer would begin with, once the controller has acted, the highest first."""
    served = visit.served(asked.model)
    prompt = await aside(_as_prompt, served.engine.scope, asked.messages, "messages", True)
    visit.charge(len(prompt))
    wish = _controller(served, asked.controller)
    logits = await served.engine.run(lambda scope: edited_logits(scope, prompt, wish))
    return Json({"logits": await aside(_as_logits, served.engine.scope, logits, asked.top_k, asked.filter_vocabulary)})


def _as_logits(scope: Scope, logits: Any, top_k: int | None, vocabulary: Sequence[str] | None) -> dict[str, float]:
    """{text: logit}. Of several tokens that look alike the likeliest is told; what is no token is left out."""
    tokenizer = scope.lm.tokenizer
    if vocabulary is None:
        order = logits.argsort(descending=True, stable=True)
    else:
        clean = (text.encode("utf-8", "replace").decode() for text in dict.fromkeys(vocabulary))
        spelled = (tokenizer.encode(text, add_special_tokens=False) for text in clean)
        single = [ids[0] for ids in spelled if len(ids) == 1]
        order = sorted(single, key=lambda id: -float(logits[id]))
    told: dict[str, float] = {}
    for id in map(int, order):
        if top_k is not None and len(told) == top_k:
            break
        text = str(tokenizer.decode([id]))
        if (vocabulary is None or text in vocabulary) and math.isfinite(logits[id]):
            told.setdefault(text, float(logits[id]))
    return told


@router.post("/attributions/compute-logit-attribution", response_model=shapes.Causes)
async def logit_attribution(visit: Visitor, asked: shapes.Attributing) -> Json:
    """The features whose activation raised the logits of these tokens of a conversation, most first."""
    engine, start, end = visit.served(asked.model).engine, asked.startIndex, asked.endIndex
    prompt = await _prompt(visit, engine, asked.messages)
    if not 0 <= start <= end < len(prompt):
        there = f"this prompt has tokens 0 to {len(prompt) - 1:,}, and endIndex is the last one that is meant"
        raise BadInput(f"startIndex {start} and endIndex {end}: {there}.")
    found = await engine.run(lambda scope: attribute(scope, prompt, start, end + 1))
    causes = await aside(_as_causes, engine.scope, found)
    return Json({"to_ablate": causes, "to_add": [], "num_input_tokens": len(prompt)})


def _as_causes(scope: Scope, found: Attribution) -> list[dict[str, Any]]:
    ids = known_of(scope).ids
    return [
        {
            "id": ids[one.feature],
            "value": one.value,
            "tokens": [{"index": at.token, "activation_strength": at.activation} for at in one.tokens],
        }
        for one in found.top(CAUSES)
    ]


# ── from a few words ─────────────────────────────────────────────────────────────────────────────────────────────


@router.post(
    "/attributions/generate-contrastive-dataset",
    response_model=tuple[list[list[shapes.EmberMessage]], list[list[shapes.EmberMessage]]],
)
async def generate_contrastive_dataset(visit: Visitor, asked: shapes.Specification, request: Request) -> Json:
    """Conversations without what the words say, and the same with it, written by the first model of this server, or by
    the one elsewhere that it was given (`--writer`)."""
    writer = visit.service.writer
    making = visit.run(visit.catalog.first, lambda scope: contrastive(scope, asked.specification, writer))
    made = await unless_gone(request.receive, making)
    return Json([[_as_chat(one) for one in side] for side in made])


def _as_chat(one: Any) -> list[dict[str, str]]:
    """A base model's texts, too."""
    return [{"role": "assistant", "content": one}] if isinstance(one, str) else list(one)


@router.post("/features/auto-edits", response_model=shapes.Edits)
async def auto_edits_(visit: Visitor, asked: shapes.Wish, request: Request) -> Json:
    """Nudges, in feature units, that make the model do what the words wish, found by what features do."""
    engine = visit.served(asked.model).engine
    writer = visit.service.writer
    search = visit.run(engine, lambda scope: auto_edits(scope, asked.specification, writer=writer, places=("all",)))
    found = await unless_gone(request.receive, search)
    if any(feature.unit != "scale" for feature, *_ in found.edits):
        raise BadInput("Ember's strengths count in feature units, and this SAE has none: serve it with its atlas.")
    told = await _named(engine, [feature.index for feature, *_ in found.edits])
    edits = [[one, edit[1]] for one, edit in zip(told, found.edits, strict=True)]
    return Json({"edits": edits, "note": found.note})


@router.post("/features/auto-conditional", response_model=shapes.Conditional)
async def auto_conditional(visit: Visitor, asked: shapes.Wish, request: Request) -> Json:
    """A condition that holds where the conversation is of the sort that the words say."""
    engine = visit.served(asked.model).engine
    writer = visit.service.writer
    search = visit.run(engine, lambda scope: auto_condition(scope, asked.specification, writer=writer))
    found = await unless_gone(request.receive, search)
    (scope,) = to_ember(Controller(whens=(When(found.condition, Controller()),)))["scopes"]
    for comparison in scope["conditionals"]["conditionals"]:
        features = comparison["left_hand"]["features"]
        told = await _named(engine, [one["index_in_sae"] for one in features])
        for one, mine in zip(features, told, strict=True):
            one |= {"uuid": mine["id"], "label": mine["label"]}
    return Json({"conditional": scope["conditionals"]})


# ── what they have in common ─────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=16)
def known_of(scope: Scope) -> Known:
    """What a scope knows of its features."""
    return Known(scope)


async def _prompt(visit: Visit, engine: Engine, messages: Sequence[Any], place: str = "messages") -> Prompt:
    """A conversation as the model reads it, counted against the caller's budget. Raises BadInput, NoChatTemplate."""
    prompt = await aside(_as_prompt, engine.scope, messages, place, False)
    visit.charge(len(prompt))
    return prompt


def _as_prompt(scope: Scope, messages: Sequence[Any], place: str, answering: bool) -> Prompt:
    """answering: with what the template puts before an answer."""
    said = [message_of(message, f"{place}[{i}]") for i, message in enumerate(messages)]
    return scope.lm.prompt(said, add_generation_prompt=answering)


def texts_of(scope: Scope, prompt: Prompt) -> Sequence[str]:
    """Each token as people see it: a character that several tokens make up shows at its last."""
    return pieces(scope.lm.tokenizer, prompt.ids)


def _controller(served: Served, form: dict[str, Any] | None) -> Controller:
    """The variant's controller, then the request's own. Raises BadInput."""
    return controller_of(form, served.engine.scope, served.controller)


async def _named(engine: Engine, features: Sequence[int]) -> list[dict[str, Any]]:
    return await aside(known_of(engine.scope).named, features)


async def aside(work: Callable[..., T], *given: Any) -> T:
    """In a thread, so that nobody's stream waits for it."""
    return await to_thread.run_sync(partial(work, *given))
