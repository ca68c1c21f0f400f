"""Each token's text, fast: a token says the same wherever it stands, except where several make up one character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

REPLACEMENT = "\ufffd"
ANCHOR = "a"  # a space before a word is only told after something


class Pieces:
    """What lm.text.pieces gives, from a memory of what each id said. tokenizer: of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, str | None] = {}  # None: part of a character
        self._runs: dict[tuple[int, ...], tuple[str, ...]] = {}
        self._anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)
        self._before = len(self._decode(self._anchor))

    def __call__(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each; together they are the whole text."""
        known = self._known
        out = [known[id] if id in known else self._learn(id) for id in ids]
        if None in out:
            self._merge(ids, out)
        return tuple(out)  # type: ignore[arg-type]

    def one(self, id: int) -> str:
        """The text of a token alone."""
        return self([id])[0]

    def texts(self, pairs: Iterable[tuple[int, float]]) -> tuple[tuple[str, float], ...]:
        """(id, number) pairs as (text, number)."""
        return tuple((self.one(id), number) for id, number in pairs)

    def _learn(self, id: int) -> str | None:
        text = self._decode([*self._anchor, id])[self._before :]
        self._known[id] = None if REPLACEMENT in text else text
        return self._known[id]

    def _merge(self, ids: Sequence[int], out: list[str | None]) -> None:
        """Fill in the runs of tokens that are parts of characters."""
        at = 0
        while at < len(out):
            if out[at] is not None:
                at += 1
                continue
            end = next((i for i in range(at, len(out)) if out[i] is not None), len(out))
            run = tuple(ids[at:end])
            if run not in self._runs:
                from sparsight.lm.text import pieces

                self._runs[run] = pieces(self.tokenizer, run)
            out[at:end] = self._runs[run]
            at = end

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
