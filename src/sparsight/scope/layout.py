"""Programs of rows as tensors: slots for the features that a row names, wants for its edits and events.

A slot holds a feature's encoder row, bias and decoder row. A want is an edit (its depth in the chain of its slot, times
the slots, plus the slot) or an event (after all edits): the tokens that it is meant for, and the clauses that it needs.
All of it has a row dimension, and sizes that are powers of two, so that few occur.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sparsight.edits import Controller
from sparsight.errors import BadInput
from sparsight.records import SPECIAL
from sparsight.sae.activation import FeatureRows
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.scope.program import Change, Program, Side, compile_controller

ROW_COLUMNS = ("bias", "threshold", "gain", "shift")
MOST_WANTS = 4096
TALLY = ("seen", "touched", "ratio", "fired")
NOWHERE = -1  # a position that no token has

Buffers = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """How much room each row has: slots; edits of one slot; comparisons; clauses; events; positions of an edit."""

    slots: int = 0
    depth: int = 0
    literals: int = 0
    clauses: int = 0
    events: int = 0
    places: int = 0

    @classmethod
    def of(cls, programs: Sequence[Program]) -> Shape:
        """Room for all of them. Raises BadInput for more edits than one request may have."""
        shape = cls(
            slots=_round_up(max((len(p.features) for p in programs), default=0)),
            depth=_round_up(max((len(chain) for p in programs for chain in chains(p)), default=0)),
            literals=_round_up(max((len(p.literals) for p in programs), default=0)),
            clauses=_round_up(max((len(p.clauses) for p in programs), default=0)),
            events=_round_up(max((len(p.events) for p in programs), default=0)),
            places=_round_up(max((len(c.where.positions) for p in programs for c in p.changes), default=0)),
        )
        if shape.wants > MOST_WANTS:
            raise BadInput(f"Too many edits for one request: at most {MOST_WANTS} (features × edits of one feature).")
        return shape

    @property
    def wants(self) -> int:
        return self.depth * self.slots + self.events

    def joined(self, other: Shape) -> Shape:
        """Room for what fits either."""
        return Shape(**{f.name: max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


def prepared(sae: SparseAutoEncoder, controller: Controller, prompt_length: int) -> Program:
    """The program of one row, known to fit: whatever is wrong with it is said here (see compile_controller)."""
    program = compile_controller(controller, sae)
    acts = program.changes or program.events
    if acts and sae.config.transcoder:
        reads = f"it reads '{sae.config.hook_point or '?'}' and writes '{sae.config.hook_point_out or '?'}'"
        todo = "reading works, steering needs an SAE that reads and writes the same hook point"
        raise BadInput(f"This is a transcoder ({reads}): {todo}.")
    for change in program.changes:
        for position in change.where.positions:
            place(position, prompt_length)
    Shape.of([program])
    return program


def place(position: int, prompt_length: int) -> int:
    """A position from the row's first token on. Raises BadInput for one before it."""
    at = position if position >= 0 else prompt_length + position
    if at < 0:
        raise BadInput(f"No token {position}: the prompt has {prompt_length}.")
    return at


def blank(shape: Shape, rows: int, sae: SparseAutoEncoder, device: torch.device) -> Buffers:
    """Buffers of rows that want nothing, without their features' rows."""
    wide = torch.promote_types(sae.dtype, torch.float32)

    def full(*sizes: int, fill: float = 0, dtype: torch.dtype = wide) -> Tensor:
        return torch.full((rows, *sizes), fill, dtype=dtype, device=device)

    return {
        "index": full(shape.slots, dtype=torch.int64),
        "factor": full(shape.depth, shape.slots, fill=1),
        "shift": full(shape.depth, shape.slots),
        "kinds": full(shape.wants, dtype=torch.int64),
        "spared": full(shape.wants, dtype=torch.int64),  # template and BOS tokens, unless they are asked for
        "positions": full(shape.wants, shape.places, fill=NOWHERE, dtype=torch.int64),
        "needs": full(shape.wants, shape.clauses, dtype=torch.bool),
        "clause": full(shape.clauses, shape.literals, dtype=torch.bool),
        "side": full(2, shape.literals, dtype=torch.int64),
        "side_gain": full(2, shape.literals),
        "side_floor": full(2, shape.literals, fill=-math.inf),
        "constant": full(shape.literals),
        "compare": full(3, shape.literals, dtype=torch.bool),  # holds if less, if equal, if greater
        "low": full(shape.wants, fill=-math.inf),
        "high": full(shape.wants, fill=math.inf),
        "seen": full(),
        "touched": full(),
        "ratio": full(),
        "fired": full(shape.events, dtype=torch.bool),
        "edited": full(shape.slots, dtype=torch.bool),  # which features the last token's edits changed
    }


