"""What edits do to replies, told without a judge: how far those go towards a wish, and whether they hold together.

effect       the unedited model reads the reply back; of features that tell wished chats from others, how far from the
             others' mean (0) to the wished ones' (1) each has come, no further than either, averaged
perplexity   of the replies under the unedited model, as a ratio to that of its own
repetition   the share of runs of three tokens that the same reply has had before
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparsight.edits import Controller
from sparsight.lm.batch import Prompt
from sparsight.records import Sampling
from sparsight.scope.attribution import tail
from sparsight.scope.contrast import Contrasted, units
from sparsight.scope.contrastive import Chat, chat, told
from sparsight.scope.pooled import Pooled, as_prompts, marked, pooled
from sparsight.scope.scope import Reply, Scope

Setting = tuple[tuple[int, float, str], ...]  # features, how far each is turned up (in its unit), at which tokens
ROWS = 256  # replies that are written at a time
LOGITS = 2**26  # that are held at once
RUN = 3  # tokens


@dataclass(frozen=True)
class Trial:
    """Some edits tried on some questions. effect, perplexity (a ratio), repetition: as at the top of this file; nats: a
    token of the replies, under the unedited model; empty: share of replies without a word; has: [feature] float32, what
    a reply has of each on average, in feature units."""

    setting: Setting
    effect: float
    perplexity: float
    nats: float
    repetition: float
    empty: float
    texts: tuple[str, ...]
    has: Tensor = field(compare=False, repr=False)


@dataclass(frozen=True)
class Gauge:
    """Measures the effect. features: ascending, with their means in the others (low) and in the wished chats (high),
    in feature units; plain, wished: what unsteered replies and wished chats have by it, which count as 0 and 1."""

    features: Tensor
    low: Tensor
    high: Tensor
    plain: float = 0.0
    wished: float = 1.0

    @classmethod
    def of(cls, found: Sequence[Contrasted]) -> Gauge:
        """From features that tell wished chats, best first."""
        ordered = sorted(found, key=lambda one: one.feature)
        low, high = (torch.tensor([getattr(one, name) for one in ordered]) for name in ("other", "mean"))
        return cls(torch.tensor([one.feature for one in ordered], dtype=torch.int64), low, high)

    def shares(self, scope: Scope, chats: Sequence[Chat | str]) -> Tensor:
        """Of each chat, from 0 to 1, before plain and wished are set off. [chat]"""
        return self.of_pooled(scope, read_back(scope, chats))

    def of_pooled(self, scope: Scope, read: Pooled) -> Tensor:
        """The same of chats that were read already."""
        has = read.dense(self.features) / units(scope.sae, self.features)
        return ((has - self.low) / (self.high - self.low)).clamp(0, 1).mean(-1)

    def between(self, plain: float, wished: float) -> Gauge:
        """The same, so set that unsteered replies have 0 and wished chats 1."""
        return replace(self, plain=plain, wished=wished)

    def effect(self, share: float) -> float:
        return (share - self.plain) / max(self.wished - self.plain, 1e-6)


def trials(
    scope: Scope,
    gauge: Gauge,
    settings: Sequence[Setting],
    asked: Sequence[str],
    sampling: Sequence[Sampling],
    nats: float | None,
    wish: str | None = None,
) -> list[Trial]:
    """Every setting on every question, many at a time. nats: a token, of unsteered replies; None: these are those.
    wish: asks for it in words, of the model that writes alone, and not where replies are read back or weighed."""
    prompts = [scope.lm.prompt(chat(question)) for question in asked]
    said = [scope.lm.prompt(told(scope.lm, question, wish)) for question in asked]
    each, out = max(1, ROWS // len(asked)), []
    for start in range(0, len(settings), each):
        group = settings[start : start + each]
        wishes = [controller(scope, setting) for setting in group for _ in asked]
        replies = scope.chat(said * len(group), wishes, sampling=list(sampling) * len(group))
        weighed = surprise(scope, prompts * len(group), replies)
        for i, setting in enumerate(group):
            rows = slice(i * len(asked), (i + 1) * len(asked))
            out.append(_trial(scope, gauge, setting, asked, replies[rows], weighed[rows], nats))
    return out


def read_back(scope: Scope, chats: Sequence[Chat | str]) -> Pooled:
    """What the unedited model has at the replies."""
    prompts = as_prompts(scope.lm, chats, "that are gauged")
    return pooled(scope, prompts, marked(prompts, None)[0])


def alignment(trial: Trial, plain: Trial, wished: Trial) -> float:
    """Whether a change goes where it was wished, or elsewhere too: the cosine of what edits changed in replies to some
    questions with what asking in words changed in replies to the same, over all features; 0 where it goes away."""
    loud = trial.has.sqrt(), plain.has.sqrt(), wished.has.sqrt()  # so that a few loud features do not decide alone
    changes = loud[0] - loud[1], loud[2] - loud[1]
    return max(0.0, float(torch.nn.functional.cosine_similarity(*changes, dim=0)))


def controller(scope: Scope, setting: Setting) -> Controller:
    """The edits of a setting. A feature without a unit of its own is turned up by raw activation."""
    edits = []
    for index, strength, place in setting:
        feature, where = scope.features[index], ("assistant", "generated", -1) if place == "reply" else (place,)
        edits.append((feature if has_unit(scope, index) else feature.raw).nudge(strength).on(*where))
    return Controller(tuple(edits))


def has_unit(scope: Scope, feature: int) -> bool:
    return scope.sae.scale is not None and float(scope.sae.scale[feature]) > 0


@torch.no_grad()
def surprise(scope: Scope, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[Tensor]:
    """Nats of each token of each reply under the unedited model."""
    rows = [
        Prompt((*p.ids, *r.ids), (*p.kinds, *p.kinds[:1] * len(r.ids))) for p, r in zip(prompts, replies, strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out: list[Tensor] = [torch.zeros(0)] * len(rows)
    keep = max((len(reply.ids) for reply in replies), default=0) + 1
    step = max(1, LOGITS // (keep * scope.lm.vocabulary))
    for low in range(0, len(order), step):
        some = order[low : low + step]
        batch = scope.lm.batch([rows[i] for i in some])
        logits = tail(scope.lm, batch, {}, min(keep, batch.ids.shape[1]))[:, :-1].float()
        target = batch.ids[:, -logits.shape[1] :]
        cost = torch.nn.functional.cross_entropy(logits.mT, target, reduction="none").cpu()
        for row, i in enumerate(some):
            out[i] = cost[row, cost.shape[1] - len(replies[i].ids) :]
    return out


def repetition(ids: Sequence[int]) -> tuple[int, int]:
    """(runs of three tokens that were there before, runs in all)."""
    runs = [tuple(ids[i : i + RUN]) for i in range(len(ids) - RUN + 1)]
    return len(runs) - len(set(runs)), len(runs)


def _trial(
    scope: Scope,
    gauge: Gauge,
    setting: Setting,
    asked: Sequence[str],
    replies: Sequence[Reply],
    weighed: Sequence[Tensor],
    nats: float | None,
) -> Trial:
    said = [chat(q, r.text) for q, r in zip(asked, replies, strict=True) if r.text.strip()]
    share, has = 0.0, torch.zeros(scope.sae.d_hidden)
    if said:
        read = read_back(scope, said)
        share = float(gauge.of_pooled(scope, read).sum()) / len(replies)
        has = has.index_add_(0, read.feature, read.mean) / len(said) / units(scope.sae, torch.arange(len(has)))
    mean = float(torch.cat(list(weighed)).mean())
    again, runs = (sum(column) for column in zip(*(repetition(reply.ids) for reply in replies), strict=True))
    empty = 1 - len(said) / len(replies)
    ratio = float(torch.tensor(mean - (mean if nats is None else nats)).exp())
    texts = tuple(reply.text for reply in replies)
    return Trial(setting, gauge.effect(share), ratio, mean, again / max(runs, 1), empty, texts, has)
