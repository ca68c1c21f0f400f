"""An atlas in a few figures."""

from __future__ import annotations

from typing import Any

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.entries import FLAGS
from sparsight.atlas.log import open_log


def summary(atlas: Atlas) -> dict[str, Any]:
    """What it is of and how much there is, as plain data. flags: how many features have each."""
    about, log = atlas.about, open_log(atlas)
    (labelled,) = next(atlas.rows("SELECT count(DISTINCT feature) FROM label"))
    flags, _ = tally(atlas)
    return {
        "atlas": str(atlas.folder),
        "SAE": about.sae,
        "model": about.model,
        "hook point": about.hook_point,
        "features": len(atlas),
        **{flag: flags.get(flag, 0) for flag in FLAGS},
        "labelled": labelled,
        "documents": about.documents,
        "tokens": about.tokens,
        "documents in the log": 0 if log is None else len(log.documents),
        "activations in the log": 0 if log is None else len(log),
    }


def tally(atlas: Atlas) -> tuple[dict[str, int], dict[str, int]]:
    """({flag: features that have it}, {method: labels of it}), of those that occur."""
    flags: dict[str, int] = {}
    for said, count in atlas.rows("SELECT flags, count(*) FROM feature GROUP BY flags"):
        for flag in said.split():
            flags[flag] = flags.get(flag, 0) + count
    return flags, dict(atlas.rows("SELECT method, count(*) FROM label GROUP BY method ORDER BY 2 DESC"))
