"""The activation log of an atlas: of some documents, or all, every activation of every feature, on the disk.

One file, log.bin, by feature: of each the places where it fires, as differences to the one before (LEB128, mostly one
or two bytes), then its activations there, as float16 shares of its highest. Under 6 bytes an activation, mapped from
the disk, and read a feature at a time. Places count the tokens of the log's own documents, one after the other. What
the file consists of stands at its end, so that a file that is cut off cannot pass for a whole one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, UInt8

from sparsight.atlas.atlas import ANEW, Atlas
from sparsight.disk import first_line, write_aside
from sparsight.errors import BadFile, NoFeature
from sparsight.records import KINDS, Kind

NAME = "log.bin"
BITS = {name: int(Kind[name.upper()]) for name in KINDS}
MAGIC = b"sparsight log 1\n"
ARRAYS = {"documents": "<u4", "starts": "<i8", "lengths": "<i8", "ends": "<i8", "counts": "<i8", "peaks": "<f4"}
Sorted = tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float32[np.ndarray, " n"]]


class ActivationLog:
    """documents: numbers of those that are in it, ascending; tokens: how many these have; len(): activations."""

    def __init__(self, path: Path) -> None:
        """Raises BadFile where the file is damaged."""
        self.path = path
        try:
            self._raw = np.memmap(path, np.uint8, "r")
            size = int.from_bytes(bytes(self._raw[-24:-16]), "little")
            if bytes(self._raw[-16:]) != MAGIC or not 0 < size < len(self._raw):
                raise ValueError("its end is missing")
            told = json.loads(bytes(self._raw[-24 - size : -24]))
            made = {name: self._array(told["arrays"][name], dtype) for name, dtype in ARRAYS.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadFile(f"'{path}' is no activation log, or damaged: {first_line(error)}; {ANEW}.") from error
        self.survey: str = told["survey"]
        self.documents, self._starts, self._lengths = made["documents"], made["starts"], made["lengths"]
        self._ends, self._counts, self._peaks = made["ends"], made["counts"], made["peaks"]
        self._firsts = np.cumsum(self._lengths) - self._lengths
        self.tokens = int(self._lengths.sum())

    def _array(self, where: Sequence[int], dtype: str) -> np.ndarray:
        start, count = where
        return np.frombuffer(bytes(self._raw[start : start + count * np.dtype(dtype).itemsize]), dtype, count)

    def __len__(self) -> int:
        return int(self._counts.sum())

    @property
    def features(self) -> int:
        """How many features the SAE has."""
        return len(self._counts)

    def of(self, feature: int) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """Everywhere in its documents where a feature fires: (places in the tokens file, ascending, int64;
        activations). Raises NoFeature."""
        inside, values = self.inside(feature)
        document = np.searchsorted(self._firsts, inside, "right") - 1
        return inside - self._firsts[document] + self._starts[document], values

    def inside(self, feature: int) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """The same with places that count the log's own tokens, from 0 to `tokens`."""
        if not 0 <= feature < len(self._counts):
            raise NoFeature(f"No feature {feature}: this SAE has {len(self._counts):,} (0 to {len(self._counts) - 1}).")
        start, stop = int(self._ends[feature]), int(self._ends[feature + 1])
        middle = stop - 2 * int(self._counts[feature])
        places = np.cumsum(_unpacked(np.asarray(self._raw[start:middle])))
        shares = np.frombuffer(bytes(self._raw[middle:stop]), "<f2").astype(np.float32)
        if len(places) != len(shares):
            raise BadFile(f"'{self.path}' is damaged at feature {feature}; {ANEW}.")
        return places, shares * self._peaks[feature]

    def fires_in(self, feature: int) -> int:
        """At how many of its tokens a feature fires."""
        return int(self._counts[feature])


def open_log(atlas: Atlas) -> ActivationLog | None:
    """The log of an atlas; None where it was made without. Raises BadFile where it is damaged, or of another survey."""
    path = atlas.folder / NAME
    if not path.exists():
        return None
    log = ActivationLog(path)
    if log.survey != survey_of(atlas.about.created, atlas.about.sae):
        raise BadFile(f"'{path}' is of another survey than '{atlas.folder}'; {ANEW}.")
    return log


