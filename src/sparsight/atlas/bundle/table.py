"""Labels and statistics as tables, out and in: exported and imported again, they are what they were.

labels      one row per (feature, label), a feature's best first: index, label, method, model, prompt, type,
            confidence, score, scores, rule, created, sae (the fingerprint of the SAE)
statistics  one row per feature: index, label (its best), sae, and all that was measured
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sparsight.atlas import draft
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.bundle.files import Columns, column_names, form, read_table, write_table
from sparsight.atlas.bundle.moved import Moved, Tell, told
from sparsight.atlas.bundle.values import Row, is_number
from sparsight.atlas.entries import METHODS, Label, Score, Statistics
from sparsight.errors import BadFile, Mismatch

LABELS: Columns = {
    "index": int, "label": str, "method": str, "model": str, "prompt": str, "type": str, "confidence": float,
    "score": float, "scores": dict, "rule": dict, "created": str, "sae": str,
}  # fmt: skip
KINDS = {"int": int, "float": float, "int | None": int}
MEASURED: Columns = {f.name: KINDS.get(str(f.type), dict) for f in fields(Statistics) if f.name != "feature"}
STATISTICS: Columns = {"index": int, "label": str, "density": float, **MEASURED, "texts": dict, "sae": str}
INDICES = ("index", "feature", "feature_index", "latent", "feature_id", "latent_index", "latent_id")
TEXTS = ("label", "description", "explanation", "text", "interpretation")
PAIRS = ("top_tokens", "top_logits", "bottom_logits", "neighbours", "coactive")
TOKENS = PAIRS[:3]
Words = Callable[[Sequence[int]], Sequence[str]]


def write_labels(
    atlas: Atlas, to: str | Path, features: Iterable[int] | None = None, best: bool = False, tell: Tell | None = None
) -> Moved:
    """Labels as a table, .parquet, .csv or .jsonl. features: of these alone. best: of each feature one.

    Raises NoFeature, BadInput, and Missing where Parquet is asked for and cannot be had.
    """
    wanted = None if features is None else set(_known(atlas, features))
    found = {f: each[:1] if best else each for f, each in atlas.all_labels().items() if wanted is None or f in wanted}
    rows = (label_row(one, atlas.about.sae) for each in found.values() for one in each)
    number = sum(map(len, found.values()))
    write_table(Path(to), LABELS, told(rows, "export", number, "labels", tell))
    return Moved(to, {"labels": number, "features": len(found)})


def label_row(one: Label, sae: str) -> dict[str, Any]:
    """A label as plain data."""
    scores = {n: {"value": s.value, "low": s.low, "high": s.high, "number": s.number} for n, s in one.scores.items()}
    said = {"method": one.method, "model": one.model, "prompt": one.prompt, "type": one.type}
    said |= {"confidence": one.confidence, "score": one.score, "scores": scores}
    return {"index": one.feature, "label": one.text, **said, "rule": one.rule, "created": one.created, "sae": sae}


def read_labels(
    atlas: Atlas, source: str | Path, by: str | None = None, force: bool = False, tell: Tell | None = None
) -> Moved:
    """Labels of a table into the atlas, all or none; one of the same feature, method, model and prompt is replaced.

    A table with columns method and sae is taken as it is. Any other needs an index (or feature, feature_index, latent)
    and a label (or description, explanation): its labels are of method "imported", and of model `by`, by default the
    file's name, so that those of two files stand side by side. force: even where the table names another SAE.
    Raises BadFile with the line, Mismatch where it is of another SAE.
    """
    source = Path(source)
    names = column_names(source)
    if not names and form(source) == "jsonl":
        return Moved(atlas.folder, {"labels": 0, "features": 0}, (f"'{source}' holds no rows.",))
    index, text = (next((n for n in known if n in names), None) for known in (INDICES, TEXTS))
    if index is None or text is None:
        wants = f"a column index (or {', '.join(INDICES[1:4])}) and a label (or {', '.join(TEXTS[1:3])})"
        raise BadFile(f"'{source}' is no table of labels: it has {', '.join(names) or 'no columns'}, and not {wants}.")
    ours = {"method", "sae"} <= set(names)
    count, features, others = 0, set(), 0

    def labels() -> Iterator[Label]:
        nonlocal count, others
        for row in read_table(source, LABELS):
            others += not check_sae(row, atlas, force)
            text_ = row.text(text)
            if not text_.strip():
                if ours:
                    raise row.wrong("a label is not empty")
                continue  # a feature that nobody named
            number = row.index(index, len(atlas))
            mark = source.name.removesuffix(".gz").rpartition(".")[0] if by is None else by
            one = label_of(row, number, text_) if ours else Label(number, text_, "imported", mark)
            count, _ = count + 1, features.add(number)
            yield one

    found = labels() if ours else apart(labels())
    atlas.add(told(found, "import", None, "labels", tell))
    notes = (
        ["The file names no SAE: that these are labels of this one is taken on trust."] if "sae" not in names else []
    )
    notes += [f"{others:,} labels are of another SAE, as was asked for."] if others else []
    return Moved(atlas.folder, {"labels": count, "features": len(features)}, tuple(notes))


def label_of(row: Row, feature: int, text: str) -> Label:
    """A label from plain data, as label_row makes it."""
    method = row.text("method")
    if method not in METHODS:
        raise row.wrong(f"a label is by one of {', '.join(METHODS)}, not {method!r}")
    rule, scores = row.values.get("rule"), row.values.get("scores") or {}
    if (rule is not None and not isinstance(rule, dict)) or not isinstance(scores, dict):
        raise row.wrong("rule and scores are JSON objects")
    confidence = row.number("confidence")
    if confidence is not None and not 0 <= confidence <= 1:
        raise row.wrong(f"confidence is from 0 to 1, not {confidence}")
    said: dict[str, Any] = {name: row.text(name, "") for name in ("model", "prompt", "type", "created")}
    scored = {row.clean(name): _score(row, name, value) for name, value in scores.items()}
    return Label(feature, text, method, rule=rule, confidence=confidence, scores=scored, **said)


def _score(row: Row, name: str, told: Any) -> Score:
    part = Row(told if isinstance(told, dict) else {"value": told}, f"{row.where}, score {name!r}")
    value = part.number("value")
    if value is None:
        raise part.wrong("a score has a value")
    return Score(value, part.number("low"), part.number("high"), part.whole("number"))


def apart(labels: Iterable[Label]) -> Iterator[Label]:
    """Several labels of one feature by the same hand, told apart by their number, as prompt: else only the last would
    stay."""
    seen: dict[tuple[int, str, str, str], int] = {}
    for one in labels:
        key = (one.feature, one.method, one.model, one.prompt)
        seen[key] = seen.get(key, 0) + 1
        yield one if seen[key] == 1 else replace(one, prompt=f"{one.prompt} #{seen[key]}".strip())


def check_sae(row: Row, atlas: Atlas, force: bool) -> bool:
    """Whether a row is of the atlas's SAE, as far as it says. Raises Mismatch where it is not, unless forced."""
    sae = row.values.get("sae")
    if sae in (None, "", atlas.about.sae):
        return True
    if not force:
        theirs = f"'{atlas.folder}' is of SAE {atlas.about.sae}"
        raise Mismatch(f"{row.where} is of SAE {str(sae)[:40]}, and {theirs}: give that one's atlas, or force it.")
    return False


