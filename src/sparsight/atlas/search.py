"""Finds features, by meaning and by words together.

Every way of looking gives a ranking: labels whose words fit (bm25 of SQLite's FTS5), labels whose meaning is near
(cosine of sentence vectors), features that fire on the words themselves. They are fused by reciprocal rank:

    score(feature) = sum over rankings of weight / (60 + its rank there)

(Cormack, Clarke and Büttcher 2009: Reciprocal rank fusion outperforms Condorcet and individual rank learning methods.)
Several words ask for what they mean together: then features that are known by single tokens come after others that fit
as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.columns import columns_of
from sparsight.atlas.entries import Label
from sparsight.atlas.inverted import IdsOf, firing, lifting
from sparsight.atlas.query import NUMBERS, Filter, Query
from sparsight.atlas.vectors import Embedder, vectors_of
from sparsight.errors import BadInput
from sparsight.records import Progress

FUSED = 60  # the constant of reciprocal rank fusion
WEIGHTS = {"tokens": 0.25}  # of rankings; of all others 1
DEEP = 200  # how many of each ranking are fused
TOKENS = ("single token", "word family", "words", "phrase")  # types of labels of single tokens
TOKEN = 0.8  # what a feature counts for that has such a label, where several words are asked for
WORDS = 32  # of a query that are looked for
FILLERS = frozenset(
    re.findall(
        r"\w+",
        """a about all also an and any are as at be by can do does feature features find for from has have how i in into
        is it its like me of on or that the them they thing things this to token tokens was what when where which who
        with words you your""",
    )
)
Fires = Callable[[str], Mapping[int, float]]  # a text to the features that fire on it, with their activations


@dataclass(frozen=True)
class Hit:
    """A feature that was found. score: the higher, the better, within one search; of neighbours, the cosine.

    ranks: its place, from 1, in each ranking that it is in: "words", "meaning" and "tokens" (which fire on them) of the
    query's text; "exact", "logit", "fires" of what else was asked.
    """

    feature: int
    score: float
    label: Label | None = None
    density: float = 0.0
    max: float = 0.0
    ranks: Mapping[str, int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.label.text if self.label else ""


def search(
    atlas: Atlas,
    query: str | Query,
    k: int = 20,
    embedder: Embedder | None = None,
    fires: Fires | None = None,
    ids_of: IdsOf | None = None,
    tell: Callable[[Progress], None] | None = None,
) -> list[Hit]:
    """The k best features, best first.

    embedder: without one, words are looked for as they stand. fires: what `fires:` asks; ids_of: what "exact tokens"
    and `logit:` ask. tell: hears of it where labels must be embedded first. Raises BadInput for an empty query, and
    where a query needs what was not given; NoFeature for an index beyond the SAE.
    """
    asked = Query.of(query)
    if not asked:
        raise BadInput('Nothing is looked for. Give words, "a token", #123, or filters such as density:<0.001.')
    rankings = _by_tokens(atlas, asked, ids_of) | _by_firing(asked, fires)
    allowed, ordered = _allowed(atlas, asked, rankings.values())
    if asked.text:
        rankings |= _by_text(atlas, asked.text, allowed, embedder, ids_of, tell)
    if not rankings:
        rankings = {"": ordered}
    hits = _fused(rankings, allowed, max(k, DEEP))
    if len(said_words(asked.text)) > 1:
        hits = _meant_together(atlas, hits)
    return _told(atlas, hits[:k])


def neighbours(
    atlas: Atlas, features: Sequence[int], k: int = 20, decoder: Float[np.ndarray, "feature d_in"] | None = None
) -> list[Hit]:
    """Features whose decoder directions are nearest, by cosine, to one feature's or to the centre of several.

    decoder: the SAE's decoder rows. Without them, what the survey kept of each: for several, the mean of their
    cosines to those that are near all of them.
    """
    if not features:
        raise BadInput("Neighbours of which feature? Name one, or several.")
    for feature in features:
        atlas.statistics(feature)  # raises NoFeature
    if decoder is None:
        kept = [dict(atlas.statistics(feature).neighbours) for feature in features]
        shared = set.intersection(*map(set, kept)) - set(features)
        near = {one: float(np.mean([cosines[one] for cosines in kept])) for one in shared}
    else:
        if len(decoder) != len(atlas):
            raise BadInput(f"The decoder has {len(decoder):,} rows; this atlas is of {len(atlas):,} features.")
        lengths = np.maximum(np.linalg.norm(decoder, axis=1), 1e-12)
        centre = (decoder[list(features)] / lengths[list(features)][:, None]).mean(0)
        cosines = decoder @ centre / lengths / max(float(np.linalg.norm(centre)), 1e-12)
        cosines[list(features)] = -2
        near = {int(i): float(cosines[i]) for i in _best(cosines, k)}
    best = sorted(near, key=lambda one: (-near[one], one))[:k]
    return _told(atlas, [Hit(one, near[one]) for one in best])


def rerank(hits: Iterable[Hit], text: str, embedder: Embedder | None = None) -> list[Hit]:
    """The same hits, those first whose labels are nearest to a text; without an embedder, that share most words."""
    found = list(hits)
    if embedder is None:
        wanted = {word.lower() for word in said_words(text)}
        scores = [len(wanted & {word.lower() for word in said_words(hit.text)}) / max(len(wanted), 1) for hit in found]
    else:
        vectors = embedder.embed([text, *(hit.text for hit in found)])
        scores = [
            float(cosine) if hit.label else -1.0 for hit, cosine in zip(found, vectors[1:] @ vectors[0], strict=True)
        ]
    order = sorted(range(len(found)), key=lambda i: (-scores[i], i))
    return [replace(found[i], score=scores[i]) for i in order]


# ── the rankings ──────────────────────────────────────────────────────────────────────────────────────────────────


def _by_text(
    atlas: Atlas,
    text: str,
    allowed: np.ndarray | None,
    embedder: Embedder | None,
    ids_of: IdsOf | None,
    tell: Callable[[Progress], None] | None,
) -> dict[str, list[int]]:
    out = {"words": _by_words(atlas, text, allowed)}
    if embedder is not None:
        known = vectors_of(atlas, embedder, tell)
        if len(known.label):
            cosines = known.vector @ embedder.embed([text])[0]
            if allowed is not None:
                cosines[~allowed[known.feature]] = -2
            best = _best(cosines, 2 * DEEP)
            out["meaning"] = list(dict.fromkeys(known.feature[best[cosines[best] > -2]].tolist()))
    if ids_of is not None:
        out["tokens"] = _by_own_words(atlas, text, ids_of)
    return out


def _by_words(atlas: Atlas, text: str, allowed: np.ndarray | None) -> list[int]:
    """By bm25. Where a human has spoken of a feature, only what he said counts."""
    match = " OR ".join(f'"{word}"' for word in said_words(text)[:WORDS])
    if not match:
        return []
    enough = 2 * DEEP if allowed is None else int(4 * DEEP / max(float(allowed.mean()), 1e-4))
    for limit in (enough, -1):  # a filter that leaves much seldom asks for all that fit
        found = list(dict.fromkeys(f for (f,) in atlas.rows(BY_WORDS, match, limit) if allowed is None or allowed[f]))
        if allowed is None or len(found) >= DEEP:
            break
    return found


BY_WORDS = """
SELECT found.feature
FROM (SELECT feature, label, rank AS place FROM word WHERE word MATCH ? ORDER BY rank LIMIT ?) found
WHERE NOT EXISTS (SELECT 1 FROM label WHERE feature = found.feature AND method = 'human' AND id <> found.label)
   OR (SELECT method FROM label WHERE id = found.label) = 'human'
