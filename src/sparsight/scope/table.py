"""A table of steered rows that come and go between two passes, each on its own.

What a row wants is written into the buffers' rows in place (layout.py), so whoever joins, leaves or moves touches no
other row; and a compiled step, that was traced with the buffers, sees it. Where a row needs more room than the buffers
have, they are laid out anew, wider; the first ones are kept, and used again as soon as all rows fit them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import fields

import torch
from jaxtyping import Float, Int

from sparsight.errors import BadInput
from sparsight.records import Receipt
from sparsight.sae.activation import FeatureRows
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.scope.effect import effect, saw, tally
from sparsight.scope.layout import TALLY, Buffers, Shape, blank, blank_features, feature_rows, fill_features, fill_row
from sparsight.scope.program import Program
from sparsight.scope.steering import Steered, Steering, buffers, new_events, receipt

# Of each row at most: the shape of a table is that of all its rows together, so one row's wish is room in all.
MOST = Shape(slots=256, depth=16, literals=256, clauses=64, events=64, places=64)


def checked(program: Program) -> Program:
    """The program, if a table has room for it. Raises BadInput where it asks for more than MOST."""
    asked = Shape.of([program])
    if asked.joined(MOST) != MOST:
        over = next(f.name for f in fields(MOST) if getattr(asked, f.name) > getattr(MOST, f.name))
        named = {"slots": "features", "depth": "edits of one feature", "literals": "comparisons", "places": "positions"}
        most = f"{getattr(MOST, over)} {named.get(over, over)}"
        raise BadInput(f"The controller is too large for a row beside others: it may have at most {most}.")
    return program


class SteeringTable:
    """Room for so many rows. The first n rows of it are the n rows of a pass.

    first: the shape that it begins with, and that compiled steps are made for.
    """

    def __init__(self, sae: SparseAutoEncoder, rows: int, hook_point: str, first: Shape | None = None):
        self.sae, self.rows, self.hook_point = sae, rows, hook_point
        self.shape = self.first = first or Shape()
        self.b = self._first = buffers(sae, rows, self.shape, [])
        self.parts: dict[int, tuple[Buffers, FeatureRows]] = {}
        self._first_parts = self.parts
        self.steered: list[Steered | None] = [None] * rows
        self.shapes: list[Shape | None] = [None] * rows  # what each row needs
        self._blank: tuple[Shape | None, Buffers] = None, {}
        self._left = False  # whether a row has left since it was last looked whether the first buffers would do

    @property
    def is_first(self) -> bool:
        """Whether the buffers are those that it began with."""
        return self.b is self._first

    def acts(self, rows: int) -> bool:
        """Whether anything may happen in the first so many rows."""
        return any(one is not None and one.acts for one in self.steered[:rows])

    # ── coming and going ─────────────────────────────────────────────────────────────────────────────────────────

    @torch.inference_mode(False)
    @torch.no_grad()
    def put(self, row: int, steering: Steering) -> None:
        """Writes the one row of a steering, with its tally, here."""
        one = steering.steered[0]
        self.clear(row)
        shape = Shape.of([one.program])
        self._make_room(shape)
        self.steered[row], self.shapes[row] = one, shape
        if self.shape == steering.shape and steering.rows == 1:
            for name, tensor in steering.b.items():
                self.b[name][row].copy_(tensor[0])
            return
        narrow = blank(self.shape, 1, self.sae, torch.device("cpu"))
        fill_row(narrow, 0, self.shape, one.program, one.prompt_length)
        for name, tensor in narrow.items():
            self.b[name][row].copy_(tensor[0])
        fill_features(self.b, self.sae, [(row, one.program)])
        for name in TALLY:
            theirs = steering.b[name][0]
            self.b[name][row][..., : len(theirs)].copy_(theirs) if theirs.ndim else self.b[name][row].copy_(theirs)

    @torch.inference_mode(False)
    @torch.no_grad()
    def clear(self, row: int) -> None:
        """A row that wants nothing."""
        if self.steered[row] is None:
            return
        self.steered[row] = self.shapes[row] = None
        self._left = True
        for name, tensor in self._nothing().items():
            self.b[name][row].copy_(tensor)

    def _nothing(self) -> Buffers:
        """A row that wants nothing, in the present shape."""
        shape, made = self._blank
        if shape != self.shape:
            made = blank(self.shape, 1, self.sae, self.sae.device) | blank_features(self.shape, 1, self.sae)
            made = {name: tensor[0] for name, tensor in made.items()}
            self._blank = self.shape, made
        return made

    @torch.inference_mode(False)
    @torch.no_grad()
    def move(self, source: int, target: int) -> None:
        """What one row wants, and its tally, in another's place; the first then wants nothing."""
        if self.steered[source] is None:
            return self.clear(target)
        for tensor in self.b.values():
            tensor[target].copy_(tensor[source])
        self.steered[target], self.shapes[target] = self.steered[source], self.shapes[source]
        self.clear(source)
        return None

    def fit(self) -> None:
        """Goes back to the first buffers, where all rows fit them again."""
        if self.is_first or not self._left:
            return
        self._left = False
        shapes = {shape for shape in self.shapes if shape is not None}  # few different ones
        needed = functools.reduce(Shape.joined, shapes, self.first)
        if needed == self.first:
            self._take(self.first, self._first)

    def _make_room(self, shape: Shape) -> None:
        self.fit()
        wanted = self.shape.joined(shape)
        if wanted != self.shape:
            self._take(wanted, None)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _take(self, shape: Shape, into: Buffers | None) -> None:
        """Lays all rows out anew, with their tallies; into: buffers of that shape that stay where they are."""
        told, before = self.b, self.steered
        fresh = buffers(self.sae, self.rows, shape, [(row, one) for row, one in enumerate(before) if one is not None])
        for name in TALLY:
            width = min(fresh[name].shape[-1], told[name].shape[-1]) if fresh[name].ndim > 1 else None
            fresh[name][..., :width].copy_(told[name][..., :width])
        if into is not None:
            for name, tensor in into.items():
                tensor.copy_(fresh[name])
        self.shape, self.b, self.parts = shape, fresh, {}
        if into is not None:
            self.b, self.parts = into, self._first_parts

    def part(self, rows: int) -> Buffers:
        """The buffers of the first so many rows; a pass over as many is preceded by this."""
        if rows not in self.parts:
            b = {name: tensor[:rows] for name, tensor in self.b.items()}
            self.parts[rows] = b, feature_rows(b)
        return self.parts[rows][0]

    # ── in a pass ────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(
        self,
        flow: Float[Tensor, "batch 1 d_in"],
        kinds: Int[Tensor, "batch 1"],
        positions: Int[Tensor, "batch 1"],
        entropy: Float[Tensor, "batch 1"] | None = None,
    ) -> Float[Tensor, "batch 1 d_in"]:
        """What shall flow on of the first rows, a token each; no Python branch on a value."""
        b, features = self.parts[len(flow)]
        done = effect(b, features, self.shape, self.sae, flow, kinds, positions, entropy)
        tally(b, kinds.to(self.sae.device), done)
        b["edited"].copy_(done.edited[:, 0])
        return done.out

    def pass_by(self, kinds: Int[Tensor, "batch 1"]) -> None:
        """The tally of a pass in which no row acts."""
        saw({"seen": self.b["seen"][: len(kinds)]}, kinds)

    # ── what it did ──────────────────────────────────────────────────────────────────────────────────────────────

    def receipt(self, row: int) -> Receipt | None:
        """What was done to a row so far; None where nothing was asked for."""
        one = self.steered[row]
        return None if one is None else receipt(self.b, row, one.controller, self.hook_point)

    def new_events(self, rows: Iterable[int]) -> dict[int, tuple[str, ...]]:
        """Of rows with events: names of those that came true since this was last asked. One transfer for all."""
        having = {row: one for row in rows if (one := self.steered[row]) is not None and one.program.events}
        if not having:
            return {}
        fired = self.b["fired"][list(having)].tolist()
        return {row: tuple(new_events(one, hits)) for (row, one), hits in zip(having.items(), fired, strict=True)}

    def edited_features(self, rows: Iterable[int]) -> dict[int, frozenset[int]]:
        """Of rows: the features whose edits changed something at the token of the last pass. One transfer for all."""
        acting = {row: one for row in rows if (one := self.steered[row]) is not None and one.program.changes}
        if not acting:
            return {}
        hits = self.b["edited"][list(acting)].tolist()
        return {
            row: frozenset(f for f, hit in zip(one.program.features, of, strict=False) if hit)
            for (row, one), of in zip(acting.items(), hits, strict=True)
        }