def together(atlas: Atlas, features: Sequence[int], roles: Sequence[str] = ()) -> list[int]:
    """The numbers of the log's documents where all of these features fire; on tokens of these roles, where given
    (system, user, assistant, tool, template, text). Raises BadFile where the atlas has no log, NoFeature."""
    log = open_log(atlas)
    if log is None:
        raise BadFile(f"The atlas '{atlas.folder}' has no activation log: survey with --log-tokens.")
    wanted = sum(BITS[role] for role in roles)
    found: np.ndarray | None = None
    for feature in features:
        places, _ = log.of(feature)
        if wanted:
            places = places[(_kinds(atlas, places) & wanted) != 0]
        here = np.unique(np.searchsorted(log._starts, places, "right") - 1)
        found = here if found is None else np.intersect1d(found, here)
    return [] if found is None else log.documents[found].tolist()


def _kinds(atlas: Atlas, places: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """What the tokens at these places are, as Kind bits."""
    out = np.zeros(len(places), np.int64)
    at = 0
    while at < len(places):
        document = atlas.document(atlas.document_of(int(places[at])))
        end = int(np.searchsorted(places, document.start + document.length))
        if document.roles:
            runs, kinds = (np.array(each) for each in zip(*document.roles, strict=True))
            out[at:end] = kinds[np.searchsorted(np.cumsum(runs), places[at:end] - document.start, "right")]
        at = end
    return out


def survey_of(created: str, sae: str) -> str:
    """What a log and its atlas know each other by."""
    return f"{created} {sae}"


def write_log(
    path: Path,
    survey: str,
    documents: Int[np.ndarray, " document"],
    starts: Int[np.ndarray, " document"],
    lengths: Int[np.ndarray, " document"],
    features: int,
    pieces: Iterable[Sorted],
) -> None:
    """Write a whole log. pieces: (features, places, activations) by feature and then by place, over all pieces; places
    count the tokens of these documents."""
    counts, sizes, peaks = np.zeros(features, np.int64), np.zeros(features, np.int64), np.zeros(features, np.float32)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            for feature, place, value in pieces:
                np.maximum.at(peaks, feature, value)
                counts[:] += np.bincount(feature, minlength=features)
                packed, size = _packed(feature, place, value / peaks[feature], features)
                sizes[:] += size
                file.write(packed.tobytes())
            ends = np.concatenate([[0], np.cumsum(sizes)])
            made = (documents, starts, lengths, ends, counts, peaks)
            where: dict[str, Any] = {}
            for (name, dtype), array in zip(ARRAYS.items(), made, strict=True):
                where[name] = (file.tell(), len(array))
                file.write(array.astype(dtype).tobytes())
            said = json.dumps({"survey": survey, "arrays": where}).encode()
            file.write(said + len(said).to_bytes(8, "little") + MAGIC)

    write_aside(path, write)


def _packed(
    feature: Int[np.ndarray, " n"], place: Int[np.ndarray, " n"], share: Float32[np.ndarray, " n"], features: int
) -> tuple[UInt8[np.ndarray, " byte"], Int[np.ndarray, " feature"]]:
    """(the bytes of these activations, how many each feature has of them)."""
    opens = np.ones(len(feature), bool)
    opens[1:] = feature[1:] != feature[:-1]
    step = np.where(opens, place, np.diff(place, prepend=0)).astype(np.int64)
    width = np.ones(len(step), np.int64)
    for k in range(1, 5):
        width += step >= 1 << (7 * k)
    widths = np.cumsum(width)
    first = np.flatnonzero(opens)[np.cumsum(opens) - 1]  # of each, its feature's first
    out = np.zeros(int(widths[-1]) + 2 * len(feature) if len(feature) else 0, np.uint8)
    at = widths - width + 2 * first
    for k in range(5):
        has = width > k
        more = (width > k + 1).astype(np.int64) << 7
        out[at[has] + k] = ((step >> (7 * k)) & 127 | more)[has]
    closes = np.append(opens[1:], True)
    end = widths[np.flatnonzero(closes)[np.cumsum(opens) - 1]] if len(feature) else widths
    halves = np.maximum(share.astype(np.float32), 2.0**-24).astype("<f2").view("<u2")
    at = end + 2 * np.arange(len(feature))
    out[at], out[at + 1] = halves & 255, halves >> 8
    return out, np.bincount(feature, width + 2, minlength=features).astype(np.int64)


def _unpacked(raw: UInt8[np.ndarray, " byte"]) -> Int[np.ndarray, " n"]:
    """The numbers of these LEB128 bytes."""
    ends = np.flatnonzero(raw < 128)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    out = np.zeros(len(ends), np.int64)
    for k in range(5):
        here = starts + k <= ends
        out[here] |= (raw[starts[here] + k] & 127).astype(np.int64) << (7 * k)
    return out
