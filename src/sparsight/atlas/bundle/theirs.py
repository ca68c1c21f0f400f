"""Neuronpedia's words in ours: strings of tokens to ids, a row of features to statistics."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsight.atlas.bundle.neuronpedia import Vocabulary
from sparsight.atlas.bundle.values import Row, is_number
from sparsight.atlas.entries import Statistics
from sparsight.atlas.histogram import BINS, LOWEST, PER_DOUBLING

SHARES = (0.2, 0.4, 0.5, 0.6, 0.8, 0.95, 0.99)  # the quantiles that a histogram of theirs is asked for
# What the strings of Neuronpedia's tokens were before it made them readable.
MENDED = {
    "—": "âĢĶ",
    "–": "âĢĵ",
    "“": "âĢľ",
    "”": "âĢĿ",
    "‘": "âĢĺ",
    "’": "âĢĻ",
    "'": "âĢĻ",
    " ": "Ġ",
    "\n": "Ċ",
    "\t": "ĉ",
}


def as_ids(words: list[str]) -> list[int] | None:
    """Of an export without a tokenizer: tokens are their ids."""
    return [int(word) for word in words] if all(re.fullmatch(r"\d{1,9}", word) for word in words) else None


class Ids:
    """Tokens' strings to ids: those of the vocabulary, as they are or as they were before they were made readable, and
    text that is one token. None where one is neither."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.known = vocabulary, dict(vocabulary.get_vocab())
        self.asked: dict[str, int | None] = {}

    def __call__(self, words: list[str]) -> list[int] | None:
        found = [self.known[word] if word in self.known else self.other(word) for word in words]
        return None if None in found else found  # type: ignore[return-value]

    def other(self, word: str) -> int | None:
        if word not in self.asked:
            if len(self.asked) > 1_000_000:  # a stranger's strings do not fill the memory
                self.asked.clear()
            raw = "".join(MENDED.get(c, c) for c in word)
            ids = [self.known[raw]] if raw in self.known else self.vocabulary.encode(word, add_special_tokens=False)
            self.asked[word] = ids[0] if len(ids) == 1 else None
        return self.asked[word]


def statistics_in(row: Row, feature: int, below: int, ids: Callable[[list[str]], list[int] | None]) -> Statistics:
    """What a row of features says. The histogram's bars, which may be of any width, go to the bins they are the middle
    of."""
    heights, values = row.numbers("freq_hist_data_bar_heights"), row.numbers("freq_hist_data_bar_values")
    share = row.number("frac_nonzero", 0.0) or 0.0
    if len(heights) != len(values) or not 0 <= share <= 1:
        raise row.wrong("frac_nonzero is from 0 to 1, and the histogram has a height for each value")
    bars = sorted(
        (value, round(height)) for value, height in zip(values, heights, strict=True) if value > 0 and height >= 1
    )
    fires = sum(count for _, count in bars) or int(share > 0)
    histogram: dict[int, int] = {}
    for value, count in bars:
        bin = min(max(int(np.floor((np.log2(value) - LOWEST) * PER_DOUBLING)), 0), BINS - 1)
        histogram[bin] = histogram.get(bin, 0) + count
    mean = sum(value * count for value, count in bars) / fires if fires else 0.0
    square = sum((value - mean) ** 2 * count for value, count in bars) / fires if fires else 0.0
    most = row.number("maxActApprox", 0.0) or (bars[-1][0] if bars else 0.0)
    quantiles = {q: min(_quantile(bars, q), most) for q in SHARES} if bars else {}
    near = zip(row.list_of("topkCosSimIndices", is_number, "features"), row.numbers("topkCosSimValues"), strict=False)
    tokens = {"top_logits": ("pos_str", "pos_values"), "bottom_logits": ("neg_str", "neg_values")}
    logits: dict[str, Any] = {name: _pairs(row, *columns, ids) for name, columns in tokens.items()}
    return Statistics(
        feature, fires, round(fires / share) if share else 0, mean, square**0.5, most, scale=quantiles.get(0.99, most),
        quantiles=quantiles, histogram=histogram, flags=() if fires else ("dead",), **logits,
        neighbours=tuple((int(f), value) for f, value in near if 0 <= f < below),
    )  # fmt: skip


def _pairs(row: Row, words: str, values: str, ids: Any) -> tuple[tuple[int, float], ...]:
    """(token, value), of tokens that are known."""
    found = ((ids([word]), value) for word, value in zip(row.texts(words), row.numbers(values), strict=False))
    return tuple((known[0], value) for known, value in found if known)


def _quantile(bars: list[tuple[float, int]], share: float) -> float:
    rank, passed = share * sum(count for _, count in bars), 0
    for value, count in bars:
        passed += count
        if passed >= rank:
            return value
    return bars[-1][0]
