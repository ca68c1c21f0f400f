"""What the parts of a survey have counted, as an atlas.

Documents stand in the order of the corpus, whoever read them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsight.atlas.about import About
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Example, Statistics
from sparsight.atlas.histogram import QUANTILES, quantiles
from sparsight.atlas.log import NAME as LOG
from sparsight.atlas.log import ActivationLog, Sorted, survey_of, write_log
from sparsight.records import KINDS
from sparsight.survey.company import coactive, duplicates
from sparsight.survey.directions import Directions
from sparsight.survey.flags import flags
from sparsight.survey.keep import LAST, Kept
from sparsight.survey.part import ACTIVE, Chosen, documents_of
from sparsight.survey.state import COUNTS, OFFSETS, State

UNIT, ENOUGH = 0.99, 10  # a feature's unit is this quantile of its activations above zero, of so many at least
BUCKET = 2**24  # activations of the log that are sorted at once
BLOCK = 1024  # features whose statistics are made at once


@dataclass(frozen=True)
class Text:
    """The documents of all parts, in the order of the corpus. [document] each: at: place in the corpus; start, length:
    in the tokens file; part: whose it is; place: its line there; first: its first token there."""

    folders: Sequence[Path]
    at: np.ndarray
    length: np.ndarray
    part: np.ndarray
    place: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Text:
        rows: list[tuple[int, int, int, int, int]] = []
        for part, folder in enumerate(folders):
            first = 0
            for place, told in documents_of(folder):
                rows.append((told["at"], told["length"], part, place, first))
                first += told["length"]
        table = np.array(sorted(rows), np.int64).reshape(-1, 5)
        return cls(folders, *table.T)

    @property
    def start(self) -> np.ndarray:
        return np.cumsum(self.length) - self.length

    def tokens(self) -> Iterator[np.ndarray]:
        ids = [_mapped(folder / "tokens.bin", "<u4") for folder in self.folders]
        for part, first, length in zip(self.part, self.first, self.length, strict=True):
            yield ids[part][first : first + length]

    def documents(self) -> Iterator[Document]:
        with ExitStack() as stack:
            files = [stack.enter_context((folder / "documents.jsonl").open("rb")) for folder in self.folders]
            for number, (part, place, start) in enumerate(zip(self.part, self.place, self.start, strict=True)):
                files[part].seek(place)
                told = json.loads(files[part].readline())
                roles = tuple((n, kind) for n, kind in told["roles"])
                yield Document(number, int(start), told["length"], told["id"], told["source"], told["language"], roles)

    def number(self, at: np.ndarray) -> np.ndarray:
        """The numbers of the documents at these places in the corpus."""
        return np.searchsorted(self.at, at)


def write(
    folder: Path,
    about: About,
    text: Text,
    state: State,
    languages: Sequence[str],
    chosen: Sequence[Chosen],
    weights: Directions,
    device: torch.device,
    tell: Callable[[int], None] = lambda done: None,
) -> None:
    """The atlas and its log, from the parts' text and their states merged. tell: hears how many features are done."""
    log = _log(folder, about, text, chosen)
    made = Features(state, languages, weights, log, text, device, tell)
    write_atlas(folder, about, text.tokens(), text.documents(), made)


