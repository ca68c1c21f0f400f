"""Neuronpedia's files into an atlas: explanations as labels of one that there is, or everything as a new one.

A new atlas holds what the files do: each window of tokens that examples are shown in is a document of its own, once,
whatever number of features it is an example of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.bundle.folders import write_folder
from sparsight.atlas.bundle.moved import Moved, Tell, told
from sparsight.atlas.bundle.neuronpedia import ABOUT, SCHEMA, Vocabulary
from sparsight.atlas.bundle.rows import json_rows
from sparsight.atlas.bundle.stage import FEATURES, staged
from sparsight.atlas.bundle.table import apart, check_sae, label_of
from sparsight.atlas.bundle.theirs import Ids, as_ids
from sparsight.atlas.bundle.values import Row
from sparsight.atlas.draft import TABLE, write_atlas
from sparsight.atlas.entries import Label
from sparsight.disk import PART, read_json
from sparsight.errors import BadFile, BadInput, Mismatch
from sparsight.records import is_whole


def source_folder(folder: str | Path) -> Path:
    """The folder that has features, activations or explanations: this one, or one below it. Raises BadFile."""
    folder = Path(folder)
    kinds = ("features", "activations", "explanations")
    for pattern in ("{}", "*/{}", "*/*/{}"):
        found = {p.parent for kind in kinds for p in folder.glob(pattern.format(kind)) if any(p.glob("batch-*.jsonl*"))}
        if len(found) == 1:
            return found.pop()
        if found:
            names = ", ".join(sorted(str(p.relative_to(folder)) for p in found))
            raise BadFile(f"'{folder}' holds several sources, name one: {names}.")
    raise BadFile(f"'{folder}' holds no {' or '.join(f'{kind}/batch-*.jsonl.gz' for kind in kinds)}.")


def batches(folder: Path, kind: str) -> list[Path]:
    """The files of a kind, by their numbers."""
    found = [p for p in (folder / kind).glob("batch-*.jsonl*") if re.fullmatch(r"batch-\d+\.jsonl(\.gz)?", p.name)]
    return sorted(found, key=lambda p: int(re.findall(r"\d+", p.name)[0]))


def rows_of(folder: Path, kind: str) -> Iterator[Row]:
    for path in batches(folder, kind):
        for number, row in json_rows(path):
            yield Row(row, f"'{path}', line {number}")


def told_about(folder: Path) -> dict[str, Any]:
    """What sparsight wrote beside its own export; nothing beside another's."""
    path = folder / ABOUT
    found = read_json(path) if path.is_file() else {}
    if found and (found.get("schema") != SCHEMA or not isinstance(found.get("about"), dict)):
        raise BadFile(f"'{path}' is of schema {found.get('schema')!r}; this sparsight reads schema {SCHEMA}.")
    return found


# ── explanations ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read_explanations(atlas: Atlas, folder: str | Path, force: bool = False, tell: Tell | None = None) -> Moved:
    """Explanations as labels of the atlas, all or none. Those of sparsight's own export come back as they were; others
    are of method "imported", their model the explanation's, their prompt its type.

    Raises BadFile with file and line, Mismatch where they say that they are of another SAE.
    """
    folder = source_folder(folder)
    theirs = told_about(folder).get("about", {})
    check_sae(Row(theirs, f"'{folder / ABOUT}'"), atlas, force)
    count, features = 0, set()

    def labels() -> Iterator[Label]:
        nonlocal count
        for row in rows_of(folder, "explanations"):
            feature, text = row.index("index", len(atlas)), row.text("description", "")
            if text.strip():
                count, _ = count + 1, features.add(feature)
                yield _explained(row, feature, text, atlas, force)

    atlas.add(told(apart(labels()), "import", None, "labels", tell))
    notes = () if theirs else ("The files name no SAE: that these are labels of this one is taken on trust.",)
    return Moved(atlas.folder, {"labels": count, "features": len(features)}, notes)


