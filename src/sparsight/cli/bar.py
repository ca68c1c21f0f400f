"""How far a long stage is, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from sparsight.screen import console, note

PAUSE = 30.0  # seconds between two lines where there is no terminal


class Bar:
    """Hears of progress while it is open: call it with a records.Progress, or show() with its parts."""

    def __init__(self) -> None:
        screen = console(stderr=True)
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=5)),
            BarColumn(10, table_column=Column(no_wrap=True, min_width=10)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )
        self.silent = os.environ.get("RANK", "0") != "0"  # of several processes the first one speaks
        shown = screen.is_terminal and not self.silent
        self.live = Progress(*columns, console=screen, transient=True, expand=True) if shown else None
        self.tasks: dict[str, Any] = {}
        self.told: dict[str, float] = {}
        self.began: dict[str, tuple[float, int]] = {}

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
        now = time.monotonic()
        parts = [f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"]
        if self.live:
            said = ", ".join([*parts, *in_words(facts or {})])
            if stage not in self.tasks:
                self.tasks[stage] = self.live.add_task(stage, total=total, said=said)
            self.live.update(self.tasks[stage], completed=done, total=total, said=said)
        elif not self.silent and (stage not in self.told or now - self.told[stage] >= PAUSE):
            self.told[stage] = now
            when, first = self.began.setdefault(stage, (now, done))
            if total and done > first:
                parts.append(f"{timedelta(seconds=round((total - done) * (now - when) / (done - first)))} left")
            note(f"{stage}: {', '.join([*parts, *in_words(facts or {})])}")


def in_words(facts: Mapping[str, Any]) -> list[str]:
    """What else a stage says. Of a training: L0, FVU, dead features, speed; of several SAEs those of the first."""
    if "target_l0" not in facts:
        plain = {name.replace("_", " "): value for name, value in facts.items()}
        return [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in plain.items()
        ]
    target = f"(target {facts['target_l0']:g})"
    if "l0" not in facts:
        return [f"held out: L0 {facts['held_out_l0']:.3g}, FVU {facts['held_out_fvu']:.3g}"]
    several = len({name.partition("/")[0] for name in facts if "/" in name})
    l0 = f"L0 {facts['l0']:.3g} {target}"
    told = [
        f"of {several} SAEs the first: {l0}" if several else l0,
        f"FVU {facts['fvu']:.3g}",
        f"{facts['dead']:,} dead",
    ]
    return [*told, f"{facts['tokens_per_second']:,.0f} tokens/s"]
