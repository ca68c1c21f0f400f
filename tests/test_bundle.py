"""What goes in and out of an atlas as files comes back as it was, and what strangers send is refused with its place."""

import base64
import copy
import gzip
import hashlib
import html.parser
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import random_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from test_atlas import DOCUMENTS, EXAMPLES
from test_atlas import STATISTICS as MEASURED

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.bundle import html as page
from sparsight.atlas.bundle import rows
from sparsight.atlas.bundle.bands import bands
from sparsight.atlas.bundle.delphi import read_delphi
from sparsight.atlas.bundle.drawing import histogram
from sparsight.atlas.bundle.folders import write_folder
from sparsight.atlas.bundle.from_neuronpedia import read_explanations, read_neuronpedia
from sparsight.atlas.bundle.html import visible, write_html
from sparsight.atlas.bundle.hub import pull, push
from sparsight.atlas.bundle.neuronpedia import write_neuronpedia
from sparsight.atlas.bundle.table import read_labels, read_statistics, write_labels, write_statistics
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Example, Label, Score, Statistics
from sparsight.atlas.histogram import edge
from sparsight.cli import main
from sparsight.errors import BadFile, BadInput, Mismatch, NoFeature, SparsightError
from sparsight.lm.text import pieces, vocabulary
from sparsight.sae.files import save_sae

FORMS = ("csv", "jsonl", "parquet", "tsv", "csv.gz", "jsonl.gz")
ABOUT = About("5ae0", "some/model", "70ce", "model.layers.1", d_hidden=3, tokens=30, documents=3, created="2026-01-02")
SEA = Label(1, 'the "sea",\r\n\tand ☕;', "embedded", type="phrase", rule={"any": ["sea\0"]}, confidence=0.5,
            scores={"detection": Score(0.7, 0.6, 0.8, 40), "fuzz": Score(1 / 3)}, created="2026-01-01")  # fmt: skip
SHIPS = Label(1, " ships ", "openai", 'gpt, "4"', "abcd", created="2026-01-02")
NAME = Label(2, "=1+1", "human", created="2026-01-03")


@pytest.fixture
def atlas(tmp_path):
    return made(tmp_path / "atlas")


def made(folder, about=ABOUT, tokens=None, statistics=MEASURED, labels=()):
    pieces_ = [np.arange(30) if tokens is None else np.array(tokens)]
    write_atlas(folder, about, pieces_, DOCUMENTS, zip(statistics, EXAMPLES, strict=True))
    out = Atlas(folder)
    out.add(labels)
    return out


def wiped(atlas):
    for each in atlas.all_labels().values():
        for one in each:
            atlas.remove(one.id)
    return atlas


