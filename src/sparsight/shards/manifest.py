"""What a store is about: the model, the hook points, the text. Written before the shards, counted after the last."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from sparsight.disk import first_line, read_json
from sparsight.errors import BadFile, BadInput
from sparsight.records import is_whole

SCHEMA = 1
NAME = "manifest.json"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
HOOK_POINT = re.compile(r"[\w-]+(\.[\w-]+)*")  # it becomes part of a file's name
TOKEN_BYTES = 8 + 4 + 2  # of a token's conversation, id and kinds
SHARD_BYTES = 2**29  # of rows in a shard, where nothing else is asked for
PAGE = 4096


@dataclass(frozen=True)
class Manifest:
    """What a store is about. All but notes and tokens must be the same whenever it is written to again.

    model, model_revision: as on the hub. hook_points: {hook point: d_in}. dtype: of the rows, "bfloat16", "float16" or
    "float32". corpus: what identifies the text. chat_template: a hash of it. kept: which tokens were kept, in words.
    tokens_per_shard: 0 takes the power of two that fills a shard's widest file up to 512 MiB. world: how many
    processes write. notes: what else its maker wants to say, as JSON. tokens: in the whole store, once all is written.
    Raises BadInput for what cannot be.
    """

    model: str
    hook_points: Mapping[str, int]
    dtype: str = "bfloat16"
    model_revision: str = ""
    corpus: str = ""
    chat_template: str = ""
    kept: Sequence[str] = ()
    tokens_per_shard: int = 0
    world: int = 1
    notes: Mapping[str, Any] = field(default_factory=dict)
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("model", "model_revision", "corpus", "chat_template"):
            if not isinstance(getattr(self, name), str):
                raise BadInput(f"{name} of shards is text, not {getattr(self, name)!r}.")
        if self.dtype not in DTYPES:
            raise BadInput(f"Shards are kept in one of: {', '.join(DTYPES)}; not in {self.dtype!r}.")
        if not isinstance(self.hook_points, Mapping) or not self.hook_points:
            raise BadInput(f"Shards are of hook points, {{name: d_in}}, not of {self.hook_points!r}.")
        for hook_point in self.hook_points:
            if not isinstance(hook_point, str) or not HOOK_POINT.fullmatch(hook_point) or hook_point == "index":
                raise BadInput(f"A hook point of shards is a module path, like 'model.layers.19', not {hook_point!r}.")
        if isinstance(self.kept, str) or not all(isinstance(word, str) for word in self.kept):
            raise BadInput(f"kept takes words for the tokens that were kept, not {self.kept!r}.")
        object.__setattr__(self, "kept", tuple(self.kept))
        sizes = {name: whole(d_in, 1, 2**24, f"d_in of '{name}'") for name, d_in in self.hook_points.items()}
        object.__setattr__(self, "hook_points", sizes)
        if self.tokens_per_shard == 0:
            fitting = max(SHARD_BYTES // (max(self.hook_points.values()) * self.width), 1)
            object.__setattr__(self, "tokens_per_shard", 1 << (fitting.bit_length() - 1))
        for name, low, high in (("tokens_per_shard", 1, 2**40), ("world", 1, 9999), ("tokens", 0, 2**62)):
            if getattr(self, name) is not None or name != "tokens":
                object.__setattr__(self, name, whole(getattr(self, name), low, high, name))
        as_json(self.notes, "notes")

    @property
    def width(self) -> int:
        """Bytes of one number of a row."""
        return DTYPES[self.dtype].itemsize

    def some(self, names: str | Iterable[str] | None = None) -> dict[str, int]:
        """{hook point: d_in} of one hook point, of these, or of all. Raises BadInput for one that is not here."""
        names = [names] if isinstance(names, str) else list(self.hook_points if names is None else names)
        for name in names:
            if name not in self.hook_points:
                raise BadInput(f"No hook point {name!r} in this store. There are: {', '.join(self.hook_points)}.")
        if not names:
            raise BadInput("Name at least one hook point.")
        return {name: self.hook_points[name] for name in names}

    def bytes_for(self, tokens: int) -> int:
        """What so many tokens take on the disk."""
        shards = -(-tokens // self.tokens_per_shard) + self.world - 1  # the last of each process may be short
        a_token = sum(self.hook_points.values()) * self.width + TOKEN_BYTES
        return tokens * a_token + shards * PAGE * (2 * len(self.hook_points) + 3)  # headers, and rounding to pages

    def differences(self, asked: Manifest) -> list[str]:
        """Where this, of a store that is there, is not what is asked for now: a sentence's part for each."""
        one, other = asdict(self), asdict(asked)
        said = one.keys() - {"notes", "tokens"}
        return [f"{n} {one[n]!r}, not {other[n]!r}" for n in one if n in said and one[n] != other[n]]


def read_manifest(store: Path) -> Manifest:
    """The manifest of a store. Raises BadFile where it is absent, garbage or of another schema."""
    path = store / NAME
    said = read_schema(path)
    names = [f.name for f in fields(Manifest)]
    if lacking := [name for name in names if name not in said]:
        raise BadFile(f"'{path}' does not say {', '.join(lacking)}.")
    try:
        made = Manifest(**{name: said[name] for name in names})
    except (BadInput, TypeError) as error:
        raise BadFile(f"'{path}' is not a sound manifest: {first_line(error)}") from error
    if said["tokens_per_shard"] == 0:
        raise BadFile(f"'{path}' is not a sound manifest: tokens_per_shard is 0.")
    return made


def read_schema(path: Path) -> dict[str, Any]:
    """A JSON object of the schema that this sparsight reads. Raises BadFile."""
    said = read_json(path)
    if said.get("schema") != SCHEMA:
        raise BadFile(f"'{path}' is of schema {said.get('schema')!r}; this sparsight reads schema {SCHEMA}.")
    return said


def as_json(value: Any, what: str) -> str:
    """As JSON, or BadInput."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"{what} is kept as JSON, and this cannot be: {error}.") from error


def whole(value: Any, low: int, high: int, what: str) -> int:
    """A whole number in these bounds, or BadInput."""
    if not is_whole(value) or not low <= value <= high:
        raise BadInput(f"{what} must be a whole number from {low:,} to {high:,}, not {value!r}.")
    return int(value)
