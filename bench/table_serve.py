"""The tables of a server's figures, for table.py: streams at once, and what churn leaves behind."""

from __future__ import annotations

import statistics
from typing import Any

from measure import spread


def serve(result: dict[str, Any]) -> str:
    """A row a case, for each number of streams. Ratios are of a round: speed to that of the base, CPU time likewise."""
    heads = ("streams", "", "tokens/s", "× unsteered (min–max)", "CPU time a token, ×")
    heads += ("first token, ms (p99)", "between tokens, ms (p99)")
    lines = ["| " + " | ".join(heads) + " |", "|---:|---|" + "---:|" * (len(heads) - 2)]
    for streams, of in result["streams"].items():
        base = of["readings"][result["base"]]
        for name, mine in of["readings"].items():
            speed = spread([theirs["ms"] / ours["ms"] for ours, theirs in zip(mine, base, strict=True)])
            cpu = spread([ours["cpu_ms"] / theirs["cpu_ms"] for ours, theirs in zip(mine, base, strict=True)])
            cells = [f"{middle(mine, 'tokens_per_second'):,.0f}"]
            cells += [f"{speed[0]:.2f} ({speed[1]:.2f}–{speed[2]:.2f})", f"{cpu[0]:.2f}"]
            cells += [f"{middle(mine, what + '_ms'):.0f} ({middle(mine, what + '_p99_ms'):.0f})" for what in TIMES]
            lines.append(f"| {streams} | {name} | " + " | ".join(cells) + " |")
    loads = [of["load"] for of in result["streams"].values()]
    busy = f"The load of the machine was {min(loads):.0f} to {max(loads):.0f}, servers and callers among it."
    without = "; ".join(f"{name}: {why}" for name, why in result["left_out"].items())
    return "\n".join([*lines, "", busy + (f" Left out: {without}." if without else "")])


TIMES = ("first", "between")


def middle(readings: list[dict[str, float]], what: str) -> float:
    return statistics.median(reading[what] for reading in readings)


def churn(result: dict[str, Any]) -> str:
    """What became of requests, and of the process."""
    looks, memory = result["looks"], result["memory"]
    requests = sum(result["outcomes"].values())
    lines = ["| what became of a request | |", "|---|---:|"]
    lines += [f"| {what} | {many:,} |" for what, many in result["outcomes"].items()]
    took = f"{requests:,} requests in {looks[-1][0]:.0f} s, {result['asked']['callers']} at once"
    held = f"memory {memory['before'] / 1e6:.1f} MB, then {memory['after'] / 1e6:.1f} MB"
    held += f" ({memory['per_1000_requests'] / 1e6:+.2f} MB in 1,000 requests)"
    left = ", ".join(f"{result['left'][what]} {said}" for what, said in (("rows", "rows"), ("waiting", "waiting")))
    same = "as before" if result["same_answer"] else "another than before"
    said = f"{took}: {held}; threads at most {max(look[3] for look in looks)}; left over: {left}"
    return "\n".join([*lines, "", f"{said}; errors that nobody foresaw: {result['unforeseen']}; an answer is {same}."])
