"""What a survey holds of all features while a text goes by: fixed tensors, whatever the length of the text.

Bytes for each feature, with the knobs as always (SurveySpec), and for 65,536 features:

    fires, documents int64, sums float64, max float32                      36 B        2 MB
    histogram int32 [448]                                               1,792 B      117 MB
    positions [12], kinds [7], languages [65] int32                       336 B       22 MB
    top tokens [32] of two int32, and as many int64 waiting               512 B       34 MB
    examples [20 + 40] of 20 B and a window of 49                       4,140 B      271 MB
                                                                        6,816 B      447 MB

Counts, maxima, histograms and examples do not depend on the order of the text, so that states add up to that of the
whole, to the bit; sums do but for rounding; top tokens within their bound (tokens.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsight.atlas.entries import POSITIONS
from sparsight.atlas.histogram import BINS, LOWEST, PER_DOUBLING
from sparsight.errors import BadInput
from sparsight.records import KINDS
from sparsight.sae.codes import Codes
from sparsight.survey.keep import FIELDS, LAST, Kept, Windows
from sparsight.survey.order import by_feature
from sparsight.survey.spec import SurveySpec
from sparsight.survey.tokens import TopTokens

OFFSETS = 20  # bits of a place that are the token's place in its document; above them is the document's in the corpus
MOST_TOKENS = 2**31 - 1  # that an int32 counts
PART = 16_384  # windows that are made at once
MIX = (-7046029254386353131, -4417276706812531889)  # odd, with no pattern in their bits
COUNTS = ("fires", "documents", "sum", "squares", "max", "histogram", "positions", "kinds", "languages")


@dataclass(frozen=True)
class Seen:
    """The tokens of a pass that are counted, document after document; and those documents.

    document: of each token its row here, ascending; offset: its place in that; id; kind: which of KINDS. at, half,
    language, hash: of each document: its place in the corpus, 1 where it is held out, its language's number (0:
    unknown), a random number below 2^31.
    """

    document: Int[Tensor, " token"]
    offset: Int[Tensor, " token"]
    id: Int[Tensor, " token"]
    kind: Int[Tensor, " token"]
    at: Int[Tensor, " document"]
    half: Int[Tensor, " document"]
    language: Int[Tensor, " document"]
    hash: Int[Tensor, " document"]


class State:
    """All of it; see above. tokens: how many were counted; of_positions, of_kinds: by bucket and by kind."""

    def __init__(self, features: int, spec: SurveySpec, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.features, self.spec, self.tokens = features, spec, 0
        self.fires, self.documents = (zeros(features, dtype=torch.int64) for _ in range(2))
        self.sum, self.squares = (zeros(features, dtype=torch.float64) for _ in range(2))
        self.max = zeros(features, dtype=torch.float32)
        self.histogram = zeros(features, BINS)
        self.positions, self.kinds = zeros(features, POSITIONS), zeros(features, len(KINDS))
        self.languages = zeros(features, spec.languages + 1)
        self.of_positions, self.of_kinds = (zeros(n, dtype=torch.int64) for n in (POSITIONS, len(KINDS)))
        self.top_tokens = TopTokens(features, spec.counted, device)
        self.top = Kept(2 * features, spec.top // 2, spec.span, device)
        self.samples = Kept(2 * features, spec.samples // 2, spec.span, device)

    @staticmethod
    def bytes_of(features: int, spec: SurveySpec) -> int:
        """What the tensors take."""
        counts = features * (8 + 8 + 8 + 8 + 4 + 4 * (BINS + POSITIONS + len(KINDS) + spec.languages + 1))
        kept = sum(Kept.bytes_of(2 * features, size // 2, spec.span) for size in (spec.top, spec.samples))
        return counts + kept + TopTokens.bytes_of(features, spec.counted)

    def add(self, seen: Seen, codes: Codes) -> None:
        """Count these tokens. codes: of them, in the same order. Raises BadInput where that would be too many."""
        self.tokens += len(codes)
        if self.tokens > MOST_TOKENS:
            raise BadInput(f"A survey counts up to {MOST_TOKENS:,} tokens: set `tokens`, or survey less text.")
        self.of_kinds += seen.kind.bincount(minlength=len(KINDS))
        self.of_positions += bucket(seen.offset).bincount(minlength=POSITIONS)
        if len(codes.values):
            self._count(Active.of(seen, codes, self.spec.window))

    def _count(self, active: Active) -> None:
        """Everything about the (token, feature) pairs of a pass."""
        feature, token, seen = active.feature, active.token, active.seen
        one = torch.ones_like(feature, dtype=torch.int32)
        wide = active.value.double()
        self.fires += feature.bincount(minlength=self.features)
        self.sum += feature.bincount(wide, minlength=self.features)
        self.squares += feature.bincount(wide * wide, minlength=self.features)
        self.max.scatter_reduce_(0, feature, active.value, "amax")
        for table, column in (
            (self.histogram, bins(active.value)),
            (self.positions, bucket(seen.offset)[token]),
            (self.kinds, seen.kind[token]),
            (self.languages, seen.language[active.document]),
        ):
            table.view(-1).index_add_(0, feature * table.shape[1] + column, one)
        self.documents += feature[active.opens].bincount(minlength=self.features)
        self.top_tokens.add(feature, seen.id[token])
        slot = 2 * feature + seen.half[active.document]
        place = (seen.at[active.document] << OFFSETS) | seen.offset[token]
        best = active.strongest_of_documents()
        strength = (LAST - 1 - active.value.view(torch.int32)).clamp(min=0)
        self.top.offer(slot[best], strength[best], place[best], lambda chosen: active.windows(best[chosen]))
        drawn = _mixed((seen.hash[active.document] << 32) + seen.offset[token] * MIX[0] + feature * MIX[1])
        self.samples.offer(slot, drawn, place, active.windows)

    def merge(self, other: State) -> None:
        """Add what another counted, of other documents; with the same numbers of languages."""
        self.tokens += other.tokens
        for name in (*COUNTS, "of_positions", "of_kinds"):
            mine, theirs = getattr(self, name), getattr(other, name)
            torch.maximum(mine, theirs, out=mine) if name == "max" else mine.add_(theirs)
        self.top_tokens.settle()
        other.top_tokens.settle()
        self.top_tokens.merge(other.top_tokens)
        self.top.merge(other.top)
        self.samples.merge(other.samples)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name: what a checkpoint holds. What waits to be counted waits there, too."""
        out = {name: getattr(self, name) for name in (*COUNTS, "of_positions", "of_kinds")}
        waiting = self.top_tokens.waiting
        out |= {"top_tokens.id": self.top_tokens.id, "top_tokens.count": self.top_tokens.count}
        out["top_tokens.waiting"] = torch.cat(waiting) if waiting else torch.zeros(0, dtype=torch.int64)
        out |= {f"{kept}.{name}": getattr(getattr(self, kept), name) for kept in ("top", "samples") for name in FIELDS}
        return out

    def restore(self, tensors: dict[str, Tensor], tokens: int) -> None:
        """As it was when these were its tensors."""
        self.tokens = tokens
        for name, value in self.tensors().items():
            if name != "top_tokens.waiting":
                value.copy_(tensors[name])
        waiting = tensors["top_tokens.waiting"].to(self.fires.device)
        self.top_tokens.waiting = [waiting] if len(waiting) else []


