"""Prompts of all lengths as passes that waste little on padding.

A pool of prompts is sorted by length and cut into runs, one a pass, so that the sum over the passes of

    rows * longest + PASS        [tokens: all that the model computes, and what it costs to begin]

is the smallest there is with at most so many tokens a pass. The passes of a pool then come in a fixed, mixed order:
whoever stops in the middle of a pool has not read its short prompts alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from sparsight.errors import BadInput
from sparsight.lm.batch import Batch, Prompt
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import is_whole

PASS = 256  # tokens that take as long as a pass needs to begin, on a CPU fewer, on a GPU more


def packed(
    prompts: Iterable[tuple[Any, Prompt]],
    lm: ObservableLanguageModel,
    tokens: int = 16_384,
    pool: int = 1024,
    length: int | None = None,
    on_cut: Callable[[Any, int], None] | None = None,
) -> Iterator[tuple[list[Any], Batch]]:
    """(tags, batch) pairs: each row of the batch, [row, pos] and padded on the left, with its prompt's tag.

    prompts: (tag, prompt) pairs, read a pool at a time. tokens: of a pass at most, padding included; a longer prompt
    has a pass of its own. pool: prompts that are sorted among each other. length: tokens of a prompt at most; longer
    ones, and those beyond the model's context, lose their ends. on_cut: told the tag of each such, and how many tokens
    it lost. Each prompt is in one batch, and the same prompts make the same batches in the same order.
    Raises BadInput for an empty prompt and for a token that the model does not have.
    """
    for value, name in ((tokens, "tokens"), (pool, "pool"), (1 if length is None else length, "length")):
        if not is_whole(value) or value < 1:
            raise BadInput(f"{name} is a whole number from 1 up, not {value!r}.")
    longest = min((limit for limit in (length, lm.context) if limit), default=None)
    waiting = iter(prompts)
    while held := list(islice(waiting, pool)):
        tags = [tag for tag, _ in held]
        kept = [cut(prompt, longest) for _, prompt in held]
        for (tag, prompt), left in zip(held, kept, strict=True):
            if on_cut is not None and len(left) < len(prompt):
                on_cut(tag, len(prompt) - len(left))
            if left.ids and not 0 <= min(left.ids) <= max(left.ids) < lm.vocabulary:
                raise BadInput(f"A token id lies outside this model's vocabulary (0 to {lm.vocabulary - 1}).")
        for rows in plan([len(prompt) for prompt in kept], tokens):
            yield [tags[i] for i in rows], Batch.of_prompts([kept[i] for i in rows], lm.pad_token, lm.device)


def cut(prompt: Prompt, longest: int | None) -> Prompt:
    """The prompt without what lies beyond so many tokens."""
    if longest is None or len(prompt) <= longest:
        return prompt
    return Prompt(prompt.ids[:longest], prompt.kinds[:longest])


def plan(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Which prompts go into which pass: indices, each once, with at most so many tokens a pass, padding included."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cost = np.zeros(len(order) + 1)  # of the best passes for the shortest n prompts
    begin = np.zeros(len(order) + 1, int)  # the first prompt of the last of those
    for n, i in enumerate(order, 1):
        rows = np.arange(1, min(n, max(tokens // max(lengths[i], 1), 1)) + 1)  # of a pass whose longest this is
        costs = cost[n - rows] + rows * lengths[i] + PASS
        best = int(costs.argmin())
        cost[n], begin[n] = costs[best], n - rows[best]
    passes, n = [], len(order)
    while n:
        passes.append(order[begin[n] : n])
        n = int(begin[n])
    random.Random(0).shuffle(passes)
    return passes
