"""How an SAE is evaluated: every knob, with what it means and its unit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sparsight.config import knob
from sparsight.errors import BadInput
from sparsight.records import SPECIAL, Kind, finite, is_whole

SELECTIONS = {"all": Kind(0), "no-bos": Kind.BOS, "no-special": SPECIAL}  # name -> the kinds of token left out
COLUMNS = {"all": "all tokens", "no-bos": "without BOS", "no-special": "without BOS and template"}


@dataclass(frozen=True)
class EvaluateSpec:
    """On how much text, on which of its tokens. The first token of a row counts as BOS, whatever it is."""

    tokens: int = knob(200_000, "tokens to reconstruct, at most; the text may end before")
    loss_tokens: int = knob(20_000, "tokens to run the model on with its residual replaced, at most; 0: none")
    selections: tuple[str, ...] = knob(
        ("all", "no-bos", "no-special"), "which tokens are reconstructed, side by side: all, no-bos, no-special"
    )
    splice: tuple[str, ...] = knob(
        ("no-bos", "no-special"), "which tokens are replaced, one variant each: all, no-bos, no-special"
    )
    length: int = knob(1024, "tokens of a conversation at most; the rest of it is left out")
    batch_tokens: int = knob(8192, "tokens of one pass, padding included; fewer where their logits would fill 1 GiB")
    dense_above: float = knob(0.1, "share of tokens on which a feature fires, above which it is called dense")
    check: bool = knob(True, "first read a little built-in text, and warn where the SAE explains nothing of it")

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("loss_tokens", 0), ("length", 2), ("batch_tokens", 1)):
            value = getattr(self, name)
            if not is_whole(value) or value < least:
                raise BadInput(f"{name} is a whole number from {least} up, not {value!r}.")
        for name in ("selections", "splice"):
            given = getattr(self, name)
            given = (given,) if isinstance(given, str) else tuple(given)
            for one in given:
                if one not in SELECTIONS:
                    raise BadInput(f"No tokens {one!r} for {name}. There are: {', '.join(SELECTIONS)}.")
            object.__setattr__(self, name, tuple(one for one in SELECTIONS if one in given))
        if not self.selections:
            raise BadInput(f"selections needs at least one of: {', '.join(SELECTIONS)}.")
        if not 0 <= finite(self.dense_above, "dense_above") <= 1:
            raise BadInput(f"dense_above is a share, from 0 to 1, not {self.dense_above!r}.")
        if not isinstance(self.check, bool):
            raise BadInput(f"check is True or False, not {self.check!r}.")

    @classmethod
    def knobs(cls) -> dict[str, str]:
        """What each knob means."""
        return {f.name: f.metadata["says"] for f in fields(cls)}

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}