@dataclass(frozen=True)
class Active:
    """The active pairs of a pass, by feature and then by token, so that a feature's neighbours in a document are
    neighbours here. document: of each; opens: whether it is its feature's first in its document."""

    feature: Int[Tensor, " active"]
    token: Int[Tensor, " active"]
    value: Float[Tensor, " active"]
    document: Int[Tensor, " active"]
    opens: Bool[Tensor, " active"]
    seen: Seen
    window: int

    @classmethod
    def of(cls, seen: Seen, codes: Codes, window: int) -> Active:
        feature, token, value = by_feature(codes)
        document = seen.document[token]
        opens = torch.ones_like(feature, dtype=torch.bool)
        opens[1:] = (feature[1:] != feature[:-1]) | (document[1:] != document[:-1])
        return cls(feature, token, value, document, opens, seen, window)

    def strongest_of_documents(self) -> Int[Tensor, " pair"]:
        """Of every feature and document the pair with the highest activation, the first of several."""
        group = self.opens.cumsum(0) - 1
        highest = torch.zeros_like(self.value).scatter_reduce_(0, group, self.value, "amax")
        found = (self.value == highest[group]).nonzero().squeeze(1)
        first = torch.ones_like(found, dtype=torch.bool)
        first[1:] = group[found][1:] != group[found][:-1]
        return found[first]

    def windows(self, pairs: Int[Tensor, " pair"]) -> Windows:
        """What the feature does around these pairs, in their documents."""
        parts = list(self._windows(pairs))
        peak, window = (torch.cat(each) for each in zip(*parts, strict=True))
        return Windows(self.value[pairs], peak, window)

    def _windows(self, pairs: Int[Tensor, " pair"]) -> Iterator[tuple[Tensor, Tensor]]:
        around = torch.arange(-self.window, self.window + 1, device=pairs.device)
        for some in pairs.split(PART) if len(pairs) else (pairs,):
            near = (some.unsqueeze(1) + around).clamp(0, len(self.feature) - 1)
            column = self.seen.offset[self.token[near]] - self.seen.offset[self.token[some]].unsqueeze(1) + self.window
            same = (self.feature[near] == self.feature[some].unsqueeze(1)) & (column >= 0) & (column < len(around))
            same &= self.document[near] == self.document[some].unsqueeze(1)
            value = torch.where(same, self.value[near], 0.0)
            peak = value.amax(1)
            share = (value / peak.unsqueeze(1) * 255).round().clamp(min=1).to(torch.uint8)
            window = share.new_zeros(len(share), len(around) + 1)  # and a column for what is not of the window
            window.scatter_(1, torch.where(same, column, len(around)), share)
            yield peak, window[:, :-1]


def bins(value: Float[Tensor, " active"]) -> Int[Tensor, " active"]:
    """Which bin of the histogram (atlas/histogram.py) each activation is in."""
    return ((value.log2() - LOWEST) * PER_DOUBLING).floor().long().clamp(0, BINS - 1)


def bucket(offset: Int[Tensor, " token"]) -> Int[Tensor, " token"]:
    """Which bucket a place in a document is in: 0, 1, 2 to 3, 4 to 7, ..., and the rest."""
    return torch.where(offset > 0, offset.float().log2().floor().long() + 1, 0).clamp(max=POSITIONS - 1)


def _mixed(number: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """31 random bits that follow from each number alone (the finaliser of SplitMix64; Steele, Lea, Flood 2014)."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        number = (number ^ ((number >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (number ^ ((number >> 31) & ((1 << 33) - 1))) & (LAST - 1)
