"""Draws docs/pareto.png from what bench/pareto.py measured: FVU and the loss recovered, by L0.

    python bench/pareto_plot.py [results ...]

results: names of files in bench/results, a row of two pictures each; those that begin with "pareto" where none is
given. A curve for each trainer: a colour for each objective, a line for each library.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import train_ours
import train_peers
from matplotlib import pyplot as plt
from table import OBJECTIVES

ROOT = Path(__file__).resolve().parent.parent
LINES = {train_ours.OURS: "-", "SAELens": ":", "dictionary_learning": "--", "sparsify": "-."}


def order(trainer: str) -> tuple[int, int]:
    """By objective, ours first."""
    library, objective = train_peers.parts(trainer)
    return OBJECTIVES.index(objective), list(LINES).index(library)


def aims_of(result: dict[str, Any]) -> list[float]:
    """The L0s that somebody aimed at, ascending."""
    return sorted({run["aim"] for run in result["runs"].values() if run["aim"]})


def curves(result: dict[str, Any], name: str) -> dict[str, list[tuple[float, float]]]:
    """{trainer: (L0, figure) pairs by L0} of one figure, about where somebody aimed."""
    out: dict[str, list[tuple[float, float]]] = {}
    aims = aims_of(result)
    for run in result["runs"].values():
        if run.get(name) is not None and 0.8 * aims[0] <= run["l0"] <= 1.25 * aims[-1]:
            out.setdefault(run["name"], []).append((run["l0"], run[name]))
    return {trainer: sorted(points) for trainer, points in out.items()}


def draw(axes: Any, result: dict[str, Any], name: str, said: str) -> None:
    found = curves(result, name)
    for trainer in sorted(found, key=order):
        points, (library, objective) = found[trainer], train_peers.parts(trainer)
        style = {"color": f"C{OBJECTIVES.index(objective)}", "linestyle": LINES[library]}
        width = 2.0 if library == train_ours.OURS else 1.2
        axes.plot(*zip(*points, strict=True), label=trainer, marker=".", linewidth=width, **style)
    axes.set(xscale="log", xlabel="L0", ylabel=said, yscale="log" if name == "fvu" else "linear")
    aims = aims_of(result)
    axes.set_xticks(aims, [f"{aim:g}" for aim in aims])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.2, which="both")


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in (ROOT / "bench" / "results").glob("pareto*.json"))
    figure, rows = plt.subplots(len(names), 2, figsize=(13, 5 * len(names)), squeeze=False)
    for name, (left, right) in zip(names, rows, strict=True):
        result = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
        draw(left, result, "fvu", "fraction of variance unexplained")
        draw(right, result, "loss_recovered", "loss recovered")
        of = result["settings"]
        left.set_title(f"{of['model']}, {of['hook_point']}, {of['features']:,} features", fontsize=10)
        right.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "pareto.png", dpi=90)


if __name__ == "__main__":
    main()
