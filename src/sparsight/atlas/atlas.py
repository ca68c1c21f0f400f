"""An atlas: what every feature of one SAE fires on, and what it means. A folder:

  atlas.db     statistics, examples, labels and their words (SQLite)
  tokens.bin   the ids of the text that was surveyed, uint32, document after document
  vectors.*    the meanings of labels, for search (made when first needed)

It holds no text and no model: ids become text by the tokenizer of whoever looks.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.atlas.about import About
from sparsight.atlas.draft import TABLE, TOKENS, unpack_roles
from sparsight.atlas.entries import METHODS, Document, Example, Label, Score, Statistics, is_held_out
from sparsight.atlas.examples import SAMPLED, TOP, unpack
from sparsight.atlas.schema import SCHEMA
from sparsight.disk import first_line
from sparsight.errors import BadFile, BadInput, NoFeature

ANEW = "make it anew: sparsight survey"
RESUME = "its survey is not done: the same command goes on with it"
COLUMNS = ("fires", "density", "mean", "max", "scale", "documents")
LABEL = "id, feature, text, method, model, prompt, type, rule, confidence, created"
PLAIN = LABEL.replace("rule", "NULL")


class Atlas:
    """One atlas on disk, read as it is asked for. Threads may share it; processes may, too.

    sae, tokenizer: fingerprints that it must be of. Raises BadFile where something is missing or damaged, Mismatch
    where it is of another SAE, model or tokenizer.
    """

    def __init__(self, folder: str | Path, *, sae: str | None = None, tokenizer: str | None = None) -> None:
        self.folder = Path(folder)
        self._local = threading.local()
        for name, what in ((TABLE, "its table"), (TOKENS, "the tokens of its examples")):
            if not (self.folder / name).is_file():
                todo = RESUME if any(self.folder.glob("part-*")) else ANEW
                raise BadFile(f"'{self.folder}' is no atlas, or not a whole one: '{name}', {what}, is missing; {todo}.")
        told = {key: self._json(value) for key, value in self.rows("SELECT key, value FROM about")}
        if told.get("schema") != SCHEMA:
            raise BadFile(f"'{self.folder}' is of schema {told.get('schema')!r}; this sparsight reads schema {SCHEMA}.")
        known = {f.name for f in fields(About)}
        if missing := known - told.keys():
            raise BadFile(f"'{self.folder / TABLE}' does not say its {', '.join(sorted(missing))}; {ANEW}.")
        self.about = About(**{name: told[name] for name in known})
        self.about.check(str(self.folder), sae, tokenizer)
        size, wanted = (self.folder / TOKENS).stat().st_size, 4 * self.about.tokens
        if size != wanted:
            raise BadFile(f"'{self.folder / TOKENS}' has {size:,} bytes, not {wanted:,}; {ANEW}.")
        (features,) = next(self.rows("SELECT count(*) FROM feature"))
        if features != self.about.d_hidden:
            raise BadFile(f"'{self.folder / TABLE}' has {features:,} features of {self.about.d_hidden:,}; {ANEW}.")

    def __len__(self) -> int:
        return self.about.d_hidden

    def __repr__(self) -> str:
        (labels,) = next(self.rows("SELECT count(DISTINCT feature) FROM label"))
        return f"Atlas({self.folder}, {len(self):,} features, {labels:,} labelled, {self.about.tokens:,} tokens)"

    # ── what was measured ────────────────────────────────────────────────────────────────────────────────────────

    def statistics(self, feature: int) -> Statistics:
        """Raises NoFeature."""
        (packed,) = self._one("SELECT more FROM feature WHERE feature = ?", feature)
        try:
            told = json.loads(zlib.decompress(packed))
            pairs = ("top_tokens", "top_logits", "bottom_logits", "neighbours", "coactive")
            told |= {name: tuple((int(a), b) for a, b in told[name]) for name in pairs}
            told |= {"quantiles": {float(q): value for q, value in told["quantiles"].items()}}
            told |= {"histogram": {int(bin): count for bin, count in told["histogram"].items()}}
            return Statistics(**told | {"positions": tuple(told["positions"]), "flags": tuple(told["flags"])})
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            raise BadFile(f"The statistics of feature {feature} in '{self.folder}' are damaged; {ANEW}.") from error

    def examples(self, feature: int) -> list[Example]:
        """Strongest first. Raises NoFeature."""
        self._check(feature)
        row = next(self.rows("SELECT packed FROM example WHERE feature = ?", feature), None)
        if row is None:
            return []
        head, windows = unpack(row[0])
        out = []
        for one, values in zip(head, windows, strict=True):
            at, kind = int(one["at"]), int(one["kind"])
            document = self.document_of(at)
            out.append(
                Example(
                    feature,
                    at,
                    float(one["value"]),
                    at - int(one["before"]),
                    values,
                    bool(kind & TOP),
                    bool(kind & SAMPLED),
                    document,
                    bool(self._held_out[document]),
                )
            )
        return sorted(out, key=lambda e: (-e.value, e.at))

    def column(self, name: str) -> np.ndarray:
        """One number of every feature, [feature], float64. name: of COLUMNS."""
        if name not in COLUMNS:
            raise BadInput(f"No column {name!r}. There are: {', '.join(COLUMNS)}.")
        return np.array([v for (v,) in self.rows(f"SELECT {name} FROM feature ORDER BY feature")], np.float64)

    # ── the text ─────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def tokens(self) -> np.ndarray:
        """Ids of all tokens, [token] uint32, mapped from the disk."""
        if not self.about.tokens:
            return np.zeros(0, np.uint32)
        return np.memmap(self.folder / TOKENS, "<u4", "r")

    @cached_property
    def _starts(self) -> list[int]:
        return [start for (start,) in self.rows("SELECT start FROM document ORDER BY number")]

    @cached_property
    def _held_out(self) -> list[bool]:
        return [is_held_out(id) for (id,) in self.rows("SELECT id FROM document ORDER BY number")]

    def document_of(self, token: int) -> int:
        """The number of the document that a place in the tokens file is in."""
        return bisect_right(self._starts, token) - 1

    def document(self, number: int) -> Document:
        """Raises BadInput where there is none."""
        row = next(self.rows("SELECT number, start, length, id, source, language, roles FROM document WHERE number = ?",
                             number), None)  # fmt: skip
        if row is None:
            raise BadInput(f"No document {number}: the atlas '{self.folder}' has {self.about.documents:,}.")
        return Document(*row[:-1], roles=unpack_roles(row[-1]))

    def documents(self) -> Iterator[Document]:
        """All of them, in order."""
        for row in self.rows("SELECT number, start, length, id, source, language, roles FROM document ORDER BY number"):
            yield Document(*row[:-1], roles=unpack_roles(row[-1]))

    def around(self, at: int, before: int, after: int) -> tuple[int, np.ndarray]:
        """(first place, ids) of the tokens around a place, without going over the ends of its document."""
        document = self.document(self.document_of(at))
        start = max(at - before, document.start)
        return start, np.asarray(self.tokens[start : min(at + after + 1, document.start + document.length)])

    # ── what it means ────────────────────────────────────────────────────────────────────────────────────────────

    def labels(self, feature: int) -> list[Label]:
        """Everything that was said about a feature, best first: a human's before all, then by score, then the newest.
        Raises NoFeature."""
        self._check(feature)
        return self._ranked(self.rows(f"SELECT {LABEL} FROM label WHERE feature = ?", feature))

    def label(self, feature: int) -> Label | None:
        """The best of them."""
        return next(iter(self.labels(feature)), None)

    def all_labels(self, rules: bool = True) -> dict[int, list[Label]]:
        """Of every feature that has any, best first. rules: with theirs, which takes longest."""
        out: dict[int, list[Label]] = {}
        for one in self._ranked(self.rows(f"SELECT {LABEL if rules else PLAIN} FROM label")):
            out.setdefault(one.feature, []).append(one)
        return dict(sorted(out.items()))

    def texts(self) -> dict[int, str]:
        """{feature: its best label's text}."""
        return {feature: labels[0].text for feature, labels in self.all_labels(rules=False).items()}

    def add(self, labels: Iterable[Label]) -> None:
        """Write labels down, all or none. One of the same feature, method, model and prompt is replaced.

        Raises NoFeature, BadInput for a method that there is not and a text that is empty or no Unicode.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._writing() as db:
            for one in labels:
                self._check(one.feature)
                if one.method not in METHODS or not one.text.strip():
                    said = f"by one of {', '.join(METHODS)}" if one.text.strip() else "not empty"
                    raise BadInput(f"A label is {said}; feature {one.feature}: {one.method!r}, {one.text!r}.")
                if any("\ud800" <= character <= "\udfff" for character in one.text):
                    raise BadInput(
                        f"The label of feature {one.feature} is no Unicode: {one.text!r} has half a character."
                    )
                key = (one.feature, one.method, one.model, one.prompt)
                db.execute("DELETE FROM label WHERE feature = ? AND method = ? AND model = ? AND prompt = ?", key)
                rule = None if one.rule is None else zlib.compress(json.dumps(one.rule).encode())
                values = (one.feature, one.text, one.method, one.model, one.prompt, one.type, rule, one.confidence)
                put = "INSERT INTO label (feature, text, method, model, prompt, type, rule, confidence, created)"
                row = db.execute(f"{put} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, one.created or now))
                self._score(db, row.lastrowid, one.scores)

    def remove(self, label: int) -> None:
        """Take a label away, by its id."""
        with self._writing() as db:
            db.execute("DELETE FROM label WHERE id = ?", (label,))

    def score(self, label: int, scores: dict[str, Score]) -> None:
        """Write down how well a label predicts; a score of the same name is replaced."""
        with self._writing() as db:
            self._score(db, label, scores)

    def _score(self, db: sqlite3.Connection, label: int | None, scores: Any) -> None:
        rows = [(label, name, s.value, s.low, s.high, s.number) for name, s in scores.items()]
        db.executemany("INSERT OR REPLACE INTO score VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _ranked(self, rows: Iterable[Sequence[Any]]) -> list[Label]:
        found = []
        for id, feature, text, method, model, prompt, type, rule, confidence, created in rows:
            rule = None if rule is None else self._json(_inflated(rule))
            found.append(Label(feature, text, method, model, prompt, type, rule, confidence, {}, created, id))
        if len(found) < 500:
            marks = ", ".join("?" * len(found))
            scored = self.rows(f"SELECT * FROM score WHERE label IN ({marks})", *(one.id for one in found))
        else:
            scored = self.rows("SELECT * FROM score")
        scores: dict[int, dict[str, Score]] = {}
        for label, name, *numbers in scored:
            scores.setdefault(label, {})[name] = Score(*numbers)
        found = [replace(one, scores=scores.get(one.id or 0, {})) for one in found]
        found.sort(key=lambda one: one.created, reverse=True)
        return sorted(found, key=lambda one: (one.method != "human", -(one.score if one.score is not None else -1.0)))

    # ── the table ────────────────────────────────────────────────────────────────────────────────────────────────

    def rows(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """What a query gives. For this room alone: the others do not speak SQL. Raises BadFile for a damaged table."""
        try:
            yield from self._db.execute(query, values)
        except sqlite3.DatabaseError as error:
            raise BadFile(f"Cannot read '{self.folder / TABLE}': {first_line(error)}; {ANEW}.") from error

    def state(self) -> tuple[int, int, int]:
        """Another one whenever the table may have changed, by this thread's hand or another's."""
        ((version,),) = self.rows("PRAGMA data_version")
        ((changes,),) = self.rows("SELECT total_changes()")
        return threading.get_ident(), version, changes

    def _one(self, query: str, feature: int) -> tuple[Any, ...]:
        self._check(feature)
        return next(self.rows(query, feature))

    def _check(self, feature: int) -> None:
        if not 0 <= feature < len(self):
            raise NoFeature(f"No feature {feature}: this SAE has {len(self):,} (0 to {len(self) - 1}).")

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError) as error:
            raise BadFile(f"'{self.folder / TABLE}' is damaged: {first_line(error)}; {ANEW}.") from error

    @property
    def _db(self) -> sqlite3.Connection:
        """This thread's connection: for writing where the disk allows it."""
        if not hasattr(self._local, "db"):
            path = (self.folder / TABLE).resolve()
            try:
                db = sqlite3.connect(path, timeout=30, isolation_level=None)
                db.execute("PRAGMA foreign_keys = ON")
                db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:  # a folder that cannot be written, as an installed package's
                db = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
            except sqlite3.DatabaseError as error:
                raise BadFile(f"Cannot read '{path}': {first_line(error)}; {ANEW}.") from error
            self._local.db = db
        return self._local.db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction. Raises BadFile where the atlas cannot be written."""
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise BadFile(f"Cannot write to the atlas '{self.folder}': {first_line(error)}.") from error
            raise


def _inflated(packed: bytes) -> str:
    """The text, or none that is JSON where the bytes are damaged."""
    try:
        return zlib.decompress(packed).decode()
    except (zlib.error, TypeError, UnicodeDecodeError):
        return ""
