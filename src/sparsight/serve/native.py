"""Routes of this project's own: features of a model, and conversations read, compared and explained.

GET  /v1/features?query=...        found, in the query language of docs/search.md
GET  /v1/features/{index}          one: labels, statistics, examples
GET  /v1/features/export           all labels, as JSON lines
POST /v1/read                      which features fire, token by token
POST /v1/compare                   answered without and with a controller, in one batch
POST /v1/contrast, /v1/attribute   what tells conversations apart; why a token was said
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any

from anyio import from_thread
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from sparsight.atlas.bundle.table import label_row
from sparsight.atlas.meant import ranked_labels
from sparsight.atlas.search import search
from sparsight.edits import Controller
from sparsight.errors import BadInput
from sparsight.lm.batch import Prompt
from sparsight.scope.attribution import attribute
from sparsight.scope.contrast import contrast
from sparsight.scope.edited import read_edited
from sparsight.scope.feature_data import Text, feature_json, hit_json
from sparsight.scope.scope import Scope
from sparsight.serve import native_shapes as shapes
from sparsight.serve.ember import aside, known_of, texts_of
from sparsight.serve.engine import Engine
from sparsight.serve.openai.answers import ChatAnswer, answers
from sparsight.serve.openai.chat import Chat
from sparsight.serve.openai.forms import ChatForm
from sparsight.serve.openai.rows import Rows
from sparsight.serve.openai.sse import answered
from sparsight.serve.openai.telling import Telling
from sparsight.serve.openai.wishes import chat_prompt, controller_of, message_of, requests_of
from sparsight.serve.refusals import OPENAI, BadField, Json, NotThere, encoded
from sparsight.serve.visit import Visit, Visitor

router = APIRouter(prefix=OPENAI, tags=["features"])
Model = Annotated[str | None, Query(description="A served name; the first one where it is left out.")]


@router.get("/about", responses=answers(None, 404))
async def about(visit: Visitor, model: Model = None) -> Response:
    """What a served model and its SAE are, as plain data; name: that it may be asked for by."""
    name = next(iter(visit.catalog)) if model is None else model
    scope = visit.served(name).engine.scope
    told = scope.about()
    if scope.atlas is not None:
        told["atlas"] = scope.atlas.folder.name  # where it lies is nobody's business
    return Json({"name": name, **told})


# ── features ─────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/features", responses=answers(shapes.Found, 404))
async def find(
    visit: Visitor, query: str, model: Model = None, top_k: Annotated[int, Query(ge=1, le=10_000)] = 20
) -> Response:
    """Features that a query finds, best first."""
    engine = _engine(visit, model)
    loop = partial(from_thread.run, engine.run)  # what asks the model goes back to the engine
    return Json({"features": await aside(_found, engine.scope, query, top_k, loop)})


def _found(scope: Scope, query: str, top_k: int, run: Any) -> list[dict[str, Any]]:
    known, held = known_of(scope), scope.features
    if held.atlas is None:
        ranked = ranked_labels(query, held.labels, known.embedder())[:top_k]
        return [{"index": f, "id": known.ids[f], "label": held.labels[f], "score": score} for f, score in ranked]
    text = Text(scope.lm.tokenizer if scope.lm.has_tokenizer else None)

    def fires(words: str) -> dict[int, float]:
        return run(lambda scope: dict(scope.read(words).top(len(scope.features))))

    hits = search(held.atlas, query, top_k, known.embedder(), fires, text.ids_of)
    told = [hit_json(held.atlas, hit, text) for hit in hits]
    return [
        {"index": one.pop("feature"), **one, "id": known.ids[hit.feature]} for one, hit in zip(told, hits, strict=True)
    ]


@router.get("/features/export", responses={**answers(None, 404), 200: {"content": {"application/jsonl": {}}}})
async def export(visit: Visitor, model: Model = None) -> Response:
    """Every label, one JSON object a line, a feature's best first."""
    scope = _engine(visit, model).scope
    return StreamingResponse(_rows(scope), media_type="application/jsonl")


def _rows(scope: Scope) -> Iterator[bytes]:
    held = scope.features
    if held.atlas is None:
        for index, text in sorted(held.labels.items()):
            yield encoded({"index": index, "label": text, "sae": scope.sae.fingerprint}) + b"\n"
        return
    for labels in held.atlas.all_labels().values():
        yield b"".join(encoded(label_row(one, scope.sae.fingerprint)) + b"\n" for one in labels)


@router.get("/features/{index}", responses=answers(shapes.OneFeature, 404))
async def one(
    visit: Visitor,
    index: Annotated[int, Path(ge=0, lt=2**31)],
    model: Model = None,
    examples: Annotated[int, Query(ge=0, le=1000)] = 5,
    width: Annotated[int | None, Query(ge=0, le=10_000)] = None,
) -> Response:
    """One feature. examples: at most so many of the strongest, and of the fair sample; width: tokens on either side of
    an example's peak, as surveyed where it is left out."""
    scope = _engine(visit, model).scope
    if index >= len(scope.features):
        raise NotThere(f"No feature {index}: this SAE has {len(scope.features):,} (0 to {len(scope.features) - 1}).")
    return Json(await aside(_one, scope, index, width, examples))


