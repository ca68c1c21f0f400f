"""The bridge to nnsight: the same weights, for people who like to write interventions in its `trace`."""

from __future__ import annotations

from typing import Any

from sparsight.errors import Missing
from sparsight.lm.lm import ObservableLanguageModel


def wrap(lm: ObservableLanguageModel) -> Any:
    """nnsight's own model around the one that is loaded already; nothing is copied."""
    try:
        import nnsight
    except ImportError as error:
        raise Missing("nnsight is not installed: pip install 'sparsight[nnsight]'.") from error
    wrapper = getattr(nnsight, "TransformersModel", None) or nnsight.LanguageModel  # the older name is deprecated
    return wrapper(lm.model, tokenizer=lm.tokenizer)
