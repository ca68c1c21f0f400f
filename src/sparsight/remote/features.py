"""The features of an SAE on a server, as you hold them: `f[27]`, `f["pirate"]`, `f.search("the sea")`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from sparsight.atlas.naming import named
from sparsight.edits import Feature
from sparsight.errors import BadInput, NoFeature
from sparsight.records import is_whole
from sparsight.remote.answers import Found
from sparsight.remote.wire import Wire


class Features:
    """By index, or by (part of) their label, as atlas/naming.py reads it. Labels are fetched when first asked for."""

    def __init__(self, wire: Wire, model: str, number: int, sae: str) -> None:
        self.wire, self.model, self.number, self.sae = wire, model, number, sae

    @cached_property
    def labels(self) -> dict[int, str]:
        """Each feature's best label."""
        out: dict[int, str] = {}
        for row in self.wire.lines("/features/export", model=self.model):
            out.setdefault(int(row["index"]), str(row["label"]))
        return out

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, key: Any) -> Feature:
        """Raises NoFeature for an index outside the SAE, BadInput for words that no label has, or several."""
        if isinstance(key, str):
            key = named(key, self.labels)
        if not is_whole(key):
            raise BadInput(f"A feature is named by its index or its label, not by {key!r}.")
        key = int(key)
        if not 0 <= key < len(self):
            raise NoFeature(f"No feature {key}: this SAE has {len(self):,} (0 to {len(self) - 1}).")
        return Feature(key, sae=self.sae, label=self.__dict__.get("labels", {}).get(key))

    def __iter__(self) -> Iterator[Feature]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Features({len(self):,} at {self.wire.url})"

    def search(self, query: str, k: int = 20) -> list[Found]:
        """Features that a query finds, best first; see docs/search.md for what it may say."""
        told = self.wire.get("/features", query=query, model=self.model, top_k=k)
        return [Found(one["index"], one["id"], one["label"], one["score"]) for one in told["features"]]

    def about(self, feature: Feature | int, examples: int = 5) -> dict[str, Any]:
        """All that is known of one: its labels, statistics and examples, as plain data."""
        index = feature.index if isinstance(feature, Feature) else feature
        return self.wire.get(f"/features/{int(index)}", model=self.model, examples=examples)
