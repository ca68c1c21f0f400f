"""One request on its way: from the queue through its prompt and its row to its last update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsight.lm.generate import Writer
from sparsight.lm.sample import Draws
from sparsight.records import Kind, Receipt
from sparsight.scope.program import Program
from sparsight.scope.scope import Scope
from sparsight.serve.engine import Active, FeatureWish, Request, Update
from sparsight.serve.listening import Mailbox

WRITTEN = int(Kind.GENERATED | Kind.ASSISTANT)


@dataclass(frozen=True)
class Chosen:
    """A token, and how likely it was, where that is asked for (see Update)."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Row:
    """What one request's row knows of itself. An update waits for the pass over its own token, where features or
    events of that token are asked for; a last token is run for its features alone, and no edit acts on it.

    longest: tokens that a row may have, prompt and answer together.
    """

    def __init__(self, scope: Scope, request: Request, program: Program, mailbox: Mailbox, longest: int):
        self.request, self.program, self.mailbox = request, program, mailbox
        self.writer = Writer(scope.lm, 0, request.prompt, request.sampling)
        self.writer.limit = min(self.writer.limit, longest - len(request.prompt))
        self.draws = Draws(request.sampling, scope.lm.device)
        self.length = len(request.prompt)  # tokens in its slot
        self.token = 0  # chosen, not yet run
        self.cached = 0
        self.cancelled = False
        self.held: Update | None = None

    @property
    def room(self) -> int:
        """Tokens that it will have at most."""
        return len(self.request.prompt) + self.writer.limit

    @property
    def ended(self) -> bool:
        """Whether its last token is chosen."""
        return self.writer.finish is not None

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.cancelled or (self.ended and self.held is None)

    @property
    def steered(self) -> bool:
        return bool(self.request.controller)

    @property
    def kind(self) -> int:
        """What its next token is in a pass: nothing, where the row has ended and the token is only read."""
        return 0 if self.ended else WRITTEN

    def take(self, chosen: Chosen) -> Update | None:
        """One more token; its update, where that waits for nothing."""
        piece = self.writer.push(chosen.id)
        self.draws.wrote(chosen.id)
        self.token = chosen.id
        update = Update(piece.index, piece.id, piece.text, piece.finish, chosen.logprob, chosen.top)
        update = replace(update, cached=self.cached) if not piece.index else update
        if self.request.features is not None or (self.program.events and not piece.finish):
            self.held = update
            return None
        return update

    def read(self, features: Sequence[Active], events: tuple[str, ...]) -> Update:
        """The update that waited for the pass over its token."""
        assert self.held is not None
        update, self.held = replace(self.held, features=tuple(features), events=events), None
        return update

    def tell(self, update: Update, receipt: Receipt | None = None) -> None:
        """Puts an update into the mailbox; a last one ends it."""
        self.mailbox.put(update if receipt is None else replace(update, receipt=receipt))
        if update.finish is not None:
            self.mailbox.put(None)

    def cancel(self) -> None:
        """Nobody listens any more."""
        self.cancelled = True

    def fail(self, error: BaseException) -> None:
        """Ends it early."""
        self.cancelled = True
        self.mailbox.put(error)


def actives(wish: FeatureWish, pairs: Sequence[tuple[int, float]], edited: frozenset[int]) -> list[Active]:
    """Of a token's (feature, activation) pairs, strongest first, those that were wished for."""
    included = set(wish.include)
    kept = [pair for at, pair in enumerate(pairs) if at < wish.top_k or pair[0] in included]
    return [Active(feature, activation, feature in edited) for feature, activation in kept]


def likelihoods(logits: Tensor, tokens: Sequence[int], wishes: Sequence[int | None]) -> list[Chosen]:
    """Each row's token, with the natural logarithms of its and the likeliest tokens' probabilities where wished for."""
    asked = [row for row, wish in enumerate(wishes) if wish is not None]
    out = [Chosen(token) for token in tokens]
    if not asked:
        return out
    log_p = logits[asked].float().log_softmax(-1)
    most = min(max(wishes[row] or 0 for row in asked), log_p.shape[-1])
    ids = torch.tensor([[tokens[row]] for row in asked], device=logits.device)
    own, best = log_p.gather(-1, ids)[:, 0].tolist(), log_p.topk(most, dim=-1)
    for row, mine, likeliest, places in zip(asked, own, best.values.tolist(), best.indices.tolist(), strict=True):
        many = wishes[row] or 0
        out[row] = Chosen(tokens[row], mine, tuple(zip(places[:many], likeliest[:many], strict=True)))
    return out
