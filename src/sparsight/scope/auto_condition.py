"""From a few words to a condition: features with thresholds, that hold somewhere in chats of the wished sort and
nowhere in others.

Of each candidate, the threshold that best tells the chats apart (balanced accuracy of "its highest activation is above
it") is half-way between the two chats that it lies between. The best feature is taken, then further ones as long as
"any of them" does better; how well that holds is told on chats that took no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.edits import Condition, Feature
from sparsight.errors import BadInput
from sparsight.records import is_whole
from sparsight.scope.contrast import LEAST, between, kept_out, units
from sparsight.scope.contrastive import Contrastive, Writer, contrastive, wish_of
from sparsight.scope.pooled import as_prompts, marked, pooled
from sparsight.scope.scope import Scope
from sparsight.scope.trial import has_unit

PAIRS = 16  # chats a side, where none are given
SHARE = 0.25  # of them that take no part
CANDIDATES = 32


@dataclass(frozen=True)
class AutoCondition:
    """condition: holds at tokens of the wished sort. features: the same as (feature, threshold) pairs, any of which;
    in feature units, raw where a feature has none. train, held_out: balanced accuracy of "it holds somewhere in the
    chat": on the chats it was made from, and on others (None where there were too few). chats: how many of those, a
    side. made_by: who wrote them."""

    condition: Condition
    features: tuple[tuple[Feature, float], ...]
    train: float
    held_out: float | None
    chats: tuple[int, int]
    made_by: str


def auto_condition(
    scope: Scope,
    text: str,
    *,
    chats: Contrastive | None = None,
    writer: Writer | str | None = None,
    most_features: int = 1,
    where: Sequence[str] | str | None = None,
    seed: int = 0,
) -> AutoCondition:
    """A condition from a wish: "talk like a pirate" gives one that holds where somebody does.

    chats: contrastive chats of one's own; else those of contrastive(scope, text, writer). most_features: joined by
    "or". where: which tokens are looked at, as for contrast. Raises BadInput, also where nothing tells the chats apart.
    """
    text = wish_of(text)
    if not is_whole(most_features) or most_features < 1:
        raise BadInput(f"most_features is a whole number from 1 up, not {most_features!r}.")
    chats = chats or contrastive(scope, text, writer, PAIRS, seed=seed)
    sides = [as_prompts(scope.lm, side, name) for side, name in ((chats.with_, "with"), (chats.without, "without"))]
    mark, tokens = marked([*sides[0], *sides[1]], where)
    share = SHARE if min(map(len, sides)) >= LEAST else 0.0
    out = [kept_out(len(side), share) for side in sides]
    inside = [
        [p for p, no in zip(side, no_.tolist(), strict=True) if not no] for side, no_ in zip(sides, out, strict=True)
    ]
    found = between(scope, inside, mark, tokens, (CANDIDATES, 0), pool="peak").with_
    if not found:
        raise BadInput(f"Nothing tells chats with {text!r} from those without: say it otherwise, or give chats.")
    feature = torch.tensor(sorted(one.feature for one in found))
    peaks = [pooled(scope, side, mark).dense(feature, "peak") / units(scope.sae, feature) for side in sides]
    one, other = (peak[~no] for peak, no in zip(peaks, out, strict=True))
    chosen, train = greedy(one, other, most_features)
    held = None
    if out[0].any():
        held = accuracy(*(holds(peak[no], chosen) for peak, no in zip(peaks, out, strict=True)))
    named = [scope.features[int(feature[place])] for place, _ in chosen]
    named = [one if has_unit(scope, one.index) else one.raw for one in named]
    pairs = tuple((one, at) for one, (_, at) in zip(named, chosen, strict=True))
    condition = pairs[0][0] > pairs[0][1]
    for one_more, at in pairs[1:]:
        condition = condition | (one_more > at)
    return AutoCondition(condition, pairs, train, held, (len(one), len(other)), chats.made_by)


def greedy(
    one: Float[Tensor, "one feature"], other: Float[Tensor, "other feature"], most: int
) -> tuple[list[tuple[int, float]], float]:
    """([(place, threshold)], balanced accuracy of any of them), the best feature first; of equals, the one with the
    widest gap between the sides."""
    chosen: list[tuple[int, float]] = []
    best = 0.5
    while len(chosen) < most:
        sides = holds(one, chosen), holds(other, chosen)
        tried = [(*threshold(one[:, f], other[:, f], *sides), f) for f in range(one.shape[1])]
        value, _, at, place = max(tried, key=lambda told: (round(told[0], 9), told[1], -told[3]))
        if value <= best + 1e-9 and chosen:
            break
        chosen.append((place, at))
        best = value
    return chosen, best


def threshold(
    one: Float[Tensor, " one"], other: Float[Tensor, " other"], held: Tensor, other_held: Tensor
) -> tuple[float, float, float]:
    """(balanced accuracy, how far apart the sides are there, threshold) of the best threshold of one feature, or'd to
    what holds already."""
    values = torch.cat([torch.zeros(1), one, other]).unique()
    middles = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values + 1.0
    gaps = values.diff() if len(values) > 1 else torch.zeros(1)
    wins = ((one[:, None] > middles) | held[:, None]).float().mean(0)
    losses = ((other[:, None] > middles) | other_held[:, None]).float().mean(0)
    score = (wins + 1 - losses) / 2
    best = torch.where(score >= score.max() - 1e-9, gaps, -1.0).argmax()
    return float(score[best]), float(gaps[best]), float(middles[best])


def holds(peaks: Float[Tensor, "chat feature"], chosen: Sequence[tuple[int, float]]) -> Bool[Tensor, " chat"]:
    """In which chats any of these is above its threshold."""
    out = torch.zeros(len(peaks), dtype=torch.bool)
    for place, at in chosen:
        out |= peaks[:, place] > at
    return out


def accuracy(one: Tensor, other: Tensor) -> float:
    """Balanced: the mean of the shares that are right on either side."""
    return (float(one.float().mean()) + 1 - float(other.float().mean())) / 2
