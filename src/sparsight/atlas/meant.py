"""How near each feature's label is to a few words: of an atlas, or of labels that came without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.search import FUSED, said_words
from sparsight.atlas.vectors import Embedder, vectors_of
from sparsight.errors import BadInput

NOTHING = -1.0  # of a feature without a label


def closeness(
    text: str,
    features: Sequence[int],
    labels: Mapping[int, str],
    atlas: Atlas | None = None,
    embedder: Embedder | None = None,
) -> list[float]:
    """Of each feature, the cosine of its label with a text (of several labels, the nearest one's); without an embedder,
    the share of the text's words that the label has. NOTHING for a feature without a label.

    labels: {feature: text}, which count where there is no atlas, or no embedder.
    """
    if embedder is None:
        wanted = {word.lower() for word in said_words(text)}
        return [_share(wanted, labels[one]) if one in labels else NOTHING for one in features]
    if atlas is None:
        known, vectors = [*labels], _vectors(embedder, tuple(labels.values()))
    else:
        found = vectors_of(atlas, embedder)
        known, vectors = found.feature.tolist(), found.vector
    best: dict[int, float] = {}
    if known:
        for feature, cosine in zip(known, (vectors @ embedder.embed([text])[0]).tolist(), strict=True):
            best[feature] = max(best.get(feature, NOTHING), cosine)
    return [best.get(one, NOTHING) for one in features]


def ranked_labels(text: str, labels: Mapping[int, str], embedder: Embedder | None = None) -> list[tuple[int, float]]:
    """(feature, relevance) of labels that came without an atlas, best first: by the words that they share with a text
    and by what they mean, fused by reciprocal rank; relevance is 1 for what is first in both. Raises BadInput for an
    empty text."""
    if not text.strip():
        raise BadInput("Nothing is looked for. Give words.")
    rankings = []
    for one in [None] if embedder is None else [None, embedder]:
        near = dict(zip(labels, closeness(text, [*labels], labels, embedder=one), strict=True))
        rankings.append(sorted((f for f in near if near[f] > 0), key=lambda f, near=near: (-near[f], f)))
    score: dict[int, float] = {}
    for ranking in rankings:
        for rank, feature in enumerate(ranking, 1):
            score[feature] = score.get(feature, 0.0) + (FUSED + 1) / (FUSED + rank) / len(rankings)
    return sorted(score.items(), key=lambda pair: (-pair[1], pair[0]))


def _share(wanted: set[str], label: str) -> float:
    return len(wanted & {word.lower() for word in said_words(label)}) / max(len(wanted), 1)


@lru_cache(maxsize=4)
def _vectors(embedder: Embedder, texts: tuple[str, ...]) -> Float[np.ndarray, "label dim"]:
    return embedder.embed(texts)
