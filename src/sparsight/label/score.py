"""How well a label predicts where its feature fires, on windows of documents that no labeller sees.

detection   telling windows where it fires (a fair sample of all its activations) from silent ones, half of them hard
hard        the same against the hard ones alone: its own tokens where it is silent, and its neighbours' places
fuzzing     telling the tokens where it fires from the others, within a window where it fires
shuffled    detection by another feature's label: what there is to gain by luck
embedding   telling the windows apart by the cosine of their texts with the label's; embedding_ceiling: with what the
            labeller's windows are like, without any label; embedding_shuffled: with another feature's label

Each is an AUC. By a label's rule where it has one: then the score is the rule's, of which the text says the strongest
parts. Else by a judge, who reads the label and texts without activations. What could not be asked has no score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float

from sparsight.atlas.entries import Label, Score
from sparsight.label.auc import mean_with_interval, with_interval
from sparsight.label.evidence import Evidence, HeldOut, Window
from sparsight.label.judge import Judge
from sparsight.label.rule import Rule
from sparsight.label.sheet import Sheet
from sparsight.label.spec import LabelSpec

Embed = Callable[[Sequence[str]], Float[np.ndarray, "text dim"]]
HARD = ("near miss", "neighbour")
LEAST = 3  # windows of either sort, for a score
NOTHING = 0.5  # the AUC of whoever always gives the same answer, as "it never fires"


def score(
    label: Label, held_out: HeldOut, spec: LabelSpec, judge: Judge | None = None, other: Label | None = None
) -> dict[str, Score]:
    """What can be said of it: by name. other: another feature's label, for the shuffled control."""
    if min(len(held_out.firing), len(held_out.silent)) < LEAST:
        return {}
    measure = Measure(held_out, spec, judge)
    told = measure.tokens(label)
    answers = measure.answers(label, told)
    out = {} if answers is None else measure.detection(answers)
    if (fuzzing := measure.fuzzing(label, told)) is not None:
        out["fuzzing"] = fuzzing
    if other is not None and (control := measure.answers(other, measure.tokens(other))) is not None:
        out["shuffled"] = measure.detection(control, hard=False)["detection"]
    return out


@dataclass(frozen=True)
class Measure:
    """What labels are measured on, of one feature."""

    held_out: HeldOut
    spec: LabelSpec
    judge: Judge | None = None

    @cached_property
    def sheet(self) -> Sheet:
        """Of the firing windows, then the silent ones."""
        return Sheet([*self.held_out.firing, *self.held_out.silent])

    def tokens(self, label: Label) -> Float[np.ndarray, " token"] | None:
        """What its rule says of each token of the sheet; None without a rule."""
        return None if label.rule is None else Rule.of(label.rule).on(self.sheet)

    def answers(self, label: Label, tokens: np.ndarray | None) -> Float[np.ndarray, " window"] | None:
        """Of each window how likely the feature fires in it: by the strongest token of its rule, else by the judge."""
        if tokens is not None:
            return np.maximum.reduceat(tokens, self.sheet.first)
        return self._ask((*self.held_out.firing, *self.held_out.silent), label.text)

    def detection(self, told: Float[np.ndarray, " window"], hard: bool = True) -> dict[str, Score]:
        """Against all silent windows; "hard": against the hard ones alone, where there are enough."""
        silent, number = self.held_out.silent, len(self.held_out.firing)
        mine, others = told[:number], told[number:]
        out = {"detection": self._auc(mine, others, silent)}
        few = np.array([window.why in HARD for window in silent])
        if hard and few.sum() >= LEAST:
            out["hard"] = self._auc(mine, others[few], [w for w in silent if w.why in HARD])
        return out

    def fuzzing(self, label: Label, tokens: np.ndarray | None) -> Score | None:
        """Of a rule: the mean over windows of the AUC within each. By a judge: telling windows whose firing tokens are
        marked from the same windows with as many others marked."""
        windows = [w for w in self.held_out.firing if w.fires and min(w.values) <= 0]
        if len(windows) < LEAST:
            return None
        documents = np.array([w.document for w in windows])
        if tokens is not None:
            values = self.sheet.within(tokens)
            return mean_with_interval(values, documents, self.spec.bootstrap, self._seed)
        right = [frozenset(i for i, value in enumerate(w.values) if value > 0) for w in windows]
        rng = np.random.default_rng(self._seed)
        wrong = [_others(window, marks, rng) for window, marks in zip(windows, right, strict=True)]
        told = self._ask([*windows, *windows], label.text, [*right, *wrong])
        if told is None:
            return None
        each = documents, documents
        return with_interval(told[: len(windows)], told[len(windows) :], each, self.spec.bootstrap, self._seed)

    def _ask(
        self, windows: Sequence[Window], text: str, marks: Sequence[frozenset[int]] | None = None
    ) -> np.ndarray | None:
        """A judge's answers, in the order of the windows; they are asked in another, without what they do. None where
        one of them is no probability."""
        if self.judge is None:
            return None
        order = np.random.default_rng([self._seed, 1]).permutation(len(windows))
        blind = [replace(windows[i], values=(0.0,) * len(windows[i].values), why="random", focus=0) for i in order]
        told = self.judge.ask(blind, text, None if marks is None else [marks[i] for i in order])
        if told is None or len(told) != len(windows) or not all(0 <= float(one) <= 1 for one in told):
            return None
        out = np.zeros(len(windows))
        out[order] = np.array(told, np.float64)
        return out

    def _auc(self, firing: np.ndarray, silent: np.ndarray, windows: Sequence[Window]) -> Score:
        documents = tuple(np.array([w.document for w in each]) for each in (self.held_out.firing, windows))
        return with_interval(firing, silent, documents, self.spec.bootstrap, self._seed)  # type: ignore[arg-type]

    @property
    def _seed(self) -> int:
        return self.held_out.feature


def by_embedding(
    label: Label, evidence: Evidence, held_out: HeldOut, embed: Embed, spec: LabelSpec, other: Label | None = None
) -> dict[str, Score]:
    """The scores by the cosine of texts. Empty where there are too few windows."""
    if min(len(held_out.firing), len(held_out.silent), len(evidence.firing), len(evidence.silent)) < LEAST:
        return {}
    groups = (held_out.firing, held_out.silent, evidence.firing, evidence.silent)
    texts = [window.text for group in groups for window in group]
    labels = [label.text] + ([other.text] if other else [])
    vectors = _unit(np.asarray(embed([*labels, *texts]), np.float64))
    ends = np.cumsum([len(group) for group in groups])[:-1]
    firing, silent, shown_firing, shown_silent = np.split(vectors[len(labels) :], ends)
    directions = {"embedding": vectors[0], "embedding_ceiling": shown_firing.mean(0) - shown_silent.mean(0)}
    if other:
        directions["embedding_shuffled"] = vectors[1]
    documents = tuple(np.array([w.document for w in group]) for group in groups[:2])
    return {
        name: with_interval(firing @ way, silent @ way, documents, spec.bootstrap, held_out.feature)  # type: ignore[arg-type]
        for name, way in directions.items()
    }


def _others(window: Window, marks: frozenset[int], rng: np.random.Generator) -> frozenset[int]:
    """As many tokens where it is silent, or all of them."""
    silent = [i for i in range(len(window.values)) if i not in marks]
    return frozenset(rng.choice(silent, min(len(marks), len(silent)), replace=False).tolist())


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, math.inf)
