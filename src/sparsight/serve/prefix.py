"""What was read once is not read again: the KV of prompts, in blocks, found by the tokens before them.

A block is known by a hash of all tokens up to its end, and of a salt: of everything else that its numbers depend on.
That is nothing, where no edit acts on the prompt; else the controller, what each token is, and, where positions count
from the prompt's end, its length. Edits on generated tokens alone share the blocks of unedited prompts.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from sparsight.edits import Controller
from sparsight.lm.batch import Prompt
from sparsight.lm.cache import full_cache, pairs
from sparsight.scope.program import Program
from sparsight.wire import fingerprint

BLOCK = 32  # tokens


@dataclass(frozen=True)
class Tally:
    """What edits did in one block of a prompt: tokens touched, sum of their shares, events that came true, by index."""

    touched: float = 0.0
    share: float = 0.0
    fired: frozenset[int] = frozenset()


def chain(prompt: Prompt, controller: Controller, program: Program) -> list[bytes]:
    """The names of a prompt's whole blocks, each of which says all that came before. The last token is in none: it is
    always run, for what comes after it."""
    salted = program.touches_prompt
    name = hashlib.sha256(_salt(prompt, controller, program) if salted else b"").digest()
    names = []
    for start in range(0, (len(prompt) - 1) // BLOCK * BLOCK, BLOCK):
        said = array("q", prompt.ids[start : start + BLOCK])
        if salted:
            said.extend(int(kind) for kind in prompt.kinds[start : start + BLOCK])
        name = hashlib.sha256(name + said.tobytes()).digest()
        names.append(name)
    return names


def _salt(prompt: Prompt, controller: Controller, program: Program) -> bytes:
    from_the_end = any(position < 0 for change in program.changes for position in change.where.positions)
    return f"{fingerprint(controller)} {len(prompt) if from_the_end else ''}".encode()


class Prefixes:
    """Blocks of KV, as many as fit into so many bytes of the model's device; the one unused longest goes first."""

    def __init__(self, limit: int):
        self.limit = limit
        self.blocks = 0  # how many there is room for; known with the first
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._known: OrderedDict[bytes, tuple[int, Tally]] = OrderedDict()
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._known)

    @property
    def bytes(self) -> int:
        """What it takes of the device's memory."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values))

    @torch.no_grad()
    def find(self, names: Sequence[bytes]) -> tuple[Cache | None, list[Tally]]:
        """The KV of the longest beginning that is known, as a cache to go on from, and what edits did in its blocks."""
        found: list[tuple[int, Tally]] = []
        for name in names:
            if name not in self._known:
                break
            found.append(self._known[name])
        if not found:
            return None, []
        self._used(names[: len(found)])
        cache = full_cache()
        for layer, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            index = torch.tensor([block for block, _ in found], device=keys.device)
            cache.update(_joined(keys[index]), _joined(values[index]), layer)
        return cache, [tally for _, tally in found]

    @torch.no_grad()
    def keep(self, names: Sequence[bytes], past: Cache, tallies: Sequence[Tally]) -> None:
        """Takes up the blocks that are not known yet. past: of the prompt, one row, with at least these blocks."""
        if not names or not self._made(past):
            return
        new: list[tuple[int, int]] = []  # (place in the prompt, place here)
        mine = set(names)
        self._used(names)  # so that what makes room is another prompt's
        for number, name in enumerate(names):
            if name in self._known:
                continue
            place = self._room(mine)
            if place is None:
                break
            self._known[name] = (place, tallies[number])
            new.append((number, place))
        self._used(names)
        if not new:
            return
        for pools, pair in zip(zip(self._keys, self._values, strict=True), pairs(past), strict=True):
            for pool, given in zip(pools, pair, strict=True):
                at, to = (torch.tensor(of, device=given.device) for of in zip(*new, strict=True))
                pool[to] = _cut(given, len(names))[at]

    def _used(self, names: Sequence[bytes]) -> None:
        """A beginning is used at least as lately as what follows it: without it the rest cannot be found."""
        for name in reversed(names):
            if name in self._known:
                self._known.move_to_end(name)

    def _room(self, mine: set[bytes]) -> int | None:
        """A free block; else that of the one unused longest, unless it is of the same prompt."""
        if self._free:
            return self._free.pop()
        oldest = next(iter(self._known))
        return None if oldest in mine else self._known.pop(oldest)[0]

    def _made(self, past: Cache) -> bool:
        """Whether there is room for a block at all; takes the memory when the first comes."""
        if not self._keys:
            layers = pairs(past)
            each = sum(t[0, :, :1].numel() * t.element_size() for pair in layers for t in pair) * BLOCK
            self.blocks = self.limit // each
            if self.blocks:
                for keys, values in layers:
                    for pools, t in ((self._keys, keys), (self._values, values)):
                        pools.append(t.new_zeros(self.blocks, t.shape[1], BLOCK, t.shape[3]))
                self._free = list(range(self.blocks - 1, -1, -1))
        return self.blocks > 0


def _cut(given: Tensor, blocks: int) -> Tensor:
    """[1, head, pos, d] as [block, head, pos, d]."""
    return given[0, :, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)).transpose(0, 1)


def _joined(blocks: Tensor) -> Tensor:
    """The way back."""
    return blocks.transpose(0, 1).flatten(1, 2).unsqueeze(0)
