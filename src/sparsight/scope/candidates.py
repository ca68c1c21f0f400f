"""Features that may bring about what is wished: those that fire where it was asked for, just before the reply begins;
those that tell wished replies from others; those whose labels speak of it. Which of them do, a trial says.

A label alone is a poor guide to what a feature does, and so is where it fires; hence all three, in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from sparsight.atlas.search import FILLERS, said_words, search
from sparsight.atlas.vectors import default_embedder, has_vectors
from sparsight.lm.batch import Prompt
from sparsight.records import Kind
from sparsight.scope.contrast import Contrast, between
from sparsight.scope.contrastive import chat, told
from sparsight.scope.scope import Scope

EACH = 12  # of either sort


def candidates(scope: Scope, text: str, questions: Sequence[str], answers: Contrast, most: int) -> list[int]:
    """At most so many features, that have a unit where the SAE has units at all, the likeliest first."""
    lists = [
        labelled(scope, text, EACH),
        [one.feature for one in _before_the_reply(scope, text, questions).with_],
        [one.feature for one in answers.with_],
    ]
    turns = [feature for turn in zip_longest(*lists) for feature in turn if feature is not None]
    scale = scope.sae.scale
    return [f for f in dict.fromkeys(turns) if scale is None or float(scale[f]) > 0][:most]


def labelled(scope: Scope, text: str, k: int) -> list[int]:
    """Features whose labels speak of a text, best first: by the atlas' search where there is one, and by labels that
    share its rarest words."""
    labels = scope.features.labels
    words = {index: {_stem(w) for w in said_words(label)} for index, label in labels.items()}
    wanted = {_stem(word) for word in said_words(text) if word.lower() not in FILLERS}
    share = {word: sum(word in own for own in words.values()) for word in wanted}
    scores = {index: sum(1 / share[word] for word in wanted & own) for index, own in words.items()}
    found = sorted((index for index in scores if scores[index] > 0), key=lambda i: (-scores[i], len(words[i]), i))[:k]
    if scope.atlas is None or not said_words(text):
        return found
    embedder = default_embedder() if has_vectors(scope.atlas) else None
    query = " ".join(said_words(text))  # no word of it is a filter
    hits = [hit.feature for hit in search(scope.atlas, query, k, embedder) if hit.label]
    return list(dict.fromkeys(f for pair in zip_longest(found, hits) for f in pair if f is not None))[:k]


def last_header(prompt: Prompt) -> list[bool]:
    """The template's tokens behind the last message: all that is there before the reply begins."""
    end = max((i + 1 for i, kind in enumerate(prompt.kinds) if not kind & Kind.TEMPLATE), default=0)
    return [i >= end for i in range(len(prompt))]


def _before_the_reply(scope: Scope, text: str, questions: Sequence[str]) -> Contrast:
    """What tells a reply that was asked for from one that was not, before its first word."""
    asked = [scope.lm.prompt(told(scope.lm, question, text)) for question in questions]
    plain = [scope.lm.prompt(chat(question)) for question in questions]
    return between(scope, (asked, plain), last_header, "the last header", (EACH, 0))


def _stem(word: str) -> str:
    """So that talk and talks are one."""
    lower = word.lower()
    return lower.removesuffix("s") if len(lower) > 3 else lower
