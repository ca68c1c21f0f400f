"""Where rows come from: files here, or a dataset of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from sparsight.corpus.files import KINDS, PACKINGS, from_extra, kind_of, rows_of
from sparsight.corpus.spec import CorpusSpec
from sparsight.disk import first_line
from sparsight.errors import BadFile, BadInput

READ = f"{', '.join(KINDS)}; all but .parquet also with {', '.join(filter(None, PACKINGS))}"


@dataclass(frozen=True)
class Files:
    """Files, read one after another. Iterating gives (place, row, name of the file)."""

    paths: tuple[Path, ...]
    documents: str

    def __iter__(self) -> Iterator[tuple[str, object, str]]:
        for path in self.paths:
            for place, row in rows_of(path, self.documents):
                yield place, row, path.name


@dataclass(frozen=True)
class HubDataset:
    """One split of a dataset of the hub, streamed. Iterating gives (place, row, name of the dataset)."""

    name: str
    rows: Any

    def __iter__(self) -> Iterator[tuple[str, object, str]]:
        number = 0
        try:
            for number, row in enumerate(self.rows, 1):
                yield f"{self.name}, row {number}", row, self.name
        except Exception as error:  # of whatever kind the library and those under it raise
            raise BadFile(
                f"The hub's '{self.name}' cannot be read on after row {number}: {first_line(error)}"
            ) from error


def open_source(spec: CorpusSpec) -> Files | HubDataset:
    """The files that the source names, in order of their paths; else the hub's dataset of that name.

    Raises BadInput where there is neither, saying both.
    """
    path = Path(os.path.expanduser(spec.source))
    if os.path.isfile(path):
        if kind_of(path) is None:
            raise BadInput(f"'{spec.source}' is of no kind that is read as text. There are: {READ}.")
        return Files((path,), spec.documents)
    if os.path.isdir(path):
        inside = (found for found in path.rglob("*") if not re.search(r"(^|/)\.", found.relative_to(path).as_posix()))
        return _several(spec, inside, "the folder")
    if re.search(r"[*?[]", spec.source):
        return _several(spec, map(Path, glob(str(path), recursive=True)), "what matches")
    return _from_hub(spec, path)


def _several(spec: CorpusSpec, found: Iterable[Path], where: str) -> Files:
    paths = sorted({path for path in found if kind_of(path) and path.is_file()})
    if not paths:
        raise BadInput(f"There is no file to read in {where} '{spec.source}'. Kinds that are read: {READ}.")
    return Files(tuple(paths), spec.documents)


def _from_hub(spec: CorpusSpec, path: Path) -> HubDataset:
    nothing_here = f"There is no file or folder '{spec.source}' here"
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", spec.source) or kind_of(path):
        raise BadInput(f"{nothing_here}, and it is no name of a dataset of the hub, which is owner/name.")
    datasets = from_extra("datasets")
    try:
        rows = datasets.load_dataset(
            spec.source,
            spec.hub_config,
            split=spec.hub_split,
            revision=spec.hub_revision,
            token=spec.hub_token,
            streaming=True,
        )
    except Exception as error:
        raise BadInput(
            f"{nothing_here}, and the hub's dataset of that name cannot be read: {first_line(error)}"
        ) from error
    return HubDataset(spec.source, rows)
