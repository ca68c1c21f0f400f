"""A document as windows are cut from it, with what it says around them: the words that it has had, and those that the
turn still has to come."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from sparsight.label.words import turns_of, words_of

EARLIER, LATER = 256, 128  # tokens before and after a window that are looked at


@dataclass(frozen=True, eq=False)
class Said:
    """pieces, roles: each token's text and its records.Kind bits. first, last: of each word, its tokens; names: the
    words, in lower case; turn: of each token, which it is in."""

    pieces: tuple[str, ...]
    roles: tuple[int, ...]
    first: Sequence[int]
    last: Sequence[int]
    names: Sequence[str]
    turn: Sequence[int]

    @classmethod
    def of(cls, pieces: tuple[str, ...], roles: tuple[int, ...]) -> Said:
        """Of a whole document."""
        found = words_of(pieces, roles)
        first, last = [word[0] for word in found], [word[1] for word in found]
        return cls(pieces, roles, first, last, [word[2] for word in found], turns_of(roles))

    def earlier(self, at: int) -> tuple[str, ...]:
        """The different words before a token."""
        return self._between(bisect_left(self.first, at - EARLIER), bisect_left(self.last, at))

    def later(self, at: int) -> tuple[str, ...]:
        """The different words from a token on, up to the end of the turn of the token before it."""
        end = bisect_right(self.turn, self.turn[at - 1])
        return self._between(bisect_left(self.first, at), bisect_left(self.first, min(end, at + LATER)))

    def _between(self, first: int, stop: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.names[first:stop]))
