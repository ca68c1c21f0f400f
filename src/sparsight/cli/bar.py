"""How far a long stage is, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sparsight.screen import console, note

PAUSE = 30.0  # seconds between two lines where there is no terminal


class Bar:
    """Hears of progress while it is open: call it with a records.Progress, or show() with its parts."""

    def __init__(self) -> None:
        screen = console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
        )
        self.live = Progress(*columns, console=screen, transient=True) if screen.is_terminal else None
        self.tasks: dict[str, Any] = {}
        self.told: dict[str, float] = {}

    def __enter__(self) -> Bar:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, progress: Any) -> None:
        self.show(progress.stage, progress.done, progress.total, progress.unit, progress.facts)

    def show(self, stage: str, done: int, total: int | None, unit: str, facts: Mapping[str, Any] | None = None) -> None:
        """So much of a stage is done. total: None where it is not known."""
        said = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
        for name, value in (facts or {}).items():
            said += f", {name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f", {name} {value}"
        if self.live:
            if stage not in self.tasks:
                self.tasks[stage] = self.live.add_task(stage, total=total, said=said)
            self.live.update(self.tasks[stage], completed=done, total=total, said=said)
        elif stage not in self.told or time.monotonic() - self.told[stage] >= PAUSE:
            self.told[stage] = time.monotonic()
            note(f"{stage}: {said}")
