"""`sparsight features`: what a person finds in an atlas, and how it looks."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from sparsight import screen
from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Example, Label, Score, Statistics
from sparsight.atlas.vectors import default_embedder
from sparsight.cli import cli, feature_page, main
from sparsight.errors import BadFile
from sparsight.lm.spelling import load_tokenizer, spellings
from sparsight.lm.text import vocabulary
from sparsight.records import Kind
from sparsight.sae.files import save_sae
from sparsight.scope.feature_data import Text, feature_json

CHAT = [{"role": "user", "content": "Hello, said the pirate."}, {"role": "assistant", "content": "I am fine."}]
SEA = "Once upon a time, naïve 🏴 pirate"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, lm):
    """An atlas of a chat and a text, by a tokenizer that lies beside it; feature 1 fires on " pirate"."""
    place, tokenizer = tmp_path_factory.mktemp("found"), lm.tokenizer
    tokenizer.save_pretrained(place / "model")
    prompt, text = lm.prompt(CHAT, add_generation_prompt=False), tokenizer.encode(SEA)
    chat, told = list(prompt.ids), tuple((1, int(kind)) for kind in prompt.kinds)
    documents = [
        Document(0, 0, len(chat), "a chat", "made up", "English", told),
        Document(1, len(chat), len(text), "a text", "made up", None, ((len(text), int(Kind.TEXT)),)),
    ]
    ((pirate,),) = (ids for ids in spellings(tokenizer, "pirate") if len(ids) == 1)
    tokens = np.array([*chat, *text])
    examples = []
    for number, at in enumerate(np.flatnonzero(tokens == pirate).tolist()):
        values = np.zeros(5, np.float32)
        values[2:4] = 4.0 - number, 1.0
        examples.append(Example(1, at, 4.0 - number, at - 2, values[: len(tokens) - at + 2], True, number == 1,
                                documents[at >= len(chat)].number, False))  # fmt: skip
    speaks = Statistics(
        1, 3, len(tokens), 2.0, 0.5, 4.0, 2, 3.5, {0.5: 2.0, 0.99: 3.9}, {240: 1, 256: 2}, (0, 3),
        {"user": 2, "text": 1}, {"English": 2}, ((pirate, 2), (11, 1)), ((pirate, 1.5),), ((12, -0.5),), 1.0, 1.0,
        ((2, 0.6),), ((2, 3.5),),
    )  # fmt: skip
    other = Statistics(2, 1, len(tokens), 1.0, 0.0, 1.0, 1, 1.0, top_tokens=((13, 1),))
    dead = Statistics(0, tokens=len(tokens), flags=("dead",))
    features = [(dead, []), (speaks, examples), (other, [])]
    about = About("5ae0", str(place / "model"), vocabulary(tokenizer), "model.layers.2", 3, len(tokens), 2)
    write_atlas(place / "atlas", about, [tokens], documents, features)
    atlas = Atlas(place / "atlas")
    atlas.add([Label(1, "talks of pirates", "embedded", scores={"detection": Score(0.91, 0.85, 0.97, 40)})])
    atlas.add([Label(1, "pirates of all kinds", "human"), Label(2, "other words", "openai", "a-model")])
    return place / "atlas"


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sparsight.atlas.vectors.CARRIER", "no_such_package")
    monkeypatch.setattr("sparsight.atlas.vectors.default_embedder", default_embedder.__wrapped__)  # nothing is kept

    def ran(*args, atlas=folder):
        out = CliRunner().invoke(cli, ["features", *args, "--atlas", str(atlas)])
        if out.exception and not isinstance(out.exception, SystemExit):
            raise out.exception
        return out

    return ran


def test_features_are_found_by_words_with_what_they_fire_on(run):
    out = run("of", "pirates")
    head, row, *rest = out.stdout.splitlines()
    assert head.split() == ["feature", "label", "score", "density", "max", "fires", "on"]
    assert row.split()[:6] == ["1", "pirates", "of", "all", "kinds", "✎"]
    assert "␣pirate" in row
    assert not rest
    assert "by their words alone; to search by meaning too: pip install 'sparsight[search]'" in out.stderr
    (told,) = json.loads(run("pirates", "--json").stdout)
    assert (told["feature"], told["label"], told["method"]) == (1, "pirates of all kinds", "human")
    assert (told["top_tokens"][0], told["ranks"]) == (
        " pirate",
        {"words": 1, "tokens": told["ranks"].get("tokens")},
    ) or (told["ranks"] == {"words": 1})


def test_tokens_logits_and_filters_are_asked_for_as_in_python(run):
    for query in ('"pirate"', 'logit:"pirate"', "max:>3", "role:user density:>0"):
        assert [hit["feature"] for hit in json.loads(run(query, "--json").stdout)] == [1], query
    assert json.loads(run("flag:dead", "--json").stdout)[0]["label"] is None
    assert run("dragons").stdout == "Nothing is found for: dragons\n"
    with pytest.raises(Exception, match="Did you mean 'density'"):
        run("dense:<1")


def test_a_number_alone_shows_that_feature(run):
    text = run("1").stdout
    for part in (
        "feature 1  pirates of all kinds   human", "talks of pirates   embedded  detection 0.91 (0.85 to 0.97)",
        "in 2 of 2 documents", "mean 2, max 4, unit 3.5", "below: 50 % 2, 99 % 3.9", "␣pirate 67 %", "user", "English",
        "less likely", "2 0.60 other words", "2 3.5 bits other words", "strongest", "user▸  said the pirate. ▪",
    ):  # fmt: skip
        assert part in text, part
    assert run("#1").stdout == text
    told = json.loads(run("1", "--json").stdout)
    assert [label["method"] for label in told["labels"]] == ["human", "embedded"]
    assert "never fired" in run("0").stdout
    with pytest.raises(Exception, match="No feature 3: this SAE has 3"):
        run("3")


def test_the_context_of_an_example_is_as_wide_as_one_asks(run, tokenizer):
    for width, tokens in ((0, 1), (2, 5)):
        first = json.loads(run("1", "--json", "--width", str(width)).stdout)["strongest"][0]
        assert len(first["tokens"]) == len(first["values"]) == len(first["kinds"]) == tokens
        assert first["tokens"][width] == " pirate"
        assert first["values"][width] == first["value"] == 4.0
    wide = json.loads(run("1", "--json", "--width", "999").stdout)["strongest"]
    assert "".join(wide[1]["tokens"]) == "<|begin_of_text|>" + SEA
    assert wide[0]["values"].count(None) == len(wide[0]["values"]) - 5  # beyond what the survey kept, nobody knows


def test_tokens_are_tinted_by_activation_and_control_characters_shown():
    window = {"tokens": ["a", " b", "\x1b[31m", "\n", "c"], "values": [0.0, 1.0, 4.0, 2.0, None],
              "kinds": [int(Kind.TEXT)] * 5}  # fmt: skip
    text = feature_page.heated(window, 4.0)
    assert text.plain == " text▸ a b\\x1b[31m⏎c"
    grounds = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert grounds["\\x1b[31m"] == screen.TINTS[-1]
    assert grounds[" b"] == screen.TINTS[1]
    assert grounds["c"] == "dim"


def test_the_templates_silent_tokens_give_way_to_who_speaks_and_firing_ones_stay():
    template, user = int(Kind.TEMPLATE), int(Kind.USER)
    window = {"tokens": ["<head>", "user", "<end>", "\n\n", "Hi", "<eot>"], "kinds": [*[template] * 4, user, template]}
    assert feature_page.heated(window | {"values": [0.0] * 6}, 1.0).plain == " user▸ Hi ▪ "
    assert feature_page.heated(window | {"values": [0.0, 0, 1, 0, 0, 0]}, 1.0).plain == " user▸ <end> ▪ Hi ▪ "


def test_a_histogram_is_drawn_from_weak_to_strong():
    drawn = feature_page.sparkline({224: 1, 225: 4, 226: 8, 239: 2}).plain
    assert drawn == "1 ▂▅█            ▃ 2"
    assert feature_page.sparkline({}).plain == ""


def test_neighbours_and_their_cosines_are_listed(run):
    (told,) = json.loads(run("--neighbours", "1", "--json").stdout)
    assert (told["feature"], told["score"]) == (2, 0.6)
    assert "0.60" in run("--neighbours", "1").stdout
    assert "kept no neighbours" in run("--neighbours", "0,1").stdout
    for none in ("pirates", ""):
        with pytest.raises(Exception, match="--neighbours takes features by their indices"):
            run("--neighbours", none)


def test_features_near_the_centre_of_several_are_found_among_all_of_the_sae(run, sae, tmp_path):
    save_sae(sae, tmp_path / "sae")
    size = len(sae.W_dec)
    about = About(sae.fingerprint, "another", "70ce", "model.layers.2", size, 1, 1)
    dead = [(Statistics(feature, flags=("dead",)), []) for feature in range(size)]
    write_atlas(tmp_path / "atlas", about, [np.zeros(1)], [Document(0, 0, 1, "one")], dead)
    asked = ("--neighbours", "0,1", "--json", "--top", "3")
    assert json.loads(run(*asked, atlas=tmp_path / "atlas").stdout) == []
    found = json.loads(run(*asked, "--sae", str(tmp_path / "sae"), atlas=tmp_path / "atlas").stdout)
    rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    cosines = rows @ torch.nn.functional.normalize(rows[0] + rows[1], dim=0)
    cosines[:2] = -2
    assert [one["feature"] for one in found] == cosines.topk(3).indices.tolist()


def test_documents_where_features_fire_together_are_shown(run, folder):
    log = pytest.importorskip("sparsight.atlas.log")
    atlas = Atlas(folder)
    about, places = atlas.about, np.array([one.at for one in atlas.examples(1)])
    documents = [*atlas.documents()]
    starts, lengths = (np.array([getattr(one, name) for one in documents]) for name in ("start", "length"))
    piece = (np.ones(len(places), int), np.sort(places), np.ones(len(places), np.float32))
    log.write_log(folder / log.NAME, log.survey_of(about.created, about.sae), np.arange(2), starts, lengths, 3, [piece])
    told = json.loads(run("--documents", "1", "--json").stdout)
    assert (told["count"], [one["document"] for one in told["documents"]]) == (2, [0, 1])
    assert "".join(told["documents"][1]["tokens"]).endswith("naïve 🏴 pirate")
    told = json.loads(run("--documents", "1", "--role", "user", "--json").stdout)
    assert [one["document"] for one in told["documents"]] == [0]
    assert "document 0 · made up · English" in run("--documents", "1").stdout


def test_nothing_asked_says_what_the_atlas_is_of(run):
    out = run()
    assert "model.layers.2" in out.stdout
    assert "dead 1" in out.stdout
    assert "human 1" in out.stdout
    assert json.loads(run("--json").stdout)["features"] == 3


def test_which_features_fire_on_a_text_is_asked_of_the_model_that_was_surveyed(lm, sae, tmp_path, monkeypatch):
    from sparsight.scope.scope import Scope

    scope = Scope(lm, sae)
    monkeypatch.setattr("sparsight.scope.load.load", lambda *_: scope)
    made = []
    for fingerprint in (sae.fingerprint, "0ther"):
        about = About(fingerprint, str(tmp_path / "model"), vocabulary(lm.tokenizer), "h", len(scope.features), 1, 1)
        made.append(tmp_path / fingerprint)
        features = ((Statistics(i), []) for i in range(len(scope.features)))
        write_atlas(made[-1], about, [np.zeros(1)], [Document(0, 0, 1, "a")], features)
    lm.tokenizer.save_pretrained(tmp_path / "model")
    out = CliRunner().invoke(cli, ["features", 'fires:"said the pirate"', "--json", "--atlas", str(made[0]), "-k", "3"])
    strongest = [feature for feature, _ in scope.read("said the pirate").top(3)]
    assert [hit["feature"] for hit in json.loads(out.stdout)] == strongest
    out = CliRunner().invoke(cli, ["features", "fires:pirate", "--atlas", str(made[1])])
    assert "is of SAE 0ther" in str(out.exception)


def test_without_the_tokenizer_tokens_are_numbers_and_it_is_said(run, folder, tmp_path):
    shutil.copytree(folder.parent, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "model")
    atlas = Atlas(tmp_path / "moved" / "atlas")
    with atlas._writing() as db:
        db.execute("UPDATE about SET value = ? WHERE key = 'model'", (json.dumps(str(tmp_path / "moved" / "model")),))
    out = run("1", atlas=atlas.folder)
    assert "Cannot load the tokenizer of" in out.stderr
    assert "Tokens show as numbers" in out.stderr
    assert "#11" in out.stdout
    assert "the pirate" in run("1", "--model", str(folder.parent / "model"), atlas=atlas.folder).stdout


def test_a_tokenizer_of_another_model_is_refused(run, folder):
    with pytest.raises(Exception, match="is .*, not .*: name the model by --model"):
        run("1", "--model", "demo")
    with pytest.raises(Exception, match="is missing; make it anew: sparsight survey"):
        run("1", atlas=folder.parent)


def test_what_cannot_be_asked_together_is_said(run):
    for args, says in (
        (("x", "--neighbours", "1"), "go without --neighbours"),
        (("--neighbours", "1", "--documents", "1"), "not for both"),
        (("x", "--role", "user"), "write role:assistant"),
    ):
        with pytest.raises(Exception, match=says):
            run(*args)


def test_an_error_is_one_line(folder, capsys):
    assert main(["features", "densty:<1", "--atlas", str(folder)]) == 1
    assert capsys.readouterr().err.startswith("sparsight: No filter 'densty'. Did you mean 'density'?")


def test_every_spelling_of_a_text_is_tried(tokenizer):
    assert {tokenizer.decode(ids) for ids in spellings(tokenizer, "pirate")} == {"pirate", " pirate"}
    assert {tokenizer.decode(ids) for ids in spellings(tokenizer, " pirate")} == {" pirate"}
    assert spellings(tokenizer, "\ud800")
    assert load_tokenizer("demo").encode("pirate")


def test_a_page_goes_to_a_picture_with_its_colours(folder, tokenizer):
    told = feature_json(Atlas(folder), 1, Text(tokenizer), None, 5)
    page = Console(width=100, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    page.print(feature_page.feature_page(told, 2))
    assert screen.TINTS[-1].split()[-1] in page.export_svg()


def test_where_the_demo_has_no_atlas_it_says_how_to_make_one(run, monkeypatch, tmp_path):
    monkeypatch.setattr("sparsight.cli.atlases.folder_of", lambda _: tmp_path / "absent")
    with pytest.raises(BadFile, match="no atlas of the demo: make one with `sparsight survey demo"):
        run("pirate", atlas="demo")
