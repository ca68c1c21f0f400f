"""Features that tell two sets of chats apart, both ways.

Each chat is pooled to one number a feature, its mean (or its highest) activation over the chosen tokens, in feature
units. Features are ranked by the moderated difference of those (SAM: Tusher, Tibshirani and Chu 2001, PNAS 98):

    score = (mean with − mean without) / (s + s0)       s: pooled standard deviation; s0: its median over all features

s0 keeps features out of the first places whose two sides differ by little, and vary by less. Where one chat of each
side is all there is, nothing varies, and the score is the difference. What is told of the chosen features is of the
chats that they were chosen on, but `held_out`: of chats that took no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsight.errors import BadInput, Missing
from sparsight.lm.batch import Prompt
from sparsight.records import is_whole
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.scope.pooled import Mark, Pooled, as_prompts, marked, pooled
from sparsight.scope.scope import Scope
from sparsight.scope.separation import auc, deviation, log_odds, p_values, q_values

POOLS = ("mean", "peak")
LEAST = 8  # chats a side, from which on some are held out
DEEP = 8  # times as many candidates as are asked for, before those that point the same way are left out
ONE = "One chat on a side: differences, no statistics."
FEW = f"Fewer than {LEAST} chats on a side: none was held out."


@dataclass(frozen=True)
class Contrasted:
    """One feature. All but held_out: of the chats that it was chosen on.

    score: as at the top of this file, positive on both sides. mean, other: of its own side and of the other, in feature
    units (raw activation where the SAE has none). auc: the chance that a chat of its side has more of it than one of
    the other. d: Cohen's, with the pooled deviation; None where nothing varies. rate, other_rate: share of chats that
    it fires in; log_odds: of those, with half a chat added to each count. p: Mann and Whitney's, two-sided (for pairs
    Wilcoxon's); q: the false discovery rate by Benjamini and Hochberg, over all features that fire; None without scipy
    and for one chat. held_out: its AUC on chats that took no part; None where there were none.
    """

    feature: int
    label: str | None
    score: float
    mean: float
    other: float
    auc: float
    d: float | None
    rate: float
    other_rate: float
    log_odds: float
    p: float | None = None
    q: float | None = None
    held_out: float | None = None


@dataclass(frozen=True)
class Contrast:
    """with_, without: features of either side, best first. chats: how many of each they were chosen on; held_out: how
    many others there were. fire: features that fire at all. tokens, pool: what was pooled, and how. note: what could
    not be said, and why."""

    with_: tuple[Contrasted, ...]
    without: tuple[Contrasted, ...]
    chats: tuple[int, int]
    held_out: tuple[int, int]
    fire: int
    tokens: str
    pool: str
    paired: bool
    note: str = ""


def contrast(
    scope: Scope,
    with_: Sequence[Any],
    without: Sequence[Any],
    k: int = 10,
    k_without: int | None = None,
    *,
    where: Sequence[str] | str | None = None,
    pool: str = "mean",
    paired: bool = False,
    held_out: float = 0.25,
    alike: float = 0.9,
) -> Contrast:
    """The k features that the chats of one side have and the others lack, and the k_without (None: k) the other way.

    with_, without: lists of chats, texts or Prompts. where: which tokens count, as of an edit ("assistant", "user",
    "template", ...); None: the assistant's, where every chat has some, else all but template and BOS. pool: "mean" or
    "peak". paired: chat i of one side belongs to chat i of the other. held_out: share of the chats that take no part
    in choosing, where each side has eight or more; 0 for none. alike: of features whose decoder rows have a higher
    cosine than this, the best alone is told. The same chats give the same answer. Fewer than k where fewer differ.
    Raises BadInput, TooLong, NoChatTemplate.
    """
    ks = _checked(k, k_without, pool, held_out, alike)
    prompts = as_prompts(scope.lm, with_, "with"), as_prompts(scope.lm, without, "without")
    if paired and len(prompts[0]) != len(prompts[1]):
        raise BadInput(f"Paired chats are as many on either side; there are {len(prompts[0])} and {len(prompts[1])}.")
    mark, tokens = marked([*prompts[0], *prompts[1]], where)
    return between(scope, prompts, mark, tokens, ks, pool, paired, held_out, alike)


def between(
    scope: Scope,
    prompts: Sequence[Sequence[Prompt]],
    mark: Mark,
    tokens: str,
    ks: Sequence[int],
    pool: str = "mean",
    paired: bool = False,
    held_out: float = 0.0,
    alike: float = 0.9,
) -> Contrast:
    """The same of two sets of prompts, at tokens of one's own choosing. ks: how many features of either side."""
    share = held_out if min(map(len, prompts)) >= LEAST else 0.0
    out = [kept_out(len(side), share) for side in prompts]
    sides = [pooled(scope, side, mark) for side in prompts]
    table = _Table.of(scope.sae, sides, [~one for one in out], pool, paired)
    places = [table.best(scope.sae, k, sign, alike) for k, sign in zip(ks, (1, -1), strict=True)]
    rest = _held_out_auc(scope.sae, sides, out, table.feature[torch.cat(places)], pool, paired)
    told = [
        tuple(table.told(int(place), sign, scope.features.labels, rest) for place in chosen)
        for chosen, sign in zip(places, (1, -1), strict=True)
    ]
    many = (int(out[0].sum()), int(out[1].sum()))
    note = " ".join(filter(None, (table.note, FEW if held_out and not many[0] else "")))
    return Contrast(told[0], told[1], table.chats, many, len(table.feature), tokens, pool, paired, note)


