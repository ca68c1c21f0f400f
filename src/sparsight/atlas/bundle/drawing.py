"""The histogram of a feature's activations as lines and boxes, for a template to draw: numbers alone, nobody's text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsight.atlas.bundle.bands import Band
from sparsight.atlas.entries import Statistics
from sparsight.atlas.histogram import BINS, PER_DOUBLING, edge

WIDTH, HEIGHT = 360, 96  # pixels of the bars
BARS = 48  # at most


@dataclass(frozen=True)
class Bar:
    """x, y, width, height in pixels. low, high: activations; count: of tokens; strength: 0 to 1 of the largest."""

    x: float
    y: float
    width: float
    height: float
    low: float
    high: float
    count: int
    strength: float


@dataclass(frozen=True)
class Drawing:
    """bars: from weak to strong, on a log scale. ticks: (x, activation). marks: x of the edges of bands."""

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, float], ...]
    marks: tuple[float, ...]
    width: int = WIDTH
    height: int = HEIGHT


def marks_of(found: Sequence[Band]) -> list[float]:
    """The activations between bands."""
    return [band.low for band in found if band.begins > 0]


def histogram(one: Statistics, marks: Sequence[float]) -> Drawing | None:
    """None where nothing was counted. Neighbouring bins run together where there would be too many."""
    counts = {bin: count for bin, count in one.histogram.items() if count > 0 and 0 <= bin < BINS}
    if not counts:
        return None
    first, last = min(counts), max(counts)
    step = next(s for s in (1, 2, 4, 8, 16, 32) if (last - first) // s < BARS)
    first -= first % step
    total = (last - first) // step + 1
    sums = [sum(counts.get(first + i * step + j, 0) for j in range(step)) for i in range(total)]
    wide, most = WIDTH / total, max(sums)
    bars = []
    for i, count in enumerate(sums):
        low, high = edge(first + i * step), edge(first + (i + 1) * step)
        tall = max(HEIGHT * count / most, 1.0) if count else 0.0
        strength = min(high / one.max, 1.0) if one.max > 0 else 1.0
        bars.append(Bar(i * wide, HEIGHT - tall, max(wide - 1, 0.5), tall, low, high, count, strength))
    doubling = WIDTH * PER_DOUBLING / (total * step)
    every = max(1, round(56 / doubling))  # doublings between two ticks, about 56 pixels
    at = range(-(-first // PER_DOUBLING), (last + step) // PER_DOUBLING + 1, every)
    ticks = [(round((bin * PER_DOUBLING - first) / step * wide, 1), edge(bin * PER_DOUBLING)) for bin in at]
    if len(ticks) < 2:
        ticks = [(0.0, edge(first)), (float(WIDTH), edge(first + total * step))]
    lines = [WIDTH * (_bin(mark) - first) / (total * step) for mark in marks if mark > 0]
    return Drawing(tuple(b for b in bars if b.count), tuple(ticks), tuple(x for x in lines if 0 < x < WIDTH))


def _bin(value: float) -> float:
    """Where an activation lies between bins."""
    return (math.log2(value) - math.log2(edge(0))) * PER_DOUBLING
