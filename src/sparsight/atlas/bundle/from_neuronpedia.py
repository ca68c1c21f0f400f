"""Neuronpedia's files into an atlas: explanations as labels of one that there is, or everything as a new one.

A new atlas holds what the files do: each window of tokens that examples are shown in is a document of its own, once,
whatever number of features it is an example of. Files come in any order and go by row by row; what has to wait for its
place in the order waits on the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.bundle.folders import write_folder
from sparsight.atlas.bundle.moved import Moved, Tell, told
from sparsight.atlas.bundle.neuronpedia import ABOUT, SCHEMA, Vocabulary
from sparsight.atlas.bundle.rows import json_rows
from sparsight.atlas.bundle.table import apart, check_sae, label_of, statistics_of, statistics_row
from sparsight.atlas.bundle.values import Row, is_number
from sparsight.atlas.draft import TABLE, write_atlas
from sparsight.atlas.entries import Document, Example, Label, Statistics
from sparsight.atlas.examples import LONGEST
from sparsight.atlas.histogram import BINS, LOWEST, PER_DOUBLING
from sparsight.disk import first_line, read_json
from sparsight.errors import BadFile, BadInput, Mismatch
from sparsight.records import is_whole

WINDOW = 65_536  # tokens of one, at most
FEATURES = 1 << 24  # of an SAE, at most: a stranger's number does not fill the disk
SHARES = (0.2, 0.4, 0.5, 0.6, 0.8, 0.95, 0.99)  # the quantiles that a histogram of theirs is asked for
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
# What the strings of Neuronpedia's tokens were before it made them readable.
MENDED = {
    "—": "âĢĶ",
    "–": "âĢĵ",
    "“": "âĢľ",
    "”": "âĢĿ",
    "‘": "âĢĺ",
    "’": "âĢĻ",
    "'": "âĢĻ",
    " ": "Ġ",
    "\n": "Ċ",
    "\t": "ĉ",
}


def source_folder(folder: str | Path) -> Path:
    """The folder that has features, activations or explanations: this one, or one below it. Raises BadFile."""
    folder = Path(folder)
    kinds = ("features", "activations", "explanations")
    for pattern in ("{}", "*/{}", "*/*/{}"):
        found = {p.parent for kind in kinds for p in folder.glob(pattern.format(kind)) if any(p.glob("batch-*.jsonl*"))}
        if len(found) == 1:
            return found.pop()
        if found:
            names = ", ".join(sorted(str(p.relative_to(folder)) for p in found))
            raise BadFile(f"'{folder}' holds several sources, name one: {names}.")
    raise BadFile(f"'{folder}' holds no {' or '.join(f'{kind}/batch-*.jsonl.gz' for kind in kinds)}.")


def batches(folder: Path, kind: str) -> list[Path]:
    """The files of a kind, by their numbers."""
    found = [p for p in (folder / kind).glob("batch-*.jsonl*") if re.fullmatch(r"batch-\d+\.jsonl(\.gz)?", p.name)]
    return sorted(found, key=lambda p: int(re.findall(r"\d+", p.name)[0]))


def rows_of(folder: Path, kind: str) -> Iterator[Row]:
    for path in batches(folder, kind):
        for number, row in json_rows(path):
            yield Row(row, f"'{path}', line {number}")


def told_about(folder: Path) -> dict[str, Any]:
    """What sparsight wrote beside its own export; nothing beside another's."""
    path = folder / ABOUT
    found = read_json(path) if path.is_file() else {}
    if found and (found.get("schema") != SCHEMA or not isinstance(found.get("about"), dict)):
        raise BadFile(f"'{path}' is of schema {found.get('schema')!r}; this sparsight reads schema {SCHEMA}.")
    return found


# ── explanations ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read_explanations(atlas: Atlas, folder: str | Path, force: bool = False, tell: Tell | None = None) -> Moved:
    """Explanations as labels of the atlas, all or none. Those of sparsight's own export come back as they were; others
    are of method "imported", their model the explanation's, their prompt its type.

    Raises BadFile with file and line, Mismatch where they say that they are of another SAE.
    """
    folder = source_folder(folder)
    theirs = told_about(folder).get("about", {})
    check_sae(Row(theirs, f"'{folder / ABOUT}'"), atlas, force)
    count, features = 0, set()

    def labels() -> Iterator[Label]:
        nonlocal count
        for row in rows_of(folder, "explanations"):
            feature, text = row.index("index", len(atlas)), row.text("description", "")
            if text.strip():
                count, _ = count + 1, features.add(feature)
                yield _explained(row, feature, text, atlas, force)

    atlas.add(told(apart(labels()), "import", None, "labels", tell))
    notes = () if theirs else ("The files name no SAE: that these are labels of this one is taken on trust.",)
    return Moved(atlas.folder, {"labels": count, "features": len(features)}, notes)


