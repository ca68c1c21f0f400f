"""What a feature does over a whole chat: its mean and its highest activation over chosen tokens, of many chats.

Only (chat, feature) pairs that occur are kept: nothing of the size of tokens × features, and of chats × features a
block at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsight.errors import BadInput, TooLong
from sparsight.lm.batch import Prompt
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.lm.pack import packed
from sparsight.records import SPECIAL, Kind
from sparsight.scope.scope import Scope
from sparsight.where import Where

Mark = Callable[[Prompt], Sequence[bool]]  # which tokens of a prompt are meant


@dataclass(frozen=True, eq=False)
class Pooled:
    """chat, feature: int64 [pair], by feature, then by chat; mean, peak: float32 [pair], raw activations, over the
    chosen tokens of the chat; chats: how many; tokens: how many were chosen, of all chats."""

    chat: Int[Tensor, " pair"]
    feature: Int[Tensor, " pair"]
    mean: Float[Tensor, " pair"]
    peak: Float[Tensor, " pair"]
    chats: int
    tokens: int

    @property
    def features(self) -> Int[Tensor, " active"]:
        """Those that fire in any of the chats, ascending."""
        return self.feature.unique_consecutive()

    def dense(self, features: Int[Tensor, " some"], pool: str = "mean") -> Float[Tensor, "chat some"]:
        """Of some features, ascending, what each chat has; 0 where it is silent."""
        out = torch.zeros(self.chats, len(features))
        if not len(features):
            return out
        low, high = (torch.searchsorted(self.feature, features[[0, -1]] + torch.tensor([0, 1]))).tolist()
        chat, feature = self.chat[low:high], self.feature[low:high]
        place = torch.searchsorted(features, feature).clamp_max(len(features) - 1)
        hit = features[place] == feature
        out[chat[hit], place[hit]] = getattr(self, pool)[low:high][hit]
        return out

    def blocks(self, entries: int = 2**24) -> Iterator[Int[Tensor, " some"]]:
        """The features that fire, in blocks of so many entries of chats × features at most."""
        yield from self.features.split(max(1, entries // max(self.chats, 1)))


@torch.no_grad()
def pooled(scope: Scope, prompts: Sequence[Prompt], mark: Mark) -> Pooled:
    """Read prompts, in passes of many, and pool what their marked tokens have. Raises BadInput for a prompt of which no
    token is marked, TooLong beyond the model's context."""
    longest = max(map(len, prompts), default=0)
    if scope.lm.context and longest > scope.lm.context:
        raise TooLong(f"A chat has {longest:,} tokens; this model's context holds {scope.lm.context:,}.")
    wanted = [torch.tensor(list(mark(prompt)), dtype=torch.bool) for prompt in prompts]
    for number, one in enumerate(wanted):
        if not one.any():
            raise BadInput(f"Chat {number} has no token of those that are to be compared: say where= others are.")
    counts = torch.tensor([int(one.sum()) for one in wanted])
    keys, sums, peaks = [], [], []
    for tags, batch in packed(enumerate(prompts), scope.lm):
        flow = scope.lm.activations(batch, [scope.hook_point])[scope.hook_point]
        chosen = _padded([wanted[tag] for tag in tags], flow.shape[1])
        codes = scope.sae.encode_codes(flow[chosen.to(flow.device)]).to("cpu")
        rows = torch.tensor(tags).repeat_interleave(chosen.sum(-1))
        key, where = (rows[codes.tokens] * scope.sae.d_hidden + codes.features.long()).unique(return_inverse=True)
        values = codes.values.float()
        keys.append(key)
        sums.append(torch.zeros(len(key)).index_add_(0, where, values))
        peaks.append(torch.zeros(len(key)).scatter_reduce(0, where, values, "amax"))
    key = torch.cat(keys)
    chat, feature = key // scope.sae.d_hidden, key % scope.sae.d_hidden
    order = (feature * len(prompts) + chat).argsort()
    chat, feature, total, peak = chat[order], feature[order], torch.cat(sums)[order], torch.cat(peaks)[order]
    return Pooled(chat, feature, total / counts[chat], peak, len(prompts), int(counts.sum()))


def as_prompts(lm: ObservableLanguageModel, chats: Any, side: str) -> list[Prompt]:
    """A list of chats (or texts, or Prompts) as whole conversations: nothing is about to be written."""
    if isinstance(chats, (str, Prompt)) or not isinstance(chats, Sequence) or not chats:
        raise BadInput(f"The chats {side} are a list of at least one chat or text, not {str(chats)[:60]!r}.")
    if not isinstance(chats[0], (str, Prompt, list, tuple)):
        raise BadInput(f"The chats {side} are a list of chats, each a list of messages; this is one chat.")
    return [lm.prompt(chat, add_generation_prompt=False) if _has_roles(chat) else lm.prompt(chat) for chat in chats]


def marked(prompts: Sequence[Prompt], where: Sequence[str] | None) -> tuple[Mark, str]:
    """Which tokens count, and their name. where: names as of an edit's places; None: the assistant's, where every chat
    has some, else all but template and BOS tokens."""
    if where is None:
        every = all(any(kind & Kind.ASSISTANT for kind in prompt.kinds) for prompt in prompts)
        where = ("assistant",) if every else ("all",)
    places = Where.of((where,) if isinstance(where, str) else where)
    if places.positions:
        raise BadInput("Chats are compared at kinds of tokens (assistant, user, template, ...), not at positions.")
    mask = places.mask
    spared = int(SPECIAL) & ~mask
    return (lambda prompt: [bool(kind & mask) and not kind & spared for kind in prompt.kinds]), str(places)


def _has_roles(chat: Any) -> bool:
    return not isinstance(chat, (str, Prompt)) and not (chat and isinstance(chat[0], int))


def _padded(rows: Sequence[Tensor], width: int) -> Bool[Tensor, "row pos"]:
    """Rows of marks, padded on the left as batches are."""
    return torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.bool), row]) for row in rows])
