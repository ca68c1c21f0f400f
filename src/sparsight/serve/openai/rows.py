"""The rows of one HTTP request while they are written: told in the order in which they come, counted, and let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsight.errors import BadInput, NotSteered
from sparsight.records import Receipt
from sparsight.serve.engine import Request, Update
from sparsight.serve.service import Served
from sparsight.serve.visit import Visit

AHEAD = 4  # updates that are taken from the engine before they are told


@dataclass
class Rows:
    """Submitted at once, all or none. Raises what the engine raises: Busy, BadInput, TooLong.

    n: rows of each prompt, which follow each other: a prompt counts once.
    """

    visit: Visit
    served: Served
    requests: Sequence[Request]
    n: int = 1
    written: int = 0
    cached: int = 0
    receipts: list[Receipt] = field(default_factory=list)
    streams: list[AsyncGenerator[Update, None]] = field(default_factory=list)

    async def submit(self) -> None:
        """Put them all into the engine's queue."""
        load, many = self.served.engine.load(), len(self.requests)
        if many > load.capacity + load.queue:
            there = f"this server has room for {load.capacity + load.queue:,}, even when nobody else asks"
            raise BadInput(f"This request asks for {many:,} answers at once; {there}. Ask for fewer at a time.")
        try:
            self.streams += (self.served.engine.submit(request) for request in self.requests)
        except BaseException:
            await self.close()
            raise
        self.visit.charge(self.prompt_tokens)
        self._counted("read").inc(self.prompt_tokens)
        self.visit.note(prompt_tokens=self.prompt_tokens, rows=len(self.requests))

    async def updates(self) -> AsyncIterator[tuple[int, Update]]:
        """(row, update), until all rows have ended. Raises NotSteered where a row's edits have no receipt."""
        began = time.perf_counter()
        between, told = self._counted("between"), self._counted("told")
        heard: dict[int, float] = {}
        async for row, update in _merged(self.streams):
            now = time.perf_counter()
            if row in heard:
                between.observe(now - heard[row])
            else:
                self._counted("first").observe(now - began)
                self._count_cached(row, update.cached)
                self.visit.facts.setdefault("first_token_seconds", round(now - began, 4))
            heard[row] = now
            told.inc()
            self._count(row, update)
            yield row, update

    def _count_cached(self, row: int, cached: int) -> None:
        if row % self.n == 0:
            self.cached += cached
            self._counted("cached").inc(cached)

    def _count(self, row: int, update: Update) -> None:
        self.written += 1
        if self.visit.settings.log_prompts:
            said = self.visit.facts.setdefault("answers", [""] * len(self.requests))
            said[row] += update.text
        self.visit.charge(1)
        self.visit.note(completion_tokens=self.written)
        if update.finish is not None and self.requests[row].controller:
            if update.receipt is None:
                raise NotSteered("The answer has no receipt of its edits, so nothing proves that they acted.")
            self.receipts.append(update.receipt)
            self._counted("steered").inc()
            self.visit.note(controller=update.receipt.controller)

    async def close(self) -> None:
        """Free the rows that are still written."""
        for stream in self.streams:
            await stream.aclose()

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests[:: self.n])

    @property
    def usage(self) -> dict[str, Any]:
        """In OpenAI's words."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.written,
            "total_tokens": self.prompt_tokens + self.written,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }

    @property
    def receipt(self) -> dict[str, Any] | None:
        """Of all rows together, once they have ended; None where nothing was steered."""
        if not self.receipts:
            return None
        first, touched = self.receipts[0], sum(one.touched for one in self.receipts)
        return {
            "controller": first.controller,
            "hook_point": first.hook_point,
            "touched": touched,
            "seen": sum(one.seen for one in self.receipts),
            "change": sum(one.change * one.touched for one in self.receipts) / touched if touched else 0.0,
        }

    def _counted(self, what: str) -> Any:
        """One of the metrics, of this model. To find it takes as long as to count."""
        return getattr(self.visit.service.metrics, what).labels(self.visit.catalog.name_of(self.served.engine))


async def _merged(streams: Sequence[AsyncGenerator[Update, None]]) -> AsyncIterator[tuple[int, Update]]:
    """Several streams as one, each update when it comes. Raises what the first broken stream raises."""
    if len(streams) == 1:
        async for update in streams[0]:
            yield 0, update
        return
    heard: asyncio.Queue[tuple[int, Update | BaseException | None]] = asyncio.Queue(AHEAD)

    async def listen(row: int) -> None:
        try:
            async for update in streams[row]:
                await heard.put((row, update))
            await heard.put((row, None))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            await heard.put((row, error))

    listeners = [asyncio.create_task(listen(row)) for row in range(len(streams))]
    try:
        going = len(streams)
        while going:
            row, update = await heard.get()
            if isinstance(update, BaseException):
                raise update
            if update is None:
                going -= 1
            else:
                yield row, update
    finally:
        for task in listeners:
            task.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
