"""What something was made from: beside it, recipe.toml (every setting) and run.json (hashes of what went in)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparsight import __version__
from sparsight.corpus.sources import Files, open_source
from sparsight.disk import first_line, write_aside, write_json
from sparsight.errors import BadFile
from sparsight.recipes.recipe import Recipe

SCHEMA = 1
WHOLE = 2**30  # bytes up to which a file is hashed as a whole
END = 2**24  # bytes at both ends of a larger one


def write_lineage(made: str | Path, verb: str, recipe: Recipe, inputs: Mapping[str, Any]) -> None:
    """Write both beside what was made: into a folder; for a file, report.json, as report.recipe.toml and
    report.run.json. inputs: {what: its hashes}. Raises BadFile where they cannot be written."""
    path = Path(made)
    settings = path / "recipe.toml" if path.is_dir() else path.with_name(f"{path.stem}.recipe.toml")
    run = path / "run.json" if path.is_dir() else path.with_name(f"{path.stem}.run.json")
    said = {
        "schema": SCHEMA,
        "verb": verb,
        "sparsight": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": settings.name,
        "inputs": dict(inputs),
    }
    text = recipe.to_toml()
    try:
        write_aside(settings, lambda part: part.write_text(text, encoding="utf-8"))
        write_json(run, said)
    except OSError as error:
        raise BadFile(f"Cannot write '{run}': {first_line(error)}") from error


def of_model(lm: Any) -> dict[str, Any]:
    """A model's name; of one from the hub the commit, of a folder its files."""
    folder = Path(lm.model.config.name_or_path or lm.name)
    said = {"name": lm.name, "dtype": str(lm.dtype).removeprefix("torch.")}
    if folder.is_dir():
        return said | {"files": [of_file(path) for path in sorted(folder.iterdir()) if path.is_file()]}
    return said | {"commit": getattr(lm.model.config, "_commit_hash", None)}


def of_corpus(spec: Any) -> dict[str, Any]:
    """A corpus' files; of a dataset of the hub the name and what was asked for."""
    here = Path(os.path.expanduser(spec.source))
    if here.exists() or re.search(r"[*?[]", spec.source):
        source = open_source(spec)
        assert isinstance(source, Files)
        return {"files": [of_file(path) for path in source.paths]}
    return {"hub": spec.source, "config": spec.hub_config, "split": spec.hub_split, "revision": spec.hub_revision}


def of_file(path: Path) -> dict[str, Any]:
    """A file's path, bytes and sha256; of one above 1 GiB the sha256 of its first and last 16 MiB."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= WHOLE:
                return {"path": str(path), "bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            hashed = hashlib.sha256(file.read(END))
            file.seek(-END, os.SEEK_END)
            hashed.update(file.read())
            return {"path": str(path), "bytes": size, "sha256_of_ends": hashed.hexdigest()}
    except OSError as error:
        raise BadFile(f"Cannot read '{path}': {first_line(error)}") from error
