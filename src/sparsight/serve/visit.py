"""One request as routes see it: what the server has, who calls, and what is said of it in the log.

@router.post("/something")
async def something(visit: Visitor) -> ...:
    served = visit.served(name)            which engine, and the variant's controller
    visit.charge(tokens)                   against the caller's budget
    await visit.run(engine, work)          a long use of the model, charged
    visit.note(model=name)                 into the request's line of the log
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.types import Receive
from starlette.types import Scope as AsgiScope

from sparsight.scope.scope import Scope
from sparsight.serve.beside import Meter
from sparsight.serve.catalog import Catalog
from sparsight.serve.engine import Engine
from sparsight.serve.service import Served, Service
from sparsight.serve.spec import ServeSpec
from sparsight.serve.store import Key

PLACE = "sparsight.visit"  # in the ASGI scope
T = TypeVar("T")


@dataclass
class Visit:
    """key: the caller's; None where none is needed, or none was shown yet. facts: for the log."""

    service: Service
    id: str
    key: Key | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def catalog(self) -> Catalog:
        return self.service.catalog

    @property
    def settings(self) -> ServeSpec:
        return self.service.settings

    @property
    def owner(self) -> str:
        """The caller's name; "" where no key is needed."""
        return "" if self.key is None else self.key.name

    def served(self, name: str) -> Served:
        """What a model name stands for. Raises NoModel."""
        served = self.service.served(name)
        self.note(model=name)
        return served

    def charge(self, tokens: int) -> None:
        """Take tokens off the caller's budget."""
        if self.key is not None:
            self.service.limits.charge(self.key, tokens)

    async def run(self, engine: Engine, work: Callable[[Scope], T]) -> T:
        """A long use of the model, beside its rows, whose tokens are taken off the caller's budget: also of what is
        given up half-way."""
        meter = Meter()
        try:
            return await engine.run(lambda scope: work(meter.on(scope)), long=True)
        finally:
            self.charge(meter.tokens)

    def note(self, **facts: Any) -> None:
        """Say more of this request in the log."""
        self.facts |= facts


class ClientGone(Exception):
    """The caller has left: nobody hears an answer."""


def visit(request: Request) -> Visit:
    """This request's Visit: a dependency of routes."""
    return request.scope[PLACE]


def visit_of(scope: AsgiScope) -> Visit:
    """The same, from an ASGI scope."""
    return scope[PLACE]


Visitor = Annotated[Visit, Depends(visit)]


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What work returns; it is cancelled, and ClientGone raised, when the caller leaves before that. The request's
    body must have been read."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
