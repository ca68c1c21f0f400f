"""Steering: controllers compiled for the rows of a batch, ready to run inside a pass.

With the SAE's error term added back, the card's formula needs only the edited features:

    decode(f') + (x − decode(f))  =  x + (f' − f) @ W_dec

So each row holds slots, one per feature that its controller names: encoder row, bias, decoder row. At a token the
slots' activations are computed, conditions read them, edits change them, and the difference times the decoder rows
is added to the residual. k features cost O(k · d_in) a token; the rest of the SAE is not touched (a topk or groupmax
SAE must be encoded whole, to know what passes). Shapes are fixed, nothing branches on values: a decode step can be
compiled, and other edits are other numbers in the same buffers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsight.edits import Controller
from sparsight.errors import BadInput, Mismatch
from sparsight.lm.batch import Place
from sparsight.records import SPECIAL, Receipt
from sparsight.sae.activation import CHOOSING, FeatureRows, evaluate, pick
from sparsight.sae.sae import ENCODE_MEMORY, SparseAutoEncoder
from sparsight.scope.program import Change, Program, Side, compile_controller
from sparsight.wire import fingerprint

ROW_COLUMNS = ("bias", "threshold", "gain", "shift")
MOST_WANTS = 4096
TALLY = ("seen", "touched", "ratio", "fired")
NOWHERE = -1  # a position that no token has


class Steering:
    """One controller per row, as tensors. Implements sparsight.lm.lm.Placed; use one object for one generation.

    prompt_lengths: tokens of each row's prompt, which positions like -1 count from.
    """

    def __init__(
        self,
        sae: SparseAutoEncoder,
        controllers: Sequence[Controller],
        prompt_lengths: Sequence[int],
        hook_point: str | None = None,
    ):
        self.sae, self.controllers = sae, list(controllers)
        self.hook_point = hook_point or sae.config.hook_point or "?"
        programs = [compile_controller(controller, sae) for controller in controllers]
        self.rows = len(programs)
        self.acts = any(p.changes or p.events for p in programs)
        if self.acts and sae.config.transcoder:
            reads = f"it reads '{self.hook_point}' and writes '{sae.config.hook_point_out or '?'}'"
            todo = "reading works, steering needs an SAE that reads and writes the same hook point"
            raise BadInput(f"This is a transcoder ({reads}): {todo}.")
        self.touches_prompt = any(p.touches_prompt for p in programs)
        self.needs_entropy = any(p.needs_entropy for p in programs)
        self.event_names = [[event.name for event in p.events] for p in programs]
        self.told: list[set[str]] = [set() for _ in programs]
        self.b: dict[str, Tensor] = {}
        self._lay_out(programs, prompt_lengths)

    # ── from programs to tensors ─────────────────────────────────────────────────────────────────────────────────

    @torch.inference_mode(False)  # buffers that a pass writes into, whatever the caller's mode then
    @torch.no_grad()
    def _lay_out(self, programs: Sequence[Program], prompt_lengths: Sequence[int]) -> None:
        chains = [_chains(program) for program in programs]
        self.slots = _round_up(max((len(p.features) for p in programs), default=0))
        self.depth = _round_up(max((len(chain) for row in chains for chain in row), default=0))
        literals = _round_up(max((len(p.literals) for p in programs), default=0))
        clauses = _round_up(max((len(p.clauses) for p in programs), default=0))
        events = _round_up(max((len(p.events) for p in programs), default=0))
        places = _round_up(max((len(c.where.positions) for p in programs for c in p.changes), default=0))
        wants = self.depth * self.slots + events
        if wants > MOST_WANTS:
            raise BadInput(f"Too many edits for one request: at most {MOST_WANTS} (features × edits of one feature).")
        rows, device = self.rows, self.sae.device
        wide = torch.promote_types(self.sae.dtype, torch.float32)

        def blank(*shape: int, fill: float = 0, dtype: torch.dtype = wide) -> Tensor:
            return torch.full((rows, *shape), fill, dtype=dtype, device="cpu")

        b = {
            "index": blank(self.slots, dtype=torch.int64),
            "factor": blank(self.depth, self.slots, fill=1),
            "shift": blank(self.depth, self.slots),
            "kinds": blank(wants, dtype=torch.int64),
            "positions": blank(wants, places, fill=NOWHERE, dtype=torch.int64),
            "needs": blank(wants, clauses, dtype=torch.bool),
            "clause": blank(clauses, literals, dtype=torch.bool),
            "side": blank(2, literals, dtype=torch.int64),
            "side_gain": blank(2, literals),
            "side_floor": blank(2, literals, fill=-math.inf),
            "constant": blank(literals),
            "compare": blank(3, literals, dtype=torch.bool),  # holds if less, if equal, if greater
            "low": blank(wants, fill=-math.inf),
            "high": blank(wants, fill=math.inf),
        }
        for row, (program, chain, length) in enumerate(zip(programs, chains, prompt_lengths, strict=True)):
            self._fill_row({name: t[row] for name, t in b.items()}, program, chain, length)
        b["spared"] = ~b["kinds"] & int(SPECIAL)  # template and BOS tokens, unless they are asked for
        self.b = {name: t.to(device) for name, t in b.items()}
        self.b |= self._feature_rows(programs)
        for name, shape, dtype in (("seen", (), wide), ("touched", (), wide), ("ratio", (), wide)):
            self.b[name] = blank(*shape, dtype=dtype).to(device)
        self.b["fired"] = blank(events, dtype=torch.bool).to(device)
        self.slot_rows = self._slot_rows()

    def _fill_row(self, b: dict[str, Tensor], program: Program, chains: list[list[Change]], prompt_length: int) -> None:
        for slot, feature in enumerate(program.features):
            b["index"][slot] = feature
        for slot, chain in enumerate(chains):
            for depth, change in enumerate(chain):
                b["factor"][depth, slot], b["shift"][depth, slot] = change.factor, change.shift
                want = depth * self.slots + slot
                b["kinds"][want] = change.where.mask
                b["needs"][want, list(change.clauses)] = True
                b["low"][want], b["high"][want] = change.entropy
                for i, position in enumerate(change.where.positions):
                    place = position if position >= 0 else prompt_length + position
                    if not place >= 0:
                        raise BadInput(f"No token {position}: the prompt has {prompt_length}.")
                    b["positions"][want, i] = place
        for event, said in enumerate(program.events):
            want = self.depth * self.slots + event
            b["kinds"][want] = ~int(SPECIAL) & 0xFFFF
            b["needs"][want, list(said.clauses)] = True
        for clause, members in enumerate(program.clauses):
            b["clause"][clause, list(members)] = True
        for i, literal in enumerate(program.literals):
            nothing = Side(0, 0.0, -math.inf)
            for side, which in enumerate((literal.left, literal.right or nothing)):
                b["side"][side, i], b["side_gain"][side, i] = which.slot, which.gain
                b["side_floor"][side, i] = which.floor
            b["constant"][i] = literal.constant
            holds = {"<": "l", "<=": "le", "==": "e", "!=": "lg", ">=": "eg", ">": "g"}[literal.op]
            b["compare"][:, i] = torch.tensor([c in holds for c in "leg"])

    def _feature_rows(self, programs: Sequence[Program]) -> dict[str, Tensor]:
        """Every row's slots, [rows, slots, d_in] and [rows, 1, slots]; unused slots are all zero."""
        used = sorted({feature for p in programs for feature in p.features})
        of = self.sae.rows(used)
        place = {feature: i for i, feature in enumerate(used)}
        index = torch.full((self.rows, self.slots), len(used))
        for row, program in enumerate(programs):
            for slot, feature in enumerate(program.features):
                index[row, slot] = place[feature]
        index = index.to(self.sae.device)

        def laid(t: Tensor) -> Tensor:
            return torch.cat([t, torch.zeros_like(t[:1]) if len(t) else t.new_zeros(1, *t.shape[1:])])[index]

        wide = {"encoder": laid(of.encoder), "decoder": laid(of.decoder)}
        narrow = {name: laid(getattr(of, name)).unsqueeze(1) for name in ROW_COLUMNS}
        return wide | {f"row_{name}": t for name, t in narrow.items()}

    def _slot_rows(self) -> FeatureRows:
        """The buffers, as what `evaluate` takes."""
        return FeatureRows(self.b["encoder"], self.b["decoder"], *(self.b[f"row_{name}"] for name in ROW_COLUMNS))

    # ── in a pass ────────────────────────────────────────────────────────────────────────────────────────────────

    def edit(self, activations: Float[Tensor, "batch pos d_in"], place: Place) -> Tensor:
        """What shall flow on. With nothing to do, the very same tensor."""
        if activations.shape[0] != self.rows:
            raise BadInput(f"Compiled for {self.rows} rows, given {activations.shape[0]}.")
        if activations.shape[-1] != self.sae.d_in:
            gives = f"'{self.hook_point}' of this model gives {activations.shape[-1]:,}"
            raise Mismatch(f"This SAE reads {self.sae.d_in:,} numbers; {gives}.")
        if self.needs_entropy and place.entropy is None:
            raise BadInput("Entropy bounds need the unedited model's pass beside: use scope.chat or scope.complete.")
        if not self.acts or (place.prompt and not self.touches_prompt):
            self.b["seen"] += (place.kinds != 0).sum(-1)
            return activations
        return self.apply(activations, place.kinds, place.positions, place.entropy)

    def apply(
        self,
        flow: Float[Tensor, "batch pos d_in"],
        kinds: Int[Tensor, "batch pos"],
        positions: Int[Tensor, "batch pos"],
        entropy: Float[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_in"]:
        """The maths at the top of this file, and the tally for the receipts; no Python branch on a value."""
        home, sae = flow.device, self.sae
        x = flow.to(device=sae.device, dtype=self.b["encoder"].dtype)
        kinds, positions = kinds.to(sae.device), positions.to(sae.device)
        _, change, on, size = self._changes(x, kinds, positions, entropy)
        delta = change @ self.b["decoder"]
        delta = delta if size is None else delta * size
        edits = (change != 0).any(-1, keepdim=True)
        out = torch.where(edits, (x + delta).to(flow.dtype), flow.to(sae.device))
        moved = torch.where(edits, out.to(x.dtype) - x, torch.zeros_like(x))  # as it is after rounding
        touched = (moved != 0).any(-1)
        share = moved.norm(dim=-1) / x.norm(dim=-1).clamp_min(torch.finfo(x.dtype).tiny)
        b = self.b
        b["seen"] += (kinds != 0).sum(-1)
        b["touched"] += touched.sum(-1)
        b["ratio"] += torch.where(touched, share, torch.zeros_like(share)).sum(-1)
        if b["fired"].shape[-1]:
            b["fired"] |= on[..., self.depth * self.slots :].any(1)
        return out.to(home)

    def changes(
        self,
        flow: Float[Tensor, "batch pos d_in"],
        kinds: Int[Tensor, "batch pos"],
        positions: Int[Tensor, "batch pos"],
        entropy: Float[Tensor, "batch pos"] | None = None,
    ) -> tuple[Float[Tensor, "batch pos slot"], Float[Tensor, "batch pos slot"]]:
        """(activations before any edit, what the edits would add to them), of the features of each row's slots, in
        b["index"]; raw. Nothing is tallied."""
        x = flow.to(device=self.sae.device, dtype=self.b["encoder"].dtype)
        kinds, positions = kinds.to(self.sae.device), positions.to(self.sae.device)
        before, change, _, _ = self._changes(x, kinds, positions, entropy)
        return before, change

    def _changes(
        self, x: Tensor, kinds: Tensor, positions: Tensor, entropy: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(activations, changes, which edits and events hold, the size that normalisation took off), all on the SAE's
        device."""
        b, sae = self.b, self.sae
        read, _, size = sae.normalize(x)
        if sae.config.activation in CHOOSING:
            width = max(1024, ENCODE_MEMORY // (16 * x.shape[0] * x.shape[1]))  # a long prompt is encoded in parts
            a = pick(*sae.strongest(read.to(sae.dtype), width), b["index"].unsqueeze(1)).to(x.dtype)
        else:
            a = evaluate(read, self.slot_rows)
        on = self._on(a, kinds, positions, None if entropy is None else entropy.to(sae.device))
        after, n = a, self.slots
        for depth in range(self.depth):
            changed = b["factor"][:, None, depth] * after + b["shift"][:, None, depth]
            after = torch.where(on[..., depth * n : (depth + 1) * n], changed, after)
        edited = on[..., :n] if self.depth == 1 else on[..., : self.depth * n].unflatten(-1, (self.depth, n)).any(-2)
        return a, torch.where(edited, after - a, torch.zeros_like(a)), on, size

    def _on(
        self, a: Float[Tensor, "batch pos slot"], kinds: Tensor, positions: Tensor, entropy: Tensor | None
    ) -> Bool[Tensor, "batch pos want"]:
        """Which edits and events hold at which token."""
        b = self.b
        kind, want = kinds.unsqueeze(-1), b["kinds"].unsqueeze(1)
        on = ((kind & want) != 0) & ((kind & b["spared"].unsqueeze(1)) == 0)
        if b["positions"].shape[-1]:
            named = (positions[:, :, None, None] == b["positions"].unsqueeze(1)).any(-1)
            on = on | (named & (kind != 0))
        if b["constant"].shape[-1]:
            lost = ~(b["clause"].unsqueeze(1) & self._literals(a).unsqueeze(2)).any(-1)
            on = on & ~(b["needs"].unsqueeze(1) & lost.unsqueeze(2)).any(-1)
        elif b["needs"].shape[-1]:  # clauses without a comparison: the empty OR, which never holds
            on = on & ~b["needs"].any(-1).unsqueeze(1)
        if entropy is not None:
            nats = entropy.unsqueeze(-1)
            on = on & (nats >= b["low"].unsqueeze(1)) & (nats <= b["high"].unsqueeze(1))
        return on

    def _literals(self, a: Float[Tensor, "batch pos slot"]) -> Bool[Tensor, "batch pos literal"]:
        """Which comparisons hold, on the activations before any edit."""
        left, right = self._side(0, a), self._side(1, a) + self.b["constant"].unsqueeze(1)
        less, equal, greater = self.b["compare"].unsqueeze(1).unbind(2)
        return ((left < right) & less) | ((left == right) & equal) | ((left > right) & greater)

    def _side(self, which: int, a: Float[Tensor, "batch pos slot"]) -> Float[Tensor, "batch pos literal"]:
        """What the left (0) or right (1) sides of the comparisons read."""
        index, floor, gain = (self.b[name][:, which].unsqueeze(1) for name in ("side", "side_floor", "side_gain"))
        value = a.gather(-1, index.expand(-1, a.shape[1], -1))
        return torch.where(value < floor, torch.zeros_like(value), value) * gain

    # ── what it did ──────────────────────────────────────────────────────────────────────────────────────────────

    def receipt(self, row: int) -> Receipt:
        """What was done to a row so far."""
        seen, touched, ratio = (float(self.b[name][row]) for name in ("seen", "touched", "ratio"))
        key = fingerprint(self.controllers[row])
        return Receipt(key, self.hook_point, int(touched), int(seen), ratio / touched if touched else 0.0)

    def new_events(self, row: int) -> list[str]:
        """Names of the events that came true in this row since this was last asked; each is told once."""
        if not self.event_names[row]:
            return []
        fired = self.b["fired"][row].tolist()
        names = [n for n, hit in zip(self.event_names[row], fired, strict=False) if hit and n not in self.told[row]]
        self.told[row].update(names)
        return list(dict.fromkeys(names))

    # ── for compiled steps: the same shapes, other numbers ───────────────────────────────────────────────────────

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for two steerings that may use the same buffers."""
        shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in sorted(self.b.items()))
        return (self.sae.fingerprint, str(self.sae.device), str(self.sae.dtype), self.slots, self.depth, shapes)

    def twin(self) -> Steering:
        """A steering of the same shape with buffers of its own, which stay where they are."""
        out = object.__new__(Steering)
        out.__dict__.update(self.__dict__)
        out.b = {name: t.clone() for name, t in self.b.items()}
        out.slot_rows = out._slot_rows()
        return out

    def load(self, other: Steering) -> None:
        """Take over another's numbers, in place; until `hand_back`, the other reads its tally here."""
        for name, tensor in self.b.items():
            tensor.copy_(other.b[name])
        other.b |= {name: self.b[name] for name in TALLY}

    def hand_back(self, other: Steering) -> None:
        """Give the one whose numbers were loaded a tally of its own again."""
        other.b |= {name: self.b[name].clone() for name in TALLY}


def _chains(program: Program) -> list[list[Change]]:
    """Each slot's changes in the order in which they act."""
    return [[c for c in program.changes if c.slot == slot] for slot in range(len(program.features))]


def _round_up(n: int) -> int:
    """The next power of two, so that few shapes occur; 0 stays 0."""
    return 1 << (n - 1).bit_length() if n else 0
