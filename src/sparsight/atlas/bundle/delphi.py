"""delphi's explanations into an atlas: a file for each latent, model.layers.19_latent123.txt, and its scores.

  explanations/MODULE_latentN.txt     a JSON text
  scores/detection/ and scores/fuzz/  the same names: JSON lists of windows, each with "activating" and "prediction"

Its scores are kept under names of their own, as "delphi detection": delphi draws the windows that it scores from the
same lists as those that it shows to the explainer, so that they are not held out, and do not compare with ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.bundle.moved import Moved, Tell, told
from sparsight.atlas.bundle.rows import LONGEST
from sparsight.atlas.bundle.values import Row, is_number
from sparsight.atlas.entries import Label, Score
from sparsight.disk import first_line, read_json
from sparsight.errors import BadFile, Mismatch

NAME = re.compile(r"(?:(?P<module>.+)_)?latent(?P<index>\d+)\.txt")


def is_delphi(folder: Path) -> bool:
    """Whether it holds explanations, in a folder of that name or loose."""
    return any(NAME.fullmatch(path.name) for path in _explanations(folder).glob("*latent*.txt"))


def read_delphi(
    atlas: Atlas, folder: str | Path, module: str | None = None, by: str | None = None, tell: Tell | None = None
) -> Moved:
    """Explanations as labels of the atlas, all or none, with method "imported".

    folder: that of a run, or its explanations. module: whose latents, where there are those of several; by default the
    atlas's hook point. by: which model wrote them; by default what run_config.json says.
    Raises BadFile with the file, Mismatch where there are none of the module.
    """
    folder = Path(folder)
    where = _explanations(folder)
    found = {path: match for path in sorted(where.glob("*.txt")) if (match := NAME.fullmatch(path.name))}
    if not found:
        raise BadFile(
            f"'{folder}' holds no explanations of delphi's: no file like explanations/layers.19_latent123.txt."
        )
    mine = _module({match["module"] or "" for match in found.values()}, module, atlas, folder)
    paths = [(path, int(m["index"])) for path, m in found.items() if (m["module"] or "") == mine]
    writer = _writer(where.parent) if by is None else by
    scores = where.parent / "scores" if where.name == "explanations" else where / "scores"
    features, scored = set(), 0

    def labels() -> Iterator[Label]:
        nonlocal scored
        for path, index in told(paths, "import", len(paths), "files", tell):
            row = Row({"index": index, "explanation": _text(path)}, f"'{path}'")
            feature, text = row.index("index", len(atlas)), row.text("explanation").strip()
            if text:
                features.add(feature)
                each = _scores(scores, path.name)
                scored += bool(each)
                yield Label(feature, text, "imported", writer, "delphi", scores=each)

    atlas.add(labels())
    note = "That these are labels of this SAE is taken on trust: delphi's files name none."
    return Moved(atlas.folder, {"labels": len(features), "of them scored": scored}, (note,))


def _explanations(folder: Path) -> Path:
    inner = folder / "explanations"
    return inner if inner.is_dir() else folder


def _module(modules: set[str], asked: str | None, atlas: Atlas, folder: Path) -> str:
    """Whose latents: what was asked for, the atlas's hook point, or the only one that there is."""
    hook = atlas.about.hook_point
    wanted = [asked] if asked is not None else [m for m in sorted(modules) if hook == m or hook.endswith(f".{m}")]
    if len(wanted) == 1 and wanted[0] in modules:
        return wanted[0]
    if asked is None and modules == {""}:
        return ""
    what = f"of '{asked}'" if asked is not None else f"of '{hook}', where the atlas's SAE reads"
    raise Mismatch(f"'{folder}' has no latents {what}. It has those of: {', '.join(sorted(modules))}.")


def _text(path: Path) -> str:
    """An explanation: a JSON text, the first of a JSON list of them, or plain text."""
    said = _read(path)
    try:
        told_ = json.loads(said)
    except (ValueError, RecursionError):
        return said
    one = told_[0] if isinstance(told_, list) and told_ else told_
    return one if isinstance(one, str) else said


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LONGEST:
            raise BadFile(f"'{path}' is longer than {LONGEST >> 20} MiB: this is no file of delphi's.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"Cannot read '{path}': {first_line(error)}.") from error


def _writer(folder: Path) -> str:
    path = folder / "run_config.json"
    said = read_json(path).get("explainer_model") if path.is_file() else ""
    return said if isinstance(said, str) else ""


def _scores(folder: Path, name: str) -> dict[str, Score]:
    """Balanced accuracy of each scorer over the windows that it judged, and how many these were."""
    out = {}
    for path in sorted(folder.glob(f"*/{name}")):
        try:
            rows = json.loads(_read(path))
        except (ValueError, RecursionError) as error:
            raise BadFile(f"'{path}' is no JSON: {first_line(error)}.") from error
        judged = [row for row in rows if _is_judged(row)] if isinstance(rows, list) else []
        if value := _balanced(judged):
            out[f"delphi {path.parent.name}"] = Score(value[0], number=value[1])
    return out


def _is_judged(row: Any) -> bool:
    """Whether the judge gave an answer that could be read."""
    said = row.get("prediction") if isinstance(row, dict) else None
    return isinstance(said, bool) or is_number(said)


def _balanced(rows: list[dict[str, Any]]) -> tuple[float, int] | None:
    """(mean of the shares of active and silent windows that were told right, windows); None without both kinds."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows:
        truth = bool(row.get("activating"))
        right[truth].append((float(row["prediction"]) >= 0.5) == truth)
    if not right[True] or not right[False]:
        return None
    return sum(sum(each) / len(each) for each in right.values()) / 2, len(rows)
