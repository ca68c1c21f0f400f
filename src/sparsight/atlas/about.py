"""What an atlas is of: an SAE, a model, a tokenizer, a text. Another of any of these is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsight.errors import Mismatch


@dataclass(frozen=True)
class About:
    """sae: fingerprint. tokenizer: hash of its vocabulary. corpus: what the text was, as JSON. settings: of the
    survey. created: ISO 8601, UTC. held_out: how documents are dealt out to labellers and to scores."""

    sae: str
    model: str
    tokenizer: str
    hook_point: str
    d_hidden: int
    tokens: int
    documents: int
    model_revision: str = ""
    corpus: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    program: str = ""
    held_out: str = "blake2b(id)[0] & 1"
    schema: int = 1

    def check(self, place: str, sae: str | None = None, tokenizer: str | None = None) -> None:
        """Raises Mismatch where it is of another SAE or another tokenizer than these."""
        for what, asked, mine in (("SAE", sae, self.sae), ("tokenizer", tokenizer, self.tokenizer)):
            if asked is not None and asked != mine:
                todo = "open it with the one it was surveyed with, or survey this one: sparsight survey"
                raise Mismatch(f"The atlas '{place}' is of {what} {mine}, not of {asked}: {todo}.")
