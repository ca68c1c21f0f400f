"""survey: text through a model and its SAE, and an atlas of all features."""

from __future__ import annotations

from typing import Any

import click

from sparsight.cli.bar import Bar
from sparsight.cli.knobs import gathered, knob_options
from sparsight.cli.make import CORPUS, on_own_gpu, settings
from sparsight.cli.options import as_json, print_json
from sparsight.errors import BadInput
from sparsight.recipes.recipe import load_recipe, open_model


@click.command()
@click.argument("model", required=False)
@click.option("--to", required=True, help="The folder of the atlas; one that is begun is gone on with.")
@click.option("--sae", "-s", help="A folder, the model card's .pth, a repository on the hub. [default: the demo's own]")
@click.option("--hook-point", help="Where the SAE reads, as model.layers.19. [default: what the SAE says]")
@click.option("--recipe", help="A recipe whose [model], [corpus] and [survey] count.")
@knob_options("survey")
@knob_options("model", without=("name",))
@knob_options("corpus", "corpus-", CORPUS)
@settings
@as_json
def survey(
    model: str | None,
    to: str,
    sae: str | None,
    hook_point: str | None,
    recipe: str | None,
    settings: tuple[str, ...],
    json_: bool,
    **options: Any,
) -> None:
    """Write an atlas: what every feature of an SAE fires on, in one pass over a text.

    MODEL is 'demo', a folder or a name on the hub. The same command goes on with a survey that was cut off. Under
    torchrun each process reads its own part, by a GPU of its own.
    """
    given = gathered(options)
    if model is not None:
        given.setdefault("model", {})["name"] = model
    made = load_recipe(recipe, settings, given).need("corpus").need("survey")
    if sae is None and made.model.name != "demo":
        raise BadInput("Which SAE? Give --sae: a folder, the model card's .pth, a repository on the hub.")
    from sparsight import screen
    from sparsight.atlas.summary import summary
    from sparsight.recipes.lineage import of_corpus, of_model, write_lineage
    from sparsight.scope.load import demo_folder, load
    from sparsight.survey.survey import survey as run

    lm = open_model(on_own_gpu(made.model))
    scope = load(lm, sae or demo_folder() / "sae", hook_point=hook_point)
    with Bar() as tell:
        atlas = run(scope, made.corpus, made.survey, to, tell)
    if atlas is None:
        screen.note(f"This process' part is done. The one that is done last writes the atlas '{to}'.")
        return
    inputs = {"model": of_model(lm), "sae": scope.sae.fingerprint, "corpus": of_corpus(made.corpus)}
    write_lineage(to, "survey", made, inputs)
    about = summary(atlas)
    print_json(about) if json_ else screen.show_table(about)
