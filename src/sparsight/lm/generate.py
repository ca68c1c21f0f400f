"""The token loop: a batch of rows, each with its own sampling, written token by token.

    prefill     one pass over all prompts, left-padded
    step        choose a token per row, tell it, feed it back with the KV cache

A pass is one call; between passes nothing is held open, so two loops may be run in turns and each writes what it
would have written alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from transformers.cache_utils import Cache

from sparsight.errors import BadInput, TooLong
from sparsight.lm.batch import Batch, Prompt
from sparsight.lm.compiled import compiled_step, why_not_compiled
from sparsight.lm.intervene import Intervention, Placed
from sparsight.lm.lm import ObservableLanguageModel, is_many
from sparsight.lm.pretrained import first_line
from sparsight.lm.sample import Sampler
from sparsight.lm.tap import Tap, find
from sparsight.lm.text import TextStream
from sparsight.records import Kind, Sampling

Passed = tuple[Tensor, dict[str, Tensor]]  # logits [batch, vocabulary], hook point -> activations that were read
Pass = Callable[[Batch], Passed]
WRITTEN = Kind.GENERATED | Kind.ASSISTANT


@dataclass(frozen=True)
class Piece:
    """One new token of one row, told as it is written.

    text: what may be shown now; it lags behind the tokens inside a character or a possible stop string.
    finish: None, or why the row ended here: "stop" or "length". activations: hook point -> [d] at this token, before
    any edit, where reading was asked for.
    """

    row: int
    index: int
    id: int
    text: str
    finish: str | None = None
    activations: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """What one row wrote. ids hold every token, a final stop token too."""

    text: str
    ids: tuple[int, ...]
    finish: str
    prompt: Prompt
    activations: dict[str, Tensor] = field(default_factory=dict)


def generate(
    lm: ObservableLanguageModel,
    prompts: Any,
    sampling: Sampling | Sequence[Sampling] | None = None,
    interventions: Mapping[str, Intervention | Placed | None] | None = None,
    *,
    read_at: Sequence[str] = (),
    on_token: Callable[[Piece], None] | None = None,
    compiled: bool = False,
    **options: Any,
) -> Completion | list[Completion]:
    """Write on: a Completion for one prompt, a list for a list of prompts.

    prompts: a text, a chat, token ids, or a list of these. sampling: one for all rows, or one each; or its fields as
    keywords. interventions: hook point -> an intervention, as for forward. read_at: hook points whose
    activations at each new token are kept, [token, d] per row. on_token: called with each Piece as it is written.
    compiled: decode with a static KV cache and a compiled step (see compiled.py); the tokens are the same.
    """
    rows = lm.prompts(prompts)
    texts: list[list[str]] = [[] for _ in rows]
    ids: list[list[int]] = [[] for _ in rows]
    kept: list[dict[str, list[Tensor]]] = [{point: [] for point in read_at} for _ in rows]
    ends = [""] * len(rows)
    for piece in stream(lm, rows, sampling, interventions, read_at=read_at, compiled=compiled, **options):
        texts[piece.row].append(piece.text)
        ids[piece.row].append(piece.id)
        ends[piece.row] = piece.finish or ""
        for point, activation in piece.activations.items():
            kept[piece.row][point].append(activation)
        if on_token:
            on_token(piece)
    out = [
        Completion("".join(text), tuple(row_ids), end, prompt, {p: torch.stack(a) for p, a in read.items() if a})
        for text, row_ids, end, prompt, read in zip(texts, ids, ends, rows, kept, strict=True)
    ]
    return out if is_many(prompts) else out[0]


def stream(
    lm: ObservableLanguageModel,
    prompts: Any,
    sampling: Sampling | Sequence[Sampling] | None = None,
    interventions: Mapping[str, Intervention | Placed | None] | None = None,
    *,
    read_at: Sequence[str] = (),
    compiled: bool = False,
    entropy: bool = False,
    **options: Any,
) -> Iterator[Piece]:
    """The same, piece by piece: what cannot be done is refused now, passes run as pieces are asked for. With read_at,
    each piece waits for the pass that reads its token.

    entropy: also run the unedited model beside, on the same tokens, and tell interventions its next-token entropy.
    """
    rows = lm.prompts(prompts)
    asked = sampling_of(sampling, options, len(rows))
    check_room(lm, rows)
    for wish in asked:
        check_sampling(lm, wish)
    writers = [Writer(lm, i, prompt, wish) for i, (prompt, wish) in enumerate(zip(rows, asked, strict=True))]
    acting = {point: i for point, i in (interventions or {}).items() if i is not None}
    for point in {*acting, *read_at}:
        find(lm.model, point)
    passes = _Passes(lm, acting, tuple(read_at), entropy)
    return _written(passes, lm.batch(rows), writers, Sampler(asked, lm.device), compiled)


def _written(passes: _Passes, batch: Batch, writers: list[Writer], sampler: Sampler, compiled: bool) -> Iterator[Piece]:
    """The loop itself."""
    logits, _ = passes(batch)
    with ExitStack() as held:  # the compiled step, where there is one, is this generation's until it ends
        run: Pass | None = None if compiled else passes
        while True:
            chosen = sampler(logits)
            alive = [not w.finish for w in writers]
            tokens = sound(chosen, logits, alive)
            told = [w.push(token) for w, token, going in zip(writers, tokens, alive, strict=True) if going]
            if not passes.read_at:
                yield from told
            going = any(not w.finish for w in writers)
            if not going and not passes.read_at:
                return
            batch = _next(batch, chosen, {p.row for p in told if not p.finish})
            if run is None:
                run, (logits, read) = _compiled_or_eager(passes, batch, max(w.limit for w in writers), held)
            else:
                logits, read = run(batch)
            if passes.read_at:
                yield from (replace(p, activations={h: a[p.row, -1] for h, a in read.items()}) for p in told)
                if not going:
                    return


def _compiled_or_eager(passes: _Passes, batch: Batch, room: int, held: ExitStack) -> tuple[Pass, Passed]:
    """A compiled step; or the eager passes, with a warning that says why. And what the first of them gave."""
    lm, past = passes.lm, passes.past
    assert past is not None
    reason = why_not_compiled(lm, past, passes.interventions)
    reason = reason or ("entropy bounds need a second, unedited pass" if passes.needs_entropy else None)
    if not reason:
        try:
            step = held.enter_context(compiled_step(lm, batch, past, room, passes.interventions, passes.read_at))
            first = step(batch.ids, batch.kinds)  # the first of its shape is compiled now
            return lambda batch: step(batch.ids, batch.kinds), first
        except (TorchDynamoException, OSError) as error:  # whatever is wrong with the compiler, or with its folder
            reason = f"the step could not be compiled ({first_line(error)})"
    warnings.warn(f"Decoding eagerly: {reason}.", stacklevel=4)
    return passes, passes(batch)


class _Passes:
    """Eager passes over a growing cache, with the interventions, the readers and the unedited twin."""

    def __init__(self, lm: ObservableLanguageModel, interventions: dict[str, Any], read_at: tuple[str, ...], e: bool):
        self.lm, self.interventions, self.read_at, self.needs_entropy = lm, interventions, read_at, e
        self.past: Cache | None = None
        self.twin: Cache | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        place = batch.place
        if self.needs_entropy:
            place = replace(place, entropy=self._entropy(batch))
        read: dict[str, Tensor] = {}
        taps = {point: [_reader(point, read)] for point in self.read_at}  # reads come first, before any edit
        for point, edits in self.lm.taps(self.interventions, batch, place).items():
            taps.setdefault(point, []).extend(edits)
        logits, self.past = self.lm.run(batch, taps, self.past, use_cache=True)
        return logits, read

    def _entropy(self, batch: Batch) -> Tensor:
        logits, self.twin = self.lm.run(batch, {}, self.twin, use_cache=True, all_logits=True)
        return entropy_of(logits)


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy of the next token, nats, [batch, pos], of logits [batch, pos, vocabulary]."""
    parts = (part.float().log_softmax(-1) for part in logits.split(256, dim=1))  # not the whole prompt in float32
    return torch.cat([-(log_p.exp() * log_p).sum(-1) for log_p in parts], dim=1)


