"""How long does it take to read all of one feature's page? The bar: statistics, examples and labels in under 1 ms.

    python bench/page.py [ROUNDS] [FEATURES]

An atlas of made-up features, with as many examples of each as a survey keeps (60 windows of 49 tokens, a fifth of the
tokens active) and two labels with three scores. A round reads some features at random, each once; "ms" is the mean of a
round, "slowest" the slowest of all.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
from search import asking, features

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Example, Label, Score, Statistics
from sparsight.records import Kind

BAR = 1.0  # milliseconds
EXAMPLES, WINDOW, ACTIVE = 60, 24, 0.2
DOCUMENTS, LENGTH = 2000, 500
READ = 500  # features of a round


def described(count: int, rng: np.random.Generator) -> Iterator[tuple[Statistics, list[Example]]]:
    span = 2 * WINDOW + 1
    for statistics, _ in features(count, rng):
        made = []
        for i, number in enumerate(rng.integers(0, DOCUMENTS, EXAMPLES).tolist()):
            at = number * LENGTH + int(rng.integers(WINDOW, LENGTH - WINDOW))
            values = np.where(rng.random(span) < ACTIVE, rng.lognormal(size=span), 0.0).astype(np.float32)
            values[WINDOW] = 9.0 + rng.random()
            peak = float(values[WINDOW])
            made.append(Example(statistics.feature, at, peak, at - WINDOW, values, i < 20, i >= 20, number, False))
        yield statistics, made


def made(folder: Path, count: int) -> Atlas:
    rng, tokens = np.random.default_rng(0), DOCUMENTS * LENGTH
    about = About("0", "none", "none", "none", count, tokens, DOCUMENTS)
    text = ((LENGTH, int(Kind.TEXT)),)
    documents = (Document(i, i * LENGTH, LENGTH, f"document {i}", roles=text) for i in range(DOCUMENTS))
    write_atlas(folder, about, [np.zeros(tokens)], documents, described(count, rng))
    atlas = Atlas(folder)
    scores = {name: Score(0.9, 0.8, 1.0, 64) for name in ("detection", "hard", "fuzzing")}
    methods = ("embedded", "openai")
    atlas.add(Label(i, f"text about {i}", method, scores=scores) for i in range(count) for method in methods)
    return atlas


def main(rounds: str = "11", count: str = "4096") -> None:
    with tempfile.TemporaryDirectory() as folder:
        atlas = made(Path(folder) / "atlas", int(count))
        parts: dict[str, Any] = {"statistics": atlas.statistics, "examples": atlas.examples, "labels": atlas.labels}
        asked = np.random.default_rng(1).integers(0, len(atlas), READ).astype(str).tolist()

        def page(feature: str) -> None:
            for read in parts.values():
                read(int(feature))

        seen: dict[str, list[float]] = {name: [] for name in ("page", *parts)}
        cases = {"page": asking(page, asked, seen["page"])}
        cases |= {name: asking(lambda f, read=read: read(int(f)), asked, seen[name]) for name, read in parts.items()}
        began = time.perf_counter()
        readings, _ = measure.in_rounds(cases, int(rounds))
        measure.tell(readings, "page")
    latency = {name: {"median": float(np.median(v[READ:])), "slowest": max(v[READ:])} for name, v in seen.items()}
    for name, row in latency.items():
        print(f"{name:12} " + "  ".join(f"{what} {ms:6.3f} ms" for what, ms in row.items()))
    result = {"question": __doc__, "machine": measure.machine(), "features": int(count), "bar_ms": BAR}
    result |= {"latency_ms": latency, "readings": readings, "seconds": time.perf_counter() - began}
    measure.save("page", result | {"load_after": os.getloadavg()[0]})


if __name__ == "__main__":
    main(*sys.argv[1:])
