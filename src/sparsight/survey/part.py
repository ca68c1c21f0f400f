"""What one process has of a survey on the disk, so that a killed one goes on as if nothing had happened.

    tokens.bin           ids of the documents it read, uint32, one document after another
    documents.jsonl      what is known about each
    active.bin           every activation of the documents that are in the log, as ACTIVE rows
    state.safetensors    the state (state.py), where the text goes on, and how much of the files above belongs to it

The files only grow; whatever is in them beyond what the state says was written by a run that was killed, and goes.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsight.disk import first_line, write_aside
from sparsight.errors import BadFile, Mismatch
from sparsight.sae.codes import Codes
from sparsight.survey.state import State

STATE = "state.safetensors"
FILES = ("tokens.bin", "documents.jsonl", "active.bin")
ACTIVE = np.dtype([("offset", "<u4"), ("feature", "<u4"), ("value", "<f4")])


@dataclass
class Account:
    """Where a process is, and what it has seen. after, number: of the pass that comes next (scope/work.py);
    documents: read so far; cut, refused, first_refused: as a harvest counts them; languages: by number, from 1;
    ended: whether that is all; sizes: of the files, bytes."""

    after: int = 0
    number: int = 0
    documents: int = 0
    cut: int = 0
    refused: int = 0
    first_refused: str = ""
    languages: list[str] = field(default_factory=list)
    ended: bool = False
    tokens: int = 0
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILES, 0))


class Chosen:
    """Which documents are in the log: those with the smallest random numbers, as many as have `most` tokens together.

    A function of the documents alone: what is chosen of two parts is chosen of what was chosen of each. rows: [number,
    place in the corpus, tokens, first row in active.bin, rows].
    """

    def __init__(self, most: int | None, rows: Sequence[Sequence[int]] = ()) -> None:
        self.most, self.tokens, self.last = most, 0, (2**63, 0)
        self._heap: list[tuple[int, int, tuple[int, ...]]] = []
        for number, at, tokens, *more in rows:
            self.offer(number, at, tokens, *more)

    def wants(self, number: int, at: int) -> bool:
        return self.most != 0 and (number, at) < self.last

    def offer(self, number: int, at: int, tokens: int, *more: int) -> None:
        if not self.wants(number, at):
            return
        heapq.heappush(self._heap, (-number, -at, (tokens, *more)))
        self.tokens += tokens
        while self.most is not None and self.tokens > self.most:
            number, at, gone = heapq.heappop(self._heap)
            self.last, self.tokens = (-number, -at), self.tokens - gone[0]

    @property
    def rows(self) -> list[tuple[int, ...]]:
        """In the order of the corpus."""
        return sorted(((-number, -at, *more) for number, at, more in self._heap), key=lambda row: row[1])


class Part:
    """The files of one process, open to go on where its last checkpoint was.

    settings: what the survey is of; Raises Mismatch where the folder is of another, BadFile where it is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], state: State, log_tokens: int | None) -> None:
        self.folder, self.settings, self.state = folder, json.loads(json.dumps(settings)), state
        self.account, self.chosen = Account(), Chosen(log_tokens)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE).exists():
            self._restore(log_tokens)
        self._files: dict[str, IO[bytes]] = {}
        for name in FILES:
            file = (folder / name).open("ab")
            if file.tell() < self.account.sizes[name]:
                raise BadFile(f"'{folder / name}' is shorter than it was: remove '{folder}', and survey again.")
            file.truncate(self.account.sizes[name])
            self._files[name] = file

    def write(self, ids: list[list[int]], documents: list[dict[str, Any]]) -> None:
        """Some more documents."""
        self._files["tokens.bin"].write(np.concatenate([np.array(each, "<u4") for each in ids]).tobytes())
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in documents)
        self._files["documents.jsonl"].write(lines.encode())
        self.account.documents += len(documents)

    def log(self, number: int, at: int, tokens: int, offsets: Int[Tensor, " token"], codes: Codes) -> None:
        """Every activation of a document, where it is among the chosen."""
        rows = np.zeros(len(codes.values), ACTIVE)
        rows["offset"], rows["feature"] = offsets[codes.tokens].numpy(), codes.features.numpy()
        rows["value"] = codes.values.float().numpy()
        file = self._files["active.bin"]
        self.chosen.offer(number, at, tokens, file.tell() // ACTIVE.itemsize, len(rows))
        file.write(rows.tobytes())

    def checkpoint(self) -> None:
        """Everything up to here is safe from now on."""
        for name, file in self._files.items():
            file.flush()
            self.account.sizes[name] = file.tell()
        self.account.tokens = self.state.tokens
        rows = self.chosen.rows
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.state.tensors().items()}
        tensors["chosen"] = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), 5)
        told = {"settings": self.settings, "account": vars(self.account), "last": self.chosen.last}
        write_aside(self.folder / STATE, lambda path: save_file(tensors, path, {"survey": json.dumps(told)}))

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _restore(self, log_tokens: int | None) -> None:
        told, tensors = read_state(self.folder, str(self.state.fires.device))
        if other := [f"{n} {told['settings'].get(n)!r}, not {v!r}" for n, v in self.settings.items()
                     if told["settings"].get(n) != v]:  # fmt: skip
            raise Mismatch(f"'{self.folder}' is of a survey with {'; '.join(other)}: write into another folder.")
        self.account = Account(**told["account"])
        self.chosen = Chosen(log_tokens, tensors.pop("chosen").tolist())
        self.chosen.last = (told["last"][0], told["last"][1])
        self.state.restore(tensors, self.account.tokens)


def read_state(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what a part says of itself, its tensors). Raises BadFile."""
    try:
        with safe_open(folder / STATE, "pt", device=device) as file:
            return json.loads(file.metadata()["survey"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadFile(
            f"Cannot read '{folder / STATE}': {first_line(error)}; remove '{folder}', and survey again."
        ) from error


def documents_of(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place in the file, what is known) of each document, in the order of its tokens."""
    place = 0
    with (folder / "documents.jsonl").open("rb") as file:
        for line in file:
            yield place, json.loads(line)
            place += len(line)
