"""Writes the tables of docs/speed.md from bench/results/*.json, between the page's markers, and nothing else of it.

python bench/table.py
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

from measure import RESULTS, ratios

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"


def decode(result: dict) -> str:
    """A row a case; for every number of rows in the batch: ms a step, and the ratio to plain."""
    rows = result["rows"]
    heads = [f"{n} row{'s' if n != '1' else ''}: ms | × plain (min–max) | × CPU" for n in rows]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|---:|---:|" * len(rows)]
    for name in next(iter(rows.values()))["readings"]:
        taken = [n["readings"] for n in rows.values()]
        cells = [c for r in taken for c in (compared(r, result["base"], name) if name in r else ["–"] * 3)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    agree = [said for n in rows.values() for said, same in n["same_tokens"].items() if not same]
    lines.append("")
    lines.append(f"Same tokens where the same is done: {'no, not with ' + ', '.join(agree) if agree else 'yes, all'}.")
    return "\n".join([*lines, "", machine(result)])


def read(result: dict) -> str:
    lines = ["| | ms | × whole pass (min–max) | × CPU |", "|---|---:|---:|---:|"]
    for name in result["readings"]:
        lines.append(f"| {name} | " + " | ".join(compared(result["readings"], result["base"], name)) + " |")
    fit = result["fit"]
    said = f"{fit['start_ms']:.1f} ms + {fit['ms_per_layer']:.2f} ms a layer"
    lines.append(f"\nA straight line through the layers: {said}, never more than {fit['furthest_off_ms']:.1f} ms off.")
    return "\n".join([*lines, "", machine(result)])


def gpu(result: dict) -> str:
    limit = result["bytes_per_second"] / result["bytes_per_token"]
    lines = ["| | tokens/s | of the limit | × plain (min–max) | peak memory |", "|---|---:|---:|---:|---:|"]
    for name, rate in result["tokens_per_second"].items():
        _, ratio, _ = compared(result["readings"], result["base"], name)
        memory = f"{result['peak_bytes'][name] / 1e9:.1f} GB"
        lines.append(f"| {name} | {rate:.1f} | {rate / limit:.0%} | {ratio} | {memory} |")
    said = f"{result['bytes_per_token'] / 1e9:.2f} GB a token at {result['bytes_per_second'] / 1e9:,.0f} GB/s"
    lines.append(f"\nThe limit: {said} (measured by a copy), {limit:.0f} tokens/s.")
    return "\n".join([*lines, "", machine(result)])


def compared(readings: dict, base: str, name: str) -> list[str]:
    """Cells of one case: milliseconds, the ratio on the wall with its range, the ratio of CPU time."""
    middle, low, high = ratios(readings, base)[name]
    cpu, _, _ = ratios(readings, base, "cpu_ms")[name]
    milliseconds = statistics.median(r["ms"] for r in readings[name])
    return [f"{milliseconds:.2f}", f"{middle:.2f} ({low:.2f}–{high:.2f})", f"{cpu:.2f}"]


def machine(result: dict) -> str:
    m = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    where = m["gpu"] or f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads"
    changed = " and uncommitted changes" if m["changed_since"] else ""
    return f"<small>{where}; {versions}; commit {m['commit'][:7]}{changed}; {m['date'][:16]} UTC.</small>"


TABLES = {"decode_small": decode, "decode_deep": decode, "read": read, "gpu": gpu}


def main() -> None:
    page = PAGE.read_text()
    for name, table in TABLES.items():
        path = RESULTS / f"{name}.json"
        text = table(json.loads(path.read_text())) if path.exists() else "Not measured yet."
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        page = re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)  # noqa: B023
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
