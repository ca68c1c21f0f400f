"""Which features have a label already."""

from __future__ import annotations

from sparsight.atlas.atlas import Atlas


def labelled(atlas: Atlas) -> set[int]:
    """Features with any label."""
    return {feature for (feature,) in atlas.rows("SELECT DISTINCT feature FROM label")}


def labelled_by(atlas: Atlas, method: str, model: str, prompt: str) -> set[int]:
    """Features with a label of this method, model and prompt."""
    query = "SELECT feature FROM label WHERE method = ? AND model = ? AND prompt = ?"
    return {feature for (feature,) in atlas.rows(query, method, model, prompt)}
