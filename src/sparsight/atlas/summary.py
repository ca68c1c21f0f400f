"""An atlas in a few figures."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.entries import FLAGS
from sparsight.atlas.log import open_log


def summary(atlas: Atlas) -> dict[str, Any]:
    """What it is of and how much there is, as plain data. flags: how many features have each."""
    about, log = atlas.about, open_log(atlas)
    (labelled,) = next(atlas.rows("SELECT count(DISTINCT feature) FROM label"))
    flags: Counter[str] = Counter()
    for said, count in atlas.rows("SELECT flags, count(*) FROM feature GROUP BY flags"):
        flags.update(dict.fromkeys(said.split(), count))
    return {
        "atlas": str(atlas.folder),
        "SAE": about.sae,
        "model": about.model,
        "hook point": about.hook_point,
        "features": len(atlas),
        **{flag: flags[flag] for flag in FLAGS},
        "labelled": labelled,
        "documents": about.documents,
        "tokens": about.tokens,
        "documents in the log": 0 if log is None else len(log.documents),
        "activations in the log": 0 if log is None else len(log),
    }
