"""A recipe: the settings of every stage in one TOML file. A section is the dataclass that its room reads.

[model] which model; [corpus] which text; [harvest] which activations; [train] which SAE, or several as [[train]], all
from one harvest; [evaluate] how it is judged; [survey] how its atlas is made; [label] how its features are
labelled. A section that is left out is not needed, or as always.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparsight.config import as_toml, build, knob, read_toml, resolve
from sparsight.disk import first_line
from sparsight.errors import BadFile, BadInput


@dataclass(frozen=True)
class ModelSpec:
    """Which language model, and how it is held."""

    name: str = knob("demo", "'demo', a folder, or a name on the hub")
    revision: str | None = knob(None, "commit, branch or tag on the hub")
    dtype: str | None = knob(None, "bfloat16, float16 or float32; none: the model's own on a GPU, float32 on a CPU")
    device: str | None = knob(None, "cpu, cuda, mps, or auto for all GPUs; none: the GPU where there is one")


SPECS = {
    "corpus": "CorpusSpec",
    "harvest": "HarvestSpec",
    "train": "TrainSpec",
    "evaluate": "EvaluateSpec",
    "survey": "SurveySpec",
    "label": "LabelSpec",
}


@cache
def sections() -> dict[str, type]:
    """Which sections there are, each with its dataclass: a room's spec.py has it. A room that is not built has none."""
    found: dict[str, type] = {"model": ModelSpec}
    for room, name in SPECS.items():
        if (Path(str(files("sparsight"))) / room / "spec.py").is_file():
            found[room] = getattr(import_module(f"sparsight.{room}.spec"), name)
    return found


@dataclass(frozen=True)
class Recipe:
    """about: what it makes. train: none, one or several. The others are None where the recipe does not have them."""

    about: str = ""
    model: ModelSpec = ModelSpec()
    corpus: Any = None
    harvest: Any = None
    train: tuple[Any, ...] = ()
    evaluate: Any = None
    survey: Any = None
    label: Any = None

    def need(self, section: str) -> Recipe:
        """With this section: as it is, or as always. Raises BadInput where that leaves something open."""
        if getattr(self, section):
            return self
        made = build(sections()[section], {}, section)
        return replace(self, **{section: (made,) if section == "train" else made})

    def to_toml(self, *only: str) -> str:
        """All settings, with what each means, as TOML that is a recipe. only: these sections."""
        found = {name: getattr(self, name) for name in only or sections()}
        if len(self.train) == 1 and "train" in found:
            found["train"] = self.train[0]
        return as_toml({name: value for name, value in found.items() if value}, self.about)


def load_recipe(
    name: str | Path | None = None,
    overrides: Iterable[str] = (),
    given: Mapping[str, Mapping[str, Any]] | None = None,
) -> Recipe:
    """A recipe by the name of one that comes along, or from a file; an empty one where there is no name.

    given: {section: {key: value}} that stands above the file's. overrides: "section.key=value", above both.
    Raises BadInput for a recipe that there is not and for settings that cannot be, BadFile for what is no TOML.
    """
    said = {} if name is None else read_toml(recipe_file(name))
    about = said.pop("about", "")
    if not isinstance(about, str):
        raise BadInput(f"about is text that says what a recipe makes, not {about!r}.")
    for section, values in (given or {}).items():
        there = said.get(section, {})
        said[section] = [_over(row, values) for row in there] if isinstance(there, list) else _over(there, values)
    made = resolve(sections(), said, overrides)
    if "train" in made and not isinstance(made["train"], tuple):
        made["train"] = (made["train"],)
    for section in ("model", "corpus", "harvest", "evaluate", "survey", "label"):
        if isinstance(made.get(section), tuple):
            raise BadInput(f"A recipe has one [{section}]; only [[train]] may be several.")
    return Recipe(" ".join(about.split()), **made)


def _over(table: Any, values: Mapping[str, Any]) -> Any:
    return {**table, **values} if isinstance(table, Mapping) else table  # what is no table, resolve() refuses


def names() -> list[str]:
    """The recipes that come along."""
    here = Path(str(files("sparsight.recipes")))
    return sorted(path.stem for path in here.glob("*.toml"))


def recipe_file(name: str | Path) -> Path:
    """The file of a recipe that comes along, or the file of that path. Raises BadInput where there is neither."""
    if str(name) in names():
        return Path(str(files("sparsight.recipes"))) / f"{name}.toml"
    path = Path(name).expanduser()
    if path.is_file():
        return path
    near = difflib.get_close_matches(str(name), names(), n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise BadInput(f"No recipe '{name}': it is no file.{hint} Recipes that come along: {', '.join(names())}.")


def recipe_text(name: str | Path) -> str:
    """A recipe as it is written, with its comments."""
    path = recipe_file(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise BadFile(f"Cannot read '{path}': {first_line(error)}") from error


def open_model(spec: ModelSpec) -> Any:
    """The ObservableLanguageModel that it names. Raises BadFile where it cannot be loaded."""
    from sparsight.lm.lm import ObservableLanguageModel
    from sparsight.scope.load import demo_folder

    where = demo_folder() / "model" if spec.name == "demo" else spec.name
    lm = ObservableLanguageModel(where, spec.device, spec.dtype, revision=spec.revision)
    lm.name = spec.name
    return lm
