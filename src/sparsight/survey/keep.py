"""The examples that are kept while a text goes by: of each slot the few with the lowest key, whatever comes when.

A slot is a feature on one half of the documents. Strongest examples have the activation, turned round, as their key;
fair samples a hash of the place: the smallest of many hashes are a uniform draw without replacement. Both are functions
of the place alone, so what is kept does not depend on the order in which places come, nor on who saw them: what two
processes kept, kept together, is what one would have kept. Ties go to the earlier place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

LAST = 2**31 - 1  # the key of nothing
NOWHERE = 2**63 - 1
FIELDS = ("key", "place", "value", "peak", "window")


@dataclass
class Windows:
    """What is to be kept of some places: activations there, the largest of each window, and all of it in its 255ths."""

    value: Float[Tensor, " place"]
    peak: Float[Tensor, " place"]
    window: UInt8[Tensor, "place span"]


class Kept:
    """[slot, size] examples, the lowest key first. key: int32, LAST where there is none; place: int64; value, peak:
    float32; window: uint8 [slot, size, span]. `bytes_of` says what they take."""

    def __init__(self, slots: int, size: int, span: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        self.key = torch.full((slots, size), LAST, dtype=torch.int32, device=device)
        self.place = torch.full((slots, size), NOWHERE, dtype=torch.int64, device=device)
        self.value = torch.zeros(slots, size, device=device)
        self.peak = torch.zeros(slots, size, device=device)
        self.window = torch.zeros(slots, size, span, dtype=torch.uint8, device=device)

    @staticmethod
    def bytes_of(slots: int, size: int, span: int) -> int:
        return slots * size * (4 + 8 + 4 + 4 + span)

    def offer(
        self,
        slot: Int[Tensor, " candidate"],
        key: Int[Tensor, " candidate"],
        place: Int[Tensor, " candidate"],
        windows: Callable[[Int[Tensor, " chosen"]], Windows],
    ) -> None:
        """Keep those that are lower than what is kept. windows: what is to be kept of these of the candidates."""
        chosen = (key <= self.key[:, -1][slot]).nonzero().squeeze(1)
        if not len(chosen):
            return
        touched, new_slot = slot[chosen].unique(return_inverse=True)
        old_slot = torch.arange(len(touched), device=slot.device).repeat_interleave(self.size)
        slots = torch.cat([old_slot, new_slot])
        keys = torch.cat([self.key[touched].flatten(), key[chosen].to(torch.int32)])
        places = torch.cat([self.place[touched].flatten(), place[chosen]])
        order = places.argsort(stable=True)
        order = order[((slots << 31) | keys)[order].argsort(stable=True)]
        first = torch.searchsorted(slots[order], torch.arange(len(touched), device=slot.device))
        rank = torch.arange(len(order), device=slot.device) - first[slots[order]]
        won = order[rank < self.size].view(len(touched), self.size)  # each slot has `size` at least: those it had
        self.key[touched], self.place[touched] = keys[won], places[won]
        there = len(old_slot)
        fresh = won >= there
        made = windows(chosen[won[fresh] - there])
        old = won.clamp(max=there - 1)
        for name in ("value", "peak", "window"):
            held = getattr(self, name)
            moved = held[touched].flatten(0, 1)[old]
            moved[fresh] = getattr(made, name)
            held[touched] = moved

    def merge(self, other: Kept) -> None:
        """Keep what another kept, too."""
        slot, column = (other.key < LAST).nonzero(as_tuple=True)
        flat = slot * other.size + column

        def windows(chosen: Tensor) -> Windows:
            at = flat[chosen]
            return Windows(*(getattr(other, name).flatten(0, 1)[at] for name in ("value", "peak", "window")))

        self.offer(slot, other.key[slot, column], other.place[slot, column], windows)
