"""An atlas on the Hugging Face hub, as a repository of type dataset: its files as they are, and a card."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.bundle.folders import write_folder
from sparsight.atlas.bundle.moved import Moved
from sparsight.atlas.draft import TABLE, TOKENS
from sparsight.atlas.schema import TABLES
from sparsight.disk import first_line
from sparsight.errors import BadFile, BadInput, SparsightError

T = TypeVar("T")
SCHEME = "hub:"
CARD = "README.md"
MORE = ("log.bin", "vectors.*")  # what an atlas may hold besides its table and its tokens
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def repository(name: str) -> str:
    """owner/name, from "hub:owner/name" or itself. Raises BadInput."""
    found = name.removeprefix(SCHEME)
    if not REPOSITORY.fullmatch(found):
        raise BadInput(f"A repository of the hub is owner/name, not '{found}'.")
    return found


def push(
    folder: str | Path,
    repo: str,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
) -> Moved:
    """Upload an atlas as one commit; the repository is made where there is none.

    What goes up is a copy of the table as it is now, with all that was written to it, so that others may go on writing.
    private: of a new repository: an atlas holds the text that was surveyed. token: None takes that of the login.
    endpoint: of another hub than HF_ENDPOINT's. Raises BadFile where the folder is no whole atlas or the hub refuses.
    """
    name, atlas = repository(repo), Atlas(folder)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as aside:
        table = Path(aside) / TABLE
        snapshot(atlas, table)
        more = [path for pattern in MORE for path in sorted(atlas.folder.glob(pattern)) if path.is_file()]
        files = {TABLE: table, TOKENS: atlas.folder / TOKENS, **{path.name: path for path in more}}
        added = [CommitOperationAdd(n, p) for n, p in files.items()] + [
            CommitOperationAdd(CARD, card(atlas, name).encode())
        ]
        of: dict[str, Any] = {"repo_id": name, "repo_type": "dataset"}
        _asked(lambda: api.create_repo(**of, private=private, exist_ok=True), f"Cannot make '{name}' on the hub")
        message = f"Atlas of SAE {atlas.about.sae}"
        made = _asked(
            lambda: api.create_commit(**of, operations=added, commit_message=message, revision=revision),
            f"Cannot push '{atlas.folder}' to '{name}'",
        )
        return Moved(
            str(made.commit_url), {"files": len(added), "bytes": sum(p.stat().st_size for p in files.values())}
        )


def pull(
    repo: str,
    folder: str | Path,
    revision: str | None = None,
    token: str | None = None,
    sae: str | None = None,
    tokenizer: str | None = None,
    force: bool = False,
    endpoint: str | None = None,
) -> Moved:
    """Download an atlas: whole and sound, or nothing.

    sae, tokenizer: fingerprints that it must be of. force: in the place of an atlas that is there. Raises BadFile where
    the hub has none or it is damaged, Mismatch where it is of another SAE or tokenizer, BadInput where the folder holds
    something else.
    """
    name, folder = repository(repo), Path(folder)
    if (folder / TABLE).exists() and not force:
        raise BadInput(
            f"There is an atlas in '{folder}' already: write elsewhere, or force it to lose what that holds."
        )
    from huggingface_hub import snapshot_download

    def write(aside: Path) -> None:
        get: dict[str, Any] = {"local_dir": aside, "allow_patterns": [TABLE, TOKENS, *MORE, CARD]}
        of: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "token": token, "endpoint": endpoint}
        _asked(lambda: snapshot_download(name, **of, **get), f"Cannot pull '{name}'")
        shutil.rmtree(aside / ".cache", ignore_errors=True)
        check_whole(aside, sae, tokenizer, f"hub:{name}")

    write_folder(folder, TABLE, write)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return Moved(folder, {"features": len(Atlas(folder)), "bytes": size})


def snapshot(atlas: Atlas, to: Path) -> None:
    """A copy of the table that is whole by itself: also what is only in its write-ahead log."""
    try:
        atlas._db.execute("VACUUM INTO ?", (str(to),))
    except sqlite3.DatabaseError as error:
        raise BadFile(f"Cannot copy '{atlas.folder / TABLE}': {first_line(error)}.") from error


def check_whole(folder: Path, sae: str | None, tokenizer: str | None, name: str) -> None:
    """Raises BadFile where a stranger's atlas is damaged, or its table would do more than hold rows: only our own
    triggers may be in it. Mismatch where it is of another SAE or tokenizer."""
    try:
        with closing(sqlite3.connect(f"{(folder / TABLE).resolve().as_uri()}?mode=ro", uri=True)) as db:
            acts = db.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchall()
            (sound,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        raise BadFile(f"'{name}' holds no sound atlas: {first_line(error)}.") from error
    ours = " ".join(TABLES.split())
    if strange := [each for each, sql in acts if " ".join(str(sql).split()) not in ours]:
        raise BadFile(f"The table of '{name}' would act by itself ({', '.join(strange)[:80]}): it is not opened.")
    if sound != "ok":
        raise BadFile(f"The table of '{name}' is damaged: {sound}.")
    atlas = Atlas(folder, sae=sae, tokenizer=tokenizer)
    atlas._db.close()


def card(atlas: Atlas, repo: str) -> str:
    """What the repository says of itself."""
    about = atlas.about
    labels = len(atlas.texts())
    base = f"base_model: {json.dumps(about.model)}\n" if REPOSITORY.fullmatch(about.model) else ""
    return f"""---
{base}tags:
- sparsight
- sparse-autoencoder
- interpretability
---
# Atlas of SAE {about.sae}

What each feature of a sparse autoencoder fires on, and what it means.

| | |
|---|---|
| model | {about.model} {about.model_revision} |
| hook point | {about.hook_point} |
| SAE | {about.sae} |
| features | {about.d_hidden:,}, {labels:,} of them labelled |
| surveyed | {about.tokens:,} tokens of {about.documents:,} documents |
| tokenizer | {about.tokenizer} |

`{TABLE}` (SQLite) holds statistics, examples and labels, `{TOKENS}` the ids of the text. With sparsight:

```
sparsight import hub:{repo} atlas
sparsight export atlas labels.csv
```
"""


def _asked(call: Callable[[], T], what: str) -> T:
    """What the hub answers. Raises BadFile in its words."""
    try:
        return call()
    except SparsightError:
        raise
    except Exception as error:  # whatever any layer of the hub's client raises
        causes = [error, *filter(None, [error.__cause__])]
        said = "; ".join(dict.fromkeys(first_line(one).rstrip(".") for one in causes if isinstance(one, Exception)))
        raise BadFile(f"{what}: {said}.") from error
