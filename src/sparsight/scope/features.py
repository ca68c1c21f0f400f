"""The features of one SAE, as you hold them: `f[27]`, `f["pirate"]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sparsight.edits import Feature
from sparsight.errors import BadInput, NoFeature
from sparsight.sae.codes import no_feature
from sparsight.sae.sae import SparseAutoEncoder


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
