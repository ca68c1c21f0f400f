"""Label the features of an atlas and score the labels, a few features at a time, each written down when it is done: a
run that was killed goes on where it was, and asks nobody twice.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.entries import Label
from sparsight.atlas.labelled import labelled, labelled_by
from sparsight.atlas.log import open_log
from sparsight.errors import NoFeature
from sparsight.label.evidence import Evidence
from sparsight.label.gather import Gatherer
from sparsight.label.judge import Judge
from sparsight.label.labeller import Labeller
from sparsight.label.score import NOTHING, Embed, by_embedding, score
from sparsight.label.spec import LabelSpec
from sparsight.records import Progress

TOGETHER = 32  # features that are labelled, then scored, then written
MANY = 256  # features, from which on a second process is worth its start

Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Summary:
    """What a run did. had: features that had a label of this labeller already; unsaid: for which it said nothing.
    types: {type: labels}. scores: {name: (lower quartile, median, upper quartile, labels)}; beside them the floors."""

    labelled: int = 0
    had: int = 0
    unsaid: int = 0
    types: dict[str, int] = field(default_factory=dict)
    scores: dict[str, tuple[float, float, float, int]] = field(default_factory=dict)
    nothing: float = NOTHING


def label(
    atlas: Atlas,
    labeller: Labeller,
    spec: LabelSpec,
    tokenizer: Any,
    tell: Tell | None = None,
    features: Iterable[int] | None = None,
    *,
    judge: Judge | None = None,
    embed: Embed | None = None,
    log: Any = None,
    only_unlabelled: bool = False,
    limit: int | None = None,
) -> Summary:
    """Label features, all of them by default, and write labels and scores into the atlas.

    judge: scores labels without a rule. embed: texts to vectors, for the embedding scores of spec.embedding features.
    log: the atlas's own by default. only_unlabelled: not those that anybody has labelled. limit: so many at most.

    A labeller that waits for others, as for a server, may have an attribute at_once: from how many threads it may be
    asked at a time. One without is asked in processes of their own (spec.processes), so it can be pickled.
    Raises NoFeature, and whatever the labeller raises; what was done before stays.
    """
    todo, had = left(atlas, labeller, features, only_unlabelled, limit)
    every = max(len(todo) // spec.embedding, 1) if spec.embedding and embed else 0
    work = Work(atlas, tokenizer, spec, log, labeller, judge)
    started, made, unsaid = time.monotonic(), [], 0
    with ExitStack() as stack:
        for found in _groups(work, todo, spec, stack):
            atlas.add(one for one in found if one is not None)
            made += [one for one in found if one is not None]
            unsaid += found.count(None)
            if tell:
                finished = len(made) + unsaid
                tell(Progress("label", finished, len(todo), "features", time.monotonic() - started))
    if every and embed:
        made = _with_embedding(work, made, todo[::every], embed, tell)
    return summary(made, had, unsaid)


def left(
    atlas: Atlas,
    labeller: Labeller,
    features: Iterable[int] | None = None,
    only_unlabelled: bool = False,
    limit: int | None = None,
) -> tuple[list[int], int]:
    """Which features are yet to be labelled, and how many of those that were asked for have its label already. Raises
    NoFeature."""
    wanted = list(range(len(atlas))) if features is None else list(dict.fromkeys(features))
    if bad := next((feature for feature in wanted if not 0 <= feature < len(atlas)), None):
        raise NoFeature(f"No feature {bad}: this SAE has {len(atlas):,} (0 to {len(atlas) - 1}).")
    done = labelled_by(atlas, labeller.method, labeller.model, labeller.prompt)
    had = len(done.intersection(wanted))
    done |= labelled(atlas) if only_unlabelled else set()
    return [feature for feature in wanted if feature not in done][:limit], had


def summary(made: Sequence[Label], had: int = 0, unsaid: int = 0) -> Summary:
    """Types and scores of some labels."""
    types = Counter(one.type for one in made)
    scores = {}
    for name in sorted({name for one in made for name in one.scores}):
        values = [one.scores[name].value for one in made if name in one.scores]
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        scores[name] = (low, median(values), high, len(values))
    return Summary(len(made), had, unsaid, dict(types.most_common()), scores)


class Work:
    """What labels a group of features and scores the labels."""

    def __init__(
        self, atlas: Atlas, tokenizer: Any, spec: LabelSpec, log: Any, labeller: Labeller, judge: Judge | None
    ) -> None:
        self.atlas, self.labeller, self.judge, self.spec = atlas, labeller, judge, spec
        self.parts = (atlas.folder, tokenizer, spec, log, labeller)
        self.gatherer = Gatherer(atlas, tokenizer, spec, log or open_log(atlas))

    def group(self, features: Sequence[int], threads: Executor | None = None) -> list[Label | None]:
        """Their labels with scores; None where nothing was said."""
        each = threads.map if threads else map
        evidence = [self.gatherer.evidence(feature) for feature in features]
        found = list(each(self.labeller.label, evidence))
        others = [self._other(i, evidence, found) for i in range(len(found))]
        held_out = [self.gatherer.held_out_of(feature) for feature in features]

        def scored(i: int) -> Label | None:
            if (one := found[i]) is None:
                return None
            return replace(one, scores={**one.scores, **score(one, held_out[i], self.spec, self.judge, others[i])})

        return list(each(scored, range(len(found))))

    def _other(self, at: int, evidence: Sequence[Evidence], found: Sequence[Label | None]) -> Label | None:
        """Another feature's label of the same sort, and no neighbour's: of the next in the group that has one."""
        mine, near = found[at], {feature for feature, _ in evidence[at].statistics.neighbours}
        if mine is None or (mine.rule is None and evidence[at].feature % self.spec.control_every):
            return None
        for step in range(1, len(found)):
            other = found[(at + step) % len(found)]
            if other and (other.rule is None) == (mine.rule is None) and other.feature not in near:
                return other
        return None


def _groups(work: Work, todo: Sequence[int], spec: LabelSpec, stack: ExitStack) -> Iterator[list[Label | None]]:
    groups = [todo[i : i + TOGETHER] for i in range(0, len(todo), TOGETHER)]
    at_once = getattr(work.labeller, "at_once", None)
    processes = min(spec.processes or os.cpu_count() or 1, len(groups))
    if at_once is None and work.judge is None and processes > 1 and len(todo) >= MANY:
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start, work.parts)
        stack.callback(pool.shutdown, cancel_futures=True)
        yield from pool.map(_group, groups)
        return
    threads = stack.enter_context(ThreadPoolExecutor(at_once)) if (at_once or 1) > 1 else None
    for group in groups:
        yield work.group(group, threads)


def _with_embedding(
    work: Work, made: list[Label], chosen: Sequence[int], embed: Embed, tell: Tell | None
) -> list[Label]:
    """The labels, those of the chosen features with their embedding scores, which are written down too."""
    out, started, done = [], time.monotonic(), 0
    for i, one in enumerate(made):
        if one.feature in set(chosen):
            evidence, held_out = work.gatherer.evidence(one.feature), work.gatherer.held_out_of(one.feature)
            other = made[(i + 1) % len(made)] if len(made) > 1 else None
            scores = by_embedding(one, evidence, held_out, embed, work.spec, other)
            one = replace(one, scores={**one.scores, **scores})
            work.atlas.add([one])
            done += 1
            if tell:
                tell(Progress("embed", done, len(chosen), "features", time.monotonic() - started))
        out.append(one)
    return out


# ── in a process of its own ──────────────────────────────────────────────────────────────────────────────────────

_work: Work | None = None


def _start(folder: Path, tokenizer: Any, spec: LabelSpec, log: Any, labeller: Labeller) -> None:
    global _work
    _work = Work(Atlas(folder), tokenizer, spec, log, labeller, None)


def _group(features: Sequence[int]) -> list[Label | None]:
    assert _work is not None
    return _work.group(features)
