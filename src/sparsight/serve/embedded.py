"""The embedded engine: one thread in which a model writes for many requests at once.

    between two steps    cancelled rows leave; something else that needs the model runs; a chunk of a waiting prompt
    a step               one token for every row that is written

A request waits in the queue, is read chunk by chunk (prompting.py), joins the rows (rows.py), and leaves when it ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

from sparsight.errors import BadInput, Busy, Stopped, TooLong
from sparsight.lm.generate import check_room, check_sampling
from sparsight.scope.layout import prepared
from sparsight.scope.scope import Scope
from sparsight.scope.table import checked
from sparsight.serve.beside import Beside
from sparsight.serve.engine import Load, Request, Update
from sparsight.serve.listening import Listening, Mailbox, ring
from sparsight.serve.prefix import Prefixes
from sparsight.serve.prompting import Prompting, run_together
from sparsight.serve.proof import prove
from sparsight.serve.row import Row
from sparsight.serve.rows import Rows
from sparsight.serve.waiting import Waiting

T = TypeVar("T")
JOBS = 64  # that may wait at once
LONG = 4  # that may be under way at once
PREFIX_BYTES = 256 * 2**20
MOST_LOGPROBS = 100


class EmbeddedEngine:
    """An Engine (see engine.py) around a Scope.

    rows: requests that are written at once. queue: those that may wait. chunk: prompt tokens that are read between two
    steps, at most. longest: tokens that a row holds, prompt and answer together; None takes the model's context.
    compiled: steps as compiled graphs, for 1, 2, 4, ... rows, or for the numbers given. prefix_bytes: memory for the
    beginnings of prompts; 0 for none.
    """

    def __init__(
        self,
        scope: Scope,
        rows: int = 32,
        queue: int = 256,
        chunk: int = 256,
        compiled: bool | Sequence[int] = False,
        prefix_bytes: int = PREFIX_BYTES,
        longest: int | None = None,
    ):
        for name, value in (("rows", rows), ("queue", queue), ("chunk", chunk)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadInput(f"{name} is a whole number from 1 up, not {value!r}.")
        context = scope.lm.context
        if longest is None and context is None:
            raise BadInput("This model's configuration does not say how many tokens it can read: give `longest=`.")
        self.longest = min(n for n in (longest, context) if n is not None)
        self._scope, self.limit, self.chunk = scope, rows, chunk
        self.compiled = _sizes(compiled, rows)
        self.prefixes = Prefixes(prefix_bytes) if prefix_bytes else None
        self.rows = Rows(scope, rows, self.longest, self.compiled)
        self.waiting: Waiting[Row] = Waiting(queue)
        self.reading: tuple[Row, Prompting] | None = None  # chunk by chunk, or next
        self.together: list[tuple[Row, Prompting]] = []  # in one pass
        self.jobs: deque[tuple[Future[Any], Callable[[Scope], Any]]] = deque()
        self.beside = Beside(scope, LONG)
        self._told: dict[int, Mailbox] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._draining = self._stopping = False
        self._idle = True  # whether the loop waits for something to do
        self._steps = 0

    @property
    def scope(self) -> Scope:
        """The model and its SAE, as data."""
        return self._scope

    # ── from outside, from any thread ────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Makes ready in its own thread, compiles, and proves that an edit acts. Raises NotSteered where it does not,
        BadInput for a model whose rows cannot be written side by side."""
        if self._thread is not None:
            return
        self._draining = self._stopping = False
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="sparsight-engine", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self._thread.join()
            self._thread = None
            raise

    def submit(self, request: Request) -> AsyncGenerator[Update, None]:
        """Puts a request into the queue (see Engine.submit)."""
        row = self._row(request)
        with self._changed:
            self._check_open()
            if len(self.waiting) >= self.waiting.limit:
                self.waiting.drop_those(lambda one: one.cancelled)
            self.waiting.put(request.owner, row, max(0, self.limit - self._taken()))
            self._changed.notify()
        return Listening(row.mailbox, lambda: self._cancel(row), row.cancel)

    async def run(self, work: Callable[[Scope], T], long: bool = False) -> T:
        """Something else that needs the model: between two steps, in the engine's thread; long: beside them."""
        if long:
            return await self._run_beside(work)
        future: Future[T] = Future()
        with self._changed:
            self._check_open()
            if len(self.jobs) >= JOBS:
                raise Busy(f"{JOBS} other uses of the model wait already: try again later.", self.waiting.retry_after())
            self.jobs.append((future, work))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    async def _run_beside(self, work: Callable[[Scope], T]) -> T:
        with self._changed:
            self._check_open()
            future = self.beside.begin(work)
        if future is None:
            raise Busy(f"{LONG} long uses of the model are under way: try again later.", self.waiting.retry_after())
        return await asyncio.wrap_future(future)

    @property
    def alive(self) -> bool:
        """Whether it has started, and goes on."""
        return self._thread is not None and self._thread.is_alive()

    def load(self) -> Load:
        """How busy it is."""
        with self._changed:
            waiting = len(self.waiting)
            return Load(self._taken(), self.limit, waiting, self.waiting.limit, self.rows.written, self._steps)

    def _taken(self) -> int:
        """Rows that are written, or whose prompts are read."""
        return len(self.rows) + len(self.together) + (self.reading is not None)

    async def drain(self, seconds: float) -> bool:
        """Takes nothing new, and waits until nothing is written any more; False where that takes longer."""
        with self._changed:
            self._draining = True
        until = monotonic() + seconds
        while self._busy():
            if monotonic() >= until:
                return False
            await asyncio.sleep(0.01)
        return True

    def stop(self) -> None:
        """Ends everything, within one step; who still listens hears Stopped."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self.beside.end()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _row(self, request: Request) -> Row:
        """The request, checked."""
        scope, prompt = self._scope, request.prompt
        if not len(prompt):
            raise BadInput("The prompt is empty: there is nothing to read or to go on from.")
        if len(prompt.ids) != len(prompt.kinds):
            raise BadInput(f"A prompt of {len(prompt.ids)} tokens says of {len(prompt.kinds)} what they are.")
        if not 0 <= min(prompt.ids) <= max(prompt.ids) < scope.lm.vocabulary:
            raise BadInput(f"A token id lies outside this model's vocabulary (0 to {scope.lm.vocabulary - 1}).")
        check_room(scope.lm, [prompt])
        if len(prompt) >= self.longest:
            raise TooLong(f"The prompt has {len(prompt):,} tokens; a row holds {self.longest:,}, with the answer.")
        check_sampling(scope.lm, request.sampling)
        if request.features is not None:
            scope.sae.checked_indices(list(request.features.include))
        if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
            raise BadInput(f"logprobs is a number from 0 to {MOST_LOGPROBS}, not {request.logprobs}.")
        program = checked(prepared(scope.sae, request.controller, len(prompt)))
        return Row(scope, request, program, Mailbox(), self.longest)

    def _check_open(self) -> None:
        if self._thread is None or self._stopping or self._draining:
            raise Stopped("This engine takes no requests: it has not started, or it is about to stop.")

    def _cancel(self, row: Row) -> None:
        """Nobody listens any more: the row leaves before the next step."""
        row.cancel()
        with self._changed:
            self.waiting.drop(row)

    def _busy(self) -> bool:
        with self._changed:
            return not self._idle or bool(len(self.waiting) or self.jobs or len(self.beside))

    # ── the loop, in its own thread ──────────────────────────────────────────────────────────────────────────────

    def _run(self, ready: Future[None]) -> None:
        try:
            prove(self._scope, self.rows)
        except BaseException as error:  # whoever started it hears of it
            ready.set_exception(error)
            return
        ready.set_result(None)
        error: BaseException = Stopped("The server stopped before the answer was written.")
        try:
            while self._has_work():
                self._job()
                self._read_prompts()
                self._write()
                self._ring()
        except BaseException as fault:  # nobody must wait for an engine that is gone
            error = fault
        self._end_all(error)

    def _has_work(self) -> bool:
        """Waits for something to do; False where it is to stop."""
        with self._changed:
            while not (self._stopping or self.rows.rows or self.reading or len(self.waiting) or self.jobs):
                self._idle = True
                self._changed.wait()
            self._idle = False
            return not self._stopping

    def _job(self) -> None:
        """One of the other uses of the model."""
        if not self.jobs:
            return
        future, work = self.jobs.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work(self._scope))
        except Exception as error:
            future.set_exception(error)

    def _read_prompts(self) -> None:
        """Up to `chunk` tokens of waiting prompts; those that are read join the rows."""
        tokens = self.chunk
        while tokens > 0 and self._next():
            self._gather(tokens)
            try:
                if self.together:
                    promptings = [prompting for _, prompting in self.together]
                    tokens -= len(promptings) * max(prompting.left for prompting in promptings)
                    run_together(promptings)
                elif self.reading is not None:
                    before = self.reading[1].done
                    self.reading[1].step(tokens)
                    tokens -= self.reading[1].done - before
                    if not self.reading[1].left:
                        self.together, self.reading = [self.reading], None
            except Exception as error:  # of these requests alone
                failed = self.together or ([self.reading] if self.reading else [])
                self._fail([row for row, _ in failed], error)
                self.reading = self.reading if self.together else None
                self.together = []
            self._join()

    def _gather(self, tokens: int) -> None:
        """Whole prompts that can be read together in a pass of so many tokens, padding and all."""
        longest = 0
        while self._next():
            assert self.reading is not None
            prompting = self.reading[1]
            longest = max(longest, prompting.left)
            alone = prompting.done or prompting.steering.needs_entropy  # it goes on from its own KV, or has a twin
            if alone or (len(self.together) + 1) * longest > tokens:
                return
            self.together.append(self.reading)
            self.reading = None

    def _join(self) -> None:
        """What has been read joins the rows."""
        while self.together:
            row, prompting = self.together[0]
            try:
                if not row.cancelled:
                    self.rows.join(row, prompting)
            except Exception as error:
                self._fail([row], error)
            self._said(row)
            self.together.pop(0)

    def _next(self) -> bool:
        """Whether a prompt is being read: a new one, where there is a row for it."""
        while True:
            if self.reading is not None and not self.reading[0].cancelled:
                return True
            self.reading = None
            with self._changed:
                row = self.waiting.take() if len(self.rows) + len(self.together) < self.limit else None
            if row is None:
                return False
            if row.cancelled:
                continue
            try:
                request = row.request
                self.reading = row, Prompting(self._scope, request.prompt, request.controller, self.prefixes)
            except Exception as error:
                self._fail([row], error)

    def _write(self) -> None:
        """One step."""
        self.rows.drop()
        rows = list(self.rows.rows)
        if not rows:
            return
        try:
            self.rows.step()
            self._steps += 1
        except Exception as error:  # of all that were written; the next ones may fare better
            self._fail(rows, error)
            self.rows.drop()
        self._said(*rows)

    def _said(self, *rows: Row) -> None:
        """These rows may have been told something."""
        for row in rows:
            self._told[id(row)] = row.mailbox

    def _fail(self, rows: Sequence[Row], error: BaseException) -> None:
        for row in rows:
            if not row.over:
                row.fail(error)
        self._said(*rows)

    def _ring(self) -> None:
        ring(self._told.values())
        self._told.clear()

    def _end_all(self, error: BaseException) -> None:
        with self._changed:
            self._stopping = True
            waiting, jobs, self.jobs = self.waiting.everything(), list(self.jobs), deque()
        reading = [row for row, _ in [*self.together, *([self.reading] if self.reading else [])]]
        self.together, self.reading = [], None
        self._fail([*self.rows.rows, *waiting, *reading], error)
        for future, _ in jobs:
            with suppress(Exception):
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
        self._ring()
        self._idle = True
        self.rows.drop()


def _sizes(compiled: bool | Sequence[int], rows: int) -> list[int]:
    """Numbers of rows that steps are compiled for."""
    if compiled is False:
        return []
    if compiled is True:
        return [*(1 << i for i in range((rows - 1).bit_length())), rows]
    sizes = sorted(set(compiled))
    if not sizes or not 1 <= sizes[0] <= sizes[-1] <= rows:
        raise BadInput(f"Steps are compiled for numbers of rows from 1 to {rows}, not for {list(compiled)}.")
    return sizes
