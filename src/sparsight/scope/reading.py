"""What a scope saw: tokens, and the features active at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsight.edits import Feature
from sparsight.errors import BadInput
from sparsight.lm.batch import Prompt
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.lm.text import pieces
from sparsight.records import SPECIAL, Kind, TokenRead
from sparsight.sae.codes import Codes


@dataclass(frozen=True)
class Reading:
    """The features of a text, token by token.

    codes: one row per token of the prompt. texts: each token as people see it (a character that several tokens make
    up shows at its last). labels: feature index -> words, where there are any.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    kinds: tuple[Kind, ...]
    codes: Codes
    labels: Mapping[int, str]

    @classmethod
    def of(cls, lm: ObservableLanguageModel, prompt: Prompt, codes: Codes, labels: Mapping[int, str]) -> Reading:
        texts = pieces(lm.tokenizer, prompt.ids) if lm.has_tokenizer else tuple(str(i) for i in prompt.ids)
        return cls(prompt.ids, texts, prompt.kinds, codes, labels)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, feature: Feature | int) -> list[float]:
        """One feature's activation at every token."""
        if isinstance(feature, str):
            raise BadInput(f"A reading is asked by a feature or its index, as in reading[scope.features[{feature!r}]].")
        return self.codes.of(feature.index if isinstance(feature, Feature) else feature).tolist()

    def top(self, k: int = 10, special: bool = False) -> list[tuple[int, float]]:
        """The k features that fire strongest anywhere: (feature, highest activation). Template and BOS tokens, where
        a model's norm is often far off the scale, count only if special is set."""
        if special or not len(self) or k < 1:
            return self.codes.strongest(k)
        peaks: dict[int, float] = {}
        for token in self.tokens(content=True):
            for feature, value in token.features:
                peaks[feature] = max(peaks.get(feature, 0.0), value)
        return sorted(peaks.items(), key=lambda pair: -pair[1])[:k]

    def tokens(self, k: int | None = None, content: bool = False) -> Sequence[TokenRead]:
        """Every token with its (k strongest) features; content: without template and BOS tokens."""
        codes = self.codes if k is None else self.codes.top(k)
        read = (
            TokenRead(id, text, kind, tuple(pairs))
            for id, text, kind, pairs in zip(self.ids, self.texts, self.kinds, codes, strict=True)
        )
        return [token for token in read if not (content and token.kind & SPECIAL)]

    def to_json(self, k: int | None = None) -> dict[str, Any]:
        """Plain data: tokens with their features; labels of the features that occur."""
        tokens = [
            {
                "id": t.id,
                "token": t.text,
                "kind": [k.name.lower() for k in t.kind if k.name],
                "features": [{"index": f, "activation": round(v, 6)} for f, v in t.features],
            }
            for t in self.tokens(k)
        ]
        seen = {f["index"] for t in tokens for f in t["features"]}
        return {"tokens": tokens, "labels": {str(i): self.labels[i] for i in sorted(seen & self.labels.keys())}}

    def __str__(self) -> str:
        lines = []
        for token in self.tokens(3):
            named = (f"{' '.join(filter(None, (str(f), self.labels.get(f))))} {v:.2f}" for f, v in token.features)
            lines.append(f"{token.text!r:>16}  {', '.join(named)}")
        return "\n".join(lines)
