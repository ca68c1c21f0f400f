"""GET /healthz, /readyz, /metrics: for whoever runs the server. They need no key."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from sparsight.serve.engine import facts
from sparsight.serve.refusals import Json
from sparsight.serve.visit import Visitor

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    """status: ok, starting, draining. models: how busy each is."""

    status: str
    models: dict[str, dict[str, int]]


@router.get("/healthz", response_model=None, responses={200: {"model": Health}})
async def healthz(visit: Visitor) -> Response:
    """Whether the process is alive; and how busy its models are."""
    service = visit.service
    status = "draining" if service.draining else "ok" if service.ready else "starting"
    loads = {service.catalog.name_of(engine): facts(engine.load()) for engine in service.catalog.each()}
    return Json({"status": status, "models": loads})


@router.get("/readyz", response_model=None, responses={200: {"model": Health}, 503: {"model": Health}})
async def readyz(visit: Visitor) -> Response:
    """Whether requests should be sent here: 503 before engines have started, where one has died, and while the server
    is stopping."""
    answer = await healthz(visit)
    alive = all(engine.alive for engine in visit.catalog.each())
    if not visit.service.ready or visit.service.draining or not alive:
        answer.status_code = 503
    return answer


@router.get("/metrics", response_model=None, response_class=Response)
async def metrics(visit: Visitor) -> Response:
    """In Prometheus' text format."""
    page = visit.service.metrics.page()
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")
