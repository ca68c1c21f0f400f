"""The process: it listens, and on SIGTERM lets what is running end before it goes. A second signal ends it at once."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from sparsight.disk import first_line
from sparsight.errors import BadInput, SparsightError
from sparsight.serve.app import drain, stop
from sparsight.serve.ember import known_of
from sparsight.serve.logs import tell
from sparsight.serve.service import Service
from sparsight.serve.spec import ServeSpec
from sparsight.serve.store import Store

BACKLOG = 2048
LAST = 3  # seconds that connections get to close, when all answers have ended


def serve(app: FastAPI) -> None:
    """Listen until a signal ends it. Raises BadInput where it may not or cannot listen there, and whatever kept an
    engine from starting."""
    service: Service = app.state.service
    check_open(service.settings, service.store)
    service.strict = True
    sock = listening(service)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=LAST,
        timeout_keep_alive=75,
    )
    server = Server(config, service)
    with sock:
        server.run([sock])
    if service.failure is not None:
        raise service.failure
    if not server.started:
        raise SparsightError("The server did not start; its log says why.")


def check_open(settings: ServeSpec, store: Store) -> None:
    """Raises BadInput for a server that anybody could call."""
    if not settings.is_local and not store.has_keys():
        where = "" if settings.keys is None else f" --keys {settings.keys}"
        todo = f"make one with `sparsight keys add NAME{where}`, or listen at 127.0.0.1"
        raise BadInput(f"Listening at {settings.host} without any key lets everybody in who can reach it: {todo}.")


def listening(service: Service) -> socket.socket:
    """The socket, bound. Raises BadInput."""
    host, port = service.settings.host, service.settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise BadInput(
            f"Cannot listen at {host}, port {port}: {first_line(error)}. Give another --port, or --host."
        ) from error


class Server(uvicorn.Server):
    """uvicorn's, that stays open while it drains, so that /readyz can say so."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.loop: asyncio.AbstractEventLoop | None = None
        self.ending: asyncio.Task[None] | None = None
        self.told = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self.loop = asyncio.get_running_loop()
            host, port = sockets[0].getsockname()[:2]
            for engine in self.service.catalog.each():
                known_of(engine.scope).read_labels()  # so that no search need wait for it
            tell("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal itself, between any two instructions."""
        if self.loop is None or self.told:
            super().handle_exit(sig, frame)
            return
        self.told = True
        self.loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.ending = asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        ended = await drain(self.service)
        if not ended:
            tell("answers cut off", after=self.service.settings.drain_seconds)
        await stop(self.service)
        self.should_exit = True