def _explained(row: Row, feature: int, text: str, atlas: Atlas, force: bool) -> Label:
    notes = row.values.get("notes")
    if isinstance(notes, str) and notes.startswith('{"sparsight": '):
        try:
            ours = json.loads(notes)["sparsight"]
        except (ValueError, RecursionError, KeyError):
            ours = None
        if isinstance(ours, dict) and ours.get("label") == text:
            whole = Row(ours, row.where)
            check_sae(whole, atlas, force)
            return label_of(whole, feature, text)
    model, kind = row.text("explanationModelName", ""), row.text("typeName", "")
    return Label(feature, text, "imported", model, kind, created=row.text("createdAt", ""))


# ── a new atlas ──────────────────────────────────────────────────────────────────────────────────────────────────────


def read_neuronpedia(
    folder: str | Path,
    to: str | Path,
    about: About | None = None,
    vocabulary: Vocabulary | None = None,
    tell: Tell | None = None,
) -> Moved:
    """A new atlas at `to`, of features, activations and explanations: whole, or nothing.

    about: of which SAE, model, tokenizer and hook point it is, and how many features that has (d_hidden; 0: as many as
    the files have); None where sparsight's own export tells it. vocabulary: the tokenizer that its tokens are of; an
    example that has another token is left out and counted. Counts of tokens are those that Neuronpedia's histogram adds
    up to; roles, languages and documents of a feature it does not tell.
    Raises BadFile with file and line, Mismatch where the tokens are of another tokenizer, BadInput where `to` is taken.
    """
    folder, to = source_folder(folder), Path(to)
    theirs = told_about(folder)
    about = _about(theirs, about, folder)
    if theirs.get("tokens") != "ids" and vocabulary is None:
        raise BadInput("Which tokenizer? These files hold tokens as text, and an atlas holds ids: name the model.")
    ids = as_ids if theirs.get("tokens") == "ids" else Ids(vocabulary)  # type: ignore[arg-type]
    with staged(to.with_name(f"{to.name}.stage{PART}"), ids, about.d_hidden or None) as stage:
        for row in told(rows_of(folder, "features"), "features", None, "rows", tell):
            stage.add_feature(row)
        for row in told(rows_of(folder, "activations"), "examples", None, "rows", tell):
            stage.add_example(row)
        if stage.lost > stage.kept:
            some = f"{stage.lost:,} of {stage.lost + stage.kept:,} examples"
            raise Mismatch(f"{some} of '{folder}' have tokens that this tokenizer lacks: name the model they are of.")
        count = about.d_hidden or stage.highest + 1
        if not count:
            raise BadFile(f"'{folder}' holds no features.")
        whole = replace(about, d_hidden=count, tokens=stage.written, documents=stage.windows)

        def write(place: Path) -> None:
            features = told(stage.features(count), "atlas", count, "features", tell)
            write_atlas(place, whole, stage.pieces(), stage.documents(), features)
            if batches(folder, "explanations"):
                atlas = Atlas(place)
                read_explanations(atlas, folder)
                atlas._db.close()  # what is written goes into the table itself, before the folder moves

        write_folder(to, TABLE, write)
    notes = (
        (f"{stage.lost:,} examples are left out: they have tokens that this tokenizer lacks.",) if stage.lost else ()
    )
    return Moved(to, {"features": count, "examples": stage.kept, "documents": stage.windows}, notes)


def _about(theirs: dict[str, Any], mine: About | None, folder: Path) -> About:
    """What the new atlas is of. Raises Mismatch where the files say otherwise, BadInput where nobody says."""
    said = theirs.get("about")
    if said is None:
        if mine is None or not mine.sae:
            raise BadInput(f"'{folder}' does not say which SAE it is of: name the SAE and the model.")
        return replace(mine, corpus=f"Neuronpedia {folder.parent.name}/{folder.name}")
    try:
        found = About(**said)
    except TypeError as error:
        raise BadFile(f"'{folder / ABOUT}' does not say what it is of: {error}.") from error
    texts = (found.sae, found.model, found.tokenizer, found.hook_point, found.created)
    if not all(isinstance(text, str) for text in texts) or not is_whole(found.d_hidden) or found.d_hidden > FEATURES:
        raise BadFile(f"'{folder / ABOUT}' does not say what it is of, in texts and up to {FEATURES:,} features.")
    if mine is not None:
        found.check(str(folder), mine.sae or None, mine.tokenizer or None)
    return found
