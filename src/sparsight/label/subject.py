"""The model that the features are of, asked what they mean: by a prompt, as any other model; or by its own directions.

The second shows it no text at all. It is asked what the word "X" means, and at the places of X the residual stream is
set to the feature's decoder direction:

    residual[X]  =  strength · m · W_dec[feature] / |W_dec[feature]|        m: median norm of the prompt's residuals

(SelfIE, Chen et al. 2024, arXiv 2403.10949; self-explanation of SAE features, Kharlapenko et al. 2024). The right
strength differs from feature to feature: it is asked at several, in one batch, and the answer that agrees most with
those at other strengths is taken. Words that the model also says to the prompt as it is, or to random directions in
X's place, tell nothing of a feature: an answer that has no others leaves no label. As in SelfIE the direction is put
in early, after the third layer: the layers above have to read it, and each of them begins with a norm, so that right
before the last ones its strength would mean little.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sparsight.atlas.entries import Label
from sparsight.config import check, knob
from sparsight.errors import BadInput
from sparsight.label import prompts
from sparsight.label.clients.client import Answer, Hold, Question
from sparsight.label.evidence import Evidence
from sparsight.records import finite

if TYPE_CHECKING:
    from torch import Tensor

    from sparsight.lm.batch import Place, Prompt
    from sparsight.scope.scope import Scope


RANDOM = 4  # directions that show what is said to any
EARLY = 2  # the layer, from 0, after which a direction is put in a word's place


class SubjectClient:
    """The model of a scope as somebody who answers questions (label.clients.client.Client); it costs nothing. A model
    without a chat template goes on with the question as a text."""

    method, at_once = "subject", 1

    def __init__(self, scope: Scope) -> None:
        self.scope, self.model = scope, scope.lm.name
        self.settings: Mapping[str, Any] = {"temperature": 0.0}

    def ask(self, question: Question, hold: Hold = nullcontext) -> Answer:
        """Raises TooLong where the question does not fit into the model's context."""
        with hold():
            reply = self.scope.chat(self._prompt(question), max_new_tokens=question.most_tokens)
        return Answer(reply.text, reply.prompt_tokens, len(reply.ids))

    def most(self, question: Question) -> tuple[float, int]:
        return 0.0, 0

    def fits(self, question: Question) -> bool:
        lm = self.scope.lm
        return lm.context is None or len(self._prompt(question)) + question.most_tokens <= lm.context

    def close(self) -> None: ...

    def _prompt(self, question: Question) -> Prompt:
        asked = f"{question.shared}\n\n{question.text}"
        if self.scope.lm.tokenizer.chat_template:
            return self.scope.lm.prompt([{"role": "user", "content": asked}])
        return self.scope.lm.prompt(f"{asked}\n\nAnswer: ")


@dataclass(frozen=True)
class Injection:
    """How a feature's direction is put in a word's place."""

    strengths: tuple[float, ...] = knob(
        (0.5, 1.0, 2.0, 4.0, 8.0), "lengths of what is put there, in median norms of the prompt's residuals"
    )
    at: str | None = knob(None, "hook point where it is put; None: the third layer, or the SAE's own if that is lower")
    tokens: int = knob(30, "tokens that an answer may have")

    def __post_init__(self) -> None:
        given = self.strengths if isinstance(self.strengths, tuple | list) else (self.strengths,)
        strengths = tuple(finite(one, "a strength") for one in given)
        check(given, "strengths", len(set(strengths)) > 1 and min(strengths) > 0, "two or more numbers above 0")
        object.__setattr__(self, "strengths", tuple(sorted(set(strengths))))


