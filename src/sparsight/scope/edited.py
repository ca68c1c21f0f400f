"""What a controller does to a prompt, without writing anything: the features that the model goes on with, and the
logits of the token that would come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.edits import Controller, Edits
from sparsight.lm.batch import Batch, Prompt
from sparsight.lm.generate import entropy_of, sound
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.scope.effect import changes
from sparsight.scope.scope import Scope
from sparsight.scope.steering import Steering

Pairs = list[tuple[int, float]]  # (feature, activation), strongest first


@torch.no_grad()
def read_edited(scope: Scope, prompt: Prompt, wish: Edits, only: Sequence[int] | None = None) -> list[Pairs]:
    """Of each token of a prompt, the features that are not zero once the edits have acted: (feature, raw
    activation), strongest first; a nudge may have pushed one below zero. only: these features alone.

    With a' the edited activations, this is the f' of the card's formula, decode(f') + (x − decode(f)); features that
    no edit names are as they were. Raises NoFeature for one in `only` that the SAE does not have.
    """
    batch = scope.lm.batch([prompt])
    flow = scope.lm.activations(batch, [scope.hook_point])[scope.hook_point]
    tokens = list(scope.sae.encode_codes(flow[0]).to("cpu"))
    steering = scope.steering([Controller.of(wish)], [prompt])
    if steering.acts:
        tokens = _changed(steering, batch, flow, tokens, entropies(scope.lm, batch, steering))
    shown = None if only is None else set(scope.sae.checked_indices(only).tolist())
    return [[pair for pair in pairs if shown is None or pair[0] in shown] for pairs in tokens]


@torch.no_grad()
def edited_logits(scope: Scope, prompt: Prompt, wish: Edits) -> Float[Tensor, " vocabulary"]:
    """The next token's logits, in float32 at least, on the CPU. Raises BadInput where they are no numbers any more."""
    batch = scope.lm.batch([prompt])
    steering = scope.steering([Controller.of(wish)], [prompt])
    place = replace(batch.place, entropy=entropies(scope.lm, batch, steering))
    logits, _ = scope.lm.run(batch, scope.lm.taps({scope.hook_point: steering}, batch, place))
    sound(logits.argmax(-1), logits, [True])
    return logits[0].to(torch.promote_types(logits.dtype, torch.float32)).cpu()


def entropies(lm: ObservableLanguageModel, batch: Batch, steering: Steering) -> Float[Tensor, "batch pos"] | None:
    """Next-token entropy of the unedited model at every token, nats; None where no edit asks for it."""
    if not steering.needs_entropy:
        return None
    logits, _ = lm.run(batch, {}, all_logits=True)
    return entropy_of(logits)


def _changed(
    steering: Steering, batch: Batch, flow: Float[Tensor, "batch pos d_in"], tokens: list[Pairs], entropy: Tensor | None
) -> list[Pairs]:
    """The same tokens with the edited features as they are after the edit."""
    device, buffers = steering.sae.device, steering.b
    x = flow.to(device=device, dtype=buffers["encoder"].dtype)
    place = batch.kinds.to(device), batch.positions.to(device)
    before, change, *_ = changes(buffers, steering.features, steering.shape, steering.sae, x, *place, entropy)
    features, after = buffers["index"][0].tolist(), (before + change)[0].tolist()
    edits: dict[int, dict[int, float]] = {}
    for token, slot in change[0].nonzero().tolist():
        edits.setdefault(token, {})[features[slot]] = after[token][slot]
    out = [dict(pairs) | edits.get(token, {}) for token, pairs in enumerate(tokens)]
    return [sorted((pair for pair in one.items() if pair[1]), key=lambda pair: -pair[1]) for one in out]
