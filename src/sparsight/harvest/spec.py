"""Which activations: every knob of a harvest with its unit, and the account of what became of every token. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sparsight.config import knob
from sparsight.corpus.spec import check_whole
from sparsight.errors import BadInput
from sparsight.records import KINDS, Kind, finite

"""A token is of exactly one of these."""
DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class HarvestSpec:
    """Where in the model, which tokens, and how they are run."""

    hook_points: tuple[str, ...] = field(metadata={"says": "module paths whose activations are kept, of the same pass"})
    keep: tuple[str, ...] = knob(
        tuple(kind for kind in KINDS if kind != "bos"), f"kinds of tokens that are kept, of: {', '.join(KINDS)}"
    )
    outlier: float = knob(10.0, "drop tokens with a norm above so many medians, at any hook point; 0: none")
    length: int | None = knob(2048, "tokens of a conversation that are read; None: the model's context")
    tokens: int | None = knob(None, "stop after so many kept tokens, of all processes; None: the whole corpus")
    dtype: str = knob("bfloat16", f"of the rows: {', '.join(DTYPES)}")
    pass_tokens: int = knob(16_384, "tokens of one pass of the model, padding included")
    pool: int = knob(1024, "conversations that are sorted by length among each other")
    ahead: int = knob(2, "passes that a thread reads and tokenises ahead; 0: no thread")
    tokens_per_shard: int = knob(0, "tokens of a shard; 0: as many as 512 MiB hold")

    def __post_init__(self) -> None:
        for name in ("hook_points", "keep"):
            object.__setattr__(self, name, _names(getattr(self, name), name))
        if unknown := [kind for kind in self.keep if kind not in KINDS]:
            raise BadInput(f"No kind of tokens {unknown[0]!r}. There are: {', '.join(KINDS)}.")
        object.__setattr__(self, "keep", tuple(kind for kind in KINDS if kind in self.keep))
        outlier = finite(self.outlier or 0, "outlier")
        if outlier and outlier < 1:
            raise BadInput(f"outlier is a number of medians from 1 up, or 0 to drop none, not {self.outlier!r}.")
        object.__setattr__(self, "outlier", outlier)
        if self.dtype not in DTYPES:
            raise BadInput(f"dtype is one of: {', '.join(DTYPES)}, not {self.dtype!r}.")
        for name in ("length", "tokens"):
            if getattr(self, name) is not None:
                check_whole(getattr(self, name), name, 1)
        for name, least in (("pass_tokens", 1), ("pool", 1), ("ahead", 0), ("tokens_per_shard", 0)):
            check_whole(getattr(self, name), name, least)

    @property
    def kinds(self) -> Kind:
        """The kinds that are kept, as bits."""
        return Kind(sum(Kind[kind.upper()] for kind in self.keep))

    @classmethod
    def knobs(cls) -> dict[str, str]:
        """What each knob means."""
        return {f.name: f.metadata["says"] for f in fields(cls)}


@dataclass(frozen=True)
class Harvested:
    """What one process made of its part of the corpus.

    tokens: rows kept. kept: those by kind. dropped: tokens that were not, by kind or by the knob that took them:
    outlier, length, tokens. conversations: those that the model read; cut: those of them that `length` or the model's
    context cut; refused: those that could not be made into tokens, and first_refused: why, of the first. outliers:
    {hook point: {"median", "limit"}} of norms. corpus: the corpus' tally. seconds: of this run, not of earlier ones.
    """

    tokens: int
    kept: Mapping[str, int]
    dropped: Mapping[str, int]
    conversations: int
    cut: int
    refused: int
    first_refused: str
    outliers: Mapping[str, Mapping[str, float]]
    corpus: Mapping[str, Any]
    seconds: float = 0.0

    def __str__(self) -> str:
        said = [f"{self.tokens:,} tokens of {self.conversations:,} conversations"]
        said += [f"{count:,} dropped: {why}" for why, count in self.dropped.items()]
        said += [f"{self.cut:,} conversations cut"] if self.cut else []
        said += [f"{self.refused:,} refused, first: {self.first_refused}"] if self.refused else []
        return "; ".join(said)


def _names(given: Any, name: str) -> tuple[str, ...]:
    """One name or several, as a tuple, each once."""
    each = (given,) if isinstance(given, str) else given
    right = isinstance(each, (list, tuple)) and each and all(isinstance(one, str) and one for one in each)
    if not right or len(set(each)) < len(each):
        raise BadInput(f"{name} takes at least one name, and none twice, not {str(given)[:60]!r}.")
    return tuple(each)
