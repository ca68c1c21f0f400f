"""The course of a run, as JSON lines: what was seen since the line before, on average, and every validation."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsight.errors import BadFile, DiskFull

LOG = "log.jsonl"


class Log:
    """Writes the log of a run. step: from where it goes on; lines of later steps are taken off. writes: whether this
    process does."""

    def __init__(self, folder: Path, step: int, writes: bool = True) -> None:
        self.path, self._writes = folder / LOG, writes
        self._sums: dict[str, dict[str, float]] = {}
        self._count: dict[str, int] = {}
        if writes:
            lines = [line for line in read(folder) if line["step"] <= step] if self.path.exists() else []
            part = self.path.with_suffix(".part")
            part.write_text("".join(map(_line, lines)))
            part.replace(self.path)

    def saw(self, name: str, told: dict[str, float]) -> None:
        """One step of one SAE."""
        sums = self._sums.setdefault(name, dict.fromkeys(told, 0.0))
        for key, value in told.items():
            sums[key] = sums.get(key, 0.0) + value
        self._count[name] = self._count.get(name, 0) + 1

    def write(self, step: int, tokens: int, facts: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """A line for each SAE that was seen since the line before. Gives their numbers."""
        means: dict[str, dict[str, float]] = {}
        for name, sums in self._sums.items():
            means[name] = {**{key: value / self._count[name] for key, value in sums.items()}, **facts.get(name, {})}
            self._append({"step": step, "tokens": tokens, "sae": name, **means[name]})
        self._sums, self._count = {}, {}
        return means

    def validated(self, name: str, step: int, figures: dict[str, float]) -> None:
        """A line of figures on held-out tokens."""
        self._append({"step": step, "sae": name, "held_out": figures})

    def _append(self, line: dict[str, Any]) -> None:
        if not self._writes:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(line))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"The disk is full at '{self.path}': make room, and go on by the same call.") from error
            raise


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last one that was cut off is left out. Raises BadFile where there is no log."""
    path = Path(folder) / LOG
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"There is no log of a training run to read in '{folder}': {error}") from error
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            made = json.loads(line)
            int(made["step"])
            lines.append(made)
        except (ValueError, TypeError, KeyError) as error:
            raise BadFile(f"Line {number} of '{path}' is no line of a log: {line[:60]!r}.") from error
    return lines


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
