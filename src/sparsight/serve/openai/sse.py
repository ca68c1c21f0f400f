"""Server-sent events, one to an HTTP chunk: some clients take each chunk that arrives for one event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sparsight.errors import SparsightError
from sparsight.serve.logs import tell
from sparsight.serve.openai.rows import Rows
from sparsight.serve.refusals import Json, body_of, encoded, refusal_of
from sparsight.serve.visit import unless_gone, visit_of

DONE = b"data: [DONE]\n\n"
BREAKS = {end.encode(): f"\\u{ord(end):04x}".encode() for end in "\x85\u2028\u2029"}  # besides those that JSON escapes


class EventStream(Response):
    """An answer told as it is written. An error that ends it is its last event, in OpenAI's shape, and then there is no
    [DONE]. free: called at the end, however it comes: when all is told, when the caller leaves, when the time is up."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[dict[str, Any]], free: Callable[[], Awaitable[None]]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.events, self.free = events, free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await unless_gone(receive, self._tell(scope, send))
        finally:
            await self.free()

    async def _tell(self, scope: Scope, send: Send) -> None:
        try:
            async for event in self.events:
                await _send(send, event_of(event))
            await _send(send, DONE)
        except Exception as error:
            if not isinstance(error, SparsightError):
                tell("unforeseen", error=error, id=visit_of(scope).id)
            visit_of(scope).note(failed=str(error)[:200])
            await _send(send, event_of(body_of(refusal_of(error))))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Told(Protocol):
    """An answer in either manner."""

    def chunks(self) -> AsyncIterator[dict[str, Any]]: ...
    async def whole(self) -> dict[str, Any]: ...


async def answered(told: Told, rows: Rows, receive: Receive, streams: bool) -> Response:
    """Puts the rows into the queue, and tells their answer as it is written, or at its end; they are let go whatever
    happens. Raises what `submit` raises."""
    await rows.submit()
    if streams:
        return EventStream(told.chunks(), rows.close)
    try:
        return Json(await unless_gone(receive, told.whole()))
    finally:
        await rows.close()


async def _send(send: Send, event: bytes) -> None:
    await send({"type": "http.response.body", "body": event, "more_body": True})


def event_of(content: dict[str, Any]) -> bytes:
    """As an event. What is within it is spelled otherwise where there are clients that split at it: "data: ", and all
    that Unicode calls the end of a line."""
    text = encoded(content).replace(b"data: ", b"data:\\u0020")
    for end, spelled in BREAKS.items():
        text = text.replace(end, spelled)
    return b"data: " + text + b"\n\n"
