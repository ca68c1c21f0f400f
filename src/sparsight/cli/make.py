"""Verbs that make something: harvest, train, train plot, evaluate, convert."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from sparsight.cli.bar import Bar
from sparsight.cli.knobs import gathered, knob_options
from sparsight.cli.options import as_json, print_json
from sparsight.errors import BadInput
from sparsight.recipes.recipe import Recipe, load_recipe, names, open_model
from sparsight.train.listeners import REPORTS, Listener, all_of

MODEL = {"name": "model"}
CORPUS = {"source": "corpus"}
HARVEST = {"hook_points": "hook-point", "dtype": "harvest-dtype"}  # --dtype is the model's, as everywhere

TEXT = ("corpus", "harvest")
MANY = 10  # epochs of a training above which it is said how many there are
MIXED = 64  # batches that are mixed among each other where no shards are between model and training
FORMATS = ("native", "saelens", "card")

settings = click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="A setting, above all others. Repeatable."
)


def model_and_text(verb: Callable[..., Any]) -> Callable[..., Any]:
    """--model and --corpus with all of their knobs."""
    return knob_options("model", flags=MODEL)(knob_options("corpus", "corpus-", CORPUS)(verb))


@click.command()
@click.argument("recipe", required=False)
@click.option("--to", required=True, help="The folder of the shards; one that is begun is gone on with.")
@knob_options("harvest", flags=HARVEST)
@model_and_text
@settings
@as_json
def harvest(recipe: str | None, to: str, settings: tuple[str, ...], json_: bool, **options: Any) -> None:
    """Run text through a model and keep the activations at a hook point, as shards.

    RECIPE is one that comes along or a file; options stand above it. Without one: --corpus and --hook-point.
    Under torchrun each process writes its own part, by a GPU of its own.
    """
    made = load_recipe(recipe, settings, gathered(options)).need("corpus").need("harvest")
    from sparsight import screen
    from sparsight.harvest.harvest import harvest as run
    from sparsight.recipes.lineage import of_corpus, of_model, write_lineage

    lm = open_model(on_own_gpu(made.model))
    with Bar() as tell:
        out = run(lm, made.corpus, made.harvest, to, tell=tell)
    if _first():
        write_lineage(to, "harvest", made, {"model": of_model(lm), "corpus": of_corpus(made.corpus)})
    print_json(screen.plain(out)) if json_ else screen.show_harvested(out, to)


@click.command()
@click.argument("source", metavar="SHARDS|RECIPE")
@click.option("--to", required=True, help="The folder of the SAE; a training that is begun there is gone on with.")
@click.option("--recipe", help="With SHARDS: the recipe whose [train] counts.")
@click.option("--corpus", "corpus__source", help="With RECIPE: its text; a file, a folder, a glob, a hub dataset.")
@click.option("--device", help="Where it is trained: cpu, cuda. [default: cuda where there is one]")
@click.option(
    "--feature-processes", default=1, show_default=True, help="Under torchrun: how many share one dictionary."
)
@click.option("--report", multiple=True, type=click.Choice(REPORTS), help="Tell its course to this too. Repeatable.")
@knob_options("train")
@settings
@as_json
def train(
    source: str,
    to: str,
    recipe: str | None,
    device: str | None,
    feature_processes: int,
    report: tuple[str, ...],
    settings: tuple[str, ...],
    json_: bool,
    **options: Any,
) -> None:
    """Train an SAE, or several, on shards; or straight on what a recipe's model makes of its text.

    The same command goes on with a training that was cut off. A folder called plot is ./plot.
    """
    stored = (Path(source) / "manifest.json").is_file()
    if recipe and not stored:
        raise BadInput(f"--recipe goes with shards, and '{source}' is no folder of them.")
    if stored and options["corpus__source"]:
        raise BadInput(f"--corpus goes with a recipe; '{source}' holds activations of a text already.")
    if not stored and Path(source).is_dir():
        raise BadInput(f"'{source}' is a folder without a manifest.json: it holds no activations of a harvest.")
    if not stored and source not in names() and not Path(source).expanduser().is_file():
        along = f"Recipes that come along: {', '.join(names())}"
        raise BadInput(f"'{source}' is neither a folder of activations nor a recipe: there is no such file. {along}.")
    made = load_recipe(recipe if stored else source, settings, gathered(options)).need("train")
    from sparsight import screen
    from sparsight.lm.pretrained import as_device, best_device
    from sparsight.recipes.lineage import write_lineage
    from sparsight.train.parallel import Team
    from sparsight.train.run import folders
    from sparsight.train.run import train as run

    where = best_device() if device is None else as_device(device)
    if device is None and where.type == "mps":  # without float64, nothing is trained there
        where = as_device("cpu")
    hearers = [Listener(name, to, {"train": [asdict(spec) for spec in made.train]}) for name in report]
    team = Team.from_environment(where, feature_processes)
    activations, inputs = _shards(source, made.train) if stored else _stream(made.need("corpus").need("harvest"), team)
    with ExitStack() as stack:
        tells = [stack.enter_context(one) for one in (Bar(), *(hearers if team.rank == 0 else ()))]
        saes = run(activations, made.train, to, all_of(tells), team, where)
    if team.rank == 0:
        write_lineage(to, "train", made, inputs)
        about = [_about(sae, folder) for sae, folder in zip(saes, folders(made.train, to), strict=True)]
        print_json({"to": to, "saes": about}) if json_ else [screen.show_trained(one) for one in about]


def _about(sae: Any, folder: Path) -> dict[str, Any]:
    """What a training made, and its figures on held-out tokens."""
    notes = sae.config.notes
    said = {"SAE": sae.fingerprint, "folder": str(folder), "hook point": sae.config.hook_point}
    said |= {"features": sae.d_hidden, "tokens": notes["tokens"], "target l0": notes["training"]["l0"]}
    return said | {name: round(value, 4) for name, value in notes["held_out"].items()}


def _shards(path: str, specs: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """What is trained on, and its hashes: a store's shards."""
    from sparsight import screen
    from sparsight.shards.shards import Shards

    found = Shards(path)
    if len(found) and (times := max(spec.tokens for spec in specs) / len(found)) > MANY:
        todo = "--tokens says how many are trained on"
        screen.note(f"These {len(found):,} tokens are read {times:,.0f} times over; {todo}.")
    return found, {"shards": {"path": path, "tokens": len(found), "fingerprint": found.fingerprint}}


