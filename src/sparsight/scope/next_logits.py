"""What the model would say next, with the logits that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparsight.edits import Edits
from sparsight.errors import BadInput
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import is_whole
from sparsight.scope.edited import edited_logits
from sparsight.scope.scope import Scope


@dataclass(frozen=True)
class TokenLogit:
    """A candidate for the next token. probability: among the whole vocabulary, at temperature 1."""

    id: int
    text: str
    logit: float
    probability: float


def next_logits(
    scope: Scope,
    messages: Any,
    top_k: int = 10,
    vocabulary: Sequence[str] | None = None,
    edits: Edits = None,
    **template: Any,
) -> list[TokenLogit]:
    """The top_k likeliest next tokens after a chat (whose reply is about to begin) or a text, likeliest first.

    vocabulary: only of these texts, each of which is one token, as it stands or with a space before it; told under
    the text that was given. edits: as for chat. Raises BadInput, TooLong.
    """
    lm = scope.lm
    if not is_whole(top_k) or top_k < 1:
        raise BadInput(f"top_k is a whole number from 1 up, not {top_k!r}.")
    named = None if vocabulary is None else {token(lm, text): text for text in vocabulary}
    if named is not None and not named:
        raise BadInput("The vocabulary is empty: give texts of one token, or None for all.")
    prompt = lm.prompt(messages) if isinstance(messages, str) else lm.prompt(messages, **template)
    logits = edited_logits(scope, prompt, edits)
    shares = logits.softmax(-1)
    ids = torch.arange(len(logits)) if named is None else torch.tensor(sorted(named))
    order = logits[ids].argsort(descending=True, stable=True)[:top_k]
    return [
        TokenLogit(id, named[id] if named else text_of(lm, id), float(logits[id]), float(shares[id]))
        for id in ids[order].tolist()
    ]


def token(lm: ObservableLanguageModel, text: str) -> int:
    """The id of a text that is one token. Raises BadInput for one that is none, or several."""
    for form in (text, f" {text}"):
        ids = lm.tokenizer(form, add_special_tokens=False)["input_ids"] if isinstance(text, str) and text else []
        if len(ids) == 1:
            return int(ids[0])
    raise BadInput(f"{text!r} is no single token of this model, with or without a space before it.")


def text_of(lm: ObservableLanguageModel, id: int) -> str:
    """A token as text; special ones by name."""
    return str(lm.tokenizer.decode([id])) if lm.has_tokenizer else str(id)