def packed(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")))
    return path


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", FORMS)
def test_labels_and_statistics_come_back_as_they_were(atlas, tmp_path, form):
    atlas.add([SEA, SHIPS, NAME])
    before = atlas.all_labels()
    out = write_labels(atlas, tmp_path / f"labels.{form}")
    assert out.counts == {"labels": 3, "features": 2}
    assert read_labels(wiped(atlas), tmp_path / f"labels.{form}").notes == ()
    assert atlas.all_labels() == before

    write_statistics(atlas, tmp_path / f"statistics.{form}", words=lambda ids: [f"<{i}>" for i in ids])
    blank = made(tmp_path / "blank", statistics=[Statistics(i) for i in range(3)])
    assert read_statistics(blank, tmp_path / f"statistics.{form}").counts == {"features": 3}
    assert [blank.statistics(i) for i in range(3)] == MEASURED
    assert blank.column("density").tolist() == atlas.column("density").tolist()


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
NUMBER = st.floats(-1e12, 1e12)
SCORES = st.dictionaries(TEXT, st.builds(Score, NUMBER, st.none() | NUMBER, st.none() | NUMBER,
                                         st.none() | st.integers(0, 2**40)), max_size=2)  # fmt: skip
RULES = st.none() | st.dictionaries(TEXT, st.recursive(NUMBER | TEXT | st.none(), st.lists, max_leaves=4), max_size=2)
LABELS = st.builds(
    Label, st.integers(0, 2), TEXT.filter(str.strip), st.sampled_from(["human", "embedded", "imported"]), TEXT, TEXT,
    TEXT, RULES, st.none() | st.floats(0, 1), SCORES, TEXT.filter(bool),
)  # fmt: skip


@settings(max_examples=30)
@given(st.lists(LABELS, max_size=6, unique_by=lambda one: (one.feature, one.method, one.model, one.prompt)))
def test_labels_of_any_text_come_back_from_any_table(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("any")
    atlas = made(folder / "atlas", labels=labels)
    before = {one: one for each in atlas.all_labels().values() for one in map(hashable, each)}
    for form in FORMS[:4]:
        write_labels(atlas, folder / f"labels.{form}")
        read_labels(wiped(atlas), folder / f"labels.{form}")
        assert {one for each in atlas.all_labels().values() for one in map(hashable, each)} == set(before)


def hashable(one):
    """All of a label, as text."""
    return repr(replace(one, id=None))


@settings(max_examples=20)
@given(st.data())
def test_statistics_of_any_numbers_come_back_from_any_table(tmp_path_factory, data):
    count, share = st.integers(0, 2**50), st.floats(0, 1)
    pairs = st.lists(st.tuples(st.integers(0, 2**31), st.floats(-1e30, 1e30)), max_size=3).map(tuple)
    counts = st.dictionaries(TEXT, count, max_size=3)
    told = data.draw(st.builds(
        Statistics, st.just(1), count, count, NUMBER, NUMBER, NUMBER, count, NUMBER, st.dictionaries(share, NUMBER),
        st.dictionaries(st.integers(0, 447), count), st.lists(count, max_size=12).map(tuple), counts, counts, pairs,
        pairs, pairs, NUMBER, NUMBER, pairs, pairs, st.none() | st.integers(0, 2), st.just(("dense", "position")),
    ))  # fmt: skip
    folder = tmp_path_factory.mktemp("any")
    atlas = made(folder / "atlas", statistics=[MEASURED[0], told, MEASURED[2]])
    blank = made(folder / "blank")
    for form in FORMS[:3]:
        write_statistics(atlas, folder / f"statistics.{form}", [1])
        read_statistics(blank, folder / f"statistics.{form}")
        assert blank.statistics(1) == atlas.statistics(1)  # which has pairs to six digits


def test_the_same_rows_give_the_same_bytes(atlas, tmp_path):
    atlas.add([SEA, NAME])
    for form in FORMS:
        one, other = (tmp_path / name / f"labels.{form}" for name in ("one", "other"))
        write_labels(atlas, one), write_labels(atlas, other)
        assert one.read_bytes() == other.read_bytes()


def test_a_table_is_of_some_features_or_of_the_best_labels(atlas, tmp_path):
    atlas.add([SEA, SHIPS, NAME])
    write_labels(atlas, tmp_path / "l.jsonl", best=True)
    read = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [(row["index"], row["label"], row["score"], row["sae"]) for row in read] == [
        (1, SEA.text, 0.7, "5ae0"), (2, "=1+1", None, "5ae0")]  # fmt: skip
    write_labels(atlas, tmp_path / "l.jsonl", [2])
    assert (tmp_path / "l.jsonl").read_text().count("\n") == 1
    with pytest.raises(NoFeature, match="No feature 3"):
        write_labels(atlas, tmp_path / "l.jsonl", [3])


def test_text_that_no_table_holds_is_said_and_nothing_is_written(atlas, tmp_path):
    atlas.add([Label(2, "nul \0", "human")])
    for form in FORMS:
        with pytest.raises(BadInput, match="label of feature 2 holds a NUL character"):
            write_labels(atlas, tmp_path / f"l.{form}")
    with pytest.raises(BadInput, match="label of feature 2 holds a NUL character"):
        write_neuronpedia(atlas, tmp_path / "np")
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]
    (tmp_path / "l.jsonl").write_text('{"index": 1, "label": "half \\ud83d"}\n')
    with pytest.raises(BadFile, match=r"l.jsonl', line 1: label holds half a character \(half \\ud83d\)"):
        read_labels(atlas, tmp_path / "l.jsonl")


@pytest.mark.parametrize("index", ["index", "feature", "feature_index", "latent"])
@pytest.mark.parametrize("text", ["label", "description", "explanation"])
def test_a_strangers_table_of_indices_and_labels_is_taken(atlas, tmp_path, index, text):
    (tmp_path / "theirs.csv").write_text(f'more,{index},{text}\nx,1,the sea\ny,2.0,"ships, boats"\nz,0,\n')
    out = read_labels(atlas, tmp_path / "theirs.csv")
    assert out.counts == {"labels": 2, "features": 2}
    assert "taken on trust" in out.notes[0]
    assert [(f, one.text, one.method, one.model) for f, each in atlas.all_labels().items() for one in each] == [
        (1, "the sea", "imported", "theirs"), (2, "ships, boats", "imported", "theirs")]  # fmt: skip


def test_strangers_tables_stand_side_by_side_and_several_labels_of_a_feature_too(atlas, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"feature": 1, "label": "sea"}\n{"feature": 1, "label": "ships"}\n')
    (tmp_path / "two.csv").write_bytes("\ufeffindex;description\r\n1;waves, foam\r\n".encode())
    read_labels(atlas, tmp_path / "one.jsonl")
    read_labels(atlas, tmp_path / "two.csv", by="somebody")
    read_labels(atlas, tmp_path / "two.csv", by="somebody")  # again: in its own place
    assert sorted((one.text, one.model) for one in atlas.labels(1)) == [
        ("sea", "one"), ("ships", "one"), ("waves, foam", "somebody")]  # fmt: skip


def test_labels_of_another_sae_are_refused_unless_forced(atlas, tmp_path):
    other = made(tmp_path / "other", replace(ABOUT, sae="0ther"), labels=[SEA])
    write_labels(other, tmp_path / "l.csv"), write_statistics(other, tmp_path / "s.csv")
    for read, name in ((read_labels, "l.csv"), (read_statistics, "s.csv")):
        with pytest.raises(Mismatch, match=f"{name}', line 2 is of SAE 0ther, and '.*atlas' is of SAE 5ae0"):
            read(atlas, tmp_path / name)
    assert atlas.all_labels() == {}
    assert "1 labels are of another SAE" in read_labels(atlas, tmp_path / "l.csv", force=True).notes[0]
    assert atlas.label(1) == SEA


OURS = "index,label,method,model,prompt,type,confidence,score,scores,rule,created,sae"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "index,label\n1,sea\n3,far\n", "line 3: no feature 3: this SAE has 3"),
        ("a.csv", "index,label\n-1,far\n", "line 2: no feature -1"),
        ("a.csv", "index,label\nsea,1\n", "line 2: index is a feature's number, not 'sea'"),
        ("a.csv", "index,label\n1.5,sea\n", "line 2: index is a feature's number"),
        ("a.csv", "index,label\n1e999,sea\n", "line 2: index is a feature's number"),
        ("a.csv", 'index,label\n1,"two\nlines"\n1,sea,more\n', "line 4, has 3 cells, and the head names 2 columns"),
        ("a.csv", 'index,label\n1,"open\n', "no CSV in UTF-8"),
        ("a.csv", "index,index,label\n1,1,sea\n", "names a column twice"),
        ("a.csv", "number,words\n1,sea\n", "it has number, words, and not a column index"),
        ("a.csv", "", "it has no columns"),
        ("a.csv", f"{OURS}\n1,sea,guess,,,,,,,,,5ae0\n", "line 2: a label is by one of human, .*, not 'guess'"),
        ("a.csv", f"{OURS}\n1,sea,human,,,,7,,,,,5ae0\n", "line 2: confidence is from 0 to 1"),
        ("a.csv", f"{OURS}\n1,sea,human,,,,nan,,,,,5ae0\n", "line 2: confidence is a number, not 'nan'"),
        ("a.csv", f"{OURS}\n1,sea,human,,,,,,broken,,,5ae0\n", "line 2, scores, is no JSON"),
        ("a.csv", f"{OURS}\n1, ,human,,,,,,,,,5ae0\n", "line 2: a label is not empty"),
        ("a.jsonl", '{"index": 1, "label": "sea"}\n{"index": 1,\n', "line 2, is no JSON"),
        ("a.jsonl", '{"index": 1, "label": NaN}\n', "line 1, is no JSON: NaN is no number"),
        ("a.jsonl", "[1]\n", "line 1, holds no JSON object"),
        ("a.jsonl", f'{{"index": 1, "label": {"[" * 9000}\n', "line 1, is no JSON"),
        ("a.jsonl", '{"index": true, "label": "sea"}\n', "line 1: index is a feature's number"),
        ("a.jsonl", '{"index": 1, "label": 5}\n', "line 1: label is text, not 5"),
        ("a.parquet", "no parquet", "Cannot read '.*' as Parquet"),
        ("a.csv.gz", "not packed", "Cannot read"),
    ],
)
def test_a_bad_row_is_said_with_its_file_and_line_and_nothing_is_taken(atlas, tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadFile, match=said):
        read_labels(atlas, tmp_path / name)
    assert atlas.all_labels() == {}


