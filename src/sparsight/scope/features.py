"""The features of one SAE, as you hold them: `f[27]`, `f["pirate"]`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from sparsight.edits import Edit, Feature
from sparsight.errors import BadInput, NoFeature
from sparsight.sae.codes import no_feature
from sparsight.sae.sae import SparseAutoEncoder

EDIT_LINE = re.compile(
    r"(.+?)=([+-]|\*-?)?(off|[0-9.]+(?:e-?[0-9]+)?|nan|inf)(raw)?(?:@([a-z]+|-?[0-9]+))?", re.IGNORECASE
)


class Features:
    """All features of an SAE: by index, or by (part of) their label."""

    def __init__(self, sae: SparseAutoEncoder, labels: Mapping[int, str] | None = None):
        self.sae, self.labels = sae, dict(labels or {})

    def __len__(self) -> int:
        return self.sae.d_hidden

    def __getitem__(self, key: int | str) -> Feature:
        """Raises NoFeature for an index outside the SAE, BadInput for a label that fits none, or more than one."""
        if isinstance(key, str):
            key = self._labelled(key)
        if isinstance(key, bool) or not isinstance(key, int):
            raise BadInput(f"A feature is named by its index or its label, not by {key!r}.")
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
        name, sign, number, raw, where = match.groups()
        feature = self[int(name) if name.isdigit() else name]
        feature = feature.raw if raw else feature
        if number == "off":
            edit = feature.ablate()
        elif sign and sign[0] == "*":
            edit = feature.scale(float(sign[1:] + number))
        else:
            edit = feature.pin(float(number)) if not sign else feature.nudge(float(sign + number))
        return edit if where is None else edit.on(int(where) if where.lstrip("-").isdigit() else where)

    def _labelled(self, words: str) -> int:
        exact = [index for index, label in self.labels.items() if label.lower() == words.lower()]
        found = exact or [index for index, label in self.labels.items() if words.lower() in label.lower()]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(f"{index} ({self.labels[index]})" for index in found[:6])
            raise BadInput(f"Several features are labelled {words!r}: {several}. Name one by its index.")
        known = ", ".join(list(self.labels.values())[:8]) or "none"
        raise BadInput(f"No feature is labelled {words!r}. Labels there are: {known}.")
