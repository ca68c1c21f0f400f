"""The queue of requests: bounded, owner by owner in turns, and within an owner first come, first served.

So somebody who sends a thousand requests delays his own, and everybody else's by one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

from sparsight.errors import Busy

T = TypeVar("T")
REMEMBERED = 64  # places that became free lately, from which it is told how long one takes
LEAST, MOST = 0.5, 60.0  # seconds that somebody is asked to wait


class Waiting(Generic[T]):
    """Up to `limit` things, taken in turns by owner. Not thread-safe: its owner locks."""

    def __init__(self, limit: int, now: Callable[[], float] = monotonic):
        self.limit, self.now = limit, now
        self._of: OrderedDict[str, deque[T]] = OrderedDict()  # whose turn is next comes first
        self._taken: deque[float] = deque(maxlen=REMEMBERED)

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def put(self, owner: str, thing: T, free: int = 0) -> None:
        """At the end of its owner's line. free: so many are about to be taken, and will not wait. Raises Busy where the
        queue is full."""
        if len(self) >= self.limit + free:
            wait = self.retry_after()
            raise Busy(f"{self.limit:,} requests wait already: try again in {wait:.0f} s or more.", wait)
        self._of.setdefault(owner, deque()).append(thing)

    def take(self) -> T | None:
        """The next one; its owner's turn then comes after everybody else's. None where nothing waits."""
        if not self._of:
            return None
        owner, line = next(iter(self._of.items()))
        thing = line.popleft()
        if line:
            self._of.move_to_end(owner)
        else:
            del self._of[owner]
        self._taken.append(self.now())
        return thing

    def drop(self, thing: T) -> None:
        """Takes out one whose owner no longer waits, if it is there."""
        self.drop_those(lambda one: one is thing)

    def drop_those(self, which: Callable[[T], bool]) -> None:
        """Takes out those of which it is true."""
        kept = {owner: deque(thing for thing in line if not which(thing)) for owner, line in self._of.items()}
        self._of = OrderedDict((owner, line) for owner, line in kept.items() if line)

    def everything(self) -> list[T]:
        """Takes out all of them."""
        things = [thing for line in self._of.values() for thing in line]
        self._of.clear()
        return things

    def retry_after(self) -> float:
        """Seconds after which a place is likely free: how long one took lately."""
        if not self._taken:
            return LEAST * 2
        each = (self.now() - self._taken[0]) / len(self._taken)
        return min(max(each, LEAST), MOST)