def _log(folder: Path, about: About, text: Text, chosen: Sequence[Chosen]) -> ActivationLog | None:
    """The log on the disk, in the place of any that was there; None where none was asked for."""
    if chosen[0].most == 0:
        (folder / LOG).unlink(missing_ok=True)
        return None
    kept = Chosen(chosen[0].most, [(*row, part) for part, one in enumerate(chosen) for row in one.rows])
    rows = np.array(kept.rows, np.int64).reshape(-1, 6)
    documents = text.number(rows[:, 1])
    lengths = text.length[documents]
    firsts = np.cumsum(lengths) - lengths
    raw = [_mapped(folder / "active.bin", ACTIVE) for folder in text.folders]

    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for (_, _, _, start, count, part), first in zip(rows, firsts, strict=True):
            here = raw[part][start : start + count]
            yield here["feature"], here["offset"] + first, here["value"]

    survey = survey_of(about.created, about.sae)
    total = int(rows[:, 4].sum())
    write_log(folder / LOG, survey, documents, text.start[documents], lengths, about.d_hidden,
              _sorted(pieces(), total, about.d_hidden))  # fmt: skip
    return ActivationLog(folder / LOG)


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    """A file as an array; numpy does not map one that is empty."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def _sorted(pieces: Iterator[Sorted], total: int, features: int) -> Iterator[Sorted]:
    """The same by feature, and then in the order in which they came; more than BUCKET at once go over the disk."""
    buckets = max(1, -(-total // BUCKET))
    size = -(-features // buckets)
    with tempfile.TemporaryDirectory() as aside:
        files = [open(Path(aside) / str(number), "w+b") for number in range(-(-features // size))]  # noqa: SIM115
        for feature, place, value in pieces:
            rows = np.zeros(len(feature), [("feature", "<u4"), ("place", "<i8"), ("value", "<f4")])
            rows["feature"], rows["place"], rows["value"] = feature, place, value
            for number, file in enumerate(files):
                mine = rows if len(files) == 1 else rows[rows["feature"] // size == number]
                file.write(mine.tobytes())
        for file in files:
            file.seek(0)
            rows = np.frombuffer(file.read(), [("feature", "<u4"), ("place", "<i8"), ("value", "<f4")])
            file.close()
            rows = rows[np.argsort(rows["feature"], kind="stable")]
            if len(rows):
                yield rows["feature"], rows["place"], rows["value"]


class Features:
    """Iterating gives what write_atlas wants: of every feature, in order, its statistics and its examples."""

    def __init__(
        self,
        state: State,
        languages: Sequence[str],
        weights: Directions,
        log: ActivationLog | None,
        text: Text,
        device: torch.device,
        tell: Callable[[int], None],
    ) -> None:
        state.top_tokens.settle()
        self.state, self.languages, self.weights, self.text = state, languages, weights, text
        self.coactive = list(coactive(log, state.spec.neighbours, device)) if log else [[]] * state.features
        self.near = [_pairs(*each) for each in zip(*(t.tolist() for t in weights.near), strict=True)]
        self.duplicates = duplicates(log, self.near) if log else {}
        self.start, self.tell = text.start, tell

    def __iter__(self) -> Iterator[tuple[Statistics, list[Example]]]:
        for start in range(0, self.state.features, BLOCK):
            block = slice(start, min(start + BLOCK, self.state.features))
            counted = self._counted(block)
            for row, examples in enumerate(self._examples(block)):
                yield self._statistics(start + row, {name: each[row] for name, each in counted.items()}), examples
            self.tell(block.stop)

    def _counted(self, block: slice) -> dict[str, Any]:
        """Columns of the state for some features, on the CPU."""
        state = self.state
        out = {name: getattr(state, name)[block].cpu().numpy() for name in COUNTS}
        out["quantiles"] = quantiles(out["histogram"].astype(np.int64), out["max"], (*QUANTILES, UNIT))
        out["token"], out["count"] = (t[block].cpu().numpy() for t in (state.top_tokens.id, state.top_tokens.count))
        return out

    def _statistics(self, feature: int, of: Mapping[str, Any]) -> Statistics:
        fires = int(of["fires"])
        mean = float(of["sum"]) / max(fires, 1)
        spread = max(float(of["squares"]) / max(fires, 1) - mean * mean, 0.0) ** 0.5
        weights = self.weights
        tokens = [(int(i), int(n)) for i, n in zip(of["token"], of["count"], strict=True) if n > 0]
        *found, unit = (round_(value) for value in of["quantiles"])
        made = Statistics(
            feature,
            fires,
            self.state.tokens,
            round_(mean),
            round_(spread),
            round_(of["max"]),
            int(of["documents"]),
            unit if fires >= ENOUGH else 0.0,
            dict(zip(QUANTILES, found, strict=True)) if fires else {},
            {int(b): int(of["histogram"][b]) for b in np.flatnonzero(of["histogram"])},
            tuple(of["positions"].tolist()),
            _named(of["kinds"], KINDS),
            _named(of["languages"][1:], self.languages),
            tuple(sorted(tokens, key=lambda pair: (-pair[1], pair[0]))),
            tuple(_pairs(*(t[feature].tolist() for t in weights.above))),
            tuple(_pairs(*(t[feature].tolist() for t in weights.below))),
            round_(weights.decoder_norm[feature]),
            round_(weights.encoder_norm[feature]),
            tuple(self.near[feature]),
            tuple(_pairs(*zip(*self.coactive[feature], strict=True)))
            if self.coactive and self.coactive[feature]
            else (),
            self.duplicates.get(feature),
        )
        return flags(made, self.state)

    def _examples(self, block: slice) -> list[list[Example]]:
        """Of each of some features; one that is among the strongest and in the sample is told once."""
        out: list[list[Example]] = [[] for _ in range(block.start, block.stop)]
        seen: dict[tuple[int, int], int] = {}
        for kept, top in ((self.state.top, True), (self.state.samples, False)):
            for slot, one in self._kept(kept, block, top):
                mine = out[slot // 2]
                if (slot, one.at) in seen:
                    mine[seen[slot, one.at]] = replace(mine[seen[slot, one.at]], sampled=True)
                    continue
                seen[slot, one.at] = len(mine)
                mine.append(one)
        return out

    def _kept(self, kept: Kept, block: slice, top: bool) -> Iterator[tuple[int, Example]]:
        """(slot from the first of these features, example) of what was kept; windows without what lies outside of the
        document."""
        rows = slice(2 * block.start, 2 * block.stop)
        slot, column = (kept.key[rows] < LAST).nonzero(as_tuple=True)
        place, value, peak, window = (
            each[rows][slot, column].cpu().numpy() for each in (kept.place, kept.value, kept.peak, kept.window)
        )
        values = window * (peak[:, None] / np.float32(255))
        half = window.shape[1] // 2
        values[:, half] = value
        number, offset = self.text.number(place >> OFFSETS), place & ((1 << OFFSETS) - 1)
        low = np.maximum(half - offset, 0)
        high = np.minimum(half + self.text.length[number] - offset, window.shape[1])
        at = self.start[number] + offset
        columns = (slot, at, value, at - half + low, low, high, number)
        for i, (slot, at, value, start, low, high, number) in enumerate(
            zip(*(c.tolist() for c in columns), strict=True)
        ):
            feature, held_out = block.start + slot // 2, bool(slot & 1)
            yield slot, Example(feature, at, value, start, values[i, low:high], top, not top, number, held_out)


def _named(counts: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """{name: count} of those above zero, most first; counts beyond the names are of "other"."""
    named: dict[str, int] = {}
    for number in np.flatnonzero(counts).tolist():
        name = names[number] if number < len(names) else "other"
        named[name] = named.get(name, 0) + int(counts[number])
    return dict(sorted(named.items(), key=lambda pair: (-pair[1], pair[0])))


def _pairs(indices: Sequence[int], values: Sequence[float]) -> list[tuple[int, float]]:
    return [(int(i), round_(v)) for i, v in zip(indices, values, strict=True)]


def round_(value: float | Tensor | np.floating) -> float:
    """To six digits, which is more than any of these is known to: what is left of the order of a sum is not seen."""
    return float(f"{float(value):.6g}")
