"""Activations as the model makes them: pieces of kept tokens, one a pass, from any place of the corpus on.

A thread reads, tokenises and packs what comes next while the model runs. The pass ends at the last hook point, and
only rows of kept tokens are copied. A position says where a piece begins, what was counted before it, and the limits
for outliers: so a stream that goes on there gives the same pieces, to the bit, and the same account at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparsight.corpus.corpus import read
from sparsight.corpus.ranks import place, share
from sparsight.corpus.spec import CorpusSpec
from sparsight.errors import BadInput
from sparsight.harvest.spec import HarvestSpec
from sparsight.lm.batch import Batch
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import KINDS, Kind
from sparsight.scope.work import Work, works
from sparsight.shards.manifest import DTYPES
from sparsight.shards.read_ahead import read_ahead

MEASURED = 32_768  # kept tokens, the first of the whole corpus, whose norms give the medians
POSITION = {"after", "pass", "counts", "outliers"}
Outliers = dict[str, dict[str, float]]
Piece = dict[str, Tensor]


def stream(
    lm: ObservableLanguageModel,
    corpus: CorpusSpec,
    spec: HarvestSpec,
    position: Mapping[str, Any] | None = None,
    rank: int | None = None,
    world: int | None = None,
) -> Iterator[tuple[dict[str, Any], Piece]]:
    """(position, piece) pairs: {hook point: rows [token, d_in] on the model's device, "ids", "kinds" (records.Kind
    bits), "conversations": [token] int64 on the CPU}.

    position: of a piece, to begin with it again; JSON. rank, world: as torchrun says, where they are not given. A
    conversation's number is its position in the corpus. What a ShuffleBuffer takes as its source.
    Raises NoHookPoint, NoChatTemplate for chats where the tokenizer has no template, BadInput where the corpus has no
    token of the kinds that are kept, and what reading a corpus raises.
    """
    at = place(rank, world)
    if position and position.keys() != POSITION:
        raise BadInput(
            f"A position has {', '.join(sorted(POSITION))}, as a stream gave it; not {str(position)[:60]!r}."
        )
    outliers = position["outliers"] if position else measure(lm, corpus, spec)
    return iter(Reader(lm, corpus, spec, outliers, position, *at))


def measure(lm: ObservableLanguageModel, corpus: CorpusSpec, spec: HarvestSpec) -> Outliers:
    """{hook point: {"median", "limit"}} of the norms of kept tokens; nothing where none are to be dropped.

    From the first tokens of the corpus, whichever process asks. Raises BadInput where there are none.
    """
    if not spec.outlier:
        return {}
    norms: dict[str, list[Tensor]] = {point: [] for point in spec.hook_points}
    reader = Reader(lm, corpus, spec, {})
    with closing(iter(reader)) as pieces:
        for _, piece in pieces:
            for point in norms:
                norms[point].append(_norms(piece[point], point).cpu())
            if reader.counts.tokens >= MEASURED:
                break
    if not reader.counts.tokens:
        counts = reader.counts
        refused = f" {counts.refused:,} were refused, first: {counts.first_refused}" if counts.refused else ""
        asked = f"Nothing to harvest: no token of '{corpus.source}' is {', '.join(spec.keep)}"
        raise BadInput(f"{asked}, in {counts.conversations:,} conversations.{refused}")
    medians = {point: float(torch.cat(each).median()) for point, each in norms.items()}
    return {point: {"median": median, "limit": spec.outlier * median} for point, median in medians.items()}


@dataclass
class Counts:
    """What became of the tokens up to a place: see Harvested."""

    conversations: int = 0
    cut: int = 0
    refused: int = 0
    first_refused: str = ""
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Counts:
        counters = {name: Counter(said[name]) for name in ("kept", "dropped")}
        return cls(**{**said, **counters})

    @property
    def tokens(self) -> int:
        """Rows kept."""
        return self.kept.total()

    def said(self) -> dict[str, Any]:
        """As JSON."""
        counters = {name: dict(sorted((+getattr(self, name)).items())) for name in ("kept", "dropped")}
        return {**asdict(self), **counters}


class Reader:
    """Iterated once: (position, piece) pairs, as of stream. counts, tally: up to the piece that was given last; at
    the end, of all.
    """

    def __init__(
        self,
        lm: ObservableLanguageModel,
        corpus: CorpusSpec,
        spec: HarvestSpec,
        outliers: Mapping[str, Mapping[str, float]],
        position: Mapping[str, Any] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.lm, self.spec = lm, spec
        self.outliers = {point: dict(said) for point, said in outliers.items()}
        self.corpus = read(corpus, position["after"] if position else 0, rank, world)
        self.first = position["pass"] if position else 0
        self.counts = Counts.of(position["counts"]) if position else Counts()
        self.tally: dict[str, Any] = {}
        self.most = share(spec.tokens, rank, world)

    def __iter__(self) -> Generator[tuple[dict[str, Any], Piece], None, None]:
        if self.most is not None and self.counts.tokens >= self.most:
            return
        spec = self.spec
        made = works(self.lm, self.corpus, spec.pass_tokens, spec.pool, spec.length, self.first)
        ahead = read_ahead(made, spec.ahead) if spec.ahead else made
        with closing(ahead):
            for work in ahead:
                here = {"after": work.after, "pass": work.number, "counts": self.counts.said()}
                self._count(work)
                piece = None if work.batch is None else self._piece(work, work.batch)
                if piece is not None:
                    yield {**here, "outliers": self.outliers}, piece
                if self.most is not None and self.counts.tokens >= self.most:
                    return

    def _count(self, work: Work) -> None:
        counts, self.tally = self.counts, work.tally
        counts.conversations += len(work.conversations)
        counts.cut += work.cut
        counts.refused += work.refused
        counts.first_refused = counts.first_refused or work.why
        counts.dropped["length"] += work.lost

    def _piece(self, work: Work, batch: Batch) -> Piece | None:
        """The rows of one pass that are kept; None where no token is."""
        kinds = batch.kinds.flatten().cpu()
        wanted = ((kinds & int(self.spec.kinds)) != 0).nonzero().squeeze(1)
        self.counts.dropped.update(by_kind(kinds) - by_kind(kinds[wanted]))
        if not len(wanted):
            return None
        rows = self._rows(batch, wanted)
        fine = self._fine(rows)
        if fine is not None:
            self.counts.dropped["outlier"] += len(wanted) - len(fine)
            wanted, rows = wanted[fine], {point: x[fine.to(x.device)] for point, x in rows.items()}
        if self.most is not None and len(wanted) > (left := self.most - self.counts.tokens):
            self.counts.dropped["tokens"] += len(wanted) - left
            wanted, rows = wanted[:left], {point: x[:left] for point, x in rows.items()}
        kinds = kinds[wanted]
        self.counts.kept.update(by_kind(kinds))
        if not len(wanted):
            return None
        numbers = torch.tensor([one.position for one in work.conversations])[wanted // batch.ids.shape[1]]
        return {**rows, "ids": batch.ids.flatten().cpu()[wanted], "kinds": kinds, "conversations": numbers}

    def _rows(self, batch: Batch, wanted: Int[Tensor, " token"]) -> Piece:
        """{hook point: [token, d_in]} of these places in the batch, in the dtype of the harvest."""
        rows: Piece = {}

        def keep(point: str, flow: Tensor) -> None:
            if flow.ndim != 3 or flow.shape[:2] != batch.ids.shape:
                raise BadInput(
                    f"'{point}' gives {list(flow.shape)}, and not a row for each of {batch.ids.numel()} tokens."
                )
            chosen = flow.reshape(-1, flow.shape[-1]).index_select(0, wanted.to(flow.device))
            rows[point] = chosen.to(DTYPES[self.spec.dtype])

        self.lm.run(batch, {point: [partial(keep, point)] for point in self.spec.hook_points}, stop=True)
        return {point: rows[point] for point in self.spec.hook_points}

    def _fine(self, rows: Piece) -> Int[Tensor, " token"] | None:
        """Which rows are no outliers at any hook point; None where all are fine."""
        out = None
        for point, said in self.outliers.items():
            above = (_norms(rows[point], point) > said["limit"]).cpu()
            out = above if out is None else out | above
        return None if out is None or not out.any() else (~out).nonzero().squeeze(1)


def by_kind(kinds: Int[Tensor, " token"]) -> Counter[str]:
    """How many tokens are of each kind; padding is none."""
    return Counter({name: int(((kinds & int(Kind[name.upper()])) != 0).sum()) for name in KINDS})


def _norms(rows: Tensor, hook_point: str) -> Tensor:
    """[token], float32. Raises BadInput where the model gives numbers that are none."""
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    if norms.isnan().any():
        raise BadInput(f"The model gives numbers that are none (NaN) at '{hook_point}': try it in another dtype.")
    return norms
