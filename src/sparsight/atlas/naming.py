"""Which feature somebody means by a few words of its label. The same words and labels always give the same one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.search import FILLERS, said_words
from sparsight.atlas.vectors import default_embedder, has_vectors, vectors_of
from sparsight.errors import BadInput

CLEAR = 2.0  # times as much of its label as of the next one's: then the first is meant
NEAR, APART = 0.6, 0.1  # cosine of what is meant by meaning alone; and how far before the next one
NUMBERED = re.compile(r"\s*\(\d+\)$")
TOLD = 6  # candidates in an error


def named(words: str, labels: Mapping[int, str], atlas: Atlas | None = None) -> int:
    """The feature that is labelled so; else the one whose label contains the words, or each of them.

    Of several, one that a human named is preferred, then one of whose label the words are clearly more (a label with a
    number behind it, "pirate (2)", is the second of its name). Where no label has the words, and the atlas was searched
    by meaning before, the one that is clearly nearest in meaning. Raises BadInput, with candidates, where that is none.
    """
    asked = words.strip().lower()
    lower = {index: label.lower() for index, label in labels.items()}
    each = [word.lower() for word in said_words(words) if word.lower() not in FILLERS]
    found = (
        [index for index, label in lower.items() if label == asked]
        or [index for index, label in lower.items() if asked and asked in label]
        or [index for index, label in lower.items() if each and all(word in label for word in each)]
    )
    near = [] if found else _near(words, atlas)
    if near and near[0][1] >= NEAR and (len(near) < 2 or near[0][1] - near[1][1] >= APART):
        return near[0][0]
    ranked = _ranked(found, each, labels, _human(atlas))
    if ranked and (len(ranked) == 1 or ranked[0][0] >= CLEAR * ranked[1][0] > 0):
        return ranked[0][1]
    if ranked:
        raise BadInput(f"Several features are labelled {words!r}: {_listed(ranked, labels)}. Name one by its index.")
    some = [(cosine, index) for index, cosine in near]
    some = some or [(0.0, index) for index, label in lower.items() if any(word in label.split() for word in each)]
    if some:
        raise BadInput(
            f"No feature is labelled {words!r}. Near it are: {_listed(some, labels)}. Name one by its index."
        )
    known = ", ".join(list(labels.values())[:8]) or "none"
    raise BadInput(f"No feature is labelled {words!r}. Labels there are: {known}.")


def _ranked(
    found: Collection[int], words: Collection[str], labels: Mapping[int, str], human: Collection[int]
) -> list[tuple[float, int]]:
    """(how much of its label the words are, feature), the best first; only those that a human named, if any."""
    found = [index for index in found if index in human] or list(found)
    names = {labels[index].lower() for index in found}
    firsts = [i for i in found if NUMBERED.sub("", labels[i].lower()) not in names - {labels[i].lower()}]
    shares = [(len(words) / max(len(said_words(labels[index])), len(words), 1), index) for index in firsts]
    return sorted(shares, key=lambda pair: (-pair[0], pair[1]))


def _human(atlas: Atlas | None) -> set[int]:
    """Features that a human has named."""
    return {f for (f,) in atlas.rows("SELECT feature FROM label WHERE method = 'human'")} if atlas else set()


def _near(words: str, atlas: Atlas | None) -> list[tuple[int, float]]:
    """(feature, cosine of its label with the words), the nearest first."""
    if atlas is None or not words.strip() or not has_vectors(atlas):
        return []
    embedder = default_embedder()
    if embedder is None:
        return []
    known = vectors_of(atlas, embedder)
    cosines = known.vector @ embedder.embed([words])[0]
    best: dict[int, float] = {}
    for place in cosines.argsort(kind="stable")[::-1][: 4 * TOLD].tolist():
        best.setdefault(int(known.feature[place]), float(cosines[place]))
    return list(best.items())[:TOLD]


def _listed(ranked: Collection[tuple[float, int]], labels: Mapping[int, str]) -> str:
    several = [f"{index} ({labels[index]})" for _, index in ranked if index in labels]
    return ", ".join(several[:TOLD]) + (f" and {len(several) - TOLD:,} more" if len(several) > TOLD else "")
