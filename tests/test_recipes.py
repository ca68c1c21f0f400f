"""Recipes: what comes along can be read, changed and written again; what is made says what it was made from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sparsight import __version__
from sparsight.config import knob, read_toml
from sparsight.corpus.spec import CorpusSpec
from sparsight.errors import BadFile, BadInput
from sparsight.recipes import lineage, recipe
from sparsight.recipes.lineage import of_corpus, of_file, of_model, write_lineage
from sparsight.recipes.recipe import ModelSpec, Recipe, load_recipe, names, open_model, recipe_text


@dataclass(frozen=True)
class Training:
    """As a training's settings are."""

    l0: float = knob(64.0, "active features per token")
    hook_point: str | None = knob(None, "where; None: where there is one")


@pytest.fixture
def rooms(monkeypatch):
    """A house in which only the model, the text and a training have settings."""
    known = {"model": ModelSpec, "corpus": CorpusSpec, "train": Training}
    monkeypatch.setattr(recipe, "sections", lambda: known)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'about = """\nTwo of\nthem."""\n[model]\ndtype = "bfloat16"\n[corpus]\nsource = "a.txt"\n'
        '[[train]]\nl0 = 32\n[[train]]\nhook_point = "a.b"\n'
    )
    return path


def test_the_llama_recipe_is_the_cards_sae_trained_as_the_nearest_one_that_was_published():
    (spec,) = load_recipe("llama-3.1-8b-instruct-l19").train
    assert (spec.objective, spec.d_hidden, spec.l0, spec.batch, spec.lr) == ("relu", 65_536, 91, 4096, 5e-5)
    assert (spec.steps, spec.warmup * spec.steps, spec.decay) == (200_000, 10_000, 0.2)


@pytest.mark.parametrize("name", names())
def test_a_recipe_that_comes_along_can_be_meant(name, tmp_path):
    for room in ("harvest", "train", "evaluate"):
        pytest.importorskip(f"sparsight.{room}.spec")
    made = load_recipe(name)
    assert made.about
    assert made.corpus
    assert made.harvest
    assert made.train
    (tmp_path / "again.toml").write_text(made.to_toml())
    assert load_recipe(tmp_path / "again.toml") == made
    lines = recipe_text(name).splitlines()
    assert sum("#" in line for line in lines) > 3  # it explains itself


