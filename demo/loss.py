"""Draws the loss curve."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
from matplotlib import pyplot


def draw(curve: Path, picture: Path) -> None:
    matplotlib.use("Agg")
    points = json.loads(curve.read_text())
    figure, axes = pyplot.subplots(figsize=(6, 3.2), dpi=90)
    axes.plot(*zip(*points["train"], strict=True), color="#b8c4d0", linewidth=0.8, label="training batch")
    axes.plot(*zip(*points["held_out"], strict=True), color="#1f4e79", linewidth=1.6, label="held out")
    axes.set(xlabel="step", ylabel="nats per token", ylim=(1.2, 4.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture)