def test_a_name_that_is_no_tables_is_refused(atlas, tmp_path):
    for name in ("labels.xlsx", "labels", "labels.parquet.gz"):
        with pytest.raises(BadInput, match="name it .parquet, .csv or .jsonl"):
            write_labels(atlas, tmp_path / name)


@settings(max_examples=60)
@given(st.sampled_from(FORMS), st.binary(max_size=200), st.integers(0, 400), st.booleans())
def test_damaged_tables_are_errors_and_never_half_taken(tmp_path_factory, form, junk, at, cut):
    folder = tmp_path_factory.mktemp("junk")
    atlas = made(folder / "atlas", labels=[SEA, SHIPS, NAME])
    file = folder / f"l.{form}"
    write_labels(atlas, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:at] if cut else whole[:at] + junk + whole[at + len(junk) :])
    wiped(atlas)
    said = file.name
    try:
        took = read_labels(atlas, file).counts["labels"]
    except SparsightError as error:
        took, said = 0, str(error)
    assert "l." in said
    assert sum(map(len, atlas.all_labels().values())) == took


# ── Neuronpedia ──────────────────────────────────────────────────────────────────────────────────────────────────────

FEATURE_KEYS = """modelId layer index creatorId createdAt maxActApprox hasVector vector vectorLabel
    vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices
    neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_pearson
    correlated_neurons_l1 correlated_features_indices correlated_features_pearson correlated_features_l1 neg_str
    neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights freq_hist_data_bar_values
    logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist sourceSetName"""
ACTIVATION_KEYS = """id tokens dataIndex index layer modelId dataSource maxValue maxValueTokenIndex minValue values
    dfaValues dfaTargetIndex dfaMaxValue creatorId createdAt lossValues logitContributions binMin binMax binContains
    qualifyingTokenIndex zIndices zValues"""
EXPLANATION_KEYS = """id modelId layer index description authorId embedding triggeredById typeName explanationModelName
    notes createdAt umap_x umap_y umap_cluster umap_log_feature_sparsity"""
KEYS = {"features": FEATURE_KEYS, "activations": ACTIVATION_KEYS, "explanations": EXPLANATION_KEYS}


@pytest.fixture
def real(tmp_path, tokenizer):
    """An atlas whose tokens are a tokenizer's, whose statistics fit their histogram, and which has labels."""
    text = "Once upon a time — ‘there’ was a ☕.\n\tHello, said the pirate of the day. "
    ids = (tokenizer(text * 3)["input_ids"])[:30]
    about = replace(ABOUT, tokenizer=vocabulary(tokenizer))
    bins = {16 * 14: 4, 16 * 15 + 3: 5}  # about 1 and 2.3
    statistics = [MEASURED[0], replace(MEASURED[1], histogram=bins), MEASURED[2]]
    return made(tmp_path / "real", about, ids, statistics, [SEA, SHIPS, NAME])


def rows_in(folder, kind):
    with gzip.open(folder / kind / "batch-0.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def test_neuronpedias_rows_have_all_their_keys(real, tmp_path, tokenizer):
    out = write_neuronpedia(real, tmp_path / "np", tokenizer, model_id="llama3.1-8b-it", source_id="1-set-3")
    assert out.place == tmp_path / "np" / "llama3.1-8b-it" / "1-set-3"
    assert out.counts == {"features": 3, "activations": 4, "explanations": 3}
    for kind, keys in KEYS.items():
        assert all(set(row) == set(keys.split()) for row in rows_in(out.place, kind)), kind
        assert all((row["modelId"], row["layer"]) == ("llama3.1-8b-it", "1-set-3") for row in rows_in(out.place, kind))
    feature = rows_in(out.place, "features")[1]
    assert (feature["index"], feature["frac_nonzero"], feature["maxActApprox"]) == ("1", 0.3, 3.0)
    assert feature["freq_hist_data_bar_heights"] == [4, 5]
    assert feature["hookName"] == "blocks.1.hook_resid_post"
    assert tokenizer.convert_tokens_to_ids(feature["pos_str"]) == [9]
    first, sampled = rows_in(out.place, "activations")[:2]
    assert tokenizer.convert_tokens_to_ids(first["tokens"]) == real.tokens[:10].tolist()
    assert (first["binMin"], first["binMax"], first["binContains"], first["maxValueTokenIndex"]) == (-1, -1, -1, 5)
    assert (sampled["binMin"], sampled["binMax"]) == (1.4, 2.9)
    assert sampled["binContains"] == pytest.approx(0.49)
    assert all(re.fullmatch("[a-z][0-9a-z]{24}", row["id"]) for row in rows_in(out.place, "activations"))
    assert {p.name for p in out.place.glob("*.jsonl")} == {
        f"{n}.jsonl" for n in ("release", "model", "sourceset", "source")
    }


def test_an_atlas_comes_back_from_neuronpedias_files(real, tmp_path, tokenizer):
    out = write_neuronpedia(real, tmp_path / "np", tokenizer)
    got = read_neuronpedia(tmp_path / "np", tmp_path / "back", vocabulary=tokenizer)
    assert (got.counts, got.notes) == ({"features": 3, "examples": 4, "documents": 3}, ())
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["atlas.db", "tokens.bin"]
    back = Atlas(tmp_path / "back", sae="5ae0", tokenizer=vocabulary(tokenizer))
    assert back.all_labels() == real.all_labels()
    for feature in range(3):
        ours, theirs = real.examples(feature), back.examples(feature)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.value, a.top, a.sampled, a.at - a.start) == (b.value, b.top, b.sampled, b.at - b.start)
            assert np.abs(a.values - b.values).max() <= a.value / 127
            window = [x.tokens[e.start : e.start + len(e.values)].tolist() for x, e in ((real, a), (back, b))]
            assert window[0] == window[1]
        was, now = real.statistics(feature), back.statistics(feature)
        assert (now.density, now.max) == (was.density, was.max)
        assert now.neighbours == was.neighbours
        assert now.top_logits == was.top_logits
    assert back.statistics(1).histogram == real.statistics(1).histogram
    assert back.statistics(0).flags == ("dead",)
    read_explanations(wiped(real), out.place)
    assert real.all_labels() == back.all_labels()