def kept_out(chats: int, share: float) -> Bool[Tensor, " chat"]:
    """Which chats take no part: so many, evenly spaced."""
    out, number = torch.zeros(chats, dtype=torch.bool), round(share * chats)
    if number:
        out[((torch.arange(number) + 0.5) * chats / number).long()] = True
    return out


def units(sae: SparseAutoEncoder, features: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
    """What raw activations are divided by: each feature's scale, 1 where it has none."""
    if sae.scale is None:
        return torch.ones(len(features))
    scale = sae.scale.cpu()[features]
    return torch.where(scale > 0, scale, 1.0)


def apart(
    sae: SparseAutoEncoder, features: Int[Tensor, " ordered"], k: int, alike: float, block: int = 256
) -> Int[Tensor, " kept"]:
    """Places of the first k features of a list none of whose decoder rows is near, by cosine, that of one before it."""
    kept: list[int] = []
    basis = torch.zeros(min(k, len(features)), sae.d_out, device=sae.device)
    for low in range(0, len(features), block):
        rows = sae.W_dec[features[low : low + block].to(sae.device)].float()
        rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        nearest = (basis[: len(kept)] @ rows.T).amax(0).tolist() if kept else [-1.0] * len(rows)
        own, chosen = (rows @ rows.T).cpu(), list[int]()
        for i, near in enumerate(nearest):
            if len(kept) + len(chosen) < k and near <= alike and not bool((own[i, chosen] > alike).any()):
                chosen.append(i)
        basis[len(kept) : len(kept) + len(chosen)] = rows[chosen]
        kept += [low + i for i in chosen]
        if len(kept) == k:
            break
    return torch.tensor(kept, dtype=torch.int64)


@dataclass(eq=False)
class _Table:
    """One number of every feature that fires, in feature units where it has a unit. [feature] each."""

    feature: Tensor
    means: tuple[Tensor, Tensor]
    spread: Tensor
    auc: Tensor
    fires: tuple[Tensor, Tensor]
    chats: tuple[int, int]
    p: np.ndarray | None
    q: np.ndarray | None
    note: str

    @classmethod
    def of(
        cls, sae: SparseAutoEncoder, sides: Sequence[Pooled], keep: Sequence[Tensor], pool: str, paired: bool
    ) -> _Table:
        feature = torch.cat([side.feature for side in sides]).unique()
        chats = (int(keep[0].sum()), int(keep[1].sum()))
        rows, p, note = [], [], "" if min(chats) > 1 else ONE
        for block in feature.split(max(1, 2**22 // sum(chats))):
            unit = units(sae, block)
            one, other = (side.dense(block, pool)[kept] / unit for side, kept in zip(sides, keep, strict=True))
            counts = [(side > 0).sum(0).float() for side in (one, other)]
            spread = deviation(one, other, paired)
            rows.append(torch.stack([one.mean(0), other.mean(0), spread, auc(one, other, paired), *counts]))
            if not note:
                try:
                    p.append(p_values(one, other, paired))
                except Missing as error:
                    note = f"No p-values: {error}"
        columns = torch.cat(rows, -1) if rows else torch.zeros(6, 0)
        ps = None if note else np.concatenate([np.zeros(0), *p])
        qs = None if ps is None else q_values(ps)
        a, b, s, area, n, m = columns.unbind(0)
        return cls(feature, (a, b), s, area, (n, m), chats, ps, qs, note)

    @cached_property
    def score(self) -> Tensor:
        """Above zero for features of the first side."""
        varies = self.spread[self.spread > 0]
        floor = float(varies.median()) if len(varies) else 1.0
        return (self.means[0] - self.means[1]) / (self.spread + floor)

    def best(self, sae: SparseAutoEncoder, k: int, sign: int, alike: float) -> Int[Tensor, " chosen"]:
        """Places in this table of the k best features of one side, none of which points where a better one does."""
        score = sign * self.score
        order = score.argsort(descending=True, stable=True)[: DEEP * k + 64]
        order = order[score[order] > 0]
        return order[apart(sae, self.feature[order], k, alike)]

    def told(self, place: int, sign: int, labels: Any, rest: dict[int, float]) -> Contrasted:
        """One row, from its own side's view."""
        own, other = (0, 1) if sign > 0 else (1, 0)
        feature, spread = int(self.feature[place]), float(self.spread[place])
        mean, less = float(self.means[own][place]), float(self.means[other][place])
        fires, others = self.fires[own][place : place + 1], self.fires[other][place : place + 1]
        held = rest.get(feature)
        return Contrasted(
            feature,
            labels.get(feature),
            sign * float(self.score[place]),
            mean,
            less,
            _turned(float(self.auc[place]), sign),
            (mean - less) / spread if spread else None,
            float(fires) / self.chats[own],
            float(others) / self.chats[other],
            float(log_odds(fires, self.chats[own], others, self.chats[other])),
            None if self.p is None else float(self.p[place]),
            None if self.q is None else float(self.q[place]),
            None if held is None else _turned(held, sign),
        )


def _held_out_auc(
    sae: SparseAutoEncoder, sides: Sequence[Pooled], out: Sequence[Tensor], feature: Tensor, pool: str, paired: bool
) -> dict[int, float]:
    """Feature -> AUC of the first side on the chats that took no part; none where there are none."""
    if not out[0].any() or not len(feature):
        return {}
    feature = feature.unique()
    one, other = (side.dense(feature, pool)[kept] for side, kept in zip(sides, out, strict=True))
    return dict(zip(feature.tolist(), auc(one, other, paired).tolist(), strict=True))


def _turned(area: float, sign: int) -> float:
    return area if sign > 0 else 1 - area


def _checked(k: int, k_without: int | None, pool: str, held_out: float, alike: float) -> tuple[int, int]:
    """How many features of either side. Raises BadInput for what cannot be asked."""
    ks = (k, k if k_without is None else k_without)
    if not all(is_whole(one) and one >= 0 for one in ks):
        raise BadInput(f"k and k_without are whole numbers from 0 up, not {ks[0]!r} and {ks[1]!r}.")
    if pool not in POOLS:
        raise BadInput(f"No pool {pool!r}. There are: {', '.join(POOLS)}.")
    if not 0 <= held_out <= 0.5:
        raise BadInput(f"held_out is a share from 0 to 0.5, not {held_out!r}.")
    if not 0 < alike <= 1:
        raise BadInput(f"alike is a cosine above 0, up to 1, not {alike!r}.")
    return ks
