"""The parts that a rule is made of, each fitted on windows and scored on them as if it had not seen their document.

A table's weight is the log-odds that the feature fires, from counts shrunk to those of a coarser table: (fires + k p) /
(tokens + k). Words are weighed by their log-odds in what comes before where it fires, against where it is silent, with
the text at large as prior (Monroe et al. 2008, Fightin' Words, with counts of windows). Scoring leaves out each
token's own document from the counts: else what was seen once would predict itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sparsight.label.sheet import Keys, Sheet, Spans

SHRINK = 2.0  # tokens that the coarser table counts for
PRIOR = 60.0  # windows of the text at large that the silent ones are mixed with
PSEUDO = 0.3  # windows with and without each word, that nobody saw
SURE = 1.8  # standard errors that a word's log-odds are from zero, at least
NAMED = 2.2  # the same, for it to be named
LIFT, LIFT_OF_SHORT = 2.0, 5.0  # times as often as elsewhere, for it to be named: function words seldom are
SHORT = 3  # letters, below which a word is short
KEPT = {"ngrams": 60, "folded": 60, "words": 30, "later": 30, "next": 30}
FEW = 16  # entries of any other table


@dataclass(frozen=True)
class Part:
    """score: log-odds of each token over the base rate, its document left out. tables: what a Rule has by these names,
    over zero: the log-odds of what is in no table, which is those of most tokens. telling: of words, p log(p / q): what
    each adds to telling the feature's windows, p of which have it, from the text at large, where it is q."""

    score: Float[np.ndarray, " token"]
    tables: dict[str, dict[Any, float]]
    zero: float = 0.0
    telling: Mapping[str, float] = field(default_factory=dict)


def logit(p: Any) -> Any:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


class Counter:
    """Counts of tokens and of fires by key, with and without each token's own document."""

    def __init__(self, sheet: Sheet, keys: Int[np.ndarray, " token"], number: int) -> None:
        fires = sheet.fires.astype(np.float64)
        self.keys = keys
        self.all = np.bincount(keys, minlength=number).astype(np.float64)
        self.fired = np.bincount(keys, fires, minlength=number)
        documents = int(sheet.group.max(initial=0)) + 1
        own = keys * documents + sheet.document
        self.others = self.all[keys] - np.bincount(own)[own]
        self.others_fired = self.fired[keys] - np.bincount(own, fires)[own]

    def left_out(self, coarser: Float[np.ndarray, " token"]) -> Float[np.ndarray, " token"]:
        return (self.others_fired + SHRINK * coarser) / (self.others + SHRINK)

    def whole(self, coarser: Float[np.ndarray, " key"]) -> Float[np.ndarray, " key"]:
        return (self.fired + SHRINK * coarser) / (self.all + SHRINK)


def table(sheet: Sheet, keys: Keys, name: str, unknown: str | None = None) -> Part:
    """One table over the base rate. unknown: a key that says nothing."""
    base = sheet.fires.mean()
    counts = Counter(sheet, keys.of, len(keys.names))
    score = logit(counts.left_out(np.full(len(sheet), base))) - logit(base)
    weights = logit(counts.whole(np.full(len(keys.names), base))) - logit(base)
    if unknown in keys.names:
        silent = keys.names.index(unknown)
        score[keys.of == silent] = weights[silent] = 0.0
    zero = _usual(weights, counts.all)
    kept = _strongest(weights - zero, counts.all, KEPT.get(name, FEW))
    return Part(score, {name: {str(keys.names[i]): float(weights[i] - zero) for i in kept}}, zero)


