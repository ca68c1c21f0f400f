"""A stand-in engine: the protocol fulfilled by one thread and one scope.chat for each request. Slow, and plain."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from sparsight.errors import Busy, Stopped
from sparsight.lm.generate import check_room
from sparsight.scope.scope import Chunk, Scope
from sparsight.serve.engine import Active, Load, Request, Update


class Threads:
    """delay: seconds before each token. broken: raised by each request when it has written so many tokens."""

    def __init__(self, scope: Scope, rows: int = 4, queue: int = 4, delay: float = 0.0) -> None:
        self.scope, self.capacity, self.queue, self.delay = scope, rows, queue, delay
        self.room = threading.Semaphore(rows)
        self.streams: set[Stream] = set()
        self.asked: list[Request] = []
        self.written, self.started, self.stopped = 0, False, False
        self.closing: asyncio.Event | None = None
        self.broken: Callable[[int], None] = lambda index: None

    def start(self) -> None:
        self.started = True

    def submit(self, request: Request) -> AsyncGenerator[Update, None]:
        if self.stopped:
            raise Stopped("The server is stopping.")
        check_room(self.scope.lm, [request.prompt])
        self.scope.steering([request.controller], [request.prompt])
        if len(self.streams) >= self.capacity + self.queue:
            raise Busy(f"{self.queue} requests wait already; try again in 3 s.", 3.0)
        self.asked.append(request)
        stream = Stream(self, request)
        self.streams.add(stream)
        threading.Thread(target=stream.write, daemon=True).start()
        return stream

    async def run(self, work: Callable[[Scope], Any], long: bool = False) -> Any:
        return await asyncio.to_thread(work, self.scope)

    alive = True

    def load(self) -> Load:
        running = sum(stream.writing for stream in self.streams)
        return Load(running, self.capacity, len(self.streams) - running, self.queue, self.written, self.written)

    async def drain(self, seconds: float) -> bool:
        until = asyncio.get_running_loop().time() + seconds
        while self.streams and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)
        return not self.streams

    def stop(self) -> None:
        self.stopped = True
        for stream in list(self.streams):
            stream.end(Stopped("The server is stopping: the answer ended."))


class Stream(AsyncGenerator[Update, None]):
    """One request's updates; its thread ends within a token of aclose."""

    def __init__(self, engine: Threads, request: Request) -> None:
        self.engine, self.request, self.gone, self.writing = engine, request, threading.Event(), False
        self.loop = asyncio.get_running_loop()
        self.heard: asyncio.Queue[Update | Exception | None] = asyncio.Queue()

    async def __anext__(self) -> Update:
        if self.gone.is_set() and self.heard.empty():
            raise StopAsyncIteration
        update = await self.heard.get()
        if update is None:
            raise StopAsyncIteration
        if isinstance(update, Exception):
            raise update
        return update

    async def asend(self, value: None) -> Update:
        return await self.__anext__()

    async def athrow(self, *error: Any) -> Update:
        self.end(None)
        raise error[0]

    async def aclose(self) -> None:
        self.end(None)

    def end(self, last: Exception | None) -> None:
        self.gone.set()
        self.engine.streams.discard(self)
        self.tell(last)

    def tell(self, update: Update | Exception | None) -> None:
        self.loop.call_soon_threadsafe(self.heard.put_nowait, update)

    def write(self) -> None:
        """In a thread of its own."""
        last: Exception | None = None
        try:
            with self.engine.room:
                self.writing = True
                self._write()
        except RuntimeError as error:  # the loop was closed, or a test wants a failure
            last = error
        except Exception as error:
            last = error
        finally:
            self.writing = False
            self.engine.streams.discard(self)
            if not self.gone.is_set() and not self.loop.is_closed():
                self.tell(last)

    def _write(self) -> None:
        request, scope = self.request, self.engine.scope
        chunks = scope.chat(
            request.prompt,
            request.controller,
            stream=True,
            sampling=request.sampling,
            read=request.features is not None,
        )
        for chunk in chunks:
            if self.gone.wait(self.engine.delay) or self.gone.is_set():
                return
            self.engine.written += 1
            self.engine.broken(chunk.index)
            self.tell(self._update(chunk))

    def _update(self, chunk: Chunk) -> Update:
        """Logprobs are made up: an even distribution over the first few tokens."""
        even = -float(torch.log(torch.tensor(float(self.engine.scope.lm.vocabulary))))
        top = tuple((token, even) for token in range(60, 60 + (self.request.logprobs or 0)))
        wish = self.request.features
        features = () if wish is None else _wished(chunk.features, wish.top_k, wish.include)
        return Update(
            chunk.index,
            chunk.id,
            chunk.text,
            chunk.finish,
            None if self.request.logprobs is None else even,
            top,
            features,
            chunk.events,
            chunk.receipt,
            cached=3 if chunk.index == 0 else 0,
        )


def _wished(active: tuple[tuple[int, float], ...], top_k: int, include: tuple[int, ...]) -> tuple[Active, ...]:
    told = [*active[:top_k], *(pair for pair in active[top_k:] if pair[0] in include)]
    return tuple(Active(feature, value) for feature, value in told)


@contextmanager
def live(app: FastAPI) -> Iterator[str]:
    """The app behind a real socket, in a thread; its address."""
    sock = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        sock.close()
