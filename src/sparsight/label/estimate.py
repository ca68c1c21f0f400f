"""What it would take to label and to score, before anybody is asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sparsight.atlas.log import open_log
from sparsight.label.clients.client import Question
from sparsight.label.clients.ledger import Estimate
from sparsight.label.gather import Gatherer
from sparsight.label.prose import PromptedLabeller, ProseJudge, foreseen
from sparsight.label.spec import LabelSpec


def estimate(
    labeller: PromptedLabeller,
    judge: ProseJudge | None,
    features: Iterable[int],
    spec: LabelSpec,
    tokenizer: Any,
) -> Estimate:
    """Prompts, tokens and dollars for these features; the shuffled control of every spec.control_every-th is in it.
    Tokens are counted by the atlas's own tokenizer: the model that is asked may have another."""
    atlas = labeller.ledger.atlas
    gatherer = Gatherer(atlas, tokenizer, spec, open_log(atlas))

    def questions() -> Iterator[Question]:
        for feature in features:
            control = judge if feature % spec.control_every == 0 else None
            yield from foreseen(labeller, judge, gatherer.evidence(feature), gatherer.held_out_of(feature), control)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return labeller.ledger.estimate(questions(), count, f"the tokenizer of {atlas.about.model}")
