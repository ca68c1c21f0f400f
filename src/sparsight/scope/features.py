"""The features of one SAE, as you hold them: `f[27]`, `f["pirate"]`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.naming import named
from sparsight.edits import Edit, Feature
from sparsight.errors import BadInput, NoFeature
from sparsight.records import finite, is_whole
from sparsight.sae.codes import no_feature
from sparsight.sae.sae import SparseAutoEncoder

EDIT_LINE = re.compile(
    r"""(?P<name>.+?)=
        (?:(?P<off>off) | (?P<sign>[+-]|\*[+-]?)? (?P<number>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf) (?P<raw>raw)?)
        (?:@(?P<where>[a-z]+|-?\d+))?""",
    re.IGNORECASE | re.ASCII | re.VERBOSE | re.DOTALL,
)
STRONGEST = 1e9  # far beyond any use, and no overflow in the arithmetic that follows
FARTHEST = 2**31  # token positions


class Features:
    """All features of an SAE: by index, or by (part of) their label, as atlas/naming.py reads it.

    atlas: where more is known of labels than their texts: whose they are, and what they mean.
    """

    def __init__(self, sae: SparseAutoEncoder, labels: Mapping[int, str] | None = None, atlas: Atlas | None = None):
        self.sae, self.labels, self.atlas = sae, dict(labels or {}), atlas

    def __len__(self) -> int:
        return self.sae.d_hidden

    def __getitem__(self, key: Any) -> Feature:
        """Raises NoFeature for an index outside the SAE, BadInput for words that no label has, or several."""
        if isinstance(key, str):
            key = named(key, self.labels, self.atlas)
        if isinstance(key, Tensor) and key.ndim == 0 and not key.is_floating_point() and key.dtype != torch.bool:
            key = int(key)
        if not is_whole(key):
            raise BadInput(f"A feature is named by its index or its label, not by {key!r}.")
        key = int(key)
        if not 0 <= key < len(self):
            raise NoFeature(no_feature(key, len(self)))
        return Feature(key, sae=self.sae.fingerprint, label=self.labels.get(key))

    def __iter__(self) -> Iterator[Feature]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Features({len(self):,}, {len(self.labels):,} labelled)"

    def edit(self, words: str) -> Edit:
        """An edit from a short line, as on the command line: FEATURE=CHANGE[@WHERE].

        FEATURE: an index or a label. CHANGE: +0.6 or -0.6 nudges, 0.6 pins, *2 scales, off ablates, in feature units;
        with `raw` behind it (+3raw) in raw activation. WHERE: generated, prompt, user, ..., or a token position.
        """
        match = EDIT_LINE.fullmatch(words.strip())
        if not match:
            raise BadInput(
                f"Cannot read the edit {words!r}. Write FEATURE=CHANGE, as in 27=+0.6, 27=8, 27=*2 or 27=off."
            )
        name, off, sign, number, raw, where = match.groups()
        feature = self[int(name) if is_index(name) else name]
        feature = feature.raw if raw else feature
        if off:
            edit = feature.ablate()
        elif sign and sign[0] == "*":
            edit = feature.scale(strength(sign[1:] + number))
        else:
            edit = feature.pin(strength(number)) if not sign else feature.nudge(strength(sign + number))
        return edit if where is None else edit.on(place(where))


def is_index(words: str) -> bool:
    """Whether these words are a feature's index; else they are a label."""
    return words.isascii() and words.isdecimal() and len(words) < 20


def strength(words: str) -> float:
    """The number of an edit."""
    value = finite(float(words), "The strength of an edit")
    if abs(value) > STRONGEST:
        raise BadInput(f"The strength {words} is out of reach: write a number between -1e9 and 1e9.")
    return value


def place(words: str) -> str | int:
    """The place of an edit: a name, or a token's position."""
    if not words.removeprefix("-").isdecimal():
        return words
    if len(words) > 11 or abs(int(words)) >= FARTHEST:
        raise BadInput(f"The token position {words[:24]} is out of reach: positions lie between -2**31 and 2**31.")
    return int(words)