def blank_features(shape: Shape, rows: int, sae: SparseAutoEncoder) -> Buffers:
    """Buffers for the features of rows, [rows, slots, d] and [rows, 1, slots]; unused slots are all zero."""
    wide = torch.promote_types(sae.dtype, torch.float32)
    sizes = {"encoder": (shape.slots, sae.d_in), "decoder": (shape.slots, sae.d_out)}
    sizes |= {f"row_{name}": (1, shape.slots) for name in ROW_COLUMNS}
    return {name: torch.zeros(rows, *size, dtype=wide, device=sae.device) for name, size in sizes.items()}


def fill_row(buffers: Buffers, row: int, shape: Shape, program: Program, prompt_length: int) -> None:
    """Writes one program into a blank row on the CPU; its features' rows apart. Number by number, which numpy does in a
    fiftieth of torch's time."""
    b = {name: tensor[row].numpy() for name, tensor in buffers.items()}
    for slot, feature in enumerate(program.features):
        b["index"][slot] = feature
    for slot, chain in enumerate(chains(program)):
        for depth, change in enumerate(chain):
            b["factor"][depth, slot], b["shift"][depth, slot] = change.factor, change.shift
            want = depth * shape.slots + slot
            b["kinds"][want] = change.where.mask
            b["needs"][want, list(change.clauses)] = True
            b["low"][want], b["high"][want] = change.entropy
            for i, position in enumerate(change.where.positions):
                b["positions"][want, i] = place(position, prompt_length)
    for event, said in enumerate(program.events):
        want = shape.depth * shape.slots + event
        b["kinds"][want] = ~int(SPECIAL) & 0xFFFF
        b["needs"][want, list(said.clauses)] = True
    b["spared"][:] = ~b["kinds"] & int(SPECIAL)
    for clause, members in enumerate(program.clauses):
        b["clause"][clause, list(members)] = True
    for i, literal in enumerate(program.literals):
        nothing = Side(0, 0.0, -math.inf)
        for side, which in enumerate((literal.left, literal.right or nothing)):
            b["side"][side, i], b["side_gain"][side, i] = which.slot, which.gain
            b["side_floor"][side, i] = which.floor
        b["constant"][i] = literal.constant
        holds = {"<": "l", "<=": "le", "==": "e", "!=": "lg", ">=": "eg", ">": "g"}[literal.op]
        b["compare"][:, i] = [c in holds for c in "leg"]


def fill_features(b: Buffers, sae: SparseAutoEncoder, programs: Sequence[tuple[int, Program]]) -> None:
    """Writes the features' rows of (row, program) pairs into blank buffers: each feature is read from the SAE once."""
    used = sorted({feature for _, program in programs for feature in program.features})
    if not used:
        return
    of = sae.rows(used)
    at = {feature: i for i, feature in enumerate(used)}
    for row, program in programs:
        index = torch.tensor([at[feature] for feature in program.features], dtype=torch.int64, device=sae.device)
        many = len(index)
        b["encoder"][row, :many], b["decoder"][row, :many] = of.encoder[index], of.decoder[index]
        for name in ROW_COLUMNS:
            b[f"row_{name}"][row, 0, :many] = getattr(of, name)[index]


def feature_rows(b: Buffers) -> FeatureRows:
    """The buffers, as what `evaluate` takes."""
    return FeatureRows(b["encoder"], b["decoder"], *(b[f"row_{name}"] for name in ROW_COLUMNS))


def chains(program: Program) -> list[list[Change]]:
    """Each slot's changes in the order in which they act."""
    return [[c for c in program.changes if c.slot == slot] for slot in range(len(program.features))]


def _round_up(n: int) -> int:
    """The next power of two, so that few shapes occur; 0 stays 0."""
    return 1 << (n - 1).bit_length() if n else 0
