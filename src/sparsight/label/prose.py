"""Labels in prose, written and judged by a language model, whoever that is.

An answer that is not what was asked for leaves no label and no score: it is counted, and told by whoever runs this.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator, Sequence

from sparsight.atlas.entries import Label
from sparsight.errors import TooLong
from sparsight.label import prompts
from sparsight.label.clients.client import Question
from sparsight.label.clients.ledger import Ledger
from sparsight.label.evidence import Evidence, HeldOut, Window
from sparsight.label.prompts import Wording

STAND_IN = "some words about when it fires, which are about as long as a label"


class PromptedLabeller:
    """Asks a model for a label (label.labeller.Labeller), from any number of threads; at_once: as many as its endpoint
    shall see. labelled, unclear, nonsense: answers with a label, that saw nothing, and that could not be read.

    Raises, of label, NoAnswer and OverBudget; TooLong where the model cannot read even a small prompt.
    """

    def __init__(self, ledger: Ledger, wording: Wording | None = None) -> None:
        client, self.ledger, self.wording = ledger.client, ledger, wording or Wording()
        self.method, self.model, self.at_once = client.method, client.model, client.at_once
        self.prompt = prompts.version(prompts.EXPLAIN, self.wording, client.settings)
        self.labelled = self.unclear = self.nonsense = 0
        self._lock = threading.Lock()

    def question(self, evidence: Evidence) -> Question | None:
        """What it asks about a feature; None where there is nothing to show. With as much text as the model reads."""
        if not evidence.firing:
            return None
        wording: Wording | None = self.wording
        while wording is not None:
            question = prompts.explain(evidence, wording)
            if self.ledger.client.fits(question):
                return question
            wording = wording.smaller()
        raise TooLong(
            f"{self.model} cannot read a prompt with even {prompts.FEWEST['firing']} windows: its context is too short."
        )

    def label(self, evidence: Evidence) -> Label | None:
        """A label; None where it sees nothing, or answers nonsense."""
        question = self.question(evidence)
        if question is None:
            return None
        found = prompts.read_label(self.ledger.ask(question, evidence.feature).text)
        with self._lock:
            self.labelled += bool(found and found[0])
            self.unclear += bool(found and not found[0])
            self.nonsense += found is None
        if not found or not found[0]:
            return None
        text, confidence = found
        return Label(evidence.feature, text, self.method, self.model, self.prompt, confidence=confidence)


class ProseJudge:
    """Asks a model where a feature of a given label fires. nonsense: answers that could not be read.

    It is shown texts alone, in an order that tells nothing. Raises NoAnswer and OverBudget.
    """

    def __init__(self, ledger: Ledger, wording: Wording | None = None) -> None:
        client, self.ledger, self.wording = ledger.client, ledger, wording or Wording()
        self.model, self.at_once, self.name = client.model, client.at_once, f"{client.method} {client.model}"
        self.prompt = prompts.version([prompts.DETECT, prompts.FUZZ], self.wording, client.settings)
        self.answers = self.nonsense = 0
        self._lock = threading.Lock()

    def detect(self, label: str, windows: Sequence[Window]) -> list[float] | None:
        """The probability, [window], that each makes the feature fire; 0 or 1 where the model tells no probabilities.
        None where any of its answers was nonsense."""
        return self.ask(windows, label)

    def fuzz(self, label: str, marked: Sequence[tuple[Window, int]]) -> list[float] | None:
        """The probability, [window], that the marked token is where the feature fires; None as for detect."""
        return self.ask([window for window, _ in marked], label, [frozenset([at]) for _, at in marked])

    def ask(
        self, windows: Sequence[Window], label: str, marks: Sequence[frozenset[int]] | None = None
    ) -> list[float] | None:
        """Either of these: detect, or, with the marked tokens of each window, fuzz."""
        out = [0.0] * len(windows)
        for places, question in self.questions(windows, label, marks):
            found = prompts.read_digits(self.ledger.ask(question), len(places))
            with self._lock:
                self.answers += found is not None
                self.nonsense += found is None
            if found is None:
                return None
            for at, chance in zip(places, found, strict=True):
                out[at] = chance
        return out

    def questions(
        self, windows: Sequence[Window], label: str, marks: Sequence[frozenset[int]] | None = None
    ) -> list[tuple[list[int], Question]]:
        """(which windows, in the order that they are shown; what is asked), in prompts of about the same length that
        the model can read. Raises TooLong where it cannot read even one window."""
        order = list(range(len(windows)))
        told = [label, [window.ids for window in windows], marks and list(map(sorted, marks))]
        random.Random(hashlib.sha256(repr(told).encode()).digest()).shuffle(order)
        most = self.wording.batch
        while True:
            number = -(-len(order) // most)
            parts = [order[i * len(order) // number : (i + 1) * len(order) // number] for i in range(number)]
            asked = [(part, self._asked(windows, label, marks, part)) for part in parts]
            if all(self.ledger.client.fits(question) for _, question in asked):
                return asked
            if most == 1:
                raise TooLong(f"{self.model} cannot judge even one window: its context is too short.")
            most //= 2

    def _asked(
        self, windows: Sequence[Window], label: str, marks: Sequence[frozenset[int]] | None, part: Sequence[int]
    ) -> Question:
        few = [windows[at] for at in part]
        return prompts.detect(label, few) if marks is None else prompts.fuzz(label, few, [marks[at] for at in part])


def foreseen(
    labeller: PromptedLabeller,
    judge: ProseJudge | None,
    evidence: Evidence,
    held_out: HeldOut,
    control: ProseJudge | None = None,
) -> Iterator[Question]:
    """What will be asked about a feature, for an estimate: for its label, and by a judge of it for the scores of one
    that is as long as most are. control: who judges another feature's label on it, where anybody does."""
    question = labeller.question(evidence)
    if question is None:
        return
    yield question
    windows, twice = (*held_out.firing, *held_out.silent), held_out.firing * 2
    if judge:
        marks = [frozenset([window.focus]) for window in twice]
        yield from (asked for _, asked in judge.questions(windows, STAND_IN))
        yield from (asked for _, asked in judge.questions(twice, STAND_IN, marks))
    if control:
        yield from (asked for _, asked in control.questions(windows, STAND_IN))
