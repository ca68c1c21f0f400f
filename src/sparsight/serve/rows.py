"""The rows that are written side by side: packed, each at its own place in its own text, a token each a step.

What a row holds of the machine (its slot of the KV cache, its line of the steering table, the slot of its unedited
twin) moves with it, when the last row takes the place of one that left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sparsight.errors import BadInput
from sparsight.lm.generate import chosen_tokens, entropy_of, overflowed
from sparsight.lm.sample import Sampler
from sparsight.lm.slot_step import SlotSteps
from sparsight.lm.slots import Slots
from sparsight.scope.layout import Shape
from sparsight.scope.scope import Scope
from sparsight.scope.table import SteeringTable
from sparsight.serve.engine import Active, Update
from sparsight.serve.prompting import Prompting
from sparsight.serve.row import Row, actives, likelihoods

# What compiled steps have room for from the start; a row that wants more is written eagerly, as are those beside it.
COMPILED = Shape(slots=16, depth=1, literals=4, clauses=4, events=4, places=4)


class Rows:
    """Up to `limit` rows of up to `longest` tokens. compiled: numbers of rows to compile steps for, none for eager."""

    def __init__(self, scope: Scope, limit: int, longest: int, compiled: Sequence[int] = ()):
        self.scope, self.limit = scope, limit
        lm, whole = scope.lm, bool(compiled)
        self.rows: list[Row] = []
        self.twins: list[Row] = []  # those with an unedited twin, in the order of its slots
        self.table = SteeringTable(scope.sae, limit, scope.hook_point, COMPILED if compiled else None)
        self.slots, self.twin_slots = Slots(lm, limit, longest, whole), Slots(lm, limit, longest)
        self.steps = SlotSteps(lm, self.slots, scope.hook_point, self.table, compiled)
        self.twin_steps = SlotSteps(lm, self.twin_slots, scope.hook_point, None)
        self._sampler: Sampler | None = None
        self.written = 0  # tokens, so far

    def __len__(self) -> int:
        return len(self.rows)

    # ── coming and going ─────────────────────────────────────────────────────────────────────────────────────────

    @torch.inference_mode(False)
    @torch.no_grad()
    def join(self, row: Row, prompting: Prompting) -> None:
        """A row whose prompt has been run: its first token is chosen and told, and it is written from now on."""
        assert prompting.logits is not None
        row.cached, at = prompting.cached, len(self.rows)
        self.rows.append(row)
        self._sampler = None
        try:
            if row.steered:
                self.table.put(at, prompting.steering)
            self._choose(prompting.logits, Sampler([row.draws], self.scope.lm.device), at)
            if not row.over:
                self.slots.put(at, prompting.past, row.room)
                if prompting.twin is not None:
                    self.twin_slots.put(len(self.twins), prompting.twin, row.room)
                    self.twins.append(row)
        except BaseException:
            self._leave(at)
            raise
        if row.over:
            self._leave(at)

    def _leave(self, at: int) -> None:
        """Frees a row; the last one takes its place."""
        last, row = len(self.rows) - 1, self.rows[at]
        self.slots.fill(at, row.length, last, self.rows[last].length)
        self.table.move(last, at) if at != last else self.table.clear(at)
        self.rows[at] = self.rows[last]
        self.rows.pop()
        self._sampler = None
        if row in self.twins:
            at, last = self.twins.index(row), len(self.twins) - 1
            self.twin_slots.fill(at, row.length, last, self.twins[last].length)
            self.twins[at] = self.twins[last]
            self.twins.pop()

    def drop(self) -> None:
        """Frees the rows that are over, and those that nobody listens to any more."""
        over = [at for at, row in enumerate(self.rows) if row.over]
        for at in reversed(over):
            self._leave(at)
        if over:
            self.table.fit()

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self) -> None:
        """One token for every row, told; rows that end leave."""
        rows, device = self.rows, self.scope.lm.device
        entropy = self._entropy()
        ids, positions, kinds = self._numbers(rows)
        reading = [at for at, row in enumerate(rows) if row.held is not None and row.request.features is not None]
        longest = max(row.length for row in rows) + 1
        logits, flow = self.steps(ids, positions, kinds, longest, entropy, read=bool(reading))
        for row in rows:
            row.length += 1
        self._tell_held(reading, flow)
        if any(not row.ended for row in rows):
            if self._sampler is None:
                self._sampler = Sampler([row.draws for row in rows], device)
            self._choose(logits, self._sampler, 0)
        self.drop()

    def _numbers(self, rows: Sequence[Row]) -> Tensor:
        """[3, row]: each row's new token, where it stands, what it is; in one transfer."""
        numbers = [[row.token for row in rows], [row.length for row in rows], [row.kind for row in rows]]
        return torch.tensor(numbers).to(self.scope.lm.device)

    def _entropy(self) -> Tensor | None:
        """Next-token entropy of the unedited model at each row's token, by a pass over the twins, nats; 0 for rows
        that have none."""
        if not self.twins:
            return None
        ids, positions, kinds = self._numbers(self.twins)
        longest = max(row.length for row in self.twins) + 1
        logits, _ = self.twin_steps(ids, positions, kinds, longest)
        out = torch.zeros(len(self.rows), device=logits.device)
        out[[self.rows.index(row) for row in self.twins]] = entropy_of(logits.unsqueeze(1))[:, 0]
        return out

    def _choose(self, logits: Tensor, sampler: Sampler, first: int) -> None:
        """The next token of the rows from `first` on, whose logits these are."""
        rows = list(enumerate(self.rows))[first:]
        weighed = sampler.weigh(logits)
        tokens, fit = chosen_tokens(sampler.choose(weighed), logits)
        wishes = [None if row.ended else row.request.logprobs for _, row in rows]
        chosen = likelihoods(weighed, tokens, wishes)
        for (at, row), one, fits in zip(rows, chosen, fit, strict=True):
            if row.ended or row.cancelled:
                continue
            if not fits:
                row.fail(BadInput(overflowed(logits.dtype)))
                continue
            self.written += 1
            if (update := row.take(one)) is not None:
                events = self.table.new_events([at]).get(at, ()) if update.finish else ()
                self._tell(at, replace(update, events=events) if events else update)

    def _tell_held(self, reading: Sequence[int], flow: Tensor | None) -> None:
        """Tells the updates that waited for this pass."""
        held = [at for at, row in enumerate(self.rows) if row.held is not None]
        features = {} if flow is None else self._features(reading, flow)
        events = self.table.new_events(held)
        for at in held:
            row = self.rows[at]
            if at in reading and at not in features:
                row.fail(BadInput(overflowed(self.scope.lm.dtype)))
            else:
                self._tell(at, row.read(features.get(at, ()), events.get(at, ())))

    def _tell(self, at: int, update: Update) -> None:
        row = self.rows[at]
        row.tell(update, self.table.receipt(at) if update.finish and row.steered else None)

    def _features(self, reading: Sequence[int], flow: Tensor) -> dict[int, Sequence[Active]]:
        """The features of these rows' tokens, read from the SAE at once; without those whose numbers overflowed."""
        sound = flow[list(reading)].isfinite().all(-1).tolist()
        fit = [at for at, fits in zip(reading, sound, strict=True) if fits]
        if not fit:
            return {}
        edited = self.table.edited_features(fit)
        codes = self.scope.sae.encode_codes(flow[fit]).to("cpu")
        wishes = [self.rows[at].request.features for at in fit]
        return {
            at: actives(wish, codes.at(i), edited.get(at, frozenset()))
            for i, (at, wish) in enumerate(zip(fit, wishes, strict=True))
            if wish is not None
        }
