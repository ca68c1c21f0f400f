"""Keys and saved variants: one SQLite file. What was told to be saved is on the disk, whatever ends the process then.

A key is 256 random bits; the file holds their SHA-256, so that whoever reads the file cannot call the server. Several
processes may use the file at once: a key that `sparsight keys revoke` ends is refused at the next request.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsight.disk import first_line
from sparsight.edits import Controller
from sparsight.errors import BadFile, BadInput, SparsightError
from sparsight.serve.logs import tell
from sparsight.wire import from_json, to_json

PREFIX = "sk-sparsight-"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent")
FORM = 1  # of the tables; in the file's user_version
PATIENCE, SOON = 5.0, 0.2  # seconds that a locked file is waited for
SEEN = 60.0  # seconds after which "last used" is written again
TABLES = """
CREATE TABLE keys (
    name TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, created REAL NOT NULL, last_used REAL, revoked REAL,
    requests_per_minute INTEGER, tokens_per_minute INTEGER, concurrent INTEGER
);
CREATE TABLE variants (
    name TEXT PRIMARY KEY, model TEXT NOT NULL, controller TEXT NOT NULL, owner TEXT NOT NULL, saved REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Key:
    """Who may call, and how much. Times are seconds since 1970; None: never, or no limit."""

    name: str
    created: float
    last_used: float | None = None
    revoked: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None

    @property
    def is_unseen(self) -> bool:
        """Whether its last use is so long ago that it is to be noted again."""
        return self.last_used is None or time.time() - self.last_used > SEEN


@dataclass(frozen=True)
class Variant:
    """A saved controller. model: the served name that it was made for; owner: the key's name, "" without keys."""

    name: str
    model: str
    controller: Controller
    owner: str
    saved: float


class Store:
    """The file. It is made, with its folder, where it is not there; path=None keeps everything in memory.

    May be used from several threads: who reads waits for nobody who writes. Raises BadFile where the file cannot be
    used, or is another one than it was.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._turn = self._turn_to_read = threading.RLock()
        self._known: tuple[int, dict[bytes, Key]] | None = None
        try:
            self._db = self._reader = self._opened()
            if self.path is not None:
                self._reader, self._turn_to_read = self._connected(), threading.RLock()
            self._file = self._which()
        except (OSError, sqlite3.Error) as error:
            raise BadFile(f"Cannot keep keys and variants in '{path}': {first_line(error)}") from error

    def _opened(self) -> sqlite3.Connection:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        db = self._connected()
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("BEGIN IMMEDIATE")
        form = db.execute("PRAGMA user_version").fetchone()[0]
        if form == 0:
            for statement in TABLES.split(";\n")[:-1]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version={FORM}")
        db.execute("COMMIT")
        if form not in (0, FORM):
            raise sqlite3.DatabaseError(f"its form is {form}, and this sparsight knows form {FORM}")
        return db

    def _connected(self, patience: float = PATIENCE) -> sqlite3.Connection:
        place = self.path or ":memory:"
        return sqlite3.connect(place, timeout=patience, isolation_level=None, check_same_thread=False)

    def _which(self) -> tuple[int, int] | None:
        """Which file of the disk it is."""
        if self.path is None:
            return None
        told = os.stat(self.path)
        return told.st_dev, told.st_ino

    def close(self) -> None:
        with self._turn, self._turn_to_read:
            self._reader.close()
            self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing. Raises BadFile where the disk refuses."""
        with self._turn:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._known = None
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as error:
                raise BadFile(f"Cannot write '{self.path}': {first_line(error)}") from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Raises BadFile where the file cannot be read, or somebody has put another one in its place: nobody could
        revoke a key that is read from one that is gone."""
        with self._turn_to_read:
            try:
                if self._which() != self._file:
                    raise BadFile(f"'{self.path}' is another file than it was: start the server anew.")
                yield self._reader
            except (OSError, sqlite3.Error) as error:
                raise BadFile(f"Cannot read '{self.path}': {first_line(error)}") from error

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def add_key(self, name: str, **limits: int | None) -> str:
        """Make a key; its secret is told now and never again. limits: see LIMITS. Raises BadInput."""
        check_name(name, "A key")
        for limit, value in limits.items():
            if limit not in LIMITS:
                raise BadInput(f"No limit '{limit}'. There are: {', '.join(LIMITS)}.")
            if value is not None and not 1 <= value < 2**63:
                raise BadInput(f"{limit} is a whole number from 1 up, not {value}.")
        secret = PREFIX + secrets.token_urlsafe(32)
        row = (name, hashed(secret), time.time(), *(limits.get(limit) for limit in LIMITS))
        try:
            with self._writing() as db:
                db.execute(f"INSERT INTO keys (name, hash, created, {', '.join(LIMITS)}) VALUES (?,?,?,?,?,?)", row)
        except sqlite3.IntegrityError:
            raise BadInput(f"There is a key '{name}' already. Give another name.") from None
        return secret

    def revoke_key(self, name: str) -> None:
        """From now on it is refused. Raises BadInput where there is no such key."""
        with self._writing() as db:
            done = db.execute("UPDATE keys SET revoked = COALESCE(revoked, ?) WHERE name = ?", (time.time(), name))
        if not done.rowcount:
            raise BadInput(f"No key '{name}'. There are: {', '.join(key.name for key in self.keys()) or 'none'}.")

    def keys(self) -> list[Key]:
        """All of them, the oldest first, revoked ones too."""
        return sorted(self._keys().values(), key=lambda key: (key.created, key.name))

    def has_keys(self) -> bool:
        """Whether a key was ever made: then every caller needs one."""
        return bool(self._keys())

    def key_of(self, secret: str) -> Key | None:
        """Whose secret this is; None for nobody's, or a revoked one's."""
        key = self._keys().get(hashed(secret))
        return None if key is None or key.revoked is not None else key

    def used(self, key: Key) -> None:
        """Note in the file that a key was used, once a minute at most; not where it cannot be written soon."""
        if self.path is None or not key.is_unseen:
            return
        try:
            with closing(self._connected(SOON)) as db:
                db.execute("UPDATE keys SET last_used = ? WHERE name = ?", (time.time(), key.name))
        except sqlite3.Error as error:
            tell("use of a key not noted", error=error)

    def _keys(self) -> dict[bytes, Key]:
        """By hash; read again only where the file was changed."""
        with self._reading() as db:
            version = db.execute("PRAGMA data_version").fetchone()[0]  # moves when others write
            if self._known is None or self._known[0] != version:
                names = ", ".join(("name", "created", "last_used", "revoked", *LIMITS))
                rows = db.execute(f"SELECT hash, {names} FROM keys").fetchall()
                self._known = version, {row[0]: Key(*row[1:]) for row in rows}
            return self._known[1]

    # ── variants ─────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, name: str, model: str, controller: Controller, owner: str = "") -> Variant:
        """Save a controller under a name, in an older one's place if that is the same owner's, or nobody's: it was
        saved before there were keys. Raises BadInput, and NotYours for another's."""
        check_name(name, "A variant")
        variant = Variant(name, model, controller, owner, time.time())
        row = (name, model, json.dumps(to_json(controller)), owner, variant.saved)
        with self._writing() as db:
            _check_owner(db, name, owner)
            db.execute(
                "INSERT OR REPLACE INTO variants (name, model, controller, owner, saved) VALUES (?,?,?,?,?)", row
            )
        return variant

    def variant(self, name: str) -> Variant | None:
        """A saved one, or None. Raises BadFile for one that cannot be read."""
        return next(iter(self._variants("WHERE name = ?", (name,))), None)

    def variants(self) -> list[Variant]:
        """All that can be read, by name."""
        return self._variants("ORDER BY name", (), lenient=True)

    def delete(self, name: str, owner: str = "") -> bool:
        """Forget one; False where there is none. Raises NotYours for another's."""
        with self._writing() as db:
            _check_owner(db, name, owner)
            return bool(db.execute("DELETE FROM variants WHERE name = ?", (name,)).rowcount)

    def _variants(self, which: str, values: tuple[Any, ...], lenient: bool = False) -> list[Variant]:
        """lenient: leave out those that cannot be read."""
        with self._reading() as db:
            asked = f"SELECT name, model, controller, owner, saved FROM variants {which}"
            rows = db.execute(asked, values).fetchall()
        out = []
        for name, model, text, owner, saved in rows:
            try:
                out.append(Variant(name, model, from_json(text), owner, saved))
            except BadInput as error:
                unread = BadFile(f"The variant '{name}' in '{self.path}' cannot be read: {first_line(error)}")
                if not lenient:
                    raise unread from error
                tell("variant not read", error=unread)
        return out


class NotYours(SparsightError):
    """Something that another key saved."""


def _check_owner(db: sqlite3.Connection, name: str, owner: str) -> None:
    found = db.execute("SELECT owner FROM variants WHERE name = ?", (name,)).fetchone()
    if found and found[0] not in ("", owner):
        raise NotYours(f"The variant '{name}' was saved with another key. Take another name.")


def check_name(name: str, what: str) -> None:
    """Raises BadInput for what is no name of a key or a variant."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        allowed = "letters, digits, '.', '_', '-', beginning with a letter or digit, at most 64"
        raise BadInput(f"{what} has a name of {allowed}; not {str(name)[:80]!r}.")


def hashed(secret: str) -> bytes:
    """What the file holds of a secret. One round will do: there is no dictionary of 256 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
