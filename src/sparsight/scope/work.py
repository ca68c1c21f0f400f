"""What the model is to run next: conversations of a corpus, tokenised and packed, pool by pool.

A pool is so many conversations that follow each other in the corpus; its passes are numbered. So a place in a long
reading is a place in the corpus, where a pool begins, and a pass of that pool: the same pool gives the same passes
again.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sparsight.corpus.conversation import Conversation
from sparsight.corpus.corpus import Corpus, read
from sparsight.corpus.spec import CorpusSpec
from sparsight.errors import BadInput, NoChatTemplate
from sparsight.lm.batch import Batch, Prompt
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.lm.pack import cut, packed
from sparsight.records import Kind

SAMPLE = 1000  # conversations that are tokenised to tell how many tokens the corpus has


@dataclass(frozen=True)
class Work:
    """One pass. after, number: its pool's place in the corpus, and its own in the pool. batch: None at the end of the
    corpus, and for a pool that left nothing to run; conversations: of its rows. cut: how many of those lost tokens,
    and lost: how many tokens. refused: conversations of the pool that gave no tokens, and why: of the first; told with
    its first pass. tally: the corpus' when this pool was read.
    """

    after: int
    number: int
    batch: Batch | None
    conversations: tuple[Conversation, ...]
    cut: int
    lost: int
    refused: int
    why: str
    tally: dict[str, Any]


def works(
    lm: ObservableLanguageModel, corpus: Corpus, tokens: int, size: int, length: int | None, first: int = 0
) -> Generator[Work, None, None]:
    """The passes from where the corpus goes on. tokens: of a pass; size: conversations of a pool; length: tokens of a
    conversation; as in lm/pack.py. first: number of the pass that its first pool begins with."""
    after, conversations = corpus.skip, iter(corpus)
    while pool := list(islice(conversations, size)):
        prompts, refused, why = _prompts(lm, pool)
        tally, lost = _said(corpus), dict[int, int]()

        def on_cut(conversation: Conversation, tokens: int, lost: dict[int, int] = lost) -> None:
            lost[conversation.position] = tokens

        passes = packed(prompts, lm, tokens, len(pool), length, on_cut)
        number = -1
        for number, (tags, batch) in enumerate(passes):
            told = (refused, why) if number == 0 else (0, "")
            mine = [lost[one.position] for one in tags if one.position in lost]
            if number >= first:
                yield Work(after, number, batch, tuple(tags), len(mine), sum(mine), *told, tally)
        if number < 0:
            yield Work(after, 0, None, (), 0, 0, refused, why, tally)
        after, first = pool[-1].position, 0
    yield Work(after, 0, None, (), 0, 0, 0, "", _said(corpus))


def prompt_of(lm: ObservableLanguageModel, conversation: Conversation) -> Prompt:
    """A conversation as the model reads it: a chat by its template, a text as it is. Raises BadInput."""
    if conversation.text is not None:
        return lm.prompt(conversation.text)
    return lm.prompt(conversation.messages, add_generation_prompt=False)


def expected(lm: ObservableLanguageModel, corpus: CorpusSpec, kinds: Kind, length: int | None) -> int:
    """About how many tokens of these kinds the whole corpus has, which is read for it: the tokens of a character, and
    the share that is of these kinds, are those of its first conversations."""
    longest = min((limit for limit in (length, lm.context) if limit), default=None)
    characters = tokens = kept = whole = 0
    rest = 0.0
    for number, conversation in enumerate(read(corpus), 1):
        if number <= SAMPLE:
            try:
                prompt = prompt_of(lm, conversation)
            except NoChatTemplate:
                raise
            except BadInput:
                continue
            left = cut(prompt, longest)
            characters, whole = characters + conversation.characters, whole + len(prompt)
            tokens, kept = tokens + len(left), kept + sum(1 for kind in left.kinds if kind & kinds)
        elif characters:
            guess = conversation.characters * whole / characters
            rest += guess if longest is None else min(guess, longest)
    return kept + round(rest * kept / max(tokens, 1))


def _prompts(
    lm: ObservableLanguageModel, pool: list[Conversation]
) -> tuple[list[tuple[Conversation, Prompt]], int, str]:
    """(prompts with their conversations, how many conversations gave none, why the first of those did not)."""
    prompts, refused, why = [], 0, ""
    for conversation in pool:
        try:
            prompts.append((conversation, prompt_of(lm, conversation)))
        except NoChatTemplate:
            raise
        except BadInput as error:
            why = why or f"conversation {conversation.position}: {error}"
            refused += 1
    return prompts, refused, why


def _said(corpus: Corpus) -> dict[str, Any]:
    """The corpus' tally as it is now, as JSON."""
    tally = corpus.tally
    counts = {"dropped": dict(tally.dropped), "unreadable": dict(tally.unreadable), "first": dict(tally.first)}
    return {"rows": tally.rows, "kept": tally.kept, **counts}
