"""Which features made the model say it: the logit of tokens of a prompt, shared out among the features before them.

With L the sum of the logits of tokens start .. end − 1 (each read at the token before it), x the residual at the hook
point, and the SAE's error held constant, x = Σ a_f · W_dec[f] + b_dec + error, so that to first order feature f at
token s has

    value(f, s) = a_f(s) · (∂L/∂x(s) · W_dec[f])

of it (gradient × activation; Syed, Rager and Conmy 2023, Marks et al. 2024). One pass, one backward pass to the hook
point. Exact where the rest of the model is linear; `check` says how far it is from what ablating does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsight.edits import Edits
from sparsight.records import Kind
from sparsight.sae.codes import Codes
from sparsight.scope.scope import Scope


@dataclass(frozen=True)
class At:
    """A feature at a token. activation: raw; value: what of the logit is due to it, nats."""

    token: int
    activation: float
    value: float


@dataclass(frozen=True)
class Attributed:
    """A feature: value is the sum over the tokens where it is active, which are told strongest first."""

    feature: int
    label: str | None
    value: float
    tokens: tuple[At, ...]


@dataclass(frozen=True, eq=False)
class Attribution:
    """ids, texts, kinds: of the prompt's tokens; start, end: those whose logits were shared out. logits: theirs, less
    the mean over the vocabulary where centred. codes: one row for each token of the prompt; values: float32, one for
    each pair of codes. rest: of the gradient times the residual, what no feature has: the SAE's error and bias."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    kinds: tuple[Kind, ...]
    start: int
    end: int
    logits: tuple[float, ...]
    centred: bool
    codes: Codes
    values: Any
    rest: float

    def top(self, k: int = 20, bos: bool = False) -> list[Attributed]:
        """The k features that raised the logits most; those that lowered them are in `bottom`. bos: count the first
        token too, whose norm is often far off the scale."""
        raise NotImplementedError

    def bottom(self, k: int = 20, bos: bool = False) -> list[Attributed]:
        """The k features that lowered the logits most, the lowest first."""
        raise NotImplementedError


@dataclass(frozen=True)
class Check:
    """features: which were ablated, everywhere before the target; predicted: their values; measured: by how much the
    logits fell; rank: Spearman's correlation of the two."""

    features: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    rank: float


@dataclass(frozen=True)
class TokenLogit:
    """A candidate for the next token. probability: among the whole vocabulary."""

    id: int
    text: str
    logit: float
    probability: float


def attribute(
    scope: Scope, messages: Any, start: int, end: int | None = None, *, centred: bool = True, **template: Any
) -> Attribution:
    """Features whose activation raised the logit of the tokens at start .. end − 1 (None: at start alone) of the
    prompt. start: from 1, since the first token follows nothing; negative ones count from the end. template: keywords
    of the chat template. Raises BadInput, TooLong."""
    raise NotImplementedError


def check(scope: Scope, attribution: Attribution, n: int = 32) -> Check:
    """Ablate each of the n features with the largest values, either sign, and see. Raises Missing without scipy."""
    raise NotImplementedError


def next_logits(
    scope: Scope,
    messages: Any,
    top_k: int = 10,
    vocabulary: Sequence[str] | None = None,
    edits: Edits = None,
    **template: Any,
) -> list[TokenLogit]:
    """What the model would say next, likeliest first. vocabulary: only these texts, each of which is one token (with or
    without a space before it). Raises BadInput."""
    raise NotImplementedError
