"""label: what every feature of an atlas means, and how well that predicts where it fires."""

from __future__ import annotations

from typing import Any

import click

from sparsight.cli.asking import asking, asking_options, endpoint, tally
from sparsight.cli.atlases import model_of, open_atlas, selected, tokenizer_of
from sparsight.cli.bar import Bar
from sparsight.cli.knobs import gathered, knob_options
from sparsight.cli.options import as_json, print_json
from sparsight.config import build
from sparsight.errors import BadInput
from sparsight.label.spec import METHODS, LabelSpec


@click.command()
@click.argument("atlas", metavar="ATLAS")
@click.option("--method", type=click.Choice(METHODS), default=METHODS[0], show_default=True, help="Who writes them.")
@click.option("--features", help="Only these, as 3,17,40-59. [default: all]")
@click.option("--only-unlabelled", is_flag=True, help="Only features that nobody has labelled.")
@click.option("--limit", type=click.IntRange(0), help="At most so many features.")
@click.option(
    "--set", "by_hand", nargs=2, multiple=True, metavar="FEATURE TEXT", help="Write a label by hand. Repeatable."
)
@click.option("--model", "-m", help="Whose tokenizer: a folder, a name on the hub. [default: what the atlas says]")
@knob_options("label")
@asking_options
@as_json
def label(
    atlas: str,
    method: str,
    features: str | None,
    only_unlabelled: bool,
    limit: int | None,
    by_hand: tuple[tuple[str, str], ...],
    model: str | None,
    sae: str | None,
    way: str | None,
    json_: bool,
    **options: Any,
) -> None:
    """Write down what features mean, with scores on text that the labeller never sees.

    ATLAS is a folder, or 'demo'. The same command goes on with a labelling that was cut off. With --set it writes a
    label by hand, which stands before all others, and nothing else.
    """
    spec = build(LabelSpec, gathered(options).get("label", {}), "label")
    opened = open_atlas(atlas)
    if by_hand:
        written = _by_hand(opened, by_hand)
        print_json(written) if json_ else click.echo(f"Wrote {len(written)} by hand.")
        return
    from sparsight import screen
    from sparsight.label.methods import Setting, labellers
    from sparsight.label.run import label as run
    from sparsight.label.run import left

    if method not in labellers:
        raise BadInput(f"This sparsight labels by {', '.join(labellers)}, not by {method}.")
    wanted = None if features is None else selected([features], len(opened))
    tokenizer, embed = tokenizer_of(opened.about, model), _embed(spec)
    own = {"endpoint": endpoint(options), "way": way, "scope": _subject(opened, model, sae, method)}
    labeller, judge = labellers[method](Setting(opened, tokenizer, spec, own))
    with asking(judge):
        if own["endpoint"].dry_run:
            todo, _ = left(opened, labeller, wanted, only_unlabelled, limit)
            _dry_run(labeller, judge, todo, spec, tokenizer)
            return
        with Bar() as tell:
            made = run(opened, labeller, spec, tokenizer, tell, wanted, judge=judge, embed=embed,
                       only_unlabelled=only_unlabelled, limit=limit)  # fmt: skip
    print_json(screen.plain(made)) if json_ else _show(made, tally(labeller, judge))


def _by_hand(atlas: Any, pairs: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    from sparsight.atlas.entries import Label

    for feature, _ in pairs:
        if not feature.strip().removeprefix("#").isdecimal():
            raise BadInput(f"--set takes a feature's number and its label, not '{feature}'.")
    made = [Label(int(feature.strip().removeprefix("#")), text, "human") for feature, text in pairs]
    atlas.add(made)
    return [{"feature": one.feature, "label": one.text} for one in made]


def _subject(atlas: Any, model: str | None, sae: str | None, method: str) -> Any:
    """The model with its SAE, where it is asked itself."""
    if method != "subject":
        return None
    from sparsight.scope.load import load

    return load(model_of(atlas.about, model), sae)


def _dry_run(labeller: Any, judge: Any, features: list[int], spec: LabelSpec, tokenizer: Any) -> None:
    """What it would take. Raises BadInput for a method that asks nobody."""
    from sparsight.label.estimate import estimate
    from sparsight.label.prose import PromptedLabeller

    if not isinstance(labeller, PromptedLabeller):
        raise BadInput(f"--dry-run is for methods that send prompts; {labeller.method} sends none.")
    click.echo(f"{len(features):,} features, {estimate(labeller, judge, features, spec, tokenizer)}")


def _embed(spec: LabelSpec) -> Any:
    """Texts to vectors, where scores by embeddings are asked for. Raises Missing."""
    if not spec.embedding:
        return None
    from sparsight.atlas.vectors import SentenceModel

    return SentenceModel().embed


def _show(made: Any, asked: dict[str, str]) -> None:
    """How many labels of each type, and how good they are beside what is had for nothing."""
    from sparsight import screen

    rows = {
        "labelled": f"{made.labelled:,}",
        "had a label already": f"{made.had:,}",
        "nothing said": f"{made.unsaid:,}",
    }
    rows |= {f"· {kind}": f"{number:,}" for kind, number in made.types.items() if kind}
    for name, (low, middle, high, _) in made.scores.items():
        rows[name] = f"{middle:.3f} ({low:.3f} to {high:.3f})"
    rows["always answering none"] = f"{made.nothing:.3f}"
    rows |= asked
    screen.show_table(rows)
    if made.scores:
        screen.note("Scores are AUCs on held-out windows: the median label's, and half of all labels are in brackets.")
