"""From an atlas, its activation log and a tokenizer: what a labeller is shown of a feature, and what its label is
scored on. A document belongs to the one or to the other (atlas.entries.is_held_out).

All windows are cut alike, so that nothing but their text tells where a feature fires. Silent ones are of three sorts:
random places; near misses, where a token that it fires on stands and it does not; places where a feature with a like
direction fires and it does not. In each the feature is silent throughout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.entries import Example, Statistics
from sparsight.label import words as text
from sparsight.label.evidence import Background, Evidence, HeldOut, Window
from sparsight.label.pieces import Pieces
from sparsight.label.said import Said
from sparsight.label.spec import LabelSpec

DRAWN = 6  # places that are drawn for each silent window, as many will not do
NEIGHBOURS = 6  # of the nearest by decoder cosine
SPOKEN = 32  # tokens that it fires on
BACKGROUND = 3_000  # windows that words are counted in
AT_ONCE = 64  # features whose places are kept at hand: they are shown first, and scored some features later
SAID = 2_048  # documents whose words are kept at hand
HARD = 0.25  # of silent windows that are near misses, and likewise of those beside a neighbour
LEAST_LIKELY_SILENT = 0.9  # without a log: the chance that a random window is silent, at least


@dataclass(frozen=True, eq=False)
class Half:
    """The documents on one side of the split: numbers, and where the tokens of each end, one after the other."""

    documents: Int[np.ndarray, " document"]
    ends: Int[np.ndarray, " document"]


@dataclass(frozen=True, eq=False)
class Firing:
    """Where a feature fires, as far as it is known: places ascending, and activations. examples: of the atlas."""

    places: Int[np.ndarray, " fire"]
    values: Any
    examples: Sequence[Example]


class Gatherer:
    """log: an ActivationLog. Without one, firing windows are the atlas's examples, and silent ones are drawn only
    for features so rare that a random window is all but surely silent."""

    def __init__(self, atlas: Atlas, tokenizer: Any, spec: LabelSpec, log: Any = None) -> None:
        self.atlas, self.spec, self.log = atlas, spec, log
        self.pieces = Pieces(tokenizer)
        self.starts, self.lengths, held_out, self.languages = self._documents()
        logged = np.zeros(len(self.starts), bool)
        logged[slice(None) if log is None else log.documents] = True
        self.logged, self.held_out = logged, held_out
        self._log = lru_cache(1024)(self._log_of)
        self._said = lru_cache(SAID)(self._said_in)
        self._firing = lru_cache(AT_ONCE)(self._firing_of)
        self._halves: dict[bool, Half] = {}
        self._by_token: dict[bool, tuple[np.ndarray, np.ndarray]] = {}

    # ── what is handed out ───────────────────────────────────────────────────────────────────────────────────────

    def evidence(self, feature: int) -> Evidence:
        """What a labeller is shown. Raises NoFeature."""
        statistics, firing = self.atlas.statistics(feature), self._firing(feature)
        rng = np.random.default_rng([self.spec.seed, feature, 0])
        top = [e.at for e in firing.examples if e.top and not e.held_out][: (self.spec.firing + 1) // 2]
        fair = self._fair(firing, False, self.spec.firing - len(top), rng, taken=top)
        windows = self._windows([(at, why) for why, ats in (("top", top), ("sample", fair)) for at in ats], firing)
        windows.sort(key=lambda w: -max(w.values))
        pairs = statistics.top_logits, statistics.bottom_logits, self._spoken(firing)
        above, below, words = map(self.pieces.texts, pairs)
        silent = self._silent(statistics, firing, windows, False, self.spec.silent, rng)
        covers = self._covers(pairs[2], firing)
        return Evidence(
            feature, statistics, tuple(windows), silent, above, below, words, covers, self.roles, self.spoken
        )

    def held_out_of(self, feature: int) -> HeldOut:
        """What its label is scored on. Raises NoFeature."""
        statistics, firing = self.atlas.statistics(feature), self._firing(feature)
        rng = np.random.default_rng([self.spec.seed, feature, 1])
        number = self.spec.held_out
        windows = self._windows([(at, "sample") for at in self._fair(firing, True, number, rng)], firing)
        return HeldOut(feature, tuple(windows), self._silent(statistics, firing, windows, True, number, rng))

    def background(self) -> Background:
        """What is said at random places of the documents that are not held out."""
        rng = np.random.default_rng([self.spec.seed])
        places = self._random(False, BACKGROUND, rng) if len(self._half(False).documents) else np.zeros(0, np.int64)
        words: Counter[str] = Counter()
        later: Counter[str] = Counter()
        for at, number in zip(places.tolist(), self._document_of(places).tolist(), strict=True):
            said, after = self._said(number), at + 1 - int(self.starts[number])
            words.update(said.earlier(after))
            later.update(said.later(after))
        shares = ({word: n / len(places) for word, n in each.items() if n > 1} for each in (words, later))
        return Background(*shares)

    # ── where it fires ───────────────────────────────────────────────────────────────────────────────────────────

    def _firing_of(self, feature: int) -> Firing:
        return Firing(*self._log(feature), self.atlas.examples(feature))

    def _log_of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        if self.log is None:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        return self.log.of(feature)

    def _spoken(self, firing: Firing) -> list[tuple[int, float]]:
        """(token, share of its fires), most first, of documents that are not held out; the statistics count all."""
        at = firing.places[~self.held_out[self._document_of(firing.places)]]
        if not len(at):
            at = np.array([e.at for e in firing.examples if e.sampled and not e.held_out], np.int64)
        ids, counts = np.unique(self.atlas.tokens[at], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:SPOKEN]
        return [(int(ids[i]), float(counts[i] / len(at))) for i in order]

    def _covers(self, spoken: Sequence[tuple[int, float]], firing: Firing) -> dict[str, float]:
        """{token without case and space: share of its places where the feature fires}; empty without a log."""
        if self.log is None or not spoken:
            return {}
        fires = int((~self.held_out[self._document_of(firing.places)]).sum())
        _, ids = self._index(False)
        places: Counter[str] = Counter()
        fired: Counter[str] = Counter()
        for id, share in spoken:
            name, (first, last) = text.folded(self.pieces.one(id)), np.searchsorted(ids, [id, id + 1])
            places[name] += int(last - first)
            fired[name] += round(share * fires)
        return {name: min(fired[name] / n, 1.0) for name, n in places.items() if n}

    def _fair(
        self, firing: Firing, held_out: bool, number: int, rng: np.random.Generator, taken: Iterable[int] = ()
    ) -> list[int]:
        """Places of a fair sample of all that it does in one half, no two windows over the same tokens."""
        mine = firing.places[self.held_out[self._document_of(firing.places)] == held_out]
        drawn = rng.choice(mine, min(len(mine), DRAWN * number), replace=False).tolist() if len(mine) else []
        drawn += [e.at for e in firing.examples if e.sampled and e.held_out == held_out]
        return self._apart(drawn, number, taken)

    def _apart(self, places: Iterable[int], number: int, taken: Iterable[int] = ()) -> list[int]:
        """The first so many of them that are not within a window of each other."""
        span = self.spec.before + self.spec.after + 1
        used, out = {int(at) // span for at in taken}, []
        for at in places:
            if len(out) >= number:
                break
            if at // span not in used:
                used.add(at // span)
                out.append(int(at))
        return out

    # ── where it is silent ───────────────────────────────────────────────────────────────────────────────────────

    def _silent(
        self,
        statistics: Statistics,
        firing: Firing,
        shown: Sequence[Window],
        held_out: bool,
        number: int,
        rng: np.random.Generator,
    ) -> tuple[Window, ...]:
        if not len(self._half(held_out).documents):
            return ()
        if self.log is None:
            span = self.spec.before + self.spec.after + 1
            if (1 - statistics.density) ** span < LEAST_LIKELY_SILENT:
                return ()
        near, beside = self._near_misses(shown, held_out, rng), self._beside(statistics, held_out, rng)
        out: list[tuple[int, str]] = []
        for why, places in (("near miss", near), ("neighbour", beside)):
            found = self._apart(self._quiet(places, firing), round(HARD * number), (at for at, _ in out))
            out += [(at, why) for at in found]
        random = self._quiet(self._random(held_out, DRAWN * number, rng), firing)
        out += [(at, "random") for at in self._apart(random, number - len(out), (at for at, _ in out))]
        return tuple(self._windows(out, firing))

    def _random(self, held_out: bool, number: int, rng: np.random.Generator) -> np.ndarray:
        """Places anywhere in the documents of one half."""
        half = self._half(held_out)
        drawn = rng.integers(0, half.ends[-1], number)
        which = np.searchsorted(half.ends, drawn, side="right")
        return self.starts[half.documents[which]] + drawn - (half.ends[which] - self.lengths[half.documents[which]])

    def _near_misses(self, shown: Sequence[Window], held_out: bool, rng: np.random.Generator) -> np.ndarray:
        """Places of the tokens that it fires on."""
        if self.log is None or not shown:
            return np.zeros(0, np.int64)
        places, ids = self._index(held_out)
        drawn = []
        own = np.array([window.ids[window.focus] for window in shown], np.int64)
        bounds = [*zip(*(np.searchsorted(ids, own + i).tolist() for i in (0, 1)), strict=True)]
        for first, last in bounds * 2:
            if last > first:
                drawn.append(places[rng.integers(first, last, 4)])
        return rng.permutation(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)

    def _beside(self, statistics: Statistics, held_out: bool, rng: np.random.Generator) -> np.ndarray:
        """Places where the features with the nearest directions fire."""
        drawn = []
        for other, _ in statistics.neighbours[:NEIGHBOURS]:
            places, _ = self._log(other)
            mine = places[self.held_out[self._document_of(places)] == held_out]
            if len(mine):
                drawn.append(rng.choice(mine, min(len(mine), self.spec.held_out)))
        return rng.permutation(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)

    def _quiet(self, places: np.ndarray, firing: Firing) -> list[int]:
        """Those in whose windows it does not fire at all, as far as it is known."""
        places = np.asarray(places, np.int64)
        first, last = np.searchsorted(firing.places, [places - self.spec.before, places + self.spec.after + 1])
        quiet = first == last
        if self.log is None:
            told = {example.document for example in firing.examples}
            quiet &= np.array([document not in told for document in self._document_of(places)], bool)
        return places[quiet].tolist()

    # ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _windows(self, places: Sequence[tuple[int, Any]], firing: Firing) -> list[Window]:
        """Around (place, why) each."""
        at = np.array([place for place, _ in places], np.int64)
        numbers = self._document_of(at)
        starts = self.starts[numbers]
        lo = np.maximum(at - self.spec.before, starts)
        hi = np.minimum(at + self.spec.after + 1, starts + self.lengths[numbers])
        first, last = np.searchsorted(firing.places, [lo, hi])
        spans = np.stack([numbers, starts, lo, hi, first, last], axis=1).tolist()
        return [self._window(place, span, firing) for place, span in zip(places, spans, strict=True)]

    def _window(self, place: tuple[int, Any], span: Sequence[int], firing: Firing) -> Window:
        """span: its document's number and first token; its own first token and one past the last; likewise of the
        fires among them."""
        (at, why), (number, start, lo, hi, first, last) = place, span
        if self.log is not None and self.logged[number]:
            values = np.zeros(hi - lo, np.float32)
            values[firing.places[first:last] - lo] = firing.values[first:last]
        else:
            lo, hi, values = self._told(at, lo, hi, firing)
        focus = int(values.argmax())
        focus = focus if values[focus] > 0 else at - lo
        said, lo, hi = self._said(number), lo - start, hi - start
        ids = tuple(self.atlas.tokens[lo + start : hi + start].tolist())
        return Window(said.pieces[lo:hi], ids, tuple(values.tolist()), said.roles[lo:hi], focus, why, number,
                      self.languages[number], lo, said.earlier(lo), said.later(hi))  # fmt: skip

    def _told(self, at: int, lo: int, hi: int, firing: Firing) -> tuple[int, int, np.ndarray]:
        """A window of a document that is not in the log, as far as an example tells of it."""
        for example in firing.examples:
            if example.at == at:
                lo, hi = max(lo, example.start), min(hi, example.start + len(example.values))
                return lo, hi, example.values[lo - example.start : hi - example.start]
        return lo, hi, np.zeros(hi - lo, np.float32)

    # ── documents ────────────────────────────────────────────────────────────────────────────────────────────────

    def _documents(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str | None]]:
        all_ = [(d.start, d.length, d.held_out, d.language) for d in self.atlas.documents()]
        starts, lengths, held_out = (np.array([d[i] for d in all_], kind) for i, kind in enumerate("qq?"))
        return starts, lengths, held_out, [d[3] for d in all_]

    def _document_of(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, places, side="right") - 1

    def _half(self, held_out: bool) -> Half:
        if held_out not in self._halves:
            (documents,) = np.nonzero((self.held_out == held_out) & self.logged & (self.lengths > 0))
            self._halves[held_out] = Half(documents, self.lengths[documents].cumsum())
        return self._halves[held_out]

    def _index(self, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        """All places of one half and the ids there, by id."""
        if held_out not in self._by_token:
            half = self._half(held_out)
            each = [np.arange(s, s + n) for s, n in zip(self.starts[half.documents], self.lengths[half.documents],
                                                        strict=True)]  # fmt: skip
            places = np.concatenate(each) if each else np.zeros(0, np.int64)
            ids = np.asarray(self.atlas.tokens)[places]
            order = np.argsort(ids, kind="stable")
            self._by_token[held_out] = places[order], ids[order].astype(np.int64)
        return self._by_token[held_out]

    def _said_in(self, number: int) -> Said:
        start = int(self.starts[number])
        ids = self.atlas.tokens[start : start + int(self.lengths[number])].tolist()
        roles = tuple(kind for n, kind in self.atlas.document(number).roles for _ in range(n))
        return Said.of(self.pieces(ids), roles)

    @cached_property
    def roles(self) -> dict[str, float]:
        """{role: share of all tokens}."""
        counts: Counter[int] = Counter()
        for document in self.atlas.documents():
            for n, kind in document.roles:
                counts[kind] += n
        total = sum(counts.values()) or 1
        named: Counter[str] = Counter()
        for kind, n in counts.items():
            named[text.role_of(kind)] += n
        return {role: n / total for role, n in named.items()}

    @cached_property
    def spoken(self) -> dict[str, float]:
        """{language: share of all tokens}."""
        counts: Counter[str] = Counter()
        for language, length in zip(self.languages, self.lengths.tolist(), strict=True):
            if language is not None:
                counts[language] += length
        return {language: n / max(int(self.lengths.sum()), 1) for language, n in counts.items()}
