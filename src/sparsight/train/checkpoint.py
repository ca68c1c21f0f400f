"""Stopping at any moment and going on as if nothing had happened: all that a run is, in one file of each process.

A checkpoint counts once the files of all processes are there. Each is written aside and renamed; the one before is
removed only after that, so that there always is a whole one. Files of later steps are what a run that was killed left
of one that was never whole: they go too, since they would pass for the last ones.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsight.disk import PART, first_line, write_aside
from sparsight.errors import BadFile, DiskFull, Mismatch, SparsightError
from sparsight.train.parallel import Team

SCHEMA = 1
KEPT = 2


def _name(step: int, rank: int) -> str:
    return f"checkpoint-{step:09}-{rank:04}.safetensors"


def write(folder: Path, team: Team, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Path:
    """This process's part of a checkpoint. Raises what `writing` does, and leaves the one before."""
    path = folder / _name(step, team.rank)
    said = {"schema": SCHEMA, "world": team.world, "features": team.features, "step": step, **facts}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with writing(path, folder, team):
        write_aside(path, lambda part: save_file(whole, part, {"facts": json.dumps(said)}))
    mine = sorted(folder.glob(f"checkpoint-*-{team.rank:04}.safetensors"))
    after = mine.index(path) + 1
    for other in (*mine[: max(after - KEPT, 0)], *mine[after:]):
        other.unlink()
    _sweep(folder, team)
    return path


@contextmanager
def writing(path: Path, folder: Path, team: Team) -> Iterator[None]:
    """Whatever cannot be written is a DiskFull, which says what is kept in the run's folder, or a BadFile."""
    try:
        yield
    except SparsightError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "quota exceeded" in str(error):
            last = newest(folder, team)
            kept = f"the checkpoint of step {last:,} is whole" if last is not None else "nothing was kept yet"
            raise DiskFull(f"The disk is full at '{folder}': {kept}; make room, and go on by the same call.") from error
        raise BadFile(f"Cannot write '{path}': {first_line(error)}") from error


def newest(folder: Path, team: Team) -> int | None:
    """The last step of which every process has a file; None where there is none. Raises Mismatch where there would be
    one for other processes."""
    each = [folder.glob(f"checkpoint-*-{rank:04}.safetensors") for rank in range(team.world)]
    steps = [{int(path.name.split("-")[1]) for path in paths} for paths in each]
    last = max(set.intersection(*steps), default=None)
    if last is None:
        for path in sorted(folder.glob("checkpoint-*.safetensors"))[:1]:
            _facts(path, team)
    return last


def read(folder: Path, team: Team, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raises BadFile where it is damaged, Mismatch where it is of other processes."""
    path = folder / _name(step, team.rank)
    facts = _facts(path, team)
    with _named(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118


def _facts(path: Path, team: Team) -> dict[str, Any]:
    with _named(path), safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {})["facts"])
    if facts.get("schema") != SCHEMA:
        raise BadFile(f"'{path}' is of schema {facts.get('schema')!r}; this sparsight reads schema {SCHEMA}.")
    there, here = (facts["world"], facts["features"]), (team.world, team.features)
    if there != here:
        said = "{} processes, {} to a dictionary"
        raise Mismatch(f"'{path}' is of a run of {said.format(*there)}; now there are {said.format(*here)}.")
    return facts


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever cannot be read in a checkpoint is a BadFile."""
    try:
        yield
    except Exception as error:
        todo = "remove it, and the one before is taken"
        raise BadFile(f"Cannot go on from '{path}': {first_line(error)}. If it stays damaged, {todo}.") from error


def clear(folder: Path, team: Team) -> None:
    """Remove this process's checkpoints: the run is done."""
    for path in folder.glob(f"checkpoint-*-{team.rank:04}.safetensors"):
        path.unlink()
    _sweep(folder, team)


def _sweep(folder: Path, team: Team) -> None:
    """Remove what this process was writing when it was killed."""
    for aside in folder.glob(f"checkpoint-*-{team.rank:04}.safetensors{PART}"):
        shutil.rmtree(aside, ignore_errors=True)


def split(tensors: dict[str, Tensor], count: int) -> Sequence[dict[str, Tensor]]:
    """Tensors named "0.weights.W_enc" and so on, of each of several trainers."""
    out: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        out[int(number)][rest] = tensor
    return out
