"""Verbs that carry an atlas in and out as files: export, import."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from sparsight.cli.atlases import DEMO, folder_of, open_atlas, selected, tokenizer_of
from sparsight.cli.bar import Bar
from sparsight.cli.options import as_json, print_json
from sparsight.errors import BadFile, BadInput, SparsightError

OUT = ("labels", "statistics", "neuronpedia", "html", "hub")
IN = ("labels", "statistics", "neuronpedia", "delphi", "hub")
TABLES = (".parquet", ".csv", ".csv.gz", ".tsv", ".jsonl", ".jsonl.gz")
TEXT = ("statistics", "neuronpedia", "html")
GO_OUT = {"best": ("labels",), "model": TEXT, "model_id": ("neuronpedia",), "source_id": ("neuronpedia",)}
GO_OUT |= {"public": ("hub",), "revision": ("hub",)}
GO_IN = {"by": ("labels", "delphi"), "module": ("delphi",), "revision": ("hub",)}
GO_IN |= {"force": ("labels", "statistics", "neuronpedia", "hub")}


@click.command("export")
@click.argument("atlas", metavar="ATLAS")
@click.argument("to", metavar="TO")
@click.option("--as", "as_", type=click.Choice(OUT), help="What is written. [default: by TO's name; labels of a table]")
@click.option("--features", "-f", multiple=True, help="These alone: 12 or 3,7,100-120. Repeatable. [default: all]")
@click.option("--best", is_flag=True, help="Of labels: one of each feature, its best.")
@click.option("--model", "-m", help="Whose tokenizer turns ids into text. [default: the model that the atlas names]")
@click.option("--model-id", help="What Neuronpedia calls the model, as llama3.1-8b-it.")
@click.option("--source-id", help="What Neuronpedia calls the SAE, as 19-goodfire-res-65k.")
@click.option("--public", is_flag=True, help="Of hub: a repository that is made new is for all to see.")
@click.option("--revision", help="Of hub: the branch.")
@as_json
def export(
    atlas: str,
    to: str,
    as_: str | None,
    features: tuple[str, ...],
    best: bool,
    model: str | None,
    json_: bool,
    **more: Any,
) -> None:
    """Write an atlas, or parts of it, for others to read.

    TO is a table (.parquet, .csv, .jsonl), a page (.html), with --as neuronpedia a folder, or hub:OWNER/NAME.
    """
    kind = as_ or _kind_of(to)
    _check(kind, GO_OUT, {"best": best, "model": model, **more})
    from sparsight.atlas.bundle import table

    found = open_atlas(atlas)
    wanted = selected(features, len(found)) if features else None
    with Bar() as tell:
        if kind == "labels":
            out = table.write_labels(found, to, wanted, best, tell)
        elif kind == "hub":
            out = _push(found, to, wanted, **more)
        else:
            tokenizer, why = _tokenizer(found.about, model)
            out = _with_text(kind, found, to, wanted, tokenizer, why, tell, more)
    _show(out, json_)


@click.command("import")
@click.argument("source", metavar="FROM")
@click.argument("atlas", metavar="ATLAS")
@click.option("--as", "as_", type=click.Choice(IN), help="What FROM is. [default: by what it holds]")
@click.option("--by", help="Who wrote the labels. [default: what the files say, or the file's name]")
@click.option("--module", help="Of delphi: whose latents, as layers.19. [default: the atlas's hook point]")
@click.option("--sae", "-s", help="The SAE that it must be of; it is loaded to see. A new atlas needs it.")
@click.option("--model", "-m", help="The model that it must be of, by its tokenizer. A new atlas needs it.")
@click.option("--force", is_flag=True, help="Even of another SAE; of hub: in an atlas's place, which is lost.")
@click.option("--revision", help="Of hub: a commit, a branch, a tag.")
@as_json
def import_(
    source: str,
    atlas: str,
    as_: str | None,
    sae: str | None,
    model: str | None,
    revision: str | None,
    json_: bool,
    **more: Any,
) -> None:
    """Read labels, statistics or a whole atlas that others wrote.

    FROM is a table, a folder of Neuronpedia's or delphi's files, or hub:OWNER/NAME. ATLAS is an atlas that takes it;
    from the hub, and from Neuronpedia where there is none, a new one.
    """
    kind = as_ or _kind_within(source)
    _check(kind, GO_IN, {"revision": revision, **more})
    from sparsight.atlas.draft import TABLE

    place = folder_of(atlas)
    with Bar() as tell:
        if kind == "hub":
            from sparsight.atlas.bundle.hub import pull

            of = {"sae": _fingerprint(sae), "tokenizer": _vocabulary(model)}
            out = pull(source, place, revision, force=more["force"], **of)
        elif kind == "neuronpedia" and not (place / TABLE).exists():
            out = _new(source, place, sae, model, tell)
        else:
            from sparsight.atlas.atlas import Atlas

            found = Atlas(place, sae=_fingerprint(sae), tokenizer=_vocabulary(model))
            out = _into(kind, found, source, tell, more)
    _show(out, json_)


def _check(kind: str, goes: dict[str, tuple[str, ...]], given: dict[str, Any]) -> None:
    """Raises BadInput for an option that would mean nothing."""
    for name, value in given.items():
        if value and kind not in goes[name]:
            raise BadInput(f"--{name.replace('_', '-')} goes with {', '.join(goes[name])}, not with {kind}.")


def _kind_of(to: str) -> str:
    """What is written to a place of this name."""
    name = to.lower()
    if name.startswith("hub:"):
        return "hub"
    if name.endswith((".html", ".htm")):
        return "html"
    if name.endswith(TABLES):
        return "labels"
    raise BadInput(
        f"What is to be written to '{to}'? Name it {', '.join(TABLES[:3])} or .html, or say --as {'|'.join(OUT)}."
    )


def _kind_within(source: str) -> str:
    """What lies there."""
    from sparsight.atlas.bundle.delphi import is_delphi
    from sparsight.atlas.bundle.files import column_names
    from sparsight.atlas.bundle.table import is_statistics

    path = Path(source)
    if source.startswith("hub:"):
        return "hub"
    if path.is_dir():
        if is_delphi(path):
            return "delphi"
        if (path / "atlas.db").exists():
            raise BadInput(f"'{source}' is an atlas itself: copy the folder.")
        return "neuronpedia"
    if not path.exists():
        raise BadFile(f"No file or folder '{source}'.")
    return "statistics" if is_statistics(column_names(path)) else "labels"


def _with_text(
    kind: str, found: Any, to: str, wanted: list[int] | None, tokenizer: Any, why: str, tell: Any, more: dict[str, Any]
) -> Any:
    """Exports in which tokens are text, as far as there is a tokenizer. why: there is none."""
    from sparsight.atlas.bundle.html import write_html
    from sparsight.atlas.bundle.neuronpedia import write_neuronpedia
    from sparsight.atlas.bundle.table import write_statistics
    from sparsight.lm.text import pieces
    from sparsight.screen import note

    words = None if tokenizer is None else partial(pieces, tokenizer)
    if kind == "html":
        return write_html(found, to, range(len(found)) if wanted is None else wanted, words, why, tell)
    if tokenizer is None:
        note(f"Tokens are written as ids: {why}.")
    if kind == "statistics":
        return write_statistics(found, to, wanted, words, tell)
    names = {"model_id": more["model_id"], "source_id": more["source_id"]}
    return write_neuronpedia(found, to, tokenizer, wanted, **names, tell=tell)


def _push(found: Any, to: str, wanted: list[int] | None, public: bool, revision: str | None, **_: Any) -> Any:
    from sparsight.atlas.bundle.hub import push

    if wanted is not None:
        raise BadInput("To the hub goes a whole atlas, not some of its features.")
    return push(found.folder, to, not public, revision=revision)


def _into(kind: str, found: Any, source: str, tell: Any, more: dict[str, Any]) -> Any:
    """What goes into an atlas that there is."""
    from sparsight.atlas.bundle.delphi import read_delphi
    from sparsight.atlas.bundle.from_neuronpedia import read_explanations
    from sparsight.atlas.bundle.table import read_labels, read_statistics

    if kind == "labels":
        return read_labels(found, source, more["by"], more["force"], tell)
    if kind == "statistics":
        return read_statistics(found, source, more["force"], tell)
    if kind == "delphi":
        return read_delphi(found, source, more["module"], more["by"], tell)
    return read_explanations(found, source, more["force"], tell)


def _new(source: str, place: Path, sae: str | None, model: str | None, tell: Any) -> Any:
    """An atlas of Neuronpedia's files."""
    from sparsight.atlas.about import About
    from sparsight.atlas.bundle.from_neuronpedia import read_neuronpedia, source_folder, told_about
    from sparsight.lm.text import vocabulary

    told = told_about(source_folder(source))
    name = model or str(told.get("about", {}).get("model", ""))
    tokenizer = _loaded(name) if name and (model or told.get("tokens") != "ids") else None
    about = About("", name, "" if tokenizer is None else vocabulary(tokenizer), "", 0, 0, 0)
    if sae is not None:
        from sparsight.sae.files import load_sae

        loaded = load_sae(sae)
        hook_point = loaded.config.hook_point or ""
        about = replace(about, sae=loaded.fingerprint, hook_point=hook_point, d_hidden=loaded.d_hidden)
    return read_neuronpedia(source, place, about, tokenizer, tell)


def _tokenizer(about: Any, model: str | None) -> tuple[Any, str]:
    """(tokenizer, "") or (None, why there is none). One that was asked for by name has to be there, and to fit."""
    try:
        return tokenizer_of(about, model), ""
    except SparsightError as error:
        if model is not None:
            raise
        return None, str(error).rstrip(".")


def _loaded(name: str) -> Any:
    """A model's tokenizer alone. Raises BadFile."""
    from sparsight.lm.spelling import load_tokenizer

    return load_tokenizer("demo" if name in DEMO else name)


def _vocabulary(model: str | None) -> str | None:
    if model is None:
        return None
    from sparsight.lm.text import vocabulary

    return vocabulary(_loaded(model))


def _fingerprint(sae: str | None) -> str | None:
    if sae is None:
        return None
    from sparsight.sae.files import load_sae

    return load_sae(sae).fingerprint


def _show(out: Any, json_: bool) -> None:
    """What was written, and what a reader should know of it."""
    from sparsight.screen import note

    if json_:
        return print_json({"to": str(out.place), **out.counts, "notes": list(out.notes)})
    for one in out.notes:
        note(one)
    click.echo(f"Wrote {out}")