# ── statistics ───────────────────────────────────────────────────────────────────────────────────────────────────────


def is_statistics(names: Iterable[str]) -> bool:
    """Whether a table with these columns is one of statistics."""
    return {"index", "fires", "histogram"} <= set(names)


def write_statistics(
    atlas: Atlas,
    to: str | Path,
    features: Iterable[int] | None = None,
    words: Words | None = None,
    tell: Tell | None = None,
) -> Moved:
    """What was measured, as a table. words: token ids to texts, for a column `texts` beside the ids of tokens."""
    wanted = list(range(len(atlas))) if features is None else _known(atlas, features)
    labels = atlas.texts()

    def rows() -> Iterator[dict[str, Any]]:
        for feature in wanted:
            one = atlas.statistics(feature)
            row = statistics_row(one) | {"label": labels.get(feature), "sae": atlas.about.sae}
            if words is not None:
                row["texts"] = {name: list(words_of(getattr(one, name), words)) for name in TOKENS}
            yield row

    write_table(Path(to), STATISTICS, told(rows(), "export", len(wanted), "features", tell))
    return Moved(to, {"features": len(wanted)})


def words_of(pairs: Iterable[tuple[int, float]], words: Words) -> Iterator[str]:
    """Each token's own text, by itself."""
    for token, _ in pairs:
        yield "".join(words([token]))


