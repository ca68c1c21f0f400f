"""What an export or an import did, in numbers and in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sparsight.records import Progress

T = TypeVar("T")
Tell = Callable[[Progress], None]
EVERY = 0.2  # seconds between two words of progress


@dataclass(frozen=True)
class Moved:
    """place: what was written. counts: how much of what, {"labels": 12}. notes: what a reader should know of it."""

    place: str | Path
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = ", ".join(f"{number:,} {what}" for what, number in self.counts.items())
        return f"{self.place}: {said}" if said else str(self.place)


def told(items: Iterable[T], stage: str, total: int | None, unit: str, tell: Tell | None) -> Iterator[T]:
    """The items, and a word of progress now and then; the last of all is said too."""
    if tell is None:
        yield from items
        return
    began = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            tell(Progress(stage, done, total, unit, now - began))
    tell(Progress(stage, done, total, unit, time.monotonic() - began))