def test_without_a_tokenizer_ids_go_out_and_come_back(real, tmp_path):
    out = write_neuronpedia(real, tmp_path / "np")
    assert rows_in(out.place, "activations")[0]["tokens"] == [str(id) for id in real.tokens[:10]]
    read_neuronpedia(out.place, tmp_path / "back")
    assert [e.value for e in Atlas(tmp_path / "back").examples(1)] == [3.0, 1.5]


def their_folder(tmp_path, tokenizer, **more):
    """A source as Neuronpedia gives it: rows in the order of indices as text, some tokens made readable."""
    folder = tmp_path / "theirs" / "gemma" / "20-res"
    words = ["Once", "Ġupon", "Ġa", "Ġtime", ".", " there", "\n"]
    window = {"tokens": words, "values": [0, 0, 0, 2.5, 0, 1, 0], "binContains": -1} | more
    fair = {**window, "binContains": 0.2, "binMin": 0, "binMax": 2}
    packed(folder / "features" / "batch-0.jsonl.gz", *(json.dumps(row) for row in (
        {"index": "10", "frac_nonzero": 0.01, "maxActApprox": 2.5, "pos_str": ["Ġtime", "nowhere"],
         "pos_values": [1, 2], "freq_hist_data_bar_heights": [6, 3, 1], "freq_hist_data_bar_values": [0.5, 1.5, 2.4]},
        {"index": "2", "frac_nonzero": 0},
    )))  # fmt: skip
    packed(folder / "activations" / "batch-0.jsonl.gz", *(json.dumps({"index": "10", **row}) for row in (window, fair)))
    packed(folder / "explanations" / "batch-0.jsonl.gz", *(json.dumps(row) for row in (
        {"index": "10", "description": "time", "typeName": "np_max-act", "explanationModelName": "gpt-4o-mini"},
        {"index": "10", "description": "times", "typeName": "np_max-act", "explanationModelName": "gpt-4o-mini"},
        {"index": "2", "description": ""},
    )))  # fmt: skip
    return folder


THEIRS = About("5ae0", "some/model", "70ce", "model.layers.20", d_hidden=12, tokens=0, documents=0)


def test_a_strangers_source_becomes_an_atlas(tmp_path, tokenizer):
    folder = their_folder(tmp_path, tokenizer)
    read_neuronpedia(tmp_path / "theirs", tmp_path / "atlas", THEIRS, tokenizer)
    atlas = Atlas(tmp_path / "atlas")
    assert (len(atlas), atlas.about.documents, atlas.about.corpus) == (12, 1, "Neuronpedia gemma/20-res")
    (one,) = atlas.examples(10)
    assert (one.value, one.top, one.sampled) == (2.5, True, True)
    assert tokenizer.decode(atlas.tokens.tolist()) == "Once upon a time. there\n"
    found = atlas.statistics(10)
    assert (found.fires, found.tokens, found.density, found.max) == (10, 1000, 0.01, 2.5)
    assert found.top_logits == ((tokenizer.convert_tokens_to_ids("Ġtime"), 1.0),)
    assert found.quantiles[0.5] == 0.5
    assert sum(found.histogram.values()) == 10
    assert atlas.statistics(2).flags == atlas.statistics(5).flags == ("dead",)
    assert [(one.text, one.method, one.model, one.prompt) for one in atlas.labels(10)] == [
        ("time", "imported", "gpt-4o-mini", "np_max-act"),
        ("times", "imported", "gpt-4o-mini", "np_max-act #2")]  # fmt: skip
    with pytest.raises(BadInput, match="does not say which SAE it is of"):
        read_neuronpedia(folder, tmp_path / "other", None, tokenizer)
    with pytest.raises(BadInput, match="Which tokenizer"):
        read_neuronpedia(folder, tmp_path / "other", THEIRS)
    assert not (tmp_path / "other").exists()


def test_examples_with_tokens_that_the_tokenizer_lacks_are_left_out_and_counted(tmp_path, tokenizer):
    folder = their_folder(tmp_path, tokenizer)
    strange = [json.dumps({"index": "2", "tokens": ["日本"], "values": [1]})]
    packed(folder / "activations" / "batch-1.jsonl.gz", *strange)
    out = read_neuronpedia(folder, tmp_path / "atlas", THEIRS, tokenizer)
    assert out.notes == ("1 examples are left out: they have tokens that this tokenizer lacks.",)
    packed(folder / "activations" / "batch-1.jsonl.gz", *strange * 5)
    with pytest.raises(Mismatch, match="5 of 7 examples .* have tokens that this tokenizer lacks"):
        read_neuronpedia(folder, tmp_path / "atlas", THEIRS, tokenizer)
    assert Atlas(tmp_path / "atlas").about.documents == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["atlas", "theirs"]


def test_a_long_window_is_cut_around_its_peak(tmp_path, tokenizer):
    values = [0.0] * 700
    values[400] = 9.0
    folder = their_folder(tmp_path, tokenizer, tokens=["Ġa"] * 700, values=values)
    read_neuronpedia(folder, tmp_path / "atlas", THEIRS, tokenizer)
    (one,) = Atlas(tmp_path / "atlas").examples(10)
    assert (one.at, len(one.values), one.values.argmax() + one.start) == (400, 255, 400)


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("activations", {"index": "99"}, "line 3: no feature 99: this SAE has 12"),
        ("activations", {"index": "2", "tokens": ["a"], "values": [1, 2]}, "line 3: 1 tokens and 2 values"),
        ("activations", {"index": "2", "tokens": "a", "values": [1]}, "line 3: tokens is a list of texts, not 'a'"),
        ("activations", {"index": "2", "tokens": ["a"], "values": ["1"]}, "line 3: values is a list of finite numbers"),
        ("activations", {"index": "2", "tokens": ["a"], "values": [float("inf")]}, "line 3, is no JSON: Infinity"),
        ("features", {"index": "10", "frac_nonzero": 0}, "line 3: feature 10 is there twice"),
        ("features", {"index": "3", "frac_nonzero": 2}, "line 3: frac_nonzero is from 0 to 1"),
        ("explanations", {"index": "-1", "description": "x"}, "line 4: no feature -1"),
        ("explanations", {"index": "1", "description": "nul \0"}, "line 4: description holds a NUL"),
        ("explanations", {"index": {}, "description": "x"}, "line 4: index is a feature's number"),
    ],
)
def test_hostile_rows_of_neuronpedia_are_refused_with_file_and_line(tmp_path, tokenizer, kind, row, said):
    file = their_folder(tmp_path, tokenizer) / kind / "batch-0.jsonl.gz"
    packed(file, *gzip.decompress(file.read_bytes()).decode().splitlines(), json.dumps(row))
    with pytest.raises(BadFile, match=f"{kind}/batch-0.jsonl.gz', {said}"):
        read_neuronpedia(tmp_path / "theirs", tmp_path / "atlas", THEIRS, tokenizer)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, tokenizer, monkeypatch):
    folder = their_folder(tmp_path, tokenizer)
    monkeypatch.setattr(rows, "FREE", 1 << 20)
    monkeypatch.setattr(rows, "LONGEST", 1 << 16)
    dead = '{"index": "2", "tokens": ["a"], "values": [0]}'
    file = packed(folder / "activations" / "batch-0.jsonl.gz", *[dead.ljust(1 << 15)] * 2000)
    assert file.stat().st_size * rows.MOST < 2000 << 15
    with pytest.raises(BadFile, match="batch-0.jsonl.gz', line \\d+: it unpacks to over 250 times its size"):
        read_neuronpedia(folder, tmp_path / "atlas", THEIRS, tokenizer)
    packed(file, " " * (1 << 17))
    with pytest.raises(BadFile, match="line 1, is longer than"):
        read_neuronpedia(folder, tmp_path / "atlas", THEIRS, tokenizer)
    packed(file, dead)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BadFile, match="Cannot read '.*batch-0.jsonl.gz'"):
        read_neuronpedia(folder, tmp_path / "atlas", THEIRS, tokenizer)


