"""The app: routes, and the gate around them. Engines start before it is ready, and are let end when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sparsight import __version__
from sparsight.disk import first_line
from sparsight.errors import BadInput, SparsightError
from sparsight.serve import ember, health, native, neuronpedia
from sparsight.serve.catalog import Catalog
from sparsight.serve.gate import Gate
from sparsight.serve.logs import tell
from sparsight.serve.openai import chat, completions, models, variants
from sparsight.serve.openapi import true_openapi
from sparsight.serve.refusals import refused
from sparsight.serve.service import Service
from sparsight.serve.spec import ServeSpec
from sparsight.serve.store import Store
from sparsight.serve.visit import visit_of

# A room that answers more routes adds its router here, with full paths in it. Routes get `visit: Visitor`.
ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    models.router,
    chat.router,
    completions.router,
    variants.router,
    ember.router,
    native.router,
    neuronpedia.router,
)


def create_app(catalog: Catalog, settings: ServeSpec | None = None, store: Store | None = None) -> FastAPI:
    """The whole server as an ASGI app. store: of keys and variants; None keeps variants in memory, and has no keys."""
    service = Service(catalog, settings or ServeSpec(), store or Store(None))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await start(service)
        except Exception as error:
            service.failure = error
            raise
        try:
            yield
        finally:
            await stop(service)

    app = FastAPI(
        title="sparsight",
        version=__version__,
        summary="See and steer the features inside a language model.",
        lifespan=lifespan,
        default_response_class=Response,
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    handle: Callable[[Request, Any], Any] = _refuse
    for kind in (SparsightError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
    app.openapi = lambda: true_openapi(app)
    app.add_middleware(Gate, service=service)
    if service.settings.cors:
        allowed = list(service.settings.cors)
        app.add_middleware(CORSMiddleware, allow_origins=allowed, allow_methods=["*"], allow_headers=["*"])
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    cause = error.__cause__
    if isinstance(error, HTTPException) and isinstance(cause, RecursionError | ValueError):  # of reading the body
        error = BadInput(f"The body cannot be read as JSON: {first_line(cause)}.")
    return refused(request.url.path, error, visit_of(request.scope).id)


async def start(service: Service) -> None:
    """Start every engine, one after the other. Raises NotSteered where edits do not act on one: it must not serve."""
    for engine in service.catalog.each():
        await asyncio.to_thread(engine.start)
        tell("model ready", model=service.catalog.name_of(engine))
    service.ready = True


async def drain(service: Service) -> bool:
    """Take in nothing new, and let running answers end; True where all of them ended in time."""
    service.draining = True
    seconds = service.settings.drain_seconds
    tell("draining", seconds=seconds)
    ended = await asyncio.gather(*(engine.drain(seconds) for engine in service.catalog.each()))
    return all(ended)


async def stop(service: Service) -> None:
    """End everything, once."""
    if service.stopped:
        return
    service.stopped = True
    if not service.draining:
        await drain(service)
    service.ready = False
    for engine in service.catalog.each():
        await asyncio.to_thread(ember.known_of(engine.scope).close)
        await asyncio.to_thread(engine.stop)
    service.store.close()
    if service.writer is not None:
        service.writer.close()
    tell("stopped")