def _explained(row: Row, feature: int, text: str, atlas: Atlas, force: bool) -> Label:
    notes = row.values.get("notes")
    if isinstance(notes, str) and notes.startswith('{"sparsight": '):
        try:
            ours = json.loads(notes)["sparsight"]
        except (ValueError, RecursionError, KeyError):
            ours = None
        if isinstance(ours, dict) and ours.get("label") == text:
            whole = Row(ours, row.where)
            check_sae(whole, atlas, force)
            return label_of(whole, feature, text)
    model, kind = row.text("explanationModelName", ""), row.text("typeName", "")
    return Label(feature, text, "imported", model, kind, created=row.text("createdAt", ""))


# ── a new atlas ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Stage:
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
        said = json.dumps(statistics_row(_statistics(row, feature, self.limit(), self.ids)))
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
        told = {"cursor": self.db.execute("SELECT feature, row FROM feature ORDER BY feature")}
        waiting = next(told["cursor"], None)
        for feature in range(count):
            if waiting is not None and waiting[0] == feature:
                statistics = statistics_of(Row(json.loads(waiting[1]), "the stage"), count)
                waiting = next(told["cursor"], None)
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
            known = out.get(at)
            values = np.frombuffer(held, "<f4")
            one = Example(feature, at, value, start, values, bool(top), bool(sampled), document, False)
            out[at] = (
                one if known is None else replace(known, top=known.top or one.top, sampled=known.sampled or one.sampled)
            )
        return list(out.values())


@contextmanager
def _staged(folder: Path, ids: Callable[[list[str]], list[int] | None], below: int | None) -> Iterator[_Stage]:
    """A stage in a folder of its own, which goes away with it; what a killed run left goes too."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        with (
            closing(sqlite3.connect(folder / "stage.db", isolation_level=None)) as db,
            (folder / "tokens").open("wb") as tokens,
        ):
            db.executescript(STAGE + "BEGIN;")
            yield _Stage(db, tokens, ids, below)
    except OSError as error:
        raise BadFile(f"Cannot write '{folder}': {first_line(error)}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_neuronpedia(
    folder: str | Path,
    to: str | Path,
    about: About | None = None,
    vocabulary: Vocabulary | None = None,
    tell: Tell | None = None,
) -> Moved:
    """A new atlas at `to`, of features, activations and explanations: whole, or nothing.

    about: of which SAE, model, tokenizer and hook point it is, and how many features that has (d_hidden; 0: as many as
    the files have); None where sparsight's own export tells it. vocabulary: the tokenizer that its tokens are of; an
    example that has another token is left out and counted. Counts of tokens are those that Neuronpedia's histogram adds
    up to; roles, languages and documents of a feature it does not tell.
    Raises BadFile with file and line, Mismatch where the tokens are of another tokenizer, BadInput where `to` is taken.
    """
    folder, to = source_folder(folder), Path(to)
    theirs = told_about(folder)
    about = _about(theirs, about, folder)
    if theirs.get("tokens") != "ids" and vocabulary is None:
        raise BadInput("Which tokenizer? These files hold tokens as text, and an atlas holds ids: name the model.")
    ids = _ids if theirs.get("tokens") == "ids" else _Ids(vocabulary)  # type: ignore[arg-type]
    with _staged(to.with_name(f"{to.name}.stage"), ids, about.d_hidden or None) as stage:
        for row in told(rows_of(folder, "features"), "features", None, "rows", tell):
            stage.add_feature(row)
        for row in told(rows_of(folder, "activations"), "examples", None, "rows", tell):
            stage.add_example(row)
        if stage.lost > stage.kept:
            some = f"{stage.lost:,} of {stage.lost + stage.kept:,} examples"
            raise Mismatch(f"{some} of '{folder}' have tokens that this tokenizer lacks: name the model they are of.")
        count = about.d_hidden or stage.highest + 1
        if not count:
            raise BadFile(f"'{folder}' holds no features.")
        whole = replace(about, d_hidden=count, tokens=stage.written, documents=stage.windows)

        def write(place: Path) -> None:
            features = told(stage.features(count), "atlas", count, "features", tell)
            write_atlas(place, whole, stage.pieces(), stage.documents(), features)
            if batches(folder, "explanations"):
                atlas = Atlas(place)
                read_explanations(atlas, folder)
                atlas._db.close()  # what is written goes into the table itself, before the folder moves

        write_folder(to, TABLE, write)
    notes = (
        (f"{stage.lost:,} examples are left out: they have tokens that this tokenizer lacks.",) if stage.lost else ()
    )
    return Moved(to, {"features": count, "examples": stage.kept, "documents": stage.windows}, notes)


def _about(theirs: dict[str, Any], mine: About | None, folder: Path) -> About:
    """What the new atlas is of. Raises Mismatch where the files say otherwise, BadInput where nobody says."""
    said = theirs.get("about")
    if said is None:
        if mine is None or not mine.sae:
            raise BadInput(f"'{folder}' does not say which SAE it is of: name the SAE and the model.")
        return replace(mine, corpus=f"Neuronpedia {folder.parent.name}/{folder.name}")
    try:
        found = About(**said)
    except TypeError as error:
        raise BadFile(f"'{folder / ABOUT}' does not say what it is of: {error}.") from error
    texts = (found.sae, found.model, found.tokenizer, found.hook_point, found.created)
    if not all(isinstance(text, str) for text in texts) or not is_whole(found.d_hidden) or found.d_hidden > FEATURES:
        raise BadFile(f"'{folder / ABOUT}' does not say what it is of, in texts and up to {FEATURES:,} features.")
    if mine is not None:
        found.check(str(folder), mine.sae or None, mine.tokenizer or None)
    return found


def _ids(words: list[str]) -> list[int] | None:
    """Of an export without a tokenizer: tokens are their ids."""
    return [int(word) for word in words] if all(re.fullmatch(r"\d{1,9}", word) for word in words) else None


class _Ids:
    """Tokens' strings to ids: those of the vocabulary, as they are or as they were before they were made readable, and
    text that is one token. None where one is neither."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.known = vocabulary, dict(vocabulary.get_vocab())
        self.asked: dict[str, int | None] = {}

    def __call__(self, words: list[str]) -> list[int] | None:
        found = [self.known[word] if word in self.known else self.other(word) for word in words]
        return None if None in found else found  # type: ignore[return-value]

    def other(self, word: str) -> int | None:
        if word not in self.asked:
            if len(self.asked) > 1_000_000:  # a stranger's strings do not fill the memory
                self.asked.clear()
            raw = "".join(MENDED.get(c, c) for c in word)
            ids = [self.known[raw]] if raw in self.known else self.vocabulary.encode(word, add_special_tokens=False)
            self.asked[word] = ids[0] if len(ids) == 1 else None
        return self.asked[word]