def test_an_export_of_another_sae_or_tokenizer_is_refused(real, tmp_path, tokenizer):
    out = write_neuronpedia(real, tmp_path / "np", tokenizer)
    other = made(tmp_path / "other", replace(ABOUT, sae="0ther"))
    with pytest.raises(Mismatch, match="is of SAE 5ae0, and '.*other' is of SAE 0ther"):
        read_explanations(other, out.place)
    with pytest.raises(Mismatch, match="is of SAE 5ae0, not of 0ther"):
        read_neuronpedia(out.place, tmp_path / "new", replace(THEIRS, sae="0ther", tokenizer=""), tokenizer)
    told = json.loads((out.place / "sparsight.json").read_text())
    for wrong in ({"d_hidden": 2**40}, {"d_hidden": "3"}, {"sae": None}, {"more": 1}):
        (out.place / "sparsight.json").write_text(json.dumps({**told, "about": {**told["about"], **wrong}}))
        with pytest.raises(BadFile, match="does not say what it is of"):
            read_neuronpedia(out.place, tmp_path / "new", None, tokenizer)
    with pytest.raises(Mismatch, match="No token 500 in this tokenizer"):
        write_neuronpedia(made(tmp_path / "far", tokens=[500] * 30), tmp_path / "np2", tokenizer)
    with pytest.raises(BadInput, match="A source is called LAYER-SET"):
        write_neuronpedia(real, tmp_path / "np", tokenizer, source_id="../19-res")


def test_a_folder_of_something_else_is_not_overwritten(real, tmp_path):
    kept = tmp_path / "np" / "model" / "1-set"
    kept.mkdir(parents=True)
    (kept / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="holds something else"):
        write_neuronpedia(real, tmp_path / "np", model_id="model", source_id="1-set")
    assert [p.name for p in kept.iterdir()] == ["thesis.txt"]


def test_a_folder_is_replaced_only_by_a_whole_one(tmp_path):
    place = tmp_path / "place"
    write_folder(place, "mark", lambda folder: (folder / "mark").write_text("one"))

    def killed(folder):
        (folder / "mark").write_text("two")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(place, "mark", killed)
    assert (place / "mark").read_text() == "one"
    place.rename(tmp_path / "place.old.part")  # killed between the two moves
    with pytest.raises(KeyboardInterrupt):
        write_folder(place, "mark", killed)
    assert (place / "mark").read_text() == "one"
    write_folder(place, "mark", lambda folder: (folder / "mark").write_text("three"))
    assert (place / "mark").read_text() == "three"
    assert [p.name for p in tmp_path.iterdir()] == ["place"]