class InjectedLabeller:
    """Puts a feature's own direction in place of a word, and asks the model what the word means. Deterministic; the
    model is as it was. labelled, nonsense: features with an answer, and without one that can be used."""

    method, at_once = "subject", 1

    def __init__(self, scope: Scope, injection: Injection | None = None) -> None:
        from sparsight.lm.tap import find

        self.scope, self.injection = scope, injection or Injection()
        self.model = scope.lm.name
        config = scope.sae.config
        own = (config.hook_point_out if config.transcoder else None) or scope.hook_point
        self.at = self.injection.at or early(own)
        find(scope.lm.model, self.at)
        self.prompt = prompts.version([prompts.MEANING, self.at], self.injection, {"temperature": 0.0})
        self.labelled = self.nonsense = 0

    def label(self, evidence: Evidence) -> Label | None:
        """A label; None where the model's answers at different strengths have nothing in common, or nothing but what
        it says anyway."""
        found = most_agreed(self.anyway, self.answers(evidence.feature))
        self.labelled += found is not None
        self.nonsense += found is None
        if found is None:
            return None
        text, agreement = found
        return Label(evidence.feature, text, self.method, self.model, self.prompt, confidence=agreement)

    def answers(self, feature: int) -> list[str]:
        """What the model says X means with the feature's direction in its place, at each strength, ascending."""
        return self._said([self.scope.sae.W_dec[feature].float()])

    @cached_property
    def anyway(self) -> str:
        """What it says to the prompt as it is, and to random directions."""
        import torch

        draw = torch.Generator().manual_seed(0)
        width = self.scope.sae.W_dec.shape[-1]
        random = [torch.randn(width, generator=draw).to(self.scope.sae.device) for _ in range(RANDOM)]
        return " ".join(self._said([None, *random]))

    def _said(self, directions: Sequence[Tensor | None]) -> list[str]:
        """The answers to each direction at each strength; one to None, which is nothing in X's place."""
        prompt, places, norm = self._prompt
        vectors: list[Tensor | None] = []
        for direction in directions:
            length = 0.0 if direction is None else float(direction.norm())
            if direction is None or not length:
                vectors.append(None)
            else:
                vectors += [strength * norm / length * direction for strength in self.injection.strengths]
        options: dict[str, Any] = {"max_new_tokens": self.injection.tokens, "stop": ('"', "\n")}
        put = {self.at: Put(places, vectors)}
        return [one.text for one in self.scope.lm.generate([prompt] * len(vectors), interventions=put, **options)]

    @cached_property
    def _prompt(self) -> tuple[Prompt, list[int], float]:
        """The question with the beginning of its answer, where X stands in it, and the median norm of its residuals."""
        from sparsight.lm.text import pieces

        lm, (asked, begun) = self.scope.lm, prompts.MEANING
        if lm.tokenizer.chat_template:
            chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": begun}]
            prompt = lm.prompt(chat, continue_final_message=True)
        else:
            prompt = lm.prompt(f"{asked}\n{begun}")
        places = placeholders(pieces(lm.tokenizer, prompt.ids))
        if not places:
            raise BadInput(f"The tokenizer of {lm.name} leaves nothing of the word {prompts.PLACEHOLDER!r}.")
        flow = lm.activations([prompt], [self.at])[self.at][0, 1:]  # not the first token, whose norm is its own
        return prompt, places, float(flow.float().norm(dim=-1).median())


def early(hook_point: str) -> str:
    """The same place in a lower layer: "model.layers.2" for "model.layers.19". What is no layer's output stays."""
    layers = re.fullmatch(r"(.*\.)(\d+)", hook_point)
    return f"{layers[1]}{min(int(layers[2]), EARLY)}" if layers else hook_point


class Put:
    """An intervention that puts a vector in place of what flows at some tokens of the prompt; None leaves a row be."""

    def __init__(self, places: Sequence[int], vectors: Sequence[Tensor | None]) -> None:
        self.places, self.vectors = places, vectors

    def edit(self, activations: Tensor, place: Place) -> Tensor:
        if not place.prompt:
            return activations
        out = activations.clone()
        put = [(row, vector) for row, vector in enumerate(self.vectors) if vector is not None]
        for row, vector in put:
            for at in self.places:
                out[row, (place.positions[row] == at) & (place.kinds[row] != 0)] = vector.to(out)
        return out


def placeholders(pieces: Sequence[str]) -> list[int]:
    """The tokens that the quoted placeholder is in."""
    text, ends, at = "".join(pieces), [], 0
    for piece in pieces:
        at += len(piece)
        ends.append(at)
    spots = [found.start() + 1 for found in re.finditer(f'"{prompts.PLACEHOLDER}"', text)]
    return [next(i for i, end in enumerate(ends) if spot < end) for spot in spots]


def most_agreed(anyway: str, answers: Sequence[str]) -> tuple[str, float] | None:
    """The answer that shares most of its words with the others, and how much: the mean share of words in common
    (Jaccard), without those that are said anyway. None where no two have one in common. Of equals, the first."""
    known = _words(anyway)
    read = [(label, _words(label) - known) for label in map(prompts.read_meaning, answers) if label]
    told = [(label, words) for label, words in read if words]
    best, most = None, 0.0
    for i, (label, words) in enumerate(told):
        others = [mine for j, (_, mine) in enumerate(told) if j != i]
        agreement = sum(len(words & mine) / len(words | mine) for mine in others) / max(len(answers) - 1, 1)
        if agreement > most:
            best, most = label, agreement
    return None if best is None else (best, most)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))
