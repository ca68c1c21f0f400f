"""Which features fire on a token, and which make it likelier: the statistics of all features, turned about.

    tokens.safetensors   for "fires" and "logit": start [token + 1] where each token's part begins; feature and
                         weight [entry], the largest weight first. Made when first needed

The weight of "fires" is the share of all its activations that a feature has on the token, with DOUBT added to their
number: three of three are less sure than three hundred of three hundred. That of "logit" is the logit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sparsight.atlas.atlas import Atlas
from sparsight.disk import write_aside

INDEX = "tokens.safetensors"
DOUBT = 10  # activations
TRIED = 60  # features of which examples are looked at for a text of several tokens
Spelling = Sequence[int]
IdsOf = Callable[[str], Iterable[Spelling]]  # every way that a text may stand in tokens


@dataclass(frozen=True)
class Postings:
    """Of each token: features and their weights."""

    start: np.ndarray
    feature: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int, float]]) -> Postings:
        """From (token, feature, weight)."""
        table = np.array([p[:2] for p in pairs], np.int64).reshape(-1, 2)
        weight = np.array([p[2] for p in pairs], np.float32)
        order = np.lexsort((table[:, 1], -weight, table[:, 0]))
        token, size = table[order, 0], int(table[:, 0].max(initial=-1)) + 1
        start = np.searchsorted(token, np.arange(size + 1))
        return cls(start.astype(np.int64), table[order, 1].astype(np.uint32), weight[order])

    def at(self, token: int) -> dict[int, float]:
        """{feature: weight}, the largest first."""
        if not 0 <= token < len(self.start) - 1:
            return {}
        part = slice(self.start[token], self.start[token + 1])
        return dict(zip(self.feature[part].tolist(), self.weight[part].tolist(), strict=True))


_kept: WeakKeyDictionary[Atlas, dict[str, Postings]] = WeakKeyDictionary()


def inverted(atlas: Atlas) -> dict[str, Postings]:
    """{"fires", "logit"}: read where they were made before, else made."""
    if atlas not in _kept:
        about = {"of": f"{atlas.about.sae} {atlas.about.created} {atlas.about.tokens}"}
        found = _read(atlas.folder / INDEX, about)
        if found is None:
            found = _made(atlas)
            with suppress(OSError):  # a folder that cannot be written: made again next time
                tensors = {f"{name}.{part}": v for name, one in found.items() for part, v in vars(one).items()}
                write_aside(atlas.folder / INDEX, lambda path: save_file(tensors, path, about))
        _kept[atlas] = found
    return _kept[atlas]


def _made(atlas: Atlas) -> dict[str, Postings]:
    fires, logit = [], []
    for feature in range(len(atlas)):
        one = atlas.statistics(feature)
        fires += [(token, feature, count / (one.fires + DOUBT)) for token, count in one.top_tokens]
        logit += [(token, feature, value) for token, value in one.top_logits]
    return {"fires": Postings.of(fires), "logit": Postings.of(logit)}


def _read(path: Path, about: dict[str, str]) -> dict[str, Postings] | None:
    try:
        with safe_open(path, framework="np") as file:
            if file.metadata() != about:
                return None
            parts = ("start", "feature", "weight")
            return {n: Postings(*(file.get_tensor(f"{n}.{part}") for part in parts)) for n in ("fires", "logit")}
    except (OSError, SafetensorError):
        return None


def firing(atlas: Atlas, text: str, ids_of: IdsOf) -> dict[int, float]:
    """{feature: weight} of the features that fire on a text, as a token or as several in a row."""
    out: dict[int, float] = {}
    for ids in ids_of(text):
        found = inverted(atlas)["fires"].at(ids[0]) if len(ids) == 1 else _firing_within(atlas, ids)
        out |= {feature: max(weight, out.get(feature, 0.0)) for feature, weight in found.items()}
    return out


def lifting(atlas: Atlas, text: str, ids_of: IdsOf) -> dict[int, float]:
    """{feature: logit} of the features that make a text likelier: its first token, where it has several."""
    out: dict[int, float] = {}
    for ids in ids_of(text):
        found = inverted(atlas)["logit"].at(ids[0]) if ids else {}
        out |= {feature: max(weight, out.get(feature, -np.inf)) for feature, weight in found.items()}
    return {feature: weight for feature, weight in out.items() if weight > 0}


def _firing_within(atlas: Atlas, ids: Spelling) -> dict[int, float]:
    """Of the features that fire on any of these tokens, those whose examples peak within all of them in a row: their
    share of the feature's examples."""
    index, wanted = inverted(atlas)["fires"], np.asarray(ids, np.uint32)
    tried = dict.fromkeys(feature for token in ids for feature in [*index.at(token)][:TRIED])
    out = {}
    for feature in tried:
        examples = atlas.examples(feature)
        hits = sum(_within(atlas, one.at, wanted) for one in examples)
        if hits:
            out[feature] = hits / (len(examples) + 2)
    return out


def _within(atlas: Atlas, at: int, wanted: np.ndarray) -> bool:
    """Whether these tokens stand in a row at a place, in one document."""
    size = len(wanted)
    first, ids = atlas.around(at, size - 1, size - 1)
    return any((ids[i : i + size] == wanted).all() for i in range(at - first + 1) if len(ids) - i >= size)
