"""The output of one decoder layer, with the truth of every token beside it: what features are chosen and scored by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from truth import Coded


@torch.no_grad()
def residuals(model, documents: Sequence[Coded], layer: int) -> Iterator[tuple[list[Coded], Tensor]]:
    """Documents of similar length, and the output of one layer on them, [document, token, d], padded on the right."""
    with residual_at(model, layer) as residual:
        for batch in batches_by_length(documents, 16384):
            ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.int64)
            for row, document in zip(ids, batch, strict=True):
                row[: len(document)] = torch.from_numpy(document.ids.astype(np.int64))
            yield batch, residual(ids)


@contextmanager
def residual_at(model, layer: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from token ids to the output of one layer. The layers after it are not run."""
    caught: list[Tensor] = []
    whole = model.model.layers
    hook = whole[layer].register_forward_hook(lambda _m, _i, output: caught.append(output))
    model.model.layers = whole[: layer + 1]

    def residual(ids: Tensor) -> Tensor:
        caught.clear()
        model.model(input_ids=ids, use_cache=False)
        return caught[0]

    try:
        yield residual
    finally:
        model.model.layers = whole
        hook.remove()


def batches_by_length(documents: Sequence[Coded], tokens: int) -> Iterator[list[Coded]]:
    """Documents of similar length together (in a shuffled order of batches), so that little is padded."""
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    batches, batch = [], []
    for i in order:
        batch.append(documents[i][:512])
        if len(batch) * len(batch[-1]) >= tokens:
            batches.append(batch)
            batch = []
    if batch:
        batches.append(batch)
    for i in np.random.default_rng(0).permutation(len(batches)):
        yield batches[i]
