"""From the engine's thread to whoever listens: updates of one request, as an async generator.

The engine keeps the Mailbox, the listener the Listening: so a listener that is forgotten without a word is noticed too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from typing import Any

from sparsight.serve.engine import Update


class Mailbox:
    """Where the engine puts updates of one request, from its own thread."""

    def __init__(self) -> None:
        self.items: deque[Update | BaseException | None] = deque()  # None: that was all
        self.loop: asyncio.AbstractEventLoop | None = None
        self.waiting: asyncio.Future[None] | None = None

    def put(self, item: Update | BaseException | None) -> None:
        """One more; `ring` tells the listeners."""
        self.items.append(item)

    def wake(self) -> None:
        """In the listener's own thread: goes on with what is there."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)


def ring(mailboxes: Iterable[Mailbox]) -> None:
    """Tells the listeners that there is something: one call for each event loop, however many listen there."""
    of: dict[asyncio.AbstractEventLoop, list[Mailbox]] = {}
    for mailbox in mailboxes:
        if mailbox.loop is not None:
            of.setdefault(mailbox.loop, []).append(mailbox)
    for loop, those in of.items():
        with suppress(RuntimeError):  # the loop is closed: nobody listens there any more
            loop.call_soon_threadsafe(_wake, those)


def _wake(mailboxes: list[Mailbox]) -> None:
    for mailbox in mailboxes:
        mailbox.wake()


class Listening(AsyncGenerator[Update, None]):
    """One request's updates as they come. Raises whatever ended it early; leaving it, closing it, being cancelled
    while it waits, or forgetting it ends the request.

    on_leave, on_forgotten: called once, where that happens before the end."""

    def __init__(self, mailbox: Mailbox, on_leave: Callable[[], None], on_forgotten: Callable[[], None]):
        self.mailbox, self._on_leave, self._on_forgotten, self._over = mailbox, on_leave, on_forgotten, False
        with suppress(RuntimeError):
            mailbox.loop = asyncio.get_running_loop()

    async def asend(self, value: None = None) -> Update:
        """The next update."""
        mailbox = self.mailbox
        mailbox.loop = asyncio.get_running_loop()  # before it is looked whether something is there
        while not self._over and not mailbox.items:
            if mailbox.waiting is not None and not mailbox.waiting.done():
                raise RuntimeError("Two tasks listen to the same request.")
            mailbox.waiting = mailbox.loop.create_future()
            try:
                await mailbox.waiting
            except asyncio.CancelledError:
                self._leave()
                raise
        if self._over:
            raise StopAsyncIteration
        item = mailbox.items.popleft()
        if isinstance(item, Update):
            return item
        self._over = True
        if item is None:
            raise StopAsyncIteration
        raise item

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None) -> Update:
        """Ends the request, and raises what was thrown in."""
        self._leave()
        error = typ if isinstance(typ, BaseException) else val if isinstance(val, BaseException) else typ()
        raise error if tb is None else error.with_traceback(tb)

    async def aclose(self) -> None:
        """Ends the request, if it has not ended."""
        self._leave()
        self.mailbox.wake()

    def _leave(self) -> None:
        if not self._over:
            self._over = True
            self._on_leave()

    def __del__(self) -> None:
        if not self._over:
            self._on_forgotten()  # from anywhere: nothing may be locked for it