def test_the_recipe_of_the_model_card_is_the_cards():
    said = read_toml(recipe.recipe_file("llama-3.1-8b-instruct-l19"))
    assert said["model"]["name"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert said["corpus"]["source"] == "lmsys/lmsys-chat-1m"
    assert said["harvest"]["hook_points"] == ["model.layers.19"]
    train = said["train"]
    assert (train["objective"], train["d_hidden"], train["l0"]) == ("relu", 65_536, 91)
    assert train["tokens"] // train["batch"] * train["warmup"] == 10_000


def test_settings_come_from_the_file_then_the_options_then_set(rooms, file):
    made = load_recipe(file)
    assert made.about == "Two of them."
    assert made.model == ModelSpec(dtype="bfloat16")
    assert made.corpus == CorpusSpec("a.txt")
    assert made.train == (Training(l0=32.0), Training(hook_point="a.b"))
    made = load_recipe(file, ["corpus.seed=3", "train.l0=5"], {"corpus": {"seed": 2, "window": 7}, "train": {"l0": 4}})
    assert made.corpus == CorpusSpec("a.txt", seed=3, window=7)
    assert [one.l0 for one in made.train] == [5, 5]
    assert load_recipe(given={"train": {"l0": 4}}).train == (Training(l0=4.0),)


def test_a_recipe_is_written_as_it_was_resolved(rooms, file, tmp_path):
    for made in (load_recipe(file), replace(load_recipe(file), train=()), load_recipe(given={"train": {"l0": 4}})):
        (tmp_path / "again.toml").write_text(made.to_toml())
        assert load_recipe(tmp_path / "again.toml") == made


def test_what_a_stage_needs_is_asked_for(rooms):
    assert load_recipe().need("train").train == (Training(),)
    with pytest.raises(BadInput, match=r"\[corpus\] does not say source: a file, a folder"):
        load_recipe().need("corpus")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("about = 3", "about is text"),
        ("[[corpus]]\nsource = 'a'", r"A recipe has one \[corpus\]"),
        ("[trian]", "No section 'trian'. Did you mean 'train'"),
        ("[train]\nl00 = 3", r"No setting 'l00' in \[train\]. Did you mean 'l0'"),
        ("train = 3", r"\[train\] is a table"),
        ("corpus = [3]", r"\[corpus\] is a table"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(rooms, tmp_path, text, says):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(BadInput, match=says):
        load_recipe(tmp_path / "a.toml", given={"corpus": {"seed": 1}, "train": {"l0": 1}})


def test_a_recipe_that_there_is_not_names_its_neighbour(tmp_path):
    with pytest.raises(BadInput, match="No recipe 'dmeo': it is no file. Did you mean 'demo'"):
        load_recipe("dmeo")
    (tmp_path / "a.toml").write_bytes(b"\xff")
    for read in (load_recipe, recipe_text):
        with pytest.raises(BadFile, match="a.toml"):
            read(tmp_path / "a.toml")


def test_what_is_made_says_what_it_was_made_from(rooms, tmp_path):
    (tmp_path / "b.txt").write_text("Once upon a time")
    (tmp_path / "a.txt").write_text("Hello")
    corpus = CorpusSpec(str(tmp_path / "*.txt"), hub_token="hf_123")
    made = tmp_path / "made"
    made.mkdir()
    inputs = {"corpus": of_corpus(corpus)}
    write_lineage(made, "harvest", Recipe(corpus=corpus), inputs)
    said = json.loads((made / "run.json").read_text())
    hashes = [hashlib.sha256(text).hexdigest() for text in (b"Hello", b"Once upon a time")]
    assert [one["sha256"] for one in said["inputs"]["corpus"]["files"]] == hashes
    assert (said["verb"], said["sparsight"], said["recipe"]) == ("harvest", __version__, "recipe.toml")
    assert load_recipe(made / "recipe.toml").corpus == corpus
    assert "hf_123" not in (made / "recipe.toml").read_text() + (made / "run.json").read_text()
    write_lineage(tmp_path / "report.json", "evaluate", Recipe(), {})
    assert {"report.recipe.toml", "report.run.json"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(BadFile, match="run.json"):
        write_lineage(tmp_path / "nowhere" / "report.json", "evaluate", Recipe(), {})


def test_a_large_file_is_known_by_its_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage, "WHOLE", 8)
    monkeypatch.setattr(lineage, "END", 3)
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345678")
    assert of_file(path)["sha256"] == hashlib.sha256(b"12345678").hexdigest()
    path.write_bytes(b"123456789")
    assert of_file(path) == {"path": str(path), "bytes": 9, "sha256_of_ends": hashlib.sha256(b"123789").hexdigest()}
    with pytest.raises(BadFile, match="absent"):
        of_file(tmp_path / "absent")


def test_a_dataset_of_the_hub_is_known_by_what_was_asked_for():
    said = of_corpus(CorpusSpec("owner/name", hub_revision="abc", hub_token="hf_123"))
    assert said == {"hub": "owner/name", "config": None, "split": "train", "revision": "abc"}


def test_the_demos_model_is_opened_by_its_name():
    lm = open_model(ModelSpec())
    assert (lm.name, lm.n_layers) == ("demo", len(lm.model.model.layers))
    said = of_model(lm)
    assert said["name"] == "demo"
    assert {Path(one["path"]).name for one in said["files"]} >= {"config.json", "model.safetensors"}


def test_a_model_of_the_hub_is_known_by_its_commit(lm, monkeypatch):
    monkeypatch.setattr(lm.model.config, "_commit_hash", "abc", raising=False)
    assert of_model(lm) == {"name": lm.name, "dtype": "float32", "commit": "abc"}
