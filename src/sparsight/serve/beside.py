"""Long uses of the model, each in a thread of its own: pass by pass beside the rows, since a model takes its passes one
at a time. One that nobody waits for any more ends before its next pass, and none keeps a process from ending.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from sparsight.errors import Stopped
from sparsight.lm.batch import Batch
from sparsight.scope.scope import Scope

T = TypeVar("T")
PATIENCE = 5.0  # seconds that a pass is waited for


class Beside:
    """Up to `most` at once. scope: whose model they use."""

    def __init__(self, scope: Scope, most: int) -> None:
        self.scope, self.most = scope, most
        self._going: dict[_Leaving[Any], threading.Thread] = {}
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self._going)

    def begin(self, work: Callable[[Scope], T]) -> Future[T] | None:
        """Its result, which raises what it raises; None where so many are under way. `cancel` of it ends it."""
        future: _Leaving[T] = _Leaving()
        thread = threading.Thread(target=self._run, args=(work, future), name="sparsight-beside", daemon=True)
        with self._turn:
            if len(self._going) >= self.most:
                return None
            self._going[future] = thread
            thread.start()
        return future

    def end(self) -> None:
        """All of them, each before its next pass; a pass is waited for, but not for ever."""
        with self._turn:
            going = dict(self._going)
        for future in going:
            future.gone.set()
        for thread in going.values():
            thread.join(PATIENCE)

    def _run(self, work: Callable[[Scope], Any], future: _Leaving[Any]) -> None:
        try:
            result, error = work(leaving(self.scope, future.gone)), None
        except BaseException as fault:  # told to whoever waits
            result, error = None, fault
        with self._turn:
            del self._going[future]
        if not future.set_running_or_notify_cancel():
            return
        future.set_result(result) if error is None else future.set_exception(error)


class _Leaving(Future[T]):
    """A future that tells its work when it is cancelled. gone: set where nobody waits any more."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = threading.Event()

    def cancel(self) -> bool:
        self.gone.set()
        return super().cancel()


class _Turn(AbstractContextManager[None]):
    """A model's turn, that is not given any more once `gone` is set."""

    def __init__(self, turn: AbstractContextManager[Any], gone: threading.Event) -> None:
        self.turn, self.gone = turn, gone

    def __enter__(self) -> None:
        if self.gone.is_set():
            raise Stopped("Nobody waits for this use of the model any more, or the server is stopping.")
        self.turn.__enter__()

    def __exit__(self, *why: Any) -> None:
        self.turn.__exit__(*why)


class Meter:
    """Counts the tokens that a scope's passes run."""

    def __init__(self) -> None:
        self.tokens = 0

    def on(self, scope: Scope) -> Scope:
        """The same scope, counted."""
        mine = _with_its_own_model(scope)
        run = mine.lm.run

        def counted(batch: Batch, *given: Any, **more: Any) -> Any:
            self.tokens += int(batch.mask[:, -batch.ids.shape[1] :].sum())  # before: who leaves now, has begun it
            return run(batch, *given, **more)

        mine.lm.run = counted  # type: ignore[method-assign]
        return mine


def leaving(scope: Scope, gone: threading.Event) -> Scope:
    """The same scope, whose passes raise Stopped once `gone` is set."""
    mine = _with_its_own_model(scope)
    mine.lm.turn = _Turn(scope.lm.turn, gone)
    return mine


def _with_its_own_model(scope: Scope) -> Scope:
    """The same scope, around another object for the same model, so that what is set on it is set here alone."""
    mine = copy.copy(scope)
    mine.lm = copy.copy(scope.lm)
    return mine
