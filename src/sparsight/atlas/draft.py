"""Writes an atlas: all of it, or nothing that could pass for one. atlas.db comes last, and whole."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sparsight.atlas.about import About
from sparsight.atlas.entries import Document, Example, Statistics
from sparsight.atlas.examples import pack
from sparsight.atlas.schema import TABLES
from sparsight.disk import write_aside

TABLE, TOKENS = "atlas.db", "tokens.bin"
ROUNDED = ("top_logits", "bottom_logits", "neighbours", "coactive")  # to six digits: half the bytes


def write_atlas(
    folder: Path,
    about: About,
    tokens: Iterable[np.ndarray],
    documents: Iterable[Document],
    features: Iterable[tuple[Statistics, Sequence[Example]]],
) -> None:
    """Write a whole atlas; what was there of another is replaced only once this one is complete.

    tokens: ids in the order of the documents, in pieces of any length. features: of every feature, in order.
    """

    def tokens_file(part: Path) -> None:
        with part.open("wb") as file:
            for piece in tokens:
                file.write(np.ascontiguousarray(piece, "<u4").tobytes())

    def table(part: Path) -> None:
        with closing(sqlite3.connect(part)) as db:
            db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + TABLES)
            db.executemany("INSERT INTO about VALUES (?, ?)", ((k, json.dumps(v)) for k, v in asdict(about).items()))
            rows = ((d.number, d.start, d.length, d.id, d.source, d.language, pack_roles(d.roles)) for d in documents)
            db.executemany("INSERT INTO document VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            for statistics, examples in features:
                db.execute("INSERT INTO feature VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _columns(statistics))
                if examples:
                    db.execute("INSERT INTO example VALUES (?, ?)", (statistics.feature, pack(examples)))
            db.commit()

    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / TOKENS, tokens_file)
    write_aside(folder / TABLE, table)


def pack_roles(roles: Sequence[tuple[int, int]]) -> bytes:
    return np.array(roles, "<u4").tobytes()


def unpack_roles(packed: bytes) -> tuple[tuple[int, int], ...]:
    return tuple((int(n), int(kind)) for n, kind in np.frombuffer(packed, "<u4").reshape(-1, 2))


def _columns(one: Statistics) -> tuple[object, ...]:
    """The row of a feature: what is searched by, and the rest as one blob."""
    role, language = (max(counts, key=lambda k: counts[k], default=None) for counts in (one.roles, one.languages))
    pairs = {name: [(i, float(f"{v:.6g}")) for i, v in getattr(one, name)] for name in ROUNDED}
    more = zlib.compress(json.dumps(vars(one) | pairs, separators=(",", ":")).encode(), 6)
    flags = " ".join(one.flags)
    searched = (one.fires, one.density, one.mean, one.max, one.scale, one.documents)
    return one.feature, *searched, role, language, flags, more
