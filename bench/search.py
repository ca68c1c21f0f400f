"""How long does a search take in an atlas of 65,536 labels? The bar: by meaning and words together, at most 50 ms.

    python bench/search.py [ROUNDS] [FEATURES]

The labels are words drawn by Zipf's law, the statistics are made up, and so are the labels' vectors (how long it takes
does not depend on what is in them); the query is embedded for real each time, with all-MiniLM-L6-v2 (the extra
`search`). Every case asks each of its queries once a round; "ms" is the mean of a round, "slowest"
the slowest search of all. "parts" are those of one search.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Label, Score, Statistics
from sparsight.atlas.inverted import inverted
from sparsight.atlas.search import search
from sparsight.atlas.vectors import DEFAULT, SentenceModel, vectors_of

BAR = 50.0  # milliseconds
DIM, VOCABULARY, WORDS = 384, 128_256, 6000
EMBEDDED = 256  # labels whose embedding is timed
ROLES = ("user", "assistant", "system", "template")


class Noise:
    """Vectors of no meaning, under the name of those that have one."""

    name = DEFAULT

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.random.default_rng(0).normal(size=(len(texts), DIM)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def word(number: int) -> str:
    """A word that can be told from all others: syllables that spell the number."""
    out = ""
    while number or not out:
        number, digit = divmod(number, 70)
        out += "bdfgklmnprstvz"[digit % 14] + "aeiou"[digit // 14]
    return out


def features(count: int, rng: np.random.Generator) -> Iterator[tuple[Statistics, list[Any]]]:
    for i in range(count):
        top = tuple(zip(rng.integers(0, VOCABULARY, 20).tolist(), rng.integers(1, 500, 20).tolist(), strict=True))
        lens = tuple(zip(rng.integers(0, VOCABULARY, 20).tolist(), rng.normal(size=20).tolist(), strict=True))
        near = tuple(zip(rng.integers(0, count, 16).tolist(), rng.random(16).tolist(), strict=True))
        fires, peak = int(10 ** rng.uniform(0, 6)), float(rng.uniform(0, 9))
        yield Statistics(i, fires, 10**7, peak / 4, 0.3, peak, fires // 9, peak, {0.5: peak / 4}, {200: fires},
                         (fires,), {ROLES[i % 4]: fires}, {}, top, lens, lens, 1.0, 1.0, near, near, None,
                         ("dense",) if fires > 10**5.9 else ()), []  # fmt: skip


def made(folder: Path, count: int) -> Atlas:
    """An atlas with a label of every feature."""
    rng = np.random.default_rng(0)
    about = About("0", "none", "none", "none", count, tokens=1, documents=1)
    write_atlas(folder, about, [np.zeros(1)], [Document(0, 0, 1, "none")], features(count, rng))
    likely = 1 / np.arange(1, WORDS + 1)
    drawn = rng.choice(WORDS, (count, 7), p=likely / likely.sum())
    scores = rng.random(count).tolist()
    atlas = Atlas(folder)
    atlas.add(
        Label(i, " ".join(map(word, row)), "embedded", type="context", scores={"detection": Score(scores[i])})
        for i, row in enumerate(drawn.tolist())
    )
    vectors_of(atlas, Noise())
    inverted(atlas)
    return atlas


def asking(ask: Callable[[str], Any], queries: Sequence[str], seen: list[float]) -> measure.Case:
    """A case that asks each of these; the time of each is kept."""

    def case(clock: measure.Clock) -> None:
        clock()
        for query in queries:
            began = time.perf_counter()
            ask(query)
            seen.append(1e3 * (time.perf_counter() - began))
            clock()

    return case


def main(rounds: str = "11", count: str = "65536") -> None:
    model, rng = SentenceModel(), np.random.default_rng(1)
    some = [" ".join(map(word, rng.integers(0, 400, n).tolist())) for n in (1, 2, 3, 4, 6, 8) for _ in range(5)]
    ids = dict(zip(some, rng.integers(0, VOCABULARY, len(some)).tolist(), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        atlas = made(Path(folder) / "atlas", int(count))
        sizes = {path.name: path.stat().st_size for path in atlas.folder.iterdir()}
        known = vectors_of(atlas, model)

        def ids_of(text: str) -> list[tuple[int]]:
            return [(ids.get(text, len(text)),)]

        def hybrid(query: str) -> Any:
            return search(atlas, query, 20, model, ids_of=ids_of)

        queries = {
            "hybrid": (hybrid, some),
            "hybrid, filtered": (hybrid, [f"{text} density:<0.01 not:dense role:assistant" for text in some]),
            "hybrid, of good labels": (hybrid, [f"{text} score:>0.5" for text in some]),
            "words alone": (lambda query: search(atlas, query, 20), some),
            "a token": (hybrid, [f'"{text}"' for text in some]),
            "filters alone": (hybrid, ["density:<0.0001 not:dense", "max:>8", "role:assistant flag:dense"]),
            "part: the query's vector": (lambda query: model.embed([query]), some),
            "part: cosines": (lambda _: known.vector @ known.vector[0], some),
        }
        seen: dict[str, list[float]] = {name: [] for name in queries}
        cases = {name: asking(ask, texts, seen[name]) for name, (ask, texts) in queries.items()}
        readings, _ = measure.in_rounds(cases, int(rounds))
        measure.tell(readings, "hybrid")
    began = time.perf_counter()
    model.embed([" ".join(map(word, row)) for row in rng.integers(0, WORDS, (EMBEDDED, 7)).tolist()])
    rate = EMBEDDED / (time.perf_counter() - began)
    warm = {name: sorted(values[len(queries[name][1]) :]) for name, values in seen.items()}
    latency = {
        name: {"median": float(np.median(v)), "95 %": float(np.quantile(v, 0.95)), "slowest": v[-1]}
        for name, v in warm.items()
    }
    for name, row in latency.items():
        print(f"{name:26} " + "  ".join(f"{what} {ms:6.1f} ms" for what, ms in row.items()))
    result = {"question": __doc__, "machine": measure.machine(), "labels": int(count), "queries": len(some)}
    result |= {"bar_ms": BAR, "bytes": sizes, "labels_embedded_per_second": rate}
    measure.save("search", result | {"latency_ms": latency, "readings": readings, "load_after": os.getloadavg()[0]})


if __name__ == "__main__":
    main(*sys.argv[1:])
