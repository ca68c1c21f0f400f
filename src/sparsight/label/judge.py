"""Who judges labels that are prose: given a label, which windows does its feature fire in?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sparsight.label.evidence import Window


class Judge(Protocol):
    """model, prompt: who it is, and the hash of how it is asked."""

    model: str
    prompt: str

    def ask(
        self, windows: Sequence[Window], label: str, marks: Sequence[frozenset[int]] | None = None
    ) -> Sequence[float] | None:
        """Of each window, the probability that a feature of this meaning fires in it; 0 or 1 where it only says no or
        yes. None where it gave no answer that can be used.

        It is shown texts alone, never activations. marks: of each window, tokens that are said to be those where the
        feature fires: the probability that this is right.
        """
        ...