def _stream(made: Recipe, team: Any) -> tuple[Any, dict[str, Any]]:
    """What is trained on, and its hashes: activations as the model makes them, those of the text's part for validation
    held out."""
    from sparsight.harvest.stream import stream
    from sparsight.recipes.lineage import of_corpus, of_model
    from sparsight.train.source import StreamSource

    lm = open_model(made.model)

    def pieces(part: str, **place: int) -> Callable[[Any], Any]:
        text = replace(made.corpus, part=part)
        return lambda position: stream(lm, text, made.harvest, position, **place)

    inputs = {"model": of_model(lm), "corpus": of_corpus(made.corpus)}
    of = {"model": lm.name, "model_revision": inputs["model"].get("commit") or "", "settings": made.to_toml(*TEXT)}
    rows = MIXED * made.train[0].batch // team.data
    alone = {"rank": 0, "world": 1}
    texts = (
        pieces("train", rank=team.data_rank, world=team.data),
        pieces("train", **alone),
        pieces("validation", **alone),
    )
    source = StreamSource(*texts, made.harvest.hook_points, of, rows, made.train[0].seed)
    return source, inputs


@click.command()
@click.argument("folder", metavar="DIR")
@click.option("--to", help="The picture: .png, .svg or .pdf. [default: plot.png in DIR]")
def train_plot(folder: str, to: str | None) -> None:
    """Draw the course of a training, of one that runs too: L0, FVU, dead features, coefficient, learning rate."""
    from sparsight.train.plot import plot

    click.echo(plot(folder, to))


@click.command()
@click.argument("model", required=False)
@click.option("--sae", "-s", help="A folder, the model card's .pth, a repository on the hub. [default: the demo's own]")
@click.option("--hook-point", help="Where the SAE reads, as model.layers.19. [default: what the SAE says]")
@click.option("--recipe", help="A recipe whose [model], [corpus] and [evaluate] count.")
@click.option("--to", help="A JSON file for the report.")
@knob_options("evaluate")
@knob_options("model", without=("name",))
@knob_options("corpus", "corpus-", CORPUS)
@settings
@as_json
def evaluate(
    model: str | None,
    sae: str | None,
    hook_point: str | None,
    recipe: str | None,
    to: str | None,
    settings: tuple[str, ...],
    json_: bool,
    **options: Any,
) -> None:
    """How good an SAE is on text: what it reconstructs, and the model's loss with it spliced in.

    MODEL is 'demo', a folder or a name on the hub. A recipe that trains on part 'train' of its corpus is evaluated on
    part 'validation'.
    """
    given = gathered(options)
    if model is not None:
        given.setdefault("model", {})["name"] = model
    made = load_recipe(recipe, settings, given).need("corpus").need("evaluate")
    if made.corpus.part == "train" and "part" not in given.get("corpus", {}):
        made = replace(made, corpus=replace(made.corpus, part="validation"))
    if sae is None and made.model.name != "demo":
        raise BadInput("Which SAE? Give --sae: a folder, the model card's .pth, a repository on the hub.")
    from sparsight import screen
    from sparsight.evaluate.evaluate import evaluate as run
    from sparsight.recipes.lineage import of_corpus, of_model, write_lineage
    from sparsight.sae.files import load_sae
    from sparsight.scope.load import demo_folder

    lm = open_model(made.model)
    loaded = load_sae(sae or demo_folder() / "sae", dtype=lm.dtype)
    with Bar() as tell:
        report = run(lm, loaded, made.corpus, made.evaluate, tell, hook_point=hook_point)
    if to is not None:
        report.save(to)
        inputs = {"model": of_model(lm), "sae": loaded.fingerprint, "corpus": of_corpus(made.corpus)}
        write_lineage(to, "evaluate", made, inputs)
    print_json(report.to_json()) if json_ else screen.show_report(report)


@click.command()
@click.argument("source")
@click.argument("to")
@click.option("--as", "as_", type=click.Choice(FORMATS), default="native", show_default=True, help="The format of TO.")
def convert(source: str, to: str, as_: str) -> None:
    """Write an SAE in another format. SOURCE is read in whatever format it has."""
    from sparsight.sae.files import convert as run

    click.echo(f"Wrote {run(source, to, as_)}")


def on_own_gpu(model: Any) -> Any:
    """The model's settings with, of several processes that torchrun started, each on a GPU of its own, if no device is
    said."""
    from sparsight.lm.pretrained import best_device

    local = os.environ.get("LOCAL_RANK")
    if local is None or model.device is not None or best_device().type != "cuda":
        return model
    return replace(model, device=f"cuda:{local}")


def _first() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    from sparsight.corpus.ranks import place

    return place()[0] == 0
