"""An engine proves on itself that it writes what the model writes, and that an edit acts, before it serves.

Through the very step that serves, for each number of rows that is compiled: without an edit its logits are those of a
plain pass; with a nudge in the last row, the residual and the logits change there, and nowhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsight.edits import Controller, Feature
from sparsight.errors import BadInput, NotReached, NotSteered
from sparsight.lm.batch import Batch, Prompt
from sparsight.lm.generate import WRITTEN
from sparsight.lm.slots import why_no_slots
from sparsight.records import Kind
from sparsight.scope.scope import Scope
from sparsight.scope.steering import Steering
from sparsight.serve.prompting import Prompting
from sparsight.serve.rows import Rows

TOKENS = 6  # of the prompt that it is proved on


def prove(scope: Scope, rows: Rows) -> None:
    """Raises BadInput for a model that cannot be written side by side, NotSteered where an edit does not act."""
    if why := why_no_slots(scope.lm):
        raise BadInput(f"Requests to {scope.lm.name} cannot be written side by side: {why}. Use scope.chat.")
    ids = tuple(range(1, TOKENS + 2))
    prompt = Prompt(tuple(i % scope.lm.vocabulary for i in ids), (Kind.PROMPT | Kind.TEXT,) * len(ids))
    read = Prompting(scope, prompt, Controller(), None)
    read.step(TOKENS)
    sizes = rows.steps.sizes or [min(2, rows.limit)]
    for size in sizes:
        for row in range(size):
            rows.slots.put(row, read.past, len(ids))
    read.step(1)
    assert read.logits is not None
    steering = None if scope.sae.config.transcoder else Steering(scope.sae, [_nudge(scope, prompt)], [0])
    try:
        for size in sizes:
            for width in rows.steps.widths if rows.steps.sizes else [len(ids)]:
                _prove(rows, size, width, prompt.ids[-1], read.logits[0], steering)
    except NotReached as error:
        raise NotSteered(f"The step for serving does not pass through its hook point: {error}") from error
    finally:
        for row in range(max(sizes)):
            rows.slots.fill(row, len(ids), row, len(ids))
            rows.table.clear(row)


def _prove(rows: Rows, size: int, width: int, token: int, plain: Tensor, steering: Steering | None) -> None:
    """For one number of rows, all of which hold the same prompt."""
    device, last = rows.scope.lm.device, size - 1
    ids, positions, kinds = (torch.full((size,), n, device=device) for n in (token, TOKENS, int(WRITTEN)))
    without, _ = rows.steps(ids, positions, kinds, width)
    what = f"{size} rows that see {width} tokens" if rows.steps.sizes else "rows side by side"
    near = _distance(without, plain.expand_as(without))
    if not near < _tolerance(plain.dtype):
        raise BadInput(f"The step for {what} gives other logits than a plain pass (by {near:.1%}): it must not serve.")
    if steering is None:
        return
    rows.table.put(last, steering)
    edited, _ = rows.steps(ids, positions, kinds, width)
    done = rows.table.receipt(last)
    rows.table.clear(last)
    if done is None or done.touched != 1 or not _distance(edited[last], without[last]) > 0:
        raise NotSteered(f"An edit does not act in the step for {what}: it must not serve.")
    if not _distance(edited[:last], without[:last]) < _tolerance(plain.dtype):
        raise NotSteered(f"In the step for {what} an edit of one row acts on the others: it must not serve.")


def _nudge(scope: Scope, prompt: Prompt) -> Controller:
    """An edit that is sure to be seen: half the length of the residual, along the longest decoder row of the first."""
    batch = Batch.of_prompts([prompt], scope.lm.pad_token, scope.lm.device)
    residual = scope.lm.activations(batch, [scope.hook_point])[scope.hook_point][0, -1].float()
    lengths = scope.sae.W_dec[:256].float().norm(dim=-1)
    feature = int(lengths.argmax())
    _, _, size = scope.sae.normalize(residual.unsqueeze(0))
    strength = float(residual.norm() / lengths[feature].clamp_min(1e-6)) / (1.0 if size is None else float(size))
    return Controller((Feature(feature).raw.nudge(max(strength, 1e-3) / 2).on("generated"),))


def _distance(a: Tensor, b: Tensor) -> float:
    """|a − b| / |b|, of the worst row; 0 of none."""
    if not a.numel():
        return 0.0
    return float(((a - b).double().norm(dim=-1) / b.double().norm(dim=-1).clamp_min(1e-12)).max())


def _tolerance(dtype: torch.dtype) -> float:
    """How far rounding may move logits, as a share of them."""
    return {torch.float64: 1e-6, torch.float32: 1e-3}.get(dtype, 0.1)