def _one(scope: Scope, index: int, width: int | None, examples: int) -> dict[str, Any]:
    known, atlas = known_of(scope), scope.features.atlas
    (told,) = known.told([index])
    out = {"index": index, "id": told["id"], "label": told["label"], "sae": scope.sae.fingerprint}
    out |= {"scale": None if known.scales is None else known.scales[index]}
    if atlas is None:
        return out
    more = feature_json(atlas, index, Text(scope.lm.tokenizer if scope.lm.has_tokenizer else None), width, examples)
    del more["feature"]
    return out | more


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────


@router.post("/read", responses=answers(shapes.ReadAnswer, 404))
async def read(visit: Visitor, form: shapes.ReadForm) -> Response:
    """Which features are active at each token, raw, once the controller has acted."""
    served = visit.served(form.model)
    scope = served.engine.scope
    prompt = await _prompt(visit, served.engine, form)
    wish = await aside(controller_of, form.controller, scope, served.controller)
    tokens = await served.engine.run(lambda scope: read_edited(scope, prompt, wish))
    return await aside(_as_read, scope, prompt, [pairs[: form.top_k] for pairs in tokens])


def _as_read(scope: Scope, prompt: Prompt, tokens: Sequence[Sequence[tuple[int, float]]]) -> Json:
    told = [
        {
            "id": id,
            "token": text,
            "kind": [bit.name.lower() for bit in kind if bit.name],
            "features": [{"index": feature, "activation": value} for feature, value in pairs],
        }
        for id, text, kind, pairs in zip(prompt.ids, texts_of(scope, prompt), prompt.kinds, tokens, strict=True)
    ]
    seen = sorted({feature for pairs in tokens for feature, _ in pairs})
    named = known_of(scope).labels(seen)
    return Json({"tokens": told, "labels": {str(index): text for index, text in named.items()}})


@router.post("/compare", responses=answers(ChatAnswer, streams=True))
async def compare(form: ChatForm, visit: Visitor, request: Request) -> Response:
    """The same conversation answered twice in one batch: choice 0 without the controller, choice 1 with it."""
    if form.n not in (None, 1):
        raise BadField("n", "A comparison has two answers, one without the controller and one with it: leave out n.")
    served = visit.served(form.model)

    def asked() -> list[Any]:
        prompt = chat_prompt(form, served.engine.scope)
        controller = controller_of(form.controller, served.engine.scope, served.controller)
        if not controller:
            raise BadField("controller", "There is no edit to compare with none: give a controller that has one.")
        more = (form.most_tokens, form.alternatives, visit.owner, visit.settings.choices)
        (steered,) = requests_of(form, served.engine.scope, [prompt], controller, *more)
        return [replace(steered, controller=Controller()), steered]

    rows = Rows(visit, served, await asyncio.to_thread(asked), 2)
    told = Chat(form, rows, Telling(served, "chatcmpl"), False)
    return await answered(told, rows, request.receive, streams=bool(form.stream))


@router.post("/contrast", responses=answers(shapes.ContrastAnswer, 404))
async def contrast_(visit: Visitor, form: shapes.ContrastForm) -> Response:
    """Features that tell two sets of conversations apart, with how well they do."""
    engine = visit.served(form.model).engine
    sides = [
        await aside(_prompts, engine.scope, side, name)
        for side, name in ((form.with_, "with"), (form.without, "without"))
    ]
    visit.charge(sum(len(prompt) for side in sides for prompt in side))
    options: dict[str, Any] = {"where": form.where, "pool": form.pool, "paired": form.paired}
    found = await engine.run(
        lambda scope: contrast(scope, sides[0], sides[1], form.k, form.k_without, **options), long=True
    )
    told = asdict(found)
    return Json({"with": told.pop("with_"), **told})


@router.post("/attribute", responses=answers(shapes.AttributeAnswer, 404))
async def attribute_(visit: Visitor, form: shapes.AttributeForm) -> Response:
    """Features whose activation raised the logits of the tokens start .. end − 1, and those that lowered them."""
    engine = visit.served(form.model).engine
    prompt = await _prompt(visit, engine, form)
    found = await engine.run(lambda scope: attribute(scope, prompt, form.start, form.end, centred=form.centred))
    top, bottom = ([asdict(one) for one in some] for some in (found.top(form.k), found.bottom(form.k)))
    more = {"texts": found.texts, "start": found.start, "end": found.end, "logits": found.logits, "rest": found.rest}
    return Json({"top": top, "bottom": bottom, **more})


# ── what they have in common ─────────────────────────────────────────────────────────────────────────────────────


def _engine(visit: Visit, model: str | None) -> Engine:
    return visit.catalog.first if model is None else visit.served(model).engine


async def _prompt(visit: Visit, engine: Engine, form: shapes.Asked) -> Prompt:
    """What is to be read, counted against the caller's budget."""
    if (form.messages is None) == (form.text is None):
        raise BadInput("Give messages, or text: one of the two.")
    (prompt,) = await aside(_prompts, engine.scope, [form.text if form.messages is None else form.messages], "messages")
    visit.charge(len(prompt))
    return prompt


def _prompts(scope: Scope, each: Sequence[Any], place: str) -> list[Prompt]:
    """Texts and conversations as the model reads them."""
    out = []
    for number, one in enumerate(each):
        at = f"{place}[{number}]" if len(each) > 1 else place
        if isinstance(one, str):
            out.append(scope.lm.prompt(one))
        else:
            said = [message_of(message, f"{at}[{i}]") for i, message in enumerate(one)]
            out.append(scope.lm.prompt(said, add_generation_prompt=False))
    return out