def ngrams(sheet: Sheet) -> Part:
    """Tokens without case, then as they are, then with one and with two tokens before them: each table shrunk to the
    one before."""
    base = sheet.fires.mean()
    names: list[Any] = list(sheet.folded.names)
    levels: list[tuple[Keys, list[int]]] = []  # keys, and of each key a token that has it
    current = sheet.exact.of
    for n in range(3):
        if n:
            before = sheet.before(n)
            _, current = np.unique(current * (len(sheet.exact.names) + 1) + before + 1, return_inverse=True)
        keys = Keys([])
        keys.of = current
        _, shown = np.unique(current, return_index=True)
        levels.append((keys, shown.tolist()))
    counts = Counter(sheet, sheet.folded.of, len(names))
    score = counts.left_out(np.full(len(sheet), base))
    whole = counts.whole(np.full(len(names), base))
    folded = logit(whole) - logit(base)
    zero = _usual(folded, counts.all)
    folded -= zero
    tables: dict[str, dict[Any, float]] = {
        "folded": {names[i]: float(folded[i]) for i in _strongest(folded, counts.all, KEPT["folded"])}
    }
    by_token, found = whole[sheet.folded.of], []
    for n, (keys, shown) in enumerate(levels, 1):
        counts = Counter(sheet, keys.of, len(shown))
        score = counts.left_out(score)
        coarser = by_token[shown]
        whole = counts.whole(coarser)
        weights = logit(whole)
        told = weights - logit(coarser)
        at = np.array(shown)
        room = sheet.first[sheet.window[at]] + n - 1 <= at  # as long as it says it is
        by_token = whole[keys.of]
        weights = weights - logit(base) - zero
        few = np.nonzero(room & (abs(told) > 0.1))[0]
        found.append(np.stack([abs(told[few]) * np.sqrt(counts.all[few]), np.full(len(few), n), at[few], weights[few]]))
    matter, n, at, weights = np.concatenate(found, axis=1)
    kept = np.lexsort((at, n, -matter))[: KEPT["ngrams"]]
    rows = zip(n[kept].astype(int).tolist(), at[kept].astype(int).tolist(), weights[kept].tolist(), strict=True)
    tables["ngrams"] = {tuple(sheet.pieces[at + 1 - n : at + 1]): weight for n, at, weight in rows}
    return Part(logit(score) - logit(base), tables, zero)


def words(sheet: Sheet, name: str, spans: Spans, background: Mapping[str, float]) -> Part:
    """What was said before it, or comes after. background: {word: share of the text at large that has it there}."""
    keys, fires_in = spans.keys, sheet.fires_in
    if not keys.names:
        return Part(np.zeros(len(sheet)), {name: {}})
    window, start, stop = spans.at
    focus = sheet.focus[window]
    seen = (start <= focus) & (focus < stop)
    firing, silent = (seen & fires_in[window]), (seen & ~fires_in[window])
    size, documents = len(keys.names), int(sheet.group.max()) + 1
    prior = PRIOR if background else 0.0
    text = prior * np.array([background.get(str(word), 0.0) for word in keys.names])
    counts = []  # (with the word, of windows) where it fires and where it is silent; then each without the document's
    own = keys.of * documents + sheet.group[window]
    for mine, windows, more, of in ((firing, fires_in, 0.0, 0.0), (silent, ~fires_in, text, prior)):
        have = np.bincount(keys.of, mine, minlength=size) + more
        total = windows.sum() + of
        mine_here = np.bincount(own, mine)[own]
        here = np.bincount(sheet.group, windows, minlength=documents)[sheet.group[window]]
        counts.append((have, total, have[keys.of] - mine_here, total - here))
    delta, sure = _log_odds(counts[0][0], counts[0][1], counts[1][0], counts[1][1])
    left_out, left_sure = _log_odds(counts[0][2], counts[0][3], counts[1][2], counts[1][3])
    weight = np.where(abs(left_sure) >= SURE, left_out, 0.0)
    score = sheet.summed(spans, weight)
    kept = [i for i in np.argsort(-abs(sure), kind="stable") if abs(sure[i]) >= SURE][: KEPT[name]]
    share, usual = ((have + PSEUDO / 2) / (total + PSEUDO) for have, total in (counts[0][:2], counts[1][:2]))
    lift = share / usual
    least = np.where([len(str(word)) < SHORT for word in keys.names], LIFT_OF_SHORT, LIFT)
    named = np.nonzero((sure >= NAMED) & (lift >= least))[0]
    telling = {str(keys.names[i]): float(share[i] * math.log(lift[i])) for i in named}
    return Part(score, {name: {str(keys.names[i]): float(delta[i]) for i in kept}}, 0.0, telling)


def _log_odds(yes: Any, of: Any, no: Any, of_no: Any) -> tuple[np.ndarray, np.ndarray]:
    """Difference of log-odds, and how many standard errors that is."""
    has, lacks, had, lacked = yes + PSEUDO, of - yes + PSEUDO, no + PSEUDO, of_no - no + PSEUDO
    delta = np.log(has / lacks) - np.log(had / lacked)
    return delta, delta / np.sqrt(1 / has + 1 / lacks + 1 / had + 1 / lacked)


def _usual(weights: np.ndarray, counts: np.ndarray) -> float:
    """The weight of the median token."""
    order = np.argsort(weights, kind="stable")
    half = np.searchsorted(counts[order].cumsum(), counts.sum() / 2)
    return float(weights[order[half]])


def _strongest(weights: np.ndarray, counts: np.ndarray, number: int) -> list[int]:
    """Keys that matter most, by weight and count."""
    matter = abs(weights) * np.sqrt(counts)
    order = np.argsort(-matter, kind="stable")[:number]
    return [int(i) for i in order if abs(weights[i]) > 0.05]
