"""Windows as arrays: one row a token, each property of a token as a number, so that counts are sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.label.evidence import Window
from sparsight.label.words import Spread, folded, places, shape, so_far, to_come

FAIR = 8  # windows that make a sample


class Keys:
    """A property of each token: of: its number, [token]; names: what the numbers stand for, number: {name: its own}."""

    def __init__(self, values: Sequence[object]) -> None:
        self.number: dict[object, int] = {}
        known = self.number
        self.of: Int[np.ndarray, " token"] = np.array([known.setdefault(v, len(known)) for v in values], np.int64)
        self.names = list(known)


@dataclass(frozen=True, eq=False)
class Spans:
    """Words, each once a window or turn. at: the window's number, the first token and one past the last of those that
    have it; keys: which word."""

    at: Int[np.ndarray, "3 occurrence"]
    keys: Keys


class Sheet:
    """The tokens of some windows, one window after the other.

    window, document: of each token, its window's number and its document's, both from 0. fires: whether the feature
    does. value: its activation. first: of each window, its first token; focus: the token it is about.
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = windows
        lengths = np.array([len(w.pieces) for w in windows], np.int64)
        self.first = np.concatenate([[0], lengths.cumsum()[:-1]]).astype(np.int64)
        self.window: Int[np.ndarray, " token"] = np.repeat(np.arange(len(windows)), lengths)
        documents = {w.document: i for i, w in enumerate(windows)}
        order = {number: i for i, number in enumerate(sorted(documents))}
        self.group: Int[np.ndarray, " window"] = np.array([order[w.document] for w in windows], np.int64)
        self.document = self.group[self.window]
        self.value: Float[np.ndarray, " token"] = np.array([v for w in windows for v in w.values], np.float64)
        self.fires: Bool[np.ndarray, " token"] = self.value > 0
        self.pieces = [piece for w in windows for piece in w.pieces]
        self.focus = self.first + np.array([w.focus for w in windows], np.int64)
        self.fires_in: Bool[np.ndarray, " window"] = np.array([w.fires for w in windows], bool)

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def fair(self) -> Bool[np.ndarray, " window"]:
        """A fair sample of where it fires, or all windows where it does if that is too small."""
        fair = self.fires_in & np.array([w.why == "sample" for w in self.windows], bool)
        return fair if fair.sum() >= FAIR else self.fires_in

    @cached_property
    def mixed(self) -> Bool[np.ndarray, " window"]:
        """Where it fires at some tokens and at others not."""
        lengths = np.bincount(self.window, minlength=len(self.windows))
        fired = np.bincount(self.window, self.fires, len(self.windows))
        return (fired > 0) & (fired < lengths)

    def within(self, score: Float[np.ndarray, " token"]) -> Float[np.ndarray, " window"]:
        """The AUC of telling firing tokens from silent ones within each fair window that has both."""
        at, beside, silent, window = self._firing
        won = np.sign(score[at, None] - score[beside]) * silent  # of a pair: 1 won, -1 lost
        shares = (1 + won.sum(1) / silent.sum(1)) / 2
        number = np.bincount(window, minlength=1)
        return np.bincount(window, shares, minlength=1)[number > 0] / number[number > 0]

    @cached_property
    def _firing(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of the fair windows' firing tokens: the token; [token, longest window] the tokens of its window, and which of
        them are silent; its window's number."""
        lengths = np.bincount(self.window, minlength=len(self.windows))
        (at,) = np.nonzero(self.fires & (self.fair & self.mixed)[self.window])
        window = self.window[at]
        step = np.arange(lengths.max(initial=1))
        inside = step < lengths[window, None]
        beside = np.where(inside, self.first[window, None] + step, 0)
        return at, beside, inside & ~self.fires[beside], window

    @cached_property
    def exact(self) -> Keys:
        return Keys(self.pieces)

    @cached_property
    def folded(self) -> Keys:
        return self._mapped(folded)

    @cached_property
    def shapes(self) -> Keys:
        return self._mapped(shape)

    @cached_property
    def places(self) -> Keys:
        return Keys([place for w in self.windows for place in places(w)])

    @cached_property
    def languages(self) -> Keys:
        return self._with(Keys([w.language or "" for w in self.windows]), self.window)

    @cached_property
    def next(self) -> Keys:
        """The token that follows, folded; "" at the end of a window, where it is not known."""
        made = Keys([])
        made.number = dict(self.folded.number)
        unknown = made.number.setdefault("", len(made.number))
        made.names = [*made.number]
        made.of = np.append(self.folded.of[1:], unknown)
        made.of[self.first[1:] - 1] = unknown
        return made

    @cached_property
    def _before(self) -> dict[int, np.ndarray]:
        return {}

    def before(self, n: int) -> Int[np.ndarray, " token"]:
        """The number of the exact token n places before each, -1 where the window has none."""
        if n not in self._before:
            out = np.full(len(self), -1, np.int64)
            out[n:] = self.exact.of[: max(len(self) - n, 0)]
            out[np.arange(len(self)) - self.first[self.window] < n] = -1
            self._before[n] = out
        return self._before[n]

    @cached_property
    def words(self) -> Spans:
        """Those that the text has had."""
        return self._spans(so_far)

    @cached_property
    def later(self) -> Spans:
        """Those that the rest of the turn has."""
        return self._spans(to_come)

    def summed(self, spans: Spans, each: Float[np.ndarray, " occurrence"]) -> Float[np.ndarray, " token"]:
        """At each token, the sum of the weights of the words that have it. Rounded: what was added is taken away again,
        and equal sums stay equal."""
        _, start, stop = spans.at
        size = len(self) + 1
        steps = np.bincount(start, each, minlength=size) - np.bincount(stop, each, minlength=size)
        return steps.cumsum()[:-1].round(9)

    def _spans(self, of: Callable[[Window], Spread]) -> Spans:
        found = [of(window) for window in self.windows]
        window = np.repeat(np.arange(len(found)), [len(names) for names, _, _ in found])
        at = np.array([[i for one in found for i in one[which]] for which in (1, 2)], np.int64) + self.first[window]
        return Spans(np.stack([window, *at]), Keys([name for names, _, _ in found for name in names]))

    def _mapped(self, of: Callable[[str], str]) -> Keys:
        """A property of the exact token."""
        return self._with(Keys([of(str(piece)) for piece in self.exact.names]), self.exact.of)

    @staticmethod
    def _with(inner: Keys, of: np.ndarray) -> Keys:
        """Each token as the one that it has the number of."""
        made = Keys([])
        made.of, made.names, made.number = inner.of[of], inner.names, inner.number
        return made


def most(weights: Mapping[str, float], number: int) -> list[tuple[str, float]]:
    """The heaviest, heaviest first; of equals the first in the alphabet."""
    return sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:number]