def statistics_row(one: Statistics) -> dict[str, Any]:
    """A feature's statistics as plain data."""
    row: dict[str, Any] = {"index": one.feature, "density": one.density}
    for name in MEASURED:
        value = getattr(one, name)
        if isinstance(value, Mapping):
            value = {str(key): each for key, each in value.items()}
        row[name] = [list(each) for each in value] if name in PAIRS else list(value) if type(value) is tuple else value
    return row


def read_statistics(atlas: Atlas, source: str | Path, force: bool = False, tell: Tell | None = None) -> Moved:
    """Statistics of a table in place of the atlas's own, of the features that it has, all or none.

    Raises BadFile with the line, Mismatch where the table is of another SAE.
    """
    source = Path(source)
    names = column_names(source)
    if not names and form(source) == "jsonl":
        return Moved(atlas.folder, {"features": 0}, (f"'{source}' holds no rows.",))
    if missing := [name for name in ("index", *MEASURED) if name not in names]:
        raise BadFile(f"'{source}' is no table of statistics: it has no column {', '.join(missing)}.")
    count = 0

    def found() -> Iterator[Statistics]:
        nonlocal count
        for row in read_table(source, STATISTICS):
            check_sae(row, atlas, force)
            count += 1
            yield statistics_of(row, len(atlas))

    replace_statistics(atlas, told(found(), "import", None, "features", tell))
    return Moved(atlas.folder, {"features": count})


def replace_statistics(atlas: Atlas, found: Iterable[Statistics]) -> None:
    """Other statistics of features, all or none."""
    names = ("fires", "density", "mean", "max", "scale", "documents", "role", "language", "flags", "more")
    put = ", ".join(f"{name} = ?" for name in names)
    with atlas._writing() as db:
        for one in found:
            feature, *columns = draft._columns(one)
            db.execute(f"UPDATE feature SET {put} WHERE feature = ?", (*columns, feature))


def statistics_of(row: Row, below: int) -> Statistics:
    """From plain data, as statistics_row makes it. below: how many features there are."""
    said: dict[str, Any] = {}
    for name, kind in MEASURED.items():
        if name == "duplicate_of":
            said[name] = None if row.values.get(name) in (None, "") else row.index(name, below)
        elif kind is int:
            said[name] = row.whole(name, 0)
        elif kind is float:
            said[name] = row.number(name, 0.0)
    said |= {name: tuple((int(a), b) for a, b in row.list_of(name, _is_pair, "pairs of numbers")) for name in PAIRS}
    said |= {"positions": tuple(row.list_of("positions", _is_count, "counts")), "flags": tuple(row.texts("flags"))}
    said |= {"quantiles": _mapping(row, "quantiles", float, is_number), "roles": _mapping(row, "roles", str, _is_count)}
    said |= {"histogram": _mapping(row, "histogram", int, _is_count)}
    said |= {"languages": _mapping(row, "languages", str, _is_count)}
    return Statistics(row.index("index", below), **said)


def _mapping(row: Row, name: str, key: Callable[[str], Any], kind: Callable[[Any], bool]) -> dict[Any, Any]:
    told = row.values.get(name) or {}
    try:
        if not isinstance(told, dict) or not all(map(kind, told.values())):
            raise ValueError
        return {key(each): value for each, value in told.items()}
    except ValueError:
        raise row.wrong(f"{name} is not what it should be: {json.dumps(told)[:60]}") from None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_count(value[0]) and is_number(value[1])


def _known(atlas: Atlas, features: Iterable[int]) -> list[int]:
    """The features, in their order. Raises NoFeature."""
    found = list(dict.fromkeys(features))
    for feature in found:
        atlas._check(feature)
    return found
