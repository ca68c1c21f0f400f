"""Saved variants: controllers by name, so that any client of OpenAI's can ask for "model:variant"."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field
from starlette.responses import Response

from sparsight.edits import Controller
from sparsight.serve.openai.answers import DeletedAnswer, VariantAnswer, VariantsAnswer, answers
from sparsight.serve.openai.forms import Form
from sparsight.serve.openai.wishes import controller_of
from sparsight.serve.refusals import OPENAI, BadField, Json, NotThere
from sparsight.serve.store import NAME, Variant
from sparsight.serve.visit import Visitor
from sparsight.wire import fingerprint, to_json

router = APIRouter(tags=["variants"])
PLACE = OPENAI + "/variants/{name}"
Name = Annotated[str, Path(pattern=f"^{NAME.pattern}$")]


class VariantForm(Form):
    """What is saved. model: a served name; the first one where it is left out."""

    controller: dict[str, Any] = Field(description="This project's JSON, or Ember's.")
    model: str | None = None


@router.get(f"{OPENAI}/variants", responses=answers(VariantsAnswer))
async def variants(visit: Visitor) -> Response:
    """Every saved variant, whoever saved it."""
    return Json({"object": "list", "data": [told(one) for one in visit.service.store.variants()]})


@router.get(PLACE, responses=answers(VariantAnswer, 404))
async def variant(name: Name, visit: Visitor) -> Response:
    """One of them."""
    found = visit.service.store.variant(name)
    if found is None:
        raise _absent(name)
    return Json(told(found))


@router.put(PLACE, responses=answers(VariantAnswer, 403, 404))
async def save(name: Name, form: VariantForm, visit: Visitor) -> Response:
    """Save a controller, in an older one's place. It is on the disk when this answers."""
    model = next(iter(visit.catalog)) if form.model is None else form.model
    scope = visit.catalog[model].scope
    controller = await asyncio.to_thread(controller_of, form.controller, scope, Controller())
    if not controller:
        raise BadField("controller", "The controller has no edit and no condition: there is nothing to save.")
    saved = await asyncio.to_thread(visit.service.store.save, name, model, controller, visit.owner)
    return Json(told(saved))


@router.delete(PLACE, responses=answers(DeletedAnswer, 403, 404))
async def delete(name: Name, visit: Visitor) -> Response:
    """Forget one."""
    if not await asyncio.to_thread(visit.service.store.delete, name, visit.owner):
        raise _absent(name)
    return Json({"id": name, "object": "variant.deleted", "deleted": True})


def told(variant: Variant) -> dict[str, Any]:
    """As JSON."""
    return {
        "name": variant.name,
        "model": f"{variant.model}:{variant.name}",
        "controller": to_json(variant.controller),
        "fingerprint": fingerprint(variant.controller),
        "says": str(variant.controller),
        "owner": variant.owner,
        "created": int(variant.saved),
    }


def _absent(name: str) -> NotThere:
    return NotThere(f"No variant '{name}'. GET {OPENAI}/variants lists those that are saved.")
