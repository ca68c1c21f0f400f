"""What every request passes before a route sees it: it is named, timed and told of; its caller is known and within
limits; its body is not too large, and does not take for ever. Plain ASGI, so that streams flow through untouched.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsight.errors import BadInput, SparsightError
from sparsight.serve.logs import tell
from sparsight.serve.refusals import Draining, NoKey, TooLarge, TooSlow, body_of, encoded, refusal_of, refused
from sparsight.serve.service import Service
from sparsight.serve.visit import PLACE, ClientGone, Visit

GUARDED = ("/v1", "/api")  # where a key is needed, and limits hold
LAST_WORDS = 1.0  # seconds that a reader has to take the end of a stream that ran out of time
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # that metrics name: each is kept for ever
WEIGHED_QUIETLY = ("/healthz", "/readyz", "/metrics")  # no line in the log


class Gate:
    """Around the whole app."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        visit = Visit(self.service, f"req_{uuid.uuid4().hex}")
        scope[PLACE] = visit
        told, clock = _Told(send, visit.id), asyncio.timeout(self.service.settings.request_seconds)
        try:
            async with clock:
                await self._let_in(scope, receive, told, visit)
        except ClientGone:
            told.status = told.status or 499
        except SparsightError as error:
            await _refuse(scope, receive, told, error)
        except Exception as error:  # whatever it is, the server goes on
            if clock.expired():
                await self._out_of_time(scope, receive, told)
            else:
                tell("unforeseen", error=error, id=visit.id)
                await _refuse(scope, receive, told, error)
        finally:
            self._told(scope, visit, told.status, time.perf_counter() - began)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        """Check the caller, take in the body, hold a place among the key's requests, and pass on."""
        if not is_guarded(scope["path"]):
            await self.app(scope, receive, send)
            return
        if self.service.draining:
            raise Draining("This server is stopping, and takes in nothing new. Ask another one, or come again later.")
        headers = Headers(scope=scope)
        visit.key = key = await self._caller(headers)
        if scope["method"] in ("POST", "PUT", "PATCH") and not is_json(headers.get("content-type", "")):
            raise BadInput("Requests here are JSON, and say so: `content-type: application/json`.")
        receive = await _whole(scope, receive, self.service.settings.body_bytes, self.service.settings.body_seconds)
        if key is None:
            await self.app(scope, receive, send)
            return
        visit.note(key=key.name)
        self.service.limits.enter(key)
        try:
            await self.app(scope, receive, send)
        finally:
            self.service.limits.leave(key)

    async def _caller(self, headers: Headers) -> Any:
        """Whose key this is. Raises NoKey."""
        store = self.service.store
        if not self.service.needs_key:
            if self.service.strict and not is_here(headers.get("host", "")):
                todo = "call it as localhost, or make a key with `sparsight keys add`"
                raise NoKey(f"This server has no keys, and is for this machine alone: {todo}.")
            return None
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise NoKey("This server wants a key: `Authorization: Bearer KEY`. Whoever runs it makes one.")
        key = store.key_of(secret.strip())
        if key is None:
            raise NoKey("This key is not known here, or was revoked.")
        if key.is_unseen:
            await asyncio.to_thread(store.used, key)
        return key

    async def _out_of_time(self, scope: Scope, receive: Receive, told: _Told) -> None:
        """Say so: as an answer, or as a stream's last words."""
        limit = f"This request took longer than the {self.service.settings.request_seconds:g} s that one may take."
        error = TooSlow(f"{limit} Ask for fewer tokens, or come when less is asked here.")
        if not told.status:
            await _refuse(scope, receive, told, error)
        elif told.streams and not told.ended:
            last = b"data: " + encoded(body_of(refusal_of(error))) + b"\n\n"
            try:
                async with asyncio.timeout(LAST_WORDS):
                    await told({"type": "http.response.body", "body": last, "more_body": False})
            except (TimeoutError, OSError):
                return

    def _told(self, scope: Scope, visit: Visit, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        code, method = str(status or 500), scope["method"] if scope["method"] in METHODS else "other"
        self.service.metrics.requests.labels(method, route, code).observe(seconds)
        if scope["path"] not in WEIGHED_QUIETLY:
            about = {"id": visit.id, "method": scope["method"], "route": route, "path": scope["path"][:200]}
            tell("request", **about, status=int(code), seconds=round(seconds, 4), **visit.facts)


class _Told:
    """send, that remembers what was told, and gives each answer the request's id."""

    def __init__(self, send: Send, id: str) -> None:
        self.send, self.id, self.status, self.streams, self.ended = send, id, 0, False, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
            self.streams = any(name == b"content-type" and b"event-stream" in value for name, value in headers)
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True
        await self.send(message)


async def _whole(scope: Scope, receive: Receive, most: int, seconds: float) -> Receive:
    """Take in the body, and give a receive that tells it at once. Raises TooLarge, TooSlow, ClientGone."""
    large = TooLarge(f"The body is larger than {most:,} bytes, the most that this server reads.")
    length = Headers(scope=scope).get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > most:
        raise large
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > most:
                    raise large
    except TimeoutError:
        raise TooSlow(f"The body did not arrive within {seconds:g} s.", 408) from None
    body: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

    async def told() -> Message:
        return body.pop() if body else await receive()

    return told


async def _refuse(scope: Scope, receive: Receive, told: _Told, error: Exception) -> None:
    """The answer to what cannot be done, where nothing was answered yet."""
    if not told.status:
        await refused(scope["path"], error, told.id)(scope, receive, told)


def is_guarded(path: str) -> bool:
    """Whether a path is one of the API's."""
    return any(path == prefix or path.startswith(prefix + "/") for prefix in GUARDED)


def is_here(host: str) -> bool:
    """Whether a Host header names an address, or localhost: not a name that somebody could have led here."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    try:
        return bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return name.lower() == "localhost" or name.lower().endswith(".localhost")


def is_json(content_type: str) -> bool:
    """Whether a body is said to be JSON. A page of another origin cannot say so without asking first."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