def _statistics(row: Row, feature: int, below: int, ids: Callable[[list[str]], list[int] | None]) -> Statistics:
    """What a row of features says. The histogram's bars, which may be of any width, go to the bins they are the middle
    of."""
    heights, values = row.numbers("freq_hist_data_bar_heights"), row.numbers("freq_hist_data_bar_values")
    share = row.number("frac_nonzero", 0.0) or 0.0
    if len(heights) != len(values) or not 0 <= share <= 1:
        raise row.wrong("frac_nonzero is from 0 to 1, and the histogram has a height for each value")
    bars = sorted(
        (value, round(height)) for value, height in zip(values, heights, strict=True) if value > 0 and height >= 1
    )
    fires = sum(count for _, count in bars) or int(share > 0)
    histogram: dict[int, int] = {}
    for value, count in bars:
        bin = min(max(int(np.floor((np.log2(value) - LOWEST) * PER_DOUBLING)), 0), BINS - 1)
        histogram[bin] = histogram.get(bin, 0) + count
    mean = sum(value * count for value, count in bars) / fires if fires else 0.0
    square = sum((value - mean) ** 2 * count for value, count in bars) / fires if fires else 0.0
    most = row.number("maxActApprox", 0.0) or (bars[-1][0] if bars else 0.0)
    quantiles = {q: min(_quantile(bars, q), most) for q in SHARES} if bars else {}
    near = zip(row.list_of("topkCosSimIndices", is_number, "features"), row.numbers("topkCosSimValues"), strict=False)
    tokens = {"top_logits": ("pos_str", "pos_values"), "bottom_logits": ("neg_str", "neg_values")}
    logits: dict[str, Any] = {name: _pairs(row, *columns, ids) for name, columns in tokens.items()}
    return Statistics(
        feature, fires, round(fires / share) if share else 0, mean, square**0.5, most, scale=quantiles.get(0.99, most),
        quantiles=quantiles, histogram=histogram, flags=() if fires else ("dead",), **logits,
        neighbours=tuple((int(f), value) for f, value in near if 0 <= f < below),
    )  # fmt: skip


def _pairs(row: Row, words: str, values: str, ids: Any) -> tuple[tuple[int, float], ...]:
    """(token, value), of tokens that are known."""
    found = ((ids([word]), value) for word, value in zip(row.texts(words), row.numbers(values), strict=False))
    return tuple((known[0], value) for known, value in found if known)


def _quantile(bars: list[tuple[float, int]], share: float) -> float:
    rank, passed = share * sum(count for _, count in bars), 0
    for value, count in bars:
        passed += count
        if passed >= rank:
            return value
    return bars[-1][0]
