"""Windows as arrays: one row a token, each property of a token as a number, so that counts are sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.label.evidence import Window
from sparsight.label.words import folded, places, shape, words


class Keys:
    """A property of each token: of: its number, [token]; names: what the numbers stand for."""

    def __init__(self, values: Sequence[object]) -> None:
        known: dict[object, int] = {}
        self.of: Int[np.ndarray, " token"] = np.array([known.setdefault(v, len(known)) for v in values], np.int64)
        self.names = list(known)


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
        return Keys([w.language or "" for w in self.windows for _ in w.pieces])

    @cached_property
    def next(self) -> Keys:
        """The token that follows, folded; "" at the end of a window, where it is not known."""
        names = [self.folded.names[i] for i in self.folded.of]
        after = [*names[1:], ""] if names else []
        for last in self.first[1:] - 1:
            after[last] = ""
        return Keys([*after[:-1], ""] if after else [])

    def before(self, n: int) -> Int[np.ndarray, " token"]:
        """The number of the exact token n places before each, -1 where the window has none."""
        out = np.full(len(self), -1, np.int64)
        out[n:] = self.exact.of[: len(self) - n]
        out[np.arange(len(self)) - self.first[self.window] < n] = -1
        return out

    @cached_property
    def words(self) -> tuple[Int[np.ndarray, "occurrence 2"], list[str]]:
        """(window's number and token where it ends) of each word's first occurrence in each window, and which word
        that is, in lower case."""
        at: list[tuple[int, int]] = []
        which: list[str] = []
        for number, (window, first) in enumerate(zip(self.windows, self.first.tolist(), strict=True)):
            seen: set[str] = set()
            for last, word in words(window.pieces, window.roles):
                if word not in seen:
                    seen.add(word)
                    at.append((number, first + last))
                    which.append(word)
        return np.array(at, np.int64).reshape(-1, 2), which

    def _mapped(self, of: Callable[[str], str]) -> Keys:
        """A property of the exact token."""
        inner = Keys([of(str(piece)) for piece in self.exact.names])
        made = Keys([])
        made.of, made.names = inner.of[self.exact.of], inner.names
        return made


def most(weights: Mapping[str, float], number: int) -> list[tuple[str, float]]:
    """The heaviest, heaviest first; of equals the first in the alphabet."""
    return sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:number]