ORDER BY found.place, found.feature
"""


def _by_own_words(atlas: Atlas, text: str, ids_of: IdsOf) -> list[int]:
    """By how much of its activity a feature has on the words of a text, however they are written."""
    total: dict[int, float] = {}
    for word in said_words(text)[:WORDS]:
        best: dict[int, float] = {}
        for form in dict.fromkeys((word, word.lower(), word.capitalize())):
            single = [ids for ids in ids_of(form) if len(ids) == 1]
            for feature, weight in firing(atlas, form, lambda _, ids=single: ids).items():
                best[feature] = max(best.get(feature, 0.0), weight)
        for feature, weight in best.items():
            total[feature] = total.get(feature, 0.0) + weight
    return sorted(total, key=lambda f: (-total[f], f))


def _by_tokens(atlas: Atlas, asked: Query, ids_of: IdsOf | None) -> dict[str, list[int]]:
    """Of features that fire on every exact text, and lift every `logit:`."""
    out: dict[str, list[int]] = {}
    for name, texts, ways in (("exact", asked.exact, firing), ("logit", asked.valued("logit"), lifting)):
        if texts and ids_of is None:
            raise BadInput(f"{texts[0]!r} is looked for as a token: that takes the model's tokenizer.")
        if texts and ids_of is not None:
            out[name] = _in_all([ways(atlas, text, ids_of) for text in texts])
    return out


def _by_firing(asked: Query, fires: Fires | None) -> dict[str, list[int]]:
    texts = asked.valued("fires")
    if texts and fires is None:
        raise BadInput(f"Which features fire on {texts[0][:40]!r} takes the model, and the SAE, to tell.")
    return {"fires": _in_all([fires(text) for text in texts])} if texts and fires is not None else {}


def _in_all(found: Sequence[Mapping[int, float]]) -> list[int]:
    """Features that all of these have, by the sum of what they have."""
    shared = set.intersection(*map(set, found))
    return sorted(shared, key=lambda f: (-sum(one[f] for one in found), f))


def _fused(rankings: Mapping[str, Sequence[int]], allowed: np.ndarray | None, deep: int) -> list[Hit]:
    score: dict[int, float] = {}
    ranks: dict[int, dict[str, int]] = {}
    for name, features in rankings.items():
        features = [f for f in features if allowed is None or allowed[f]][:deep]
        for rank, feature in enumerate(features, 1):
            score[feature] = score.get(feature, 0.0) + WEIGHTS.get(name, 1.0) / (FUSED + rank)
            if name:
                ranks.setdefault(feature, {})[name] = rank
    return [Hit(f, score[f], ranks=ranks.get(f, {})) for f in sorted(score, key=lambda f: (-score[f], f))]


def _meant_together(atlas: Atlas, hits: Sequence[Hit]) -> list[Hit]:
    """With those after others that fit as well whose labels are all of single tokens."""
    marks, types = ", ".join("?" * len(hits)), ", ".join("?" * len(TOKENS))
    rows = atlas.rows(
        f"SELECT feature FROM label WHERE feature IN ({marks}) GROUP BY feature HAVING min(type IN ({types})) = 1",
        *(hit.feature for hit in hits),
        *TOKENS,
    )
    single = {feature for (feature,) in rows}
    weighed = [replace(hit, score=hit.score * TOKEN) if hit.feature in single else hit for hit in hits]
    return sorted(weighed, key=lambda hit: (-hit.score, hit.feature))


def _best(values: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest, the largest first; of equal ones the first."""
    some = np.argpartition(-values, k - 1)[:k] if 0 < k < len(values) else np.arange(len(values))
    return some[np.lexsort((some, -values[some]))]


