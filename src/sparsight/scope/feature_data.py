"""What an atlas says of a feature, of features that were found, and of documents, as plain data: for JSON, and for
whoever draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from sparsight.records import Kind

SHOWN_TOKENS = 6  # top tokens in a table


@dataclass(frozen=True)
class Text:
    """Ids to the texts of tokens; without a tokenizer, each is its number."""

    tokenizer: Any = None

    def pieces(self, ids: Iterable[Any]) -> list[str]:
        """Each token's text; together they are the whole."""
        if self.tokenizer is None:
            return [f"#{id} " for id in ids]
        from sparsight.lm.text import pieces

        return list(pieces(self.tokenizer, [int(id) for id in ids]))

    def token(self, id: int) -> str:
        """A token by itself."""
        return self.pieces([id])[0]

    @property
    def ids_of(self) -> Callable[[str], list[tuple[int, ...]]] | None:
        """What search asks of "exact tokens"."""
        if self.tokenizer is None:
            return None
        from sparsight.lm.spelling import spellings

        return lru_cache(maxsize=None)(lambda text: spellings(self.tokenizer, text))


def hit_json(atlas: Any, hit: Any, text: Text) -> dict[str, Any]:
    """A feature that was found."""
    top = atlas.statistics(hit.feature).top_tokens[:SHOWN_TOKENS]
    return {
        "feature": hit.feature,
        "label": hit.text or None,
        "method": hit.label.method if hit.label else None,
        "label_score": hit.label.score if hit.label else None,
        "density": hit.density,
        "max": hit.max,
        "top_tokens": [text.token(id) for id, _ in top],
        "score": hit.score,
        "ranks": dict(hit.ranks),
    }


def feature_json(atlas: Any, feature: int, text: Text, width: int | None, examples: int) -> dict[str, Any]:
    """Everything about one feature. width: tokens on either side of an example's peak, None for what the survey kept;
    examples: at most so many of the strongest, and of the fair sample. Raises NoFeature."""
    one = atlas.statistics(feature)
    windows = atlas.examples(feature)
    top = [window for window in windows if window.top][:examples]
    rest = [window for window in windows if window.sampled and window not in top]
    fair = rest[:: max(1, len(rest) // max(examples, 1))][:examples]
    return {
        "feature": feature,
        "labels": [label_json(label) for label in atlas.labels(feature)],
        "statistics": asdict(one) | {"density": one.density, "tokens": one.tokens},
        "top_tokens": [{"id": id, "token": text.token(id), "fires": fires} for id, fires in one.top_tokens],
        "top_logits": [{"id": id, "token": text.token(id), "logit": value} for id, value in one.top_logits],
        "bottom_logits": [{"id": id, "token": text.token(id), "logit": value} for id, value in one.bottom_logits],
        "neighbours": _others(atlas, one.neighbours, "cosine", text),
        "coactive": _others(atlas, one.coactive, "bits", text),
        "strongest": [window_json(atlas, window, text, width) for window in top],
        "sample": [window_json(atlas, window, text, width) for window in fair],
    }


def _others(atlas: Any, pairs: Sequence[tuple[int, float]], what: str, text: Text) -> list[dict[str, Any]]:
    out = []
    for other, value in pairs:
        label, top = atlas.label(other), atlas.statistics(other).top_tokens[:SHOWN_TOKENS]
        tokens = [text.token(id) for id, _ in top]
        out.append({"feature": other, what: value, "label": label.text if label else None, "top_tokens": tokens})
    return out


def label_json(label: Any) -> dict[str, Any]:
    """A label, with its scores."""
    return asdict(label) | {"score": label.score}


def window_json(atlas: Any, window: Any, text: Text, width: int | None) -> dict[str, Any]:
    """An example: tokens, activations and kinds. Beyond the window that the survey kept, an activation is None."""
    before, after = window.at - window.start, window.start + len(window.values) - 1 - window.at
    if width is not None:
        before = after = width
    start, ids = atlas.around(window.at, before, after)
    known = dict(enumerate(window.values.tolist(), window.start))
    document = atlas.document(window.document)
    return {
        "document": window.document,
        "source": document.source,
        "language": document.language,
        "held_out": window.held_out,
        "at": window.at,
        "start": start,
        "value": window.value,
        "tokens": text.pieces(ids),
        "values": [known.get(place) for place in range(start, start + len(ids))],
        "kinds": kinds_of(document, start, len(ids)),
    }


def kinds_of(document: Any, start: int, count: int) -> list[int]:
    """The Kind bits of a document's tokens from a place of the tokens file on."""
    every = [kind for length, kind in document.roles for _ in range(length)]
    first = start - document.start
    return (every[first : first + count] + [int(Kind.TEXT)] * count)[:count]


def document_json(atlas: Any, number: int, text: Text, fires: Sequence[tuple[Any, Any]] = ()) -> dict[str, Any]:
    """A whole document. fires: of each feature that was asked for, its places in the tokens file and activations there;
    the value of a token is the largest of them."""
    document = atlas.document(number)
    end = document.start + document.length
    values = [0.0] * document.length
    for places, activations in fires:
        first, last = places.searchsorted([document.start, end])
        for place, value in zip(places[first:last].tolist(), activations[first:last].tolist(), strict=True):
            values[place - document.start] = max(values[place - document.start], value)
    told = {"document": number, "id": document.id, "source": document.source, "language": document.language}
    tokens = text.pieces(atlas.tokens[document.start : end])
    return told | {"tokens": tokens, "values": values, "kinds": kinds_of(document, document.start, document.length)}
