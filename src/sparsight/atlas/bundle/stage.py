"""What waits on the disk until a new atlas can be written in its order: rows of strangers' files, which come in any.

Of the files themselves, only what is being read is in memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.atlas.bundle.table import statistics_of, statistics_row
from sparsight.atlas.bundle.theirs import statistics_in
from sparsight.atlas.bundle.values import Row
from sparsight.atlas.entries import Document, Example, Statistics
from sparsight.atlas.examples import LONGEST
from sparsight.disk import first_line
from sparsight.errors import BadFile

WINDOW = 65_536  # tokens of one, at most
FEATURES = 1 << 24  # of an SAE, at most: a stranger's number does not fill the disk
STAGE = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
CREATE TABLE feature (feature INTEGER PRIMARY KEY, row TEXT NOT NULL);
CREATE TABLE window (digest BLOB PRIMARY KEY, number INTEGER NOT NULL, start INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE document (number INTEGER PRIMARY KEY, start INTEGER NOT NULL, length INTEGER NOT NULL,
    digest BLOB NOT NULL, source TEXT);
CREATE TABLE example (feature INTEGER NOT NULL, at INTEGER NOT NULL, start INTEGER NOT NULL, value REAL NOT NULL,
    held BLOB NOT NULL, top INTEGER NOT NULL, sampled INTEGER NOT NULL, document INTEGER NOT NULL);
CREATE INDEX of_feature ON example (feature);
"""


@dataclass
class Stage:
    """What waits on the disk for its place: rows in a table, tokens of windows in a file."""

    db: sqlite3.Connection
    tokens: Any
    ids: Callable[[list[str]], list[int] | None]
    below: int | None
    written: int = 0
    windows: int = 0
    lost: int = 0
    kept: int = 0
    highest: int = -1

    def limit(self) -> int:
        return FEATURES if self.below is None else self.below

    def add_feature(self, row: Row) -> None:
        feature = row.index("index", self.limit())
        self.highest = max(self.highest, feature)
        said = json.dumps(statistics_row(statistics_in(row, feature, self.limit(), self.ids)))
        if self.db.execute("INSERT OR IGNORE INTO feature VALUES (?, ?)", (feature, said)).rowcount == 0:
            raise row.wrong(f"feature {feature} is there twice")

    def add_example(self, row: Row) -> None:
        feature = row.index("index", self.limit())
        self.highest = max(self.highest, feature)
        words, values = row.texts("tokens"), row.numbers("values")
        if len(words) != len(values) or not 0 < len(words) <= WINDOW:
            raise row.wrong(f"{len(words):,} tokens and {len(values):,} values: as many of each, and 1 to {WINDOW:,}")
        acts = np.maximum(np.array(values, np.float32), 0)
        if not acts.any():
            return  # what pads the rows of a dead feature
        ids = self.ids(words)
        if ids is None:
            self.lost += 1
            return
        self.kept += 1
        number, start = self.window(ids, row)
        peak = int(acts.argmax())
        mark = row.whole("qualifyingTokenIndex")
        at = mark if mark is not None and mark < len(acts) and acts[mark] > 0 else peak
        first = min(max(0, at - LONGEST // 2), max(0, len(acts) - LONGEST))
        held = acts[first : first + LONGEST].astype("<f4").tobytes()
        sampled = row.number("binContains", -1.0) != -1.0
        told = (feature, start + at, start + first, float(acts[at]), held, not sampled, sampled, number)
        self.db.execute("INSERT INTO example VALUES (?, ?, ?, ?, ?, ?, ?, ?)", told)

    def window(self, ids: list[int], row: Row) -> tuple[int, int]:
        """(document, its first token) of a window, which is written down the first time that it comes."""
        packed = np.array(ids, "<u4").tobytes()
        digest = hashlib.blake2b(packed, digest_size=16).digest()
        found = self.db.execute("SELECT number, start FROM window WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            found = (self.windows, self.written)
            source = row.text("dataSource", "") or None
            self.db.execute("INSERT INTO window VALUES (?, ?, ?)", (digest, *found))
            self.db.execute("INSERT INTO document VALUES (?, ?, ?, ?, ?)", (*found, len(ids), digest, source))
            self.tokens.write(packed)
            self.windows, self.written = self.windows + 1, self.written + len(ids)
        return found

    def pieces(self) -> Iterator[np.ndarray]:
        self.tokens.flush()
        with Path(self.tokens.name).open("rb") as file:
            while piece := file.read(1 << 22):
                yield np.frombuffer(piece, "<u4")

    def documents(self) -> Iterator[Document]:
        for number, start, length, digest, source in self.db.execute("SELECT * FROM document ORDER BY number"):
            yield Document(number, start, length, f"window {digest.hex()}", source)

    def features(self, count: int) -> Iterator[tuple[Statistics, list[Example]]]:
        told = self.db.execute("SELECT feature, row FROM feature ORDER BY feature")
        waiting = next(told, None)
        for feature in range(count):
            if waiting is not None and waiting[0] == feature:
                statistics = statistics_of(Row(json.loads(waiting[1]), "the stage"), count)
                waiting = next(told, None)
            else:
                statistics = Statistics(feature, flags=("dead",))
            yield statistics, self.examples(feature)

    def examples(self, feature: int) -> list[Example]:
        """One of each place: an example may be there for its strength and as one of a band."""
        out: dict[int, Example] = {}
        columns = "at, start, value, held, top, sampled, document"
        for at, start, value, held, top, sampled, document in self.db.execute(
            f"SELECT {columns} FROM example WHERE feature = ? ORDER BY value DESC, at", (feature,)
        ):
            known, top, sampled = out.get(at), bool(top), bool(sampled)
            values = np.frombuffer(held, "<f4")
            one = Example(feature, at, value, start, values, top, sampled, document, False)
            out[at] = one if known is None else replace(known, top=known.top or top, sampled=known.sampled or sampled)
        return list(out.values())


@contextmanager
def staged(folder: Path, ids: Callable[[list[str]], list[int] | None], below: int | None) -> Iterator[Stage]:
    """A stage in a folder of its own, which goes away with it; what a killed run left goes too."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        with (
            closing(sqlite3.connect(folder / "stage.db", isolation_level=None)) as db,
            (folder / "tokens").open("wb") as tokens,
        ):
            db.executescript(STAGE + "BEGIN;")
            yield Stage(db, tokens, ids, below)
    except OSError as error:
        raise BadFile(f"Cannot write '{folder}': {first_line(error)}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
