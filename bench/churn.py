"""Does a server stay what it was while callers come, leave, dawdle and send nonsense, for as long as one likes?

    python bench/churn.py [--requests 10000] [--seconds 600] [--callers 64] [--name churn]

The embedded demo, served by `sparsight serve` with 32 rows and a queue of 64. So many callers at once, each with one
request after another, until so many were sent or the time is up: most hear their answer out; some are gone after a few
tokens, or before the first; some read slowly; some send what cannot be read. Half are steered, each by other edits.
Its memory, open files and threads are looked at every second; at the end no row may be left, and an answer must be
what it was at the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import load
import measure
from load import Process
from serve import controller

ROWS, QUEUE = 32, 64
WAYS = {"hears it out": 60, "leaves midway": 15, "leaves at once": 10, "reads slowly": 5, "sends nonsense": 10}
LOOK = 1.0  # seconds between two looks at the process
WARM = 0.25  # of the time, after which memory is expected to stay
NONSENSE = (
    b"",
    b"{",
    b"\xff\xfe",
    b'{"model": "demo"}',
    b"[" * 50_000,
    b'{"model": "none", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "demo", "messages": [{"role": "user", "content": "x"}], "controller": {"schema": 1, "edits": '
    b'[{"op": "nudge", "feature": {"index": 99999}, "value": 1}]}}',
    b'{"model": "demo", "messages": [{"role": "user", "content": "x"}], "controller": {"schema": 1, "edits": '
    b'[{"op": "nudge", "feature": {"index": 1}, "value": NaN}]}}',
)


def body(turns: random.Random, number: int) -> bytes:
    """A request like no other; half of them steered."""
    said = f"Tell me about {turns.choice(('dogs', 'the sea', 'bread', 'Paris'))}, please. " * turns.randint(1, 8)
    asked: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": f"{number}: {said}"}]}
    asked |= {"stream": True, "max_tokens": turns.randint(4, 48), "seed": number}
    asked |= {"stream_options": {"include_usage": True}}
    if turns.random() < 0.5:
        asked["controller"] = controller(number)
    if turns.random() < 0.2:
        asked |= {"features": {"top_k": 8}}
    return json.dumps(asked).encode()


async def one(process: Process, turns: random.Random, number: int) -> str:
    """What became of one request."""
    (way,) = turns.choices(list(WAYS), list(WAYS.values()))
    if way == "sends nonsense":
        heard = await load.stream(process.port, turns.choice(NONSENSE))
        return f"{way}: {heard.status}"
    leave = {"leaves midway": turns.randint(1, 8), "leaves at once": 0}.get(way)
    heard = await load.stream(process.port, body(turns, number), leave, 0.05 if way == "reads slowly" else 0.0)
    if heard.status == 429:
        await asyncio.sleep(heard.retry_after * turns.random())
        return "told to come again: 429"
    if leave is not None:
        return f"{way}: {heard.status}"
    return f"{way}: {heard.status}" + ("" if heard.whole else ", cut off")


async def churned(process: Process, requests: int, seconds: float, callers: int) -> tuple[Counter[str], list[Any]]:
    """({what became of requests: how many}, looks at the process)."""
    outcomes: Counter[str] = Counter()
    looks: list[Any] = []
    began, numbers, turns = time.monotonic(), iter(range(requests)), random.Random(0)

    async def caller() -> None:
        for number in numbers:
            if time.monotonic() - began > seconds:
                return
            outcomes[await one(process, turns, number)] += 1

    async def watch() -> None:
        while True:
            at = time.monotonic() - began
            looks.append([at, process.memory(), process.files(), threads(process), sum(outcomes.values())])
            await asyncio.sleep(LOOK)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(caller() for _ in range(callers)))
    watching.cancel()
    return outcomes, looks


def threads(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/task"))


def answer(process: Process) -> str:
    """A steered one, as it should always be."""
    asked = {"model": "demo", "messages": [{"role": "user", "content": "Tell me about dogs."}], "temperature": 0}
    told = process.post(load.CHAT, asked | {"max_tokens": 24, "controller": controller(7)})
    return told["choices"][0]["message"]["content"]


def settled(process: Process) -> dict[str, int]:
    """How busy it is when everybody has gone."""
    for _ in range(300):
        now = process.get("/healthz")["models"]["demo"]
        if not now["rows"] and not now["waiting"]:
            break
        time.sleep(0.1)
    return now


def flat(looks: list[Any]) -> dict[str, float]:
    """Memory once warm: its median in the first and the last fifth of that time, and the growth between in bytes per
    1,000 requests."""
    warm = [look for look in looks if look[0] >= WARM * looks[-1][0]]
    fifth = max(1, len(warm) // 5)
    first, last = warm[:fifth], warm[-fifth:]
    before, after = (statistics.median(look[1] for look in part) for part in (first, last))
    requests = statistics.median(look[4] for look in last) - statistics.median(look[4] for look in first)
    return {"before": before, "after": after, "per_1000_requests": 1000 * (after - before) / max(1.0, requests)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--callers", type=int, default=64, help="at once; more than rows and queue hold are told so")
    parser.add_argument("--name", default="churn", help="of the file in bench/results")
    asked = parser.parse_args()
    result = {"question": __doc__, "machine": measure.machine(), "asked": vars(asked), "rows": ROWS, "queue": QUEUE}
    with tempfile.TemporaryDirectory() as room:
        rows = ["--rows", str(ROWS), "--queue", str(QUEUE)]
        args = load.sparsight(None, Path(room) / "keys.db", *rows)
        with load.serving(args, "demo", Path(room) / "log") as process:
            before = answer(process)
            outcomes, looks = asyncio.run(churned(process, asked.requests, asked.seconds, asked.callers))
            left = settled(process)
            result |= {"same_answer": answer(process) == before, "left": left, "memory": flat(looks)}
        unforeseen = (Path(room) / "log").read_text().count('"unforeseen"')
    result |= {"outcomes": dict(outcomes.most_common()), "unforeseen": unforeseen}
    result |= {
        "columns": ["seconds", "bytes", "files", "threads", "requests"],
        "looks": looks[:: max(1, len(looks) // 60)],
    }
    measure.save(asked.name, result | {"load_after": os.getloadavg()[0]})
    print(json.dumps({k: result[k] for k in ("outcomes", "memory", "left", "same_answer", "unforeseen")}, indent=1))


if __name__ == "__main__":
    main()