# ── delphi ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_delphis_explanations_and_scores_are_taken(atlas, tmp_path):
    run = tmp_path / "run"
    judged = [
        {"activating": a, "prediction": p} for a, p in ((True, True), (True, False), (False, False), (True, None))
    ]
    for name, said in (
        ("explanations/layers.1_latent1.txt", '"the \\"sea\\""'),
        ("explanations/layers.1_latent2.txt", "not JSON at all"),
        ("explanations/layers.2_latent1.txt", '"of another layer"'),
        ("scores/detection/layers.1_latent1.txt", json.dumps(judged)),
        ("scores/fuzz/layers.1_latent1.txt", json.dumps(judged[:2])),
        ("run_config.json", '{"explainer_model": "llama-70b"}'),
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(said)
    assert read_delphi(atlas, run).counts == {"labels": 2, "of them scored": 1}
    one, other = atlas.label(1), atlas.label(2)
    assert (one.text, one.method, one.model, one.prompt) == ('the "sea"', "imported", "llama-70b", "delphi")
    assert one.scores == {"delphi detection": Score(0.75, number=3)}
    assert one.score is None  # what was not held out does not compare
    assert other.text == "not JSON at all"
    with pytest.raises(Mismatch, match="no latents of 'layers.7'. It has those of: layers.1, layers.2"):
        read_delphi(atlas, run, module="layers.7")
    (run / "explanations" / "layers.1_latent3.txt").write_text('"too far"')
    with pytest.raises(BadFile, match="layers.1_latent3.txt': no feature 3"):
        read_delphi(atlas, run)
    with pytest.raises(BadFile, match="holds no explanations of delphi's"):
        read_delphi(atlas, tmp_path / "atlas")


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Page(html.parser.HTMLParser):
    """What is in a page: tags with their attributes, and the text that shows."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.shown, self.style = [], [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.style = tag == "style"

    def handle_data(self, data):
        if not self.style:
            self.shown.append(data)

    @property
    def text(self):
        return "".join(self.shown)


HOSTILE = ["</script>", "<script>alert(1)</script>", '"><img src=http://evil/x onerror=alert(1)>',
           "\u202egnp.exe\u202c", " مرحبا", "☕", "👨‍👩‍👧", "\x1b[31m", "{{ 7*7 }}", "&lt;", "</bdi></li>", "\ud800",
           "\n"]  # fmt: skip


def test_a_page_asks_for_nothing_and_runs_nothing_whatever_the_tokens_hold(atlas, tmp_path):
    evil = replace(
        SEA, text="".join(HOSTILE[:4]), type="<i>", scores={"<u>": Score(0.5)}, rule={"a": "</code><script>"}
    )
    with sqlite3.connect(atlas.folder / "atlas.db") as db:
        db.execute("UPDATE document SET language = ?", ("<script>",))
    atlas.add([evil, SHIPS])
    write_html(atlas, tmp_path / "p.html", [1, 0, 2], lambda ids: [HOSTILE[i % len(HOSTILE)] for i in ids])
    found = Page(tmp_path / "p.html")
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "base", "form", "video", "u", "i "}
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") or name in ("src", "srcset", "xlink:href") for name in attributes), tag
        assert attributes.get("href", "#").startswith("#")
    raw = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in raw
    assert not re.search(r"url\(|@import|https?://(?!evil)", raw)
    for shown in ("</script>", '"><img src=http://evil/x onerror=alert(1)>', r"\u202egnp.exe\u202c", "{{ 7*7 }}",
                  "&lt;", r"\x1b[31m", "↵", "👨‍👩‍👧", " مرحبا", r"\ud800"):  # fmt: skip
        assert shown in found.text


def test_a_page_says_what_the_atlas_knows(atlas, tmp_path):
    atlas.add([SEA, SHIPS, replace(NAME, text="numbers")])
    out = write_html(atlas, tmp_path / "p.html", [1, 2, 0], lambda ids: [f" t{i}" for i in ids])
    assert (out.counts, out.notes) == ({"features": 3}, ())
    found = Page(tmp_path / "p.html")
    for shown in ("5ae0", "numbers", "detection", "0.6 to 0.8", "n 40", "ships", "fires on 9 of 30 tokens", "dead",
                  "Strongest", "50 to 99 % of its activations", "user", "English", "held out", " t9",
                  "not labelled"):  # fmt: skip
        assert shown in found.text, shown
    heat = [a for tag, a in found.tags if tag == "span" and "style" in a]
    assert {(a["style"], a["title"]) for a in heat} >= {("--a:1.00", "3"), ("--a:0.50", "1.5")}
    assert sum(tag == "rect" for tag, _ in found.tags) == 2
    assert {a["href"] for tag, a in found.tags if tag == "a"} == {"#f0", "#f1", "#f2"}


def test_without_a_tokenizer_a_page_shows_ids_and_says_why(atlas, tmp_path):
    out = write_html(atlas, tmp_path / "p.html", [1], without="there is no network")
    assert out.notes == ("Tokens are shown as ids: there is no network.",)
    assert "[0][1][2][3][4][5]" in Page(tmp_path / "p.html").text
    for wrong in ([], range(page.MOST + 1)):
        with pytest.raises((BadInput, NoFeature)):
            write_html(atlas, tmp_path / "p.html", wrong)


def test_a_character_of_several_tokens_shows_once_with_the_strongest_of_them(tmp_path, tokenizer):
    ids = tokenizer("a ☕ b", add_special_tokens=False)["input_ids"]
    cup = [i for i, text in enumerate(pieces(tokenizer, ids)) if not text]
    assert cup
    values = np.zeros(10, np.float32)
    values[cup[0]] = 3.0
    one = Example(1, cup[0], 3.0, 0, values, True, False, 0, False)
    folder = tmp_path / "atlas"
    tokens = [np.array((ids + [ids[0]] * 30)[:30])]
    write_atlas(folder, ABOUT, tokens, DOCUMENTS, zip(MEASURED, [[], [one], []], strict=True))
    write_html(Atlas(folder), tmp_path / "p.html", [1], lambda ids: pieces(tokenizer, ids))
    assert re.search(
        r'<span class="h full peak" style="--a:1.00" title="3"> ?☕</span>', (tmp_path / "p.html").read_text()
    )


@given(st.text())
def test_all_that_is_shown_can_be_seen(text):
    shown = visible(text)
    assert not page.HIDDEN.search(shown)
    shown.encode()
    assert visible(shown) == shown


@given(st.dictionaries(st.integers(0, 447), st.integers(1, 10**9), min_size=1), st.lists(st.floats(1e-6, 1e6)))
def test_a_histogram_has_all_its_counts_and_stays_within_its_picture(counts, marks):
    drawn = histogram(Statistics(0, histogram=counts, max=edge(max(counts) + 1)), marks)
    assert sum(bar.count for bar in drawn.bars) == sum(counts.values())
    assert len(drawn.bars) <= 48
    assert all(bar.x >= -0.01 and bar.x + bar.width <= drawn.width + 0.01 for bar in drawn.bars)
    assert all(0 <= bar.strength <= 1 and -0.01 <= bar.y <= drawn.height for bar in drawn.bars)
    assert 2 <= len(drawn.ticks) <= 20
    assert all(-1 <= x <= drawn.width + 1 for x, _ in drawn.ticks)


@given(st.lists(st.floats(2**-8, 2**8, width=32), min_size=1, max_size=30), st.integers(0, 5))
def test_every_fair_example_is_in_one_band(values, edges):
    shares = [0.2, 0.4, 0.6, 0.8, 0.95][:edges]
    quantiles = {share: float(np.quantile(values, share, method="lower")) for share in shares}
    told = [Example(0, i, v, i, np.array([v], np.float32), False, True, 0, False) for i, v in enumerate(values)]
    found = bands(Statistics(0, max=max(values), quantiles=quantiles), told)
    assert sorted(e.at for band in found for e in band.examples) == list(range(len(values)))
    assert sum(band.share for band in found) == pytest.approx(1)
    assert all(band.low <= e.value <= band.high for band in found for e in band.examples)


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Hub(BaseHTTPRequestHandler):
    """A hub of one's own, as far as pushing and pulling a dataset goes: files by repository, behind one token."""

    repos: dict[str, dict[str, bytes]] = {}  # noqa: RUF012
    private: dict[str, bool] = {}  # noqa: RUF012
    uploaded: dict[str, bytes] = {}  # noqa: RUF012
    commits: list[str] = []  # noqa: RUF012
    token = "hf_secret"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def may(self):
        if self.headers.get("Authorization") == f"Bearer {self.token}":
            return True
        self.answer(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials")
        return False

    @staticmethod
    def sha(files):
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    @property
    def base(self):
        return f"http://{self.headers['Host']}"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.may():
            return
        if self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            assert asked["type"] == "dataset"
            self.repos.setdefault(name, {})
            self.private[name] = asked.get("private") or asked.get("visibility") == "private"
            self.answer(200, {"url": f"{self.base}/datasets/{name}"})
        elif "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular" if f["path"].endswith(".md") else "lfs",
                      "shouldIgnore": False, "oid": None} for f in json.loads(body)["files"]]  # fmt: skip
            self.answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [{**one, "actions": {"upload": {"href": f"{self.base}/put/{one['oid']}", "header": {}}}}
                       for one in json.loads(body)["objects"]]  # fmt: skip
            self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    self.repos[name][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                elif row["key"] == "lfsFile":
                    self.repos[name][row["value"]["path"]] = self.uploaded[row["value"]["oid"]]
                elif row["key"] == "header":
                    self.commits.append(row["value"]["summary"])
            self.answer(200, {"commitUrl": f"{self.base}/datasets/{name}/commit/{'a' * 40}", "commitOid": "a" * 40})
        else:
            self.answer(404, {"error": self.path})

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(data).hexdigest() == self.path.rpartition("/")[2]
        self.uploaded[self.path.rpartition("/")[2]] = data
        self.answer(200)

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api" and parts[1] == "datasets":
            files = self.repos.get("/".join(parts[2:4]))
            if files is None:
                return self.answer(
                    404, {"error": "Not found"}, X_Error_Code="RepoNotFound", X_Error_Message="Not found"
                )
            if parts[4:5] == ["tree"]:
                return self.answer(200, [{"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                                         for n, d in files.items()])  # fmt: skip
            siblings = [{"rfilename": n} for n in files]
            return self.answer(200, {"id": "/".join(parts[2:4]), "sha": self.sha(files), "siblings": siblings})
        if parts[0] == "datasets" and parts[3] == "resolve":
            files = self.repos["/".join(parts[1:3])]
            data = files["/".join(parts[5:])]
            return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=self.sha(files))
        return self.answer(404, {"error": self.path})

    do_HEAD = do_GET


DEPRECATED = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's client's own


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The address of a hub on this machine; the client is told that it may go there."""
    import huggingface_hub.constants as constants

    for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True), ("HF_HUB_CACHE", str(tmp_path / "c"))):
        monkeypatch.setattr(constants, name, value)
    for name in ("repos", "private", "uploaded"):
        monkeypatch.setattr(Hub, name, {})
    monkeypatch.setattr(Hub, "commits", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@DEPRECATED
def test_an_atlas_goes_to_the_hub_and_comes_back_the_same(atlas, tmp_path, hub):
    atlas.add([SEA, SHIPS])
    assert (atlas.folder / "atlas.db-wal").stat().st_size > 0  # what was written last is not in the table's own file
    (atlas.folder / "vectors.npy").write_bytes(b"meanings")
    (atlas.folder / "diary.txt").write_text("not for others")
    at = {"endpoint": hub, "token": Hub.token}
    push(atlas.folder, "hub:me/pirates", **at)
    assert set(Hub.repos["me/pirates"]) == {"atlas.db", "tokens.bin", "vectors.npy", "README.md"}
    assert (Hub.private["me/pirates"], Hub.commits) == (True, ["Atlas of SAE 5ae0"])
    card = Hub.repos["me/pirates"]["README.md"].decode()
    assert card.startswith('---\nbase_model: "some/model"\n')
    assert "sparsight import hub:me/pirates atlas" in card

    out = pull("me/pirates", tmp_path / "copy", sae="5ae0", tokenizer="70ce", **at)
    back = Atlas(tmp_path / "copy")
    assert out.counts["features"] == 3
    assert back.all_labels() == atlas.all_labels()
    assert [back.statistics(i) for i in range(3)] == MEASURED
    assert back.tokens.tolist() == list(range(30))
    assert (tmp_path / "copy" / "vectors.npy").read_bytes() == b"meanings"
    assert {p.name for p in tmp_path.iterdir()} <= {"atlas", "copy", "c"}
    with pytest.raises(BadInput, match="There is an atlas in '.*copy' already"):
        pull("me/pirates", tmp_path / "copy", **at)
    wiped(back)
    pull("me/pirates", tmp_path / "copy", force=True, **at)
    assert Atlas(tmp_path / "copy").all_labels() == atlas.all_labels()
    push(atlas.folder, "me/open", private=False, **at)
    assert Hub.private["me/open"] is False


@DEPRECATED
def test_what_the_hub_has_is_checked_before_it_takes_a_place(atlas, tmp_path, hub):
    at = {"endpoint": hub, "token": Hub.token}
    push(atlas.folder, "me/pirates", **at)
    files, copy = Hub.repos["me/pirates"], tmp_path / "copy"
    with pytest.raises(Mismatch, match="is of SAE 5ae0, not of 0ther"):
        pull("me/pirates", copy, sae="0ther", **at)
    whole = files["atlas.db"]
    for broken in (whole[:5000], whole[:2000] + b"\xff" * 3000 + whole[5000:], b""):
        files["atlas.db"] = broken
        with pytest.raises(BadFile):
            pull("me/pirates", copy, **at)
    evil = tmp_path / "evil.db"
    evil.write_bytes(whole)
    with sqlite3.connect(evil) as db:
        db.execute("CREATE TRIGGER spy AFTER INSERT ON label BEGIN DELETE FROM feature; END")
    files["atlas.db"] = evil.read_bytes()
    with pytest.raises(BadFile, match=r"would act by itself \(spy\)"):
        pull("me/pirates", copy, **at)
    del files["tokens.bin"]
    files["atlas.db"] = whole
    with pytest.raises(BadFile, match="'tokens.bin', .*, is missing"):
        pull("me/pirates", copy, **at)
    assert not copy.exists()
    assert not list(tmp_path.glob("copy*"))


@DEPRECATED
def test_the_hubs_refusals_are_told_in_one_line(atlas, tmp_path, hub):
    with pytest.raises(BadFile, match="Cannot make 'me/pirates' on the hub: .*401"):
        push(atlas.folder, "me/pirates", token="hf_wrong", endpoint=hub)
    with pytest.raises(BadFile, match="Cannot pull 'me/nowhere'"):
        pull("me/nowhere", tmp_path / "copy", token=Hub.token, endpoint=hub)
    for name in ("pirates", "me/my/pirates", "me/pi rates", "../x"):
        with pytest.raises(BadInput, match="A repository of the hub is owner/name"):
            push(atlas.folder, name, endpoint=hub)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    push(atlas.folder, "me/pirates", token=Hub.token, endpoint=hub)
    with pytest.raises(BadInput, match="holds something else"):
        pull("me/pirates", taken, token=Hub.token, endpoint=hub)


# ── the verbs ────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(capsys, *args):
    code = main([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, " ".join(out.err.split())


def test_labels_and_statistics_by_the_verbs(atlas, tmp_path, capsys):
    atlas.add([SEA, SHIPS, NAME])
    code, out, _ = run(capsys, "export", atlas.folder, tmp_path / "new" / "l.csv", "--features", "1-2", "--best")
    assert (code, out) == (0, f"Wrote {tmp_path / 'new' / 'l.csv'}: 2 labels, 2 features\n")
    wiped(atlas)
    code, out, _ = run(capsys, "import", tmp_path / "new" / "l.csv", atlas.folder, "--json")
    assert json.loads(out) == {"to": str(atlas.folder), "labels": 2, "features": 2, "notes": []}
    assert atlas.texts() == {1: SEA.text, 2: NAME.text}
    code, out, err = run(capsys, "export", atlas.folder, tmp_path / "s.jsonl", "--as", "statistics")
    assert code == 0
    assert "Tokens are written as ids: Cannot load the tokenizer of 'some/model'" in err
    assert run(capsys, "import", tmp_path / "s.jsonl", atlas.folder)[:2] == (0, f"Wrote {atlas.folder}: 3 features\n")


def test_text_comes_from_the_tokenizer_of_the_model_that_the_atlas_names(real, tmp_path, capsys, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.save_pretrained(tmp_path / "model")
    named = made(tmp_path / "named", replace(real.about, model=str(tmp_path / "model")), real.tokens.tolist())
    code, _, err = run(capsys, "export", named.folder, tmp_path / "p.html", "-f", "1,1,2")
    assert (code, "ids" in err) == (0, False)
    assert "Once upon" in Page(tmp_path / "p.html").text
    code, _, err = run(capsys, "export", tmp_path / "atlas_", tmp_path / "p.html")
    assert code == 1
    other = made(tmp_path / "other")
    code, _, err = run(capsys, "export", other.folder, tmp_path / "p.html", "--model", tmp_path / "model")
    assert code == 1
    assert f"The tokenizer of '{tmp_path / 'model'}' is {vocabulary(tokenizer)}, not 70ce" in err
    code, out, _ = run(capsys, "export", named.folder, tmp_path / "np", "--as", "neuronpedia", "--source-id", "1-set")
    assert (code, out) == (0, f"Wrote {tmp_path}/np/model/1-set: 3 features, 4 activations, 0 explanations\n")
    assert run(capsys, "import", tmp_path / "np", tmp_path / "back")[0] == 0
    assert len(Atlas(tmp_path / "back").examples(1)) == 2
    assert run(capsys, "import", tmp_path / "np", tmp_path / "back", "--model", tmp_path / "model")[0] == 0
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(tmp_path / "another")
    for place, said in (("back", "back' is of tokenizer"), ("new", "1-set' is of tokenizer")):
        code, _, err = run(capsys, "import", tmp_path / "np", tmp_path / place, "--model", tmp_path / "another")
        assert code == 1
        assert said in err


def test_a_strangers_source_needs_the_sae_and_the_model_by_the_verb(tmp_path, capsys, tokenizer):
    their_folder(tmp_path, tokenizer)
    tokenizer.save_pretrained(tmp_path / "model")
    sae = random_sae()
    save_sae(sae, tmp_path / "sae")
    args = ["import", tmp_path / "theirs", tmp_path / "atlas"]
    for more in ([], ["--model", tmp_path / "model"], ["--sae", tmp_path / "sae"]):
        code, _, err = run(capsys, *args, *more)
        assert code == 1
        assert "name the SAE and the model" in err or "Which tokenizer?" in err
    code, _, err = run(capsys, *args, "--model", tmp_path / "model", "--sae", tmp_path / "sae")
    assert code == 0, err
    about = Atlas(tmp_path / "atlas").about
    assert (about.sae, about.d_hidden, about.hook_point) == (sae.fingerprint, sae.d_hidden, sae.config.hook_point)
    (tmp_path / "l.csv").write_text("index,label\n1,sea\n")
    assert run(capsys, "import", tmp_path / "l.csv", tmp_path / "atlas", "--sae", tmp_path / "sae")[0] == 0
    save_sae(random_sae(seed=1), tmp_path / "other")
    code, _, err = run(capsys, "import", tmp_path / "l.csv", tmp_path / "atlas", "--sae", tmp_path / "other")
    assert (code, "is of SAE" in err) == (1, True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["export", "{a}", "somewhere"], "What is to be written to 'somewhere'?"),
        (["export", "{a}", "l.csv", "-f", "1-x"], "Features are numbers and ranges"),
        (["export", "{a}", "l.csv", "-f", "2-9"], "No feature 9: this SAE has 3"),
        (["export", "{a}", "l.csv", "--public"], "--public goes with hub, not with labels"),
        (["export", "{a}", "p.html", "--best"], "--best goes with labels, not with html"),
        (["import", "hub:me/x", "{a}", "--by", "me"], "--by goes with labels, delphi, not with hub"),
        (["export", "{a}", "hub:me/x", "-f", "1"], "To the hub goes a whole atlas"),
        (["import", "nowhere.csv", "{a}"], "No file or folder 'nowhere.csv'"),
        (["import", "{a}", "{a}"], "is an atlas itself: copy the folder"),
        (["import", ".", "{a}"], "holds no features/batch-"),
        (["export", "nowhere", "l.csv"], "'nowhere' is no atlas"),
    ],
)
def test_what_the_verbs_cannot_do_is_one_line(atlas, tmp_path, capsys, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *(arg.format(a=atlas.folder) for arg in args))
    assert (code, out) == (1, "")
    assert said in err


def test_the_verbs_reach_the_hub_that_the_environment_names(atlas, tmp_path, hub):
    atlas.add([NAME])
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_TOKEN": Hub.token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
           "HF_HOME": str(tmp_path / "home")}  # fmt: skip
    script = (
        "import sys; from sparsight.cli import main\n"
        f"assert main(['export', {str(atlas.folder)!r}, 'hub:me/pirates', '--public']) == 0\n"
        f"assert main(['import', 'hub:me/pirates', {str(tmp_path / 'copy')!r}]) == 0"
    )
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Hub.private["me/pirates"] is False
    assert Atlas(tmp_path / "copy").texts() == {2: "=1+1"}
