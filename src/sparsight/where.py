"""Where an edit acts: at which tokens, by what they are or by their place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparsight.errors import BadInput
from sparsight.records import ROLES, Kind

LARGEST = 2**31  # indices and positions stay under it

PLACES = {
    "all": Kind.PROMPT | Kind.GENERATED,
    "prompt": Kind.PROMPT,
    "generated": Kind.GENERATED,
    "text": Kind.TEXT,
    "template": Kind.TEMPLATE,
    "bos": Kind.BOS,
    **ROLES,
}


@dataclass(frozen=True)
class Where:
    """At which tokens. kinds: names in PLACES, a token of any of them counts; positions: token places of the row,
    0 its first; negative ones count from the end of the prompt, -1 its last token.

    Template and BOS tokens are left alone unless "template", "bos" or their position is asked for.
    """

    kinds: tuple[str, ...] = ("all",)
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in PLACES:
                raise BadInput(f"No tokens {kind!r}. There are: {', '.join(PLACES)}, or token positions.")
        object.__setattr__(self, "kinds", tuple(sorted(set(self.kinds))))
        object.__setattr__(self, "positions", tuple(sorted(set(self.positions))))

    @classmethod
    def of(cls, places: Iterable[str | int]) -> Where:
        """From a mix of names and positions."""
        places = list(places)
        if not places or not all(_is_place(p) for p in places):
            raise BadInput(f"on() takes names ({', '.join(PLACES)}) and token positions, not {places!r}.")
        names = tuple(p for p in places if isinstance(p, str))
        return cls(names, tuple(p for p in places if isinstance(p, int)))

    @property
    def mask(self) -> int:
        """The Kinds asked for, as bits."""
        return int(sum({int(bit) for name in self.kinds for bit in PLACES[name]}))

    @property
    def touches_prompt(self) -> bool:
        """Whether a token of the prompt may be meant: then the prompt's KV cache depends on the edit."""
        return bool(self.positions or self.mask & ~int(Kind.GENERATED))

    def __str__(self) -> str:
        names = [f"{name} tokens" for name in self.kinds] + [f"token {p}" for p in self.positions]
        return " and ".join(names)


def _is_place(place: object) -> bool:
    """A name, or a position that a token could have."""
    return isinstance(place, str) or (isinstance(place, int) and not isinstance(place, bool) and abs(place) < LARGEST)