def _reader(point: str, read: dict[str, Tensor]) -> Tap:
    def keep(flow: Tensor) -> None:
        read[point] = flow.detach().clone()

    return keep


def sound(chosen: Tensor, logits: Tensor, alive: Sequence[bool]) -> list[int]:
    """The chosen tokens. Raises BadInput where the logits of a row that is still written are no numbers any more: no
    token follows from those."""
    tokens, fit = chosen_tokens(chosen, logits)
    broken = [row for row, fits in enumerate(fit) if alive[row] and not fits]
    if broken:
        raise BadInput(overflowed(logits.dtype, broken[0]))
    return tokens


def chosen_tokens(chosen: Tensor, logits: Tensor) -> tuple[list[int], list[bool]]:
    """(the chosen tokens, whether each row's logits are numbers at all), in one transfer from the device."""
    tokens, peaks = torch.stack([chosen.double(), logits.amax(-1).double()]).tolist()
    return [int(token) for token in tokens], [math.isfinite(peak) for peak in peaks]


def overflowed(dtype: torch.dtype, row: int | None = None) -> str:
    """The sentence for a row whose logits are no numbers any more."""
    why = "an edit or intervention is too strong for it, or its weights are damaged"
    return f"The model's numbers overflowed {dtype}{'' if row is None else f' in row {row}'}: {why}."


