"""Who writes labels: one protocol for all of them."""

from __future__ import annotations

from typing import Protocol

from sparsight.atlas.entries import Label
from sparsight.label.evidence import Evidence


class Labeller(Protocol):
    """method, model, prompt: as its labels say (atlas.entries.Label); together with the feature they are the label's
    identity, so that a run that was killed knows what it has."""

    method: str
    model: str
    prompt: str

    def label(self, evidence: Evidence) -> Label | None:
        """A label; None where it has nothing to say, or said nothing that can be used."""
        ...
