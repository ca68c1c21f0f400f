"""The course of a training as one picture: what its log holds, against tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsight.disk import first_line, read_json, write_aside
from sparsight.errors import BadFile, BadInput, Missing
from sparsight.train.log import read

FORMATS = ("png", "svg", "pdf")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's: for all eyes
INK, GRID = "#333333", "#e4e4e4"
PANELS = {
    "l0": "L0: active features per token",
    "fvu": "FVU: fraction of variance unexplained",
    "dead": "dead features",
    "coefficient": "coefficient of the penalty",
    "lr": "learning rate",
}
UNITS = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"))


@dataclass
class Course:
    """One SAE's: lines, what was seen while it was trained; held_out, its validations. Both with "tokens"."""

    name: str
    target: float
    lines: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)


def plot(folder: str | Path, to: str | Path | None = None) -> Path:
    """Draw the log of a training, of one that runs too, and give the picture's path: plot.png in its folder, or `to`,
    a .png, .svg or .pdf.

    L0 against the one asked for, FVU, dead features, the penalty's coefficient where there is one, the learning rate.
    Raises BadFile where the folder holds no training, BadInput where it has no line yet, Missing without matplotlib.
    """
    path = Path(folder) / "plot.png" if to is None else Path(to)
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise BadInput(f"A picture is a {', '.join('.' + f for f in FORMATS)}, not '{path.name}'.")
    courses = course(Path(folder))
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Missing("matplotlib is not installed: pip install 'sparsight[plot]'.") from error
    figure = Figure(figsize=(11, 6.2), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1, wspace=0.03, hspace=0.03)  # type: ignore[union-attr]
    _draw(figure, courses)
    try:
        write_aside(path, lambda part: figure.savefig(part, format=suffix))
    except OSError as error:
        raise BadFile(f"Cannot write '{path}': {first_line(error)}") from error
    return path


def course(folder: Path) -> list[Course]:
    """What the log says of each SAE, in the order of the run's specs."""
    lines = read(folder)
    if not any("tokens" in line for line in lines):
        raise BadInput(f"The training in '{folder}' has not written a line of its log yet.")
    said = read_json(folder / "train.json")
    try:
        specs = said["specs"]
        names = list(dict.fromkeys(line["sae"] for line in lines if "tokens" in line))
        found = {name: Course(name, float(spec["l0"])) for name, spec in zip(names, specs, strict=False)}
        for line in lines:
            if "tokens" in line:
                found[line["sae"]].lines.append(line)
            elif line["sae"] in found:
                tokens = line["step"] * specs[0]["batch"]
                found[line["sae"]].held_out.append({**line["held_out"], "tokens": tokens})
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"'{folder}' is not as a training leaves it: {first_line(error)}") from error
    return list(found.values())


def _draw(figure: Any, courses: list[Course]) -> None:
    """A panel for each number, and what the lines are in the place that is left."""
    penalised = any(line["coefficient"] for one in courses for line in one.lines)
    shown = [panel for panel in PANELS if penalised or panel != "coefficient"]
    most = max(line["tokens"] for one in courses for line in one.lines)
    scale, unit = next(((s, f"{word} tokens") for s, word in UNITS if most >= 2 * s), (1.0, "tokens"))
    places = list(figure.subplots(2, 3).flat)
    for axes, name in zip(places, shown, strict=False):
        for number, one in enumerate(courses):
            colour = COLOURS[number % len(COLOURS)]
            if name == "l0":
                axes.axhline(one.target, color=colour, lw=1, ls="--")
            if name != "coefficient" or any(line[name] for line in one.lines):
                x, y = _values(one.lines, name, scale)
                axes.plot(x, y, color=colour, lw=1.3)
            x, y = _values(one.held_out, name, scale)
            if x:
                axes.plot(x, y, "o", color=colour, ms=4.5, mec="white", mew=0.8, zorder=3, clip_on=False)
        axes.set_title(PANELS[name], loc="left", fontsize=10, color=INK)
        axes.set_xlabel(unit, color=INK)
        axes.set_xlim(0, most / scale)
        _finish(axes, name)
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    _legend(places[len(shown)], courses)


def _values(rows: list[dict[str, Any]], name: str, scale: float) -> tuple[list[float], list[float]]:
    """Tokens and a number, where a row has it."""
    there = [row for row in rows if name in row]
    return [row["tokens"] / scale for row in there], [row[name] for row in there]


def _finish(axes: Any, name: str) -> None:
    """The scale of a panel, its ticks and its grid."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if name in ("l0", "fvu"):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, max(axes.get_ylim()[1], 5 if name == "dead" else 0))
    if name == "dead":
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color=GRID, lw=0.7)
    axes.tick_params(which="both", length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)


def _legend(axes: Any, courses: list[Course]) -> None:
    """Where colours mean SAEs, and what the kinds of lines mean."""
    from matplotlib.lines import Line2D

    last = [one.held_out[-1] if one.held_out else one.lines[-1] for one in courses]
    entries = [
        Line2D(
            [], [], color=COLOURS[n % len(COLOURS)], lw=2, label=f"{one.name}\nL0 {end['l0']:.3g}, FVU {end['fvu']:.3g}"
        )
        for n, (one, end) in enumerate(zip(courses, last, strict=True))
    ]
    entries += [
        Line2D([], [], color="grey", lw=1.3, label="in training"),
        Line2D([], [], color="grey", marker="o", ls="", ms=4.5, label="held out"),
        Line2D([], [], color="grey", lw=1, ls="--", label="L0 that is asked for"),
    ]
    size = min(9.0, 60 / len(entries))
    legend = axes.legend(handles=entries, loc="center left", frameon=False, fontsize=size, labelcolor=INK)
    legend.set_in_layout(False)
