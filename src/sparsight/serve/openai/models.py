"""GET /v1/models: the names that may be asked for, those of saved variants too."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from sparsight.serve.openai.answers import ModelAnswer, ModelsAnswer, answers
from sparsight.serve.refusals import OPENAI, Json
from sparsight.serve.service import Service
from sparsight.serve.visit import Visitor

router = APIRouter(tags=["models"])
BEGAN = int(time.time())


@router.get(f"{OPENAI}/models", responses=answers(ModelsAnswer))
async def models(visit: Visitor) -> Response:
    """Every name that may be asked for."""
    return Json({"object": "list", "data": entries(visit.service)})


@router.get(OPENAI + "/models/{model:path}", responses=answers(ModelAnswer, 404))
async def model(model: str, visit: Visitor) -> Response:
    """One of them."""
    visit.served(model)
    found = next((entry for entry in entries(visit.service) if entry["id"] == model), None)
    return Json(found or entry(model, BEGAN, "sparsight"))  # a variant under another of its model's names


def entries(service: Service) -> list[dict[str, Any]]:
    """Models in the order in which they are served, then variants by name."""
    named = [entry(name, BEGAN, "sparsight") for name in service.catalog]
    saved = [variant for variant in service.store.variants() if variant.model in service.catalog.engines]
    return named + [entry(f"{one.model}:{one.name}", int(one.saved), one.owner or "anyone") for one in saved]


def entry(name: str, created: int, owner: str) -> dict[str, Any]:
    """As OpenAI lists a model."""
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
