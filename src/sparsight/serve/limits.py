"""What each caller may still use: requests and tokens a minute, and requests at once. In memory, of one process.

A budget fills steadily, a minute's worth in a minute, and holds no more than that. Tokens are known only when they are
written, so a request is let in while the budget of tokens is not used up, and may overdraw it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sparsight.errors import Busy
from sparsight.serve.store import Key

SOON = 1.0  # seconds after which one of several requests at once may have ended


class OverLimit(Busy):
    """A caller that asked for more than its key allows."""


@dataclass
class Budget:
    """A bucket that fills by `per_minute` a minute."""

    per_minute: int
    left: float
    at: float

    def fill(self, now: float) -> float:
        self.left = min(self.per_minute, self.left + (now - self.at) * self.per_minute / 60)
        self.at = now
        return self.left

    def until(self, needed: float) -> float:
        """Seconds until so much is there."""
        return max(0.0, (needed - self.left) * 60 / self.per_minute)


@dataclass
class Limits:
    """All callers'. now: a clock, in seconds."""

    now: Callable[[], float] = time.monotonic
    running: dict[str, int] = field(default_factory=dict)
    budgets: dict[tuple[str, str], Budget] = field(default_factory=dict)

    def enter(self, key: Key) -> None:
        """One more request. Raises OverLimit, which says what the limit is and when to try again."""
        if key.concurrent is not None and self.running.get(key.name, 0) >= key.concurrent:
            raise OverLimit(f"The key '{key.name}' has {key.concurrent} requests running, as many as it may.", SOON)
        requests = self._budget(key.name, "requests", key.requests_per_minute)
        tokens = self._budget(key.name, "tokens", key.tokens_per_minute)
        for what, budget, needed in (("requests", requests, 1.0), ("tokens", tokens, 1.0)):
            if budget is not None and budget.left < needed:
                wait = budget.until(needed)
                allowed = f"The key '{key.name}' may use {budget.per_minute:,} {what} a minute"
                raise OverLimit(f"{allowed}. Try again in {wait:.0f} s.", wait)
        if requests is not None:
            requests.left -= 1
        self.running[key.name] = self.running.get(key.name, 0) + 1

    def leave(self, key: Key) -> None:
        """A request has ended."""
        left = self.running.get(key.name, 0) - 1
        if left > 0:
            self.running[key.name] = left
        else:
            self.running.pop(key.name, None)

    def charge(self, key: Key, tokens: int) -> None:
        """Tokens that were read or written."""
        budget = self._budget(key.name, "tokens", key.tokens_per_minute)
        if budget is not None:
            budget.left -= tokens

    def _budget(self, name: str, what: str, per_minute: int | None) -> Budget | None:
        if per_minute is None:
            self.budgets.pop((name, what), None)
            return None
        now = self.now()
        budget = self.budgets.get((name, what))
        if budget is None or budget.per_minute != per_minute:
            budget = self.budgets[name, what] = Budget(per_minute, float(per_minute), now)
        budget.fill(now)
        return budget
