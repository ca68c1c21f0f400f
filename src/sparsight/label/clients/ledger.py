"""Asks, and keeps account: every answer goes into the atlas as it comes, none is asked for twice, and no request is
sent that could cost more than the budget leaves.

What a request can cost at most is set aside before it is sent: no tokenizer makes more tokens than there are bytes, and
no answer has more tokens than it may. What it did cost is known when it is answered. A request that was cut off may
have cost something too: it is counted at its most.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sparsight.atlas.asked import LOST, Asked, answered, keep, spent
from sparsight.atlas.atlas import Atlas
from sparsight.errors import BadInput, OverBudget
from sparsight.label.clients.client import Answer, Client, Question
from sparsight.label.clients.endpoint import Failed
from sparsight.label.clients.spec import EndpointSpec

MILLION = 1_000_000
PER_TOKEN = 4  # characters, of English text


@dataclass(frozen=True)
class Estimate:
    """What questions would take. prompts: that would be sent; kept: whose answers are there. counted: by what."""

    prompts: int
    kept: int
    tokens_in: int
    tokens_out: int
    dollars: float
    counted: str

    def __str__(self) -> str:
        there = f" ({self.kept:,} more are answered already)" if self.kept else ""
        tokens = f"{self.tokens_in:,} tokens in, by {self.counted}, {self.tokens_out:,} out"
        return f"{self.prompts:,} prompts{there}: {tokens}, ${self.dollars:,.2f}"


class Ledger:
    """Asks a client for an atlas, from any number of threads. spec: prices and budget; None: it costs nothing.

    asked, kept: prompts that were sent, and whose answers were there, by this ledger. Raises BadFile where the atlas
    cannot be written, before anything is paid for.
    """

    def __init__(self, atlas: Atlas, client: Client, spec: EndpointSpec | None = None) -> None:
        self.atlas, self.client = atlas, client
        self.spec = spec or EndpointSpec()
        self.asked, self.kept = 0, 0
        self._room = threading.Condition()
        self._spent, self._aside = spent(atlas).dollars, 0.0
        self._turns: dict[tuple[str, str, str], threading.Lock] = {}
        keep(atlas)

    def __repr__(self) -> str:
        return f"Ledger({self.client.model}, {self.asked:,} asked, {self.kept:,} kept, ${self.dollars:,.4f})"

    @property
    def dollars(self) -> float:
        """Spent on this atlas so far, earlier runs counted in."""
        return self._spent

    def ask(self, question: Question, feature: int | None = None) -> Answer:
        """The answer, from the atlas where it is there. Raises NoAnswer, OverBudget, BadInput in a dry run."""
        key = question.purpose, self.client.model, question.key(self.client.settings)
        with self._turn(key):
            told = answered(self.atlas, *key)
            if told is not None:
                with self._room:
                    self.kept += 1
                return Answer.from_json(told)
            if self.spec.dry_run:
                raise BadInput("This is a dry run: nothing is sent.")
            sent, written = self.client.most(question)
            most = self._price(sent, written)
            answer = self.client.ask(question, lambda: self._attempt(most, key, (int(sent), written), feature))
            counted = bool(answer.tokens_in or answer.tokens_out)
            dollars = self._price(answer.billed_in, answer.tokens_out) if counted else most
            used = (answer.tokens_in, answer.tokens_out) if counted else (int(sent), written)
            self._settle(most, dollars)
            keep(self.atlas, Asked(*key, answer.to_json(), *used, dollars, feature))
            with self._room:
                self.asked += 1
            return answer

    def estimate(self, questions: Iterable[Question], count: Callable[[str], int] | None = None,
                 counted: str = "a tokenizer") -> Estimate:  # fmt: skip
        """What it would take to ask these, without asking. count: tokens of a text, by what `counted` names; None:
        characters / 4."""
        by = counted if count else f"characters / {PER_TOKEN}"
        count = count or (lambda text: -(-len(text) // PER_TOKEN))
        prompts = there = sent = written = 0
        for question in questions:
            key = question.purpose, self.client.model, question.key(self.client.settings)
            if answered(self.atlas, *key) is not None:
                there += 1
                continue
            prompts += 1
            sent += count(question.shared) + count(question.text)
            written += question.likely_tokens + self.spec.thinking
        return Estimate(prompts, there, sent, written, self._price(sent, written), by)

    def _price(self, sent: float, written: float) -> float:
        return (sent * self.spec.price_in + written * self.spec.price_out) / MILLION

    @contextmanager
    def _turn(self, key: tuple[str, str, str]) -> Iterator[None]:
        """One at a time asks the same: the others then find the answer."""
        with self._room:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            try:
                yield
            finally:
                with self._room:
                    self._turns.pop(key, None)

    @contextmanager
    def _attempt(self, most: float, key: Any, tokens: tuple[int, int], feature: int | None) -> Iterator[None]:
        """Sets aside what one attempt may cost. If it is answered, that stays aside until it is settled."""
        self._set_aside(most)
        try:
            yield
        except Failed as failure:
            self._settle(most, most if failure.billed else 0.0)
            if failure.billed and most:
                purpose, model, prompt = key
                lost = Asked(LOST, model, f"{prompt} {uuid.uuid4().hex[:8]}", purpose, *tokens, most, feature)
                keep(self.atlas, lost)
            raise
        except BaseException:
            self._settle(most, most)  # nobody knows how far it came
            raise

    def _set_aside(self, most: float) -> None:
        """Waits while what is under way may leave room. Raises OverBudget where it cannot."""
        budget = self.spec.budget
        with self._room:
            if budget is not None:
                self._room.wait_for(lambda: self._spent + self._aside + most <= budget or not self._aside)
                left = budget - self._spent
                if self._aside + most > left:
                    raise OverBudget(
                        f"The next prompt may cost ${most:,.4f}, and of the budget of ${budget:,.2f} there is "
                        f"${max(left, 0):,.4f} left: it was not sent. What was answered is kept; a run with a higher "
                        "budget goes on from there."
                    )
            self._aside += most

    def _settle(self, most: float, dollars: float) -> None:
        with self._room:
            self._aside -= most
            self._aside = self._aside if self._aside > 1e-12 else 0.0
            self._spent += dollars
            self._room.notify_all()
