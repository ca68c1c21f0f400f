"""How the benchmarks measure: in rounds, A B C A B C ..., and by ratios within a round.

A neighbour who takes the cores for a second slows whatever runs in that second. So every case runs once in every
round, each is compared with the base case of its own round, and the median over the rounds is told, with the smallest
and the largest beside it. Times are wall time, and process CPU time, which a busy neighbour disturbs less.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "nnsight", "transformer-lens", "sae-lens", "triton")
PACKAGES += ("dictionary-learning", "eai-sparsify", "numba")


Case = Callable[["Clock"], Any]  # does its work, ticking; what it returns is handed back from the warm-up run


class Clock:
    """Ticks at each token of one run: the first tick ends the prefill, every later one ends a decoded token."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float]] = []
        self.start = self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def __call__(self) -> None:
        self.ticks.append(self.now())

    def reading(self) -> dict[str, float]:
        """Milliseconds: of the prefill, and per decoded token, on the wall and of CPU time."""
        (wall0, cpu0), (wall1, cpu1), (wall2, cpu2) = self.start, self.ticks[0], self.ticks[-1]
        steps = len(self.ticks) - 1
        return {
            "prefill_ms": 1e3 * (wall1 - wall0),
            "prefill_cpu_ms": 1e3 * (cpu1 - cpu0),
            "ms": 1e3 * (wall2 - wall1) / steps,
            "cpu_ms": 1e3 * (cpu2 - cpu1) / steps,
        }


def once(work: Callable[[], Any], times: int = 1) -> Case:
    """A case that is one piece of work, not a run of tokens; done several times where it is short."""

    def case(clock: Clock) -> Any:
        clock()
        for _ in range(times):
            out = work()
            clock()
        return out

    return case


def in_rounds(cases: Mapping[str, Case], rounds: int) -> tuple[dict[str, list[dict[str, float]]], dict[str, Any]]:
    """({case: a reading per round}, {case: what it returned in the warm-up run})."""
    returned = {name: case(Clock()) for name, case in cases.items()}
    readings: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:  # nobody always runs after the same neighbour
            clock = Clock()
            cases[name](clock)
            readings[name].append(clock.reading())
    return readings, returned


def ratios(readings: Mapping[str, list[dict[str, float]]], base: str, field: str = "ms") -> dict[str, list[float]]:
    """{case: [median, smallest, largest] of its ratio to the base case, round by round}."""
    return {
        name: spread([mine[field] / theirs[field] for mine, theirs in zip(rounds, readings[base], strict=True)])
        for name, rounds in readings.items()
    }


def spread(values: list[float]) -> list[float]:
    """[median, smallest, largest]."""
    return [statistics.median(values), min(values), max(values)]


def machine() -> dict[str, Any]:
    """What it was measured on, with which versions, at which commit."""
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "load_before": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), **{p: v for p in PACKAGES if (v := _version(p))}},
        "commit": _git("rev-parse", "HEAD"),
        "changed_since": _git("diff", "--stat", "HEAD", "--", "../src").splitlines(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def save(name: str, result: Mapping[str, Any]) -> None:
    """bench/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(rounded(result), indent=1) + "\n")


def read(name: str) -> dict[str, Any]:
    """What is in bench/results/<name>.json; nothing where there is no such file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def resumed(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"settings", "runs": {...}} of bench/results/<name>.json, or of none yet; its runs are not to be done again."""
    path = RESULTS / f"{name}.json"
    settings = rounded(json.loads(json.dumps(settings)))
    there = json.loads(path.read_text()) if path.exists() else {"settings": settings, "runs": {}}
    if there["settings"] != settings:
        raise SystemExit(f"{path} is of other settings: {there['settings']}; name another file by --into.")
    return there


def rounded(value: Any) -> Any:
    """Floats to five digits, all the way down."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def tell(readings: Mapping[str, list[dict[str, float]]], base: str) -> None:
    """A line a case, while one waits."""
    wall, cpu = ratios(readings, base), ratios(readings, base, "cpu_ms")
    for name, rounds in readings.items():
        ms = statistics.median(r["ms"] for r in rounds)
        middle, low, high = wall[name]
        print(f"{name:34} {ms:8.2f} ms  x{middle:5.2f} ({low:.2f}-{high:.2f})  cpu x{cpu[name][0]:5.2f}", flush=True)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str:
    here = Path(__file__).parent
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=here, check=False).stdout.strip()