def _next(batch: Batch, chosen: Tensor, alive: set[int]) -> Batch:
    """The chosen tokens as the next pass's batch. A row that has ended runs on beside the others, as padding."""
    ids = chosen.unsqueeze(-1)
    mask = torch.cat([batch.mask, torch.ones_like(ids, dtype=torch.bool)], -1)
    kinds = torch.tensor([[int(WRITTEN) * (row in alive)] for row in range(len(ids))], device=ids.device)
    return Batch(ids, mask, kinds, prompt=False, even=batch.even)


class Writer:
    """One row's text, limit and end."""

    def __init__(self, lm: ObservableLanguageModel, row: int, prompt: Prompt, wish: Sampling):
        self.row, self.index, self.finish = row, -1, None
        self.stop_tokens = stop_tokens(lm) | set(wish.stop_tokens)
        self.limit = wish.max_new_tokens if not lm.context else min(wish.max_new_tokens, lm.context - len(prompt))
        self.text = TextStream(lm.tokenizer, wish.stop) if lm.has_tokenizer else None

    def push(self, token: int) -> Piece:
        self.index += 1
        shown = ""
        if token in self.stop_tokens:
            self.finish = "stop"
        elif self.text:
            shown = self.text.push(token)
        if self.text and self.text.stopped:
            self.finish = "stop"
        if self.finish is None and self.index + 1 >= self.limit:
            self.finish = "length"
        if self.finish and self.text:
            shown += self.text.finish()
        if self.text and self.text.stopped:
            self.finish = "stop"
        return Piece(self.row, self.index, token, shown, self.finish)


def stop_tokens(lm: ObservableLanguageModel) -> set[int]:
    """The ids that end this model's turn, by its generation config and its tokenizer."""
    said = getattr(lm.model.generation_config, "eos_token_id", None)
    ids = said if isinstance(said, list) else [said]
    if lm.has_tokenizer:
        ids = [*ids, lm.tokenizer.eos_token_id]
    return {int(i) for i in ids if i is not None}


def sampling_of(sampling: Any, options: Mapping[str, Any], rows: int) -> list[Sampling]:
    """One Sampling per row."""
    if sampling is None:
        sampling = Sampling.of(**options)
    elif options:
        raise BadInput("Give either `sampling` or its fields as keywords, not both.")
    each = [sampling] * rows if isinstance(sampling, Sampling) else list(sampling)
    if not all(isinstance(one, Sampling) for one in each):
        raise BadInput("sampling= is a Sampling, or a list of one for each prompt; its fields are keywords too.")
    if len(each) != rows:
        raise BadInput(f"{len(each)} samplings for {rows} prompts: give one for all, or one each.")
    return each


def check_sampling(lm: ObservableLanguageModel, wish: Sampling) -> None:
    """Raises BadInput for what this model cannot do: stop strings without a tokenizer, biases of tokens it lacks."""
    if wish.stop and not lm.has_tokenizer:
        raise BadInput("Stop strings need a tokenizer: give the model its own, or use stop_tokens.")
    if wish.logit_bias and wish.logit_bias[-1][0] >= lm.vocabulary:
        known = f"this model's vocabulary (0 to {lm.vocabulary - 1})"
        raise BadInput(f"logit_bias names token {wish.logit_bias[-1][0]}, which lies outside {known}.")


def check_room(lm: ObservableLanguageModel, rows: Sequence[Prompt]) -> None:
    """Raises TooLong for a prompt that leaves no room to write in."""
    longest = max(map(len, rows), default=0)
    if lm.context and longest >= lm.context:
        raise TooLong(
            f"The prompt has {longest:,} tokens; this model's context of {lm.context:,} leaves no room after."
        )
