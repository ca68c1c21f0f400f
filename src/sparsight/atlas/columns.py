"""What filters ask of all features at once, as arrays that are kept: a table of 65,536 takes longer to ask than to
search."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.query import NUMBERS, Filter

OPERATORS = {"<": operator.lt, "<=": operator.le, "=": operator.eq, ">=": operator.ge, ">": operator.gt}
FIGURES = "SELECT feature, density, max, mean, documents, role, language, flags FROM feature"
LABELS = """
SELECT label.feature, label.type, label.method, score.value FROM label
LEFT JOIN score ON score.label = label.id AND score.name = 'detection'
"""


@dataclass(frozen=True)
class Words:
    """One word of each row, without case: its number among `known`."""

    known: dict[str, int]
    code: Int[np.ndarray, " row"]

    @classmethod
    def of(cls, values: list[str | None]) -> Words:
        known: dict[str, int] = {}
        code = [known.setdefault((value or "").casefold(), len(known)) for value in values]
        return cls(known, np.array(code, np.int64))

    def are(self, word: object) -> Bool[np.ndarray, " row"]:
        return self.code == self.known.get(str(word).casefold(), -1)


@dataclass(frozen=True)
class Columns:
    """numbers, words, flags: of every feature; label_*: of every label, and which feature that is of. score: of a
    label, its detection; NaN where it has none. state: of the table that the labels are those of; None before any."""

    numbers: dict[str, Float[np.ndarray, " feature"]]
    words: dict[str, Words]
    flags: dict[str, Bool[np.ndarray, " feature"]]
    label_feature: Int[np.ndarray, " label"] = field(default_factory=lambda: np.zeros(0, np.int64))
    label_words: dict[str, Words] = field(default_factory=dict)
    label_score: Float[np.ndarray, " label"] = field(default_factory=lambda: np.zeros(0))
    state: tuple[int, int, int] | None = None

    def passing(self, one: Filter) -> Bool[np.ndarray, " feature"]:
        """The features that pass a filter; of labels, those that have one which does."""
        if one.name == "score":
            with np.errstate(invalid="ignore"):
                return self._having(OPERATORS[one.op](self.label_score, one.value))
        if one.name in NUMBERS:
            return OPERATORS[one.op](self.numbers[one.name], one.value)
        if one.name in ("flag", "not"):
            has = self.flags.get(str(one.value), np.zeros(len(self.numbers["density"]), bool))
            return has if one.name == "flag" else ~has
        if one.name in self.words:
            return self.words[one.name].are(one.value)
        return self._having(self.label_words[one.name].are(one.value))

    def ordering(self, name: str) -> Float[np.ndarray, " feature"]:
        """What features are put in order by; of scores, the best of a feature's labels."""
        if name != "score":
            return self.numbers[name]
        best = np.full(len(self.numbers["density"]), -np.inf)
        np.fmax.at(best, self.label_feature, self.label_score)
        return best

    def _having(self, labels: Bool[np.ndarray, " label"]) -> Bool[np.ndarray, " feature"]:
        out = np.zeros(len(self.numbers["density"]), bool)
        out[self.label_feature[labels]] = True
        return out


_kept: WeakKeyDictionary[Atlas, Columns] = WeakKeyDictionary()


def columns_of(atlas: Atlas) -> Columns:
    """The columns of an atlas as it is now."""
    found, now = _kept.get(atlas), atlas.state()
    if found is not None and found.state == now:
        return found
    rows = list(atlas.rows(LABELS))
    feature, kind, method, score = zip(*rows, strict=True) if rows else ((), (), (), ())
    words = {"type": Words.of(list(kind)), "method": Words.of(list(method))}
    told = {"label_feature": np.array(feature, np.int64), "label_score": np.array(score, np.float64)}
    made = replace(found or _figures(atlas), **told, label_words=words, state=now)
    _kept[atlas] = made
    return made


def _figures(atlas: Atlas) -> Columns:
    """What the survey measured, which does not change."""
    _, density, most, mean, documents, role, language, flags = zip(*sorted(atlas.rows(FIGURES)), strict=True)
    numbers = {"density": density, "max": most, "mean": mean, "documents": documents}
    marked = [set(text.split()) for text in flags]
    return Columns(
        {name: np.array(values, np.float64) for name, values in numbers.items()},
        {"role": Words.of(list(role)), "language": Words.of(list(language))},
        {name: np.array([name in some for some in marked]) for name in set().union(*marked)},
    )