def said_words(text: str) -> list[str]:
    """The words that say something; all of them where none does. Letters and digits only: nothing that FTS5 obeys."""
    words = re.findall(r"\w+", text)
    return [word for word in words if word.lower() not in FILLERS] or words


# ── filters ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _allowed(atlas: Atlas, asked: Query, rankings: Iterable[Sequence[int]]) -> tuple[np.ndarray | None, list[int]]:
    """(which features may be found, [feature] bool, or None for all; those that the filters leave, in order)."""
    out: np.ndarray | None = None
    ordered: list[int] = []
    where = [one for one in asked.filters if one.name not in ("logit", "fires")]
    if where:
        ordered = _filtered(atlas, where, not asked.text)
        out = _mask(atlas, ordered)
    if asked.features:
        for feature in asked.features:
            atlas.statistics(feature)  # raises NoFeature
        ordered = [f for f in asked.features if out is None or out[f]]
        out = _mask(atlas, ordered)
    for ranking in rankings:
        out = _mask(atlas, ranking) if out is None else out & _mask(atlas, ranking)
    return out, ordered


def _mask(atlas: Atlas, features: Sequence[int]) -> np.ndarray:
    mask = np.zeros(len(atlas), bool)
    mask[np.asarray(features, np.int64)] = True
    return mask


def _filtered(atlas: Atlas, filters: Sequence[Filter], in_order: bool) -> list[int]:
    """Features that pass all filters; in order: by the first number that was asked for, the extreme ones first."""
    columns = columns_of(atlas)
    features = np.flatnonzero(np.logical_and.reduce([columns.passing(one) for one in filters]))
    first = next((one for one in filters if one.name in NUMBERS), None) if in_order else None
    if first:
        by = columns.ordering(first.name)[features]
        features = features[np.lexsort((features, -by if first.op.startswith(">") else by))]
    return features.tolist()


def _told(atlas: Atlas, hits: Sequence[Hit]) -> list[Hit]:
    """Hits with their labels and what the table says."""
    marks = ", ".join("?" * len(hits))
    rows = atlas.rows(
        f"SELECT feature, density, max FROM feature WHERE feature IN ({marks})", *(h.feature for h in hits)
    )
    figures = {feature: (density, peak) for feature, density, peak in rows}
    return [
        replace(hit, label=atlas.label(hit.feature), density=figures[hit.feature][0], max=figures[hit.feature][1])
        for hit in hits
    ]
