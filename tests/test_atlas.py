"""An atlas on disk: what is written is read again, and what is damaged, foreign or missing is said."""

import shutil
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Example, Label, Score, Statistics, is_held_out
from sparsight.atlas.examples import pack, unpack
from sparsight.errors import BadFile, BadInput, Mismatch, NoFeature

ABOUT = About("5ae0", "some model", "70ce", "model.layers.1", d_hidden=3, tokens=30, documents=3)
DOCUMENTS = [
    Document(i, 10 * i, 10, f"document {i}", "here", "English" if i else None, ((4, 33), (6, 40))) for i in range(3)
]


def example(feature: int, at: int, value: float, **more) -> Example:
    start = at // 10 * 10
    values = np.zeros(10, np.float32)
    values[at - start], values[(at - start + 3) % 10] = value, value / 2
    held_out = is_held_out(DOCUMENTS[at // 10].id)
    return Example(feature, at, value, start, values, **{"top": True, "sampled": False} | more,
                   document=at // 10, held_out=held_out)  # fmt: skip


STATISTICS = [
    Statistics(0, flags=("dead",)),
    Statistics(
        1, 9, 30, 1.5, 0.5, 3.0, 3, 2.9, {0.5: 1.4, 0.99: 2.9}, {17: 4, 18: 5}, (1, 2, 6), {"user": 3, "assistant": 6},
        {"English": 5}, ((7, 4), (8, 1)), ((9, 0.5),), ((10, -0.5),), 1.0, 0.5, ((2, 0.9),), ((2, 3.5),), None,
    ),
    Statistics(2, 1, 30, 2.0, 0.0, 2.0, 1, 2.0, duplicate_of=1, flags=("duplicate",)),
]  # fmt: skip
EXAMPLES = [[], [example(1, 5, 3.0), example(1, 14, 1.5, top=False, sampled=True)], [example(2, 29, 2.0, sampled=True)]]


@pytest.fixture
def folder(tmp_path):
    tokens = [np.arange(12), np.arange(12, 30)]
    write_atlas(tmp_path / "atlas", ABOUT, tokens, DOCUMENTS, zip(STATISTICS, EXAMPLES, strict=True))
    return tmp_path / "atlas"


@pytest.fixture
def atlas(folder):
    return Atlas(folder)


def test_what_is_written_is_read_again(atlas):
    assert atlas.about == ABOUT
    assert [atlas.statistics(i) for i in range(3)] == STATISTICS
    assert list(atlas.documents()) == DOCUMENTS
    assert atlas.tokens.tolist() == list(range(30))
    for feature, told in enumerate(EXAMPLES):
        found = atlas.examples(feature)
        assert [(e.at, e.start, e.top, e.sampled, e.document, e.held_out) for e in found] == [
            (e.at, e.start, e.top, e.sampled, e.document, e.held_out) for e in told
        ]
        for a, b in zip(found, told, strict=True):
            assert np.abs(a.values - b.values).max() <= b.value / 255
            assert ((a.values > 0) == (b.values > 0)).all()
    assert atlas.column("density").tolist() == [0.0, 0.3, pytest.approx(1 / 30)]


def test_a_window_can_be_widened_up_to_the_ends_of_its_document(atlas):
    start, ids = atlas.around(14, 2, 3)
    assert (start, ids.tolist()) == (12, [12, 13, 14, 15, 16, 17])
    start, ids = atlas.around(14, 100, 100)
    assert (start, ids.tolist()) == (10, list(range(10, 20)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60),
                          st.floats(2**-10, 2**13, width=32), st.booleans(), st.booleans()), max_size=30))  # fmt: skip
def test_examples_come_back_from_bytes_within_a_255th_of_the_peak(given):
    told = []
    for at, shares, peak, top, sampled in given:
        values = np.array(shares, np.float32) * peak
        values[0] = peak
        told.append(Example(0, at, peak, at, values, top, sampled, 0, False))
    head, windows = unpack(pack(told))
    assert head["at"].tolist() == [e.at for e in told]
    for one, values in zip(told, windows, strict=True):
        assert np.abs(one.values - values).max() <= one.value / 255
        assert ((one.values > 0) == (values > 0)).all()


def test_twenty_examples_of_each_of_65536_features_take_at_most_60_megabytes():
    """Windows of 49 tokens, about ten of them active, anywhere in a corpus of 2^30 tokens."""
    rng = np.random.default_rng(0)
    taken, features = 0, 50
    for feature in range(features):
        made = []
        for at in rng.integers(100, 2**30, 20).tolist():
            values = np.where(rng.random(49) < 0.2, rng.lognormal(size=49), 0.0).astype(np.float32)
            values[24] = 9.0 + rng.random()
            made.append(Example(feature, at, float(values[24]), at - 24, values, True, False, 0, False))
        taken += len(pack(made))
    assert taken / features * 65_536 <= 60e6


@given(st.binary(max_size=200))
def test_bytes_that_are_no_examples_are_said_to_be_none(junk):
    try:
        unpack(junk)
    except BadFile:
        return
    pytest.fail("junk passed for examples")


def test_labels_stand_side_by_side_and_the_humans_wins(atlas):
    atlas.add([Label(1, "the sea", "embedded", scores={"detection": Score(0.7, 0.6, 0.8, 40)}, rule={"any": ["sea"]})])
    atlas.add([Label(1, "ships", "openai", "some-model", "abcd", scores={"detection": Score(0.9)})])
    assert [one.text for one in atlas.labels(1)] == ["ships", "the sea"]
    atlas.add([Label(1, "pirates", "human")])
    assert [one.text for one in atlas.labels(1)] == ["pirates", "ships", "the sea"]
    atlas.add([Label(1, "pirate ships", "human"), Label(2, "nothing", "embedded")])
    assert atlas.texts() == {1: "pirate ships", 2: "nothing"}
    sea = atlas.labels(1)[-1]
    assert (sea.rule, sea.score, sea.scores["detection"].high) == ({"any": ["sea"]}, 0.7, 0.8)
    atlas.score(sea.id, {"detection": Score(0.95)})
    assert [one.text for one in atlas.labels(1)] == ["pirate ships", "the sea", "ships"]
    atlas.remove(atlas.label(1).id)
    assert atlas.label(1).text == "the sea"
    assert {f: len(labels) for f, labels in atlas.all_labels().items()} == {1: 2, 2: 1}


def test_a_label_is_replaced_without_reading_all_others(atlas):
    """Else a file of 65,536 labels, imported again, takes hours. Counted in steps of SQLite."""
    steps = {"now": 0}

    def step() -> None:
        steps["now"] += 1

    def taken() -> int:
        steps["now"] = 0
        atlas.add([Label(1, "the sea", "human")])
        return steps["now"]

    atlas._db.set_progress_handler(step, 1)
    taken()
    few = taken()
    atlas.add(Label(2, f"ship {i}", "imported", f"file {i}") for i in range(2000))
    assert taken() < 2 * few
    assert atlas.texts()[1] == "the sea"


def test_labels_are_written_all_or_none(atlas):
    with pytest.raises(NoFeature, match="No feature 3: this SAE has 3"):
        atlas.add([Label(1, "the sea", "embedded"), Label(3, "beyond", "embedded")])
    with pytest.raises(BadInput, match="not empty"):
        atlas.add([Label(1, "the sea", "embedded"), Label(1, " ", "human")])
    with pytest.raises(BadInput, match="A label is by one of human, "):
        atlas.add([Label(1, "the sea", "guess")])
    with pytest.raises(BadInput, match="no Unicode"):
        atlas.add([Label(1, "the sea", "embedded"), Label(1, "the \ud83c", "human")])
    assert atlas.all_labels() == {}


def test_an_atlas_of_another_sae_or_tokenizer_is_refused(folder):
    Atlas(folder, sae="5ae0", tokenizer="70ce")
    with pytest.raises(Mismatch, match="is of SAE 5ae0, not of 0ther: open it with"):
        Atlas(folder, sae="0ther")
    with pytest.raises(Mismatch, match="is of tokenizer 70ce, not of 0ther"):
        Atlas(folder, tokenizer="0ther")


@pytest.mark.parametrize("name", ["atlas.db", "tokens.bin"])
def test_a_damaged_or_half_written_atlas_says_what_is_missing_and_what_to_run(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    with pytest.raises(BadFile, match=f"'{name}', .*, is missing; make it anew: sparsight survey"):
        Atlas(folder)

    def all_of_it():
        opened = Atlas(folder)
        return [(opened.statistics(i), opened.examples(i)) for i in range(3)]

    for cut in (0, 100, len(whole) // 2):
        (folder / name).write_bytes(whole[:cut])
        with pytest.raises(BadFile, match="sparsight survey"):
            all_of_it()
    with pytest.raises(BadFile, match="is missing"):
        Atlas(folder.parent / "nowhere")
    (folder.parent / "begun" / "part-0000").mkdir(parents=True)
    with pytest.raises(BadFile, match="its survey is not done: the same command goes on with it"):
        Atlas(folder.parent / "begun")


def test_an_atlas_that_cannot_be_written_is_read_and_says_so(folder, tmp_path, monkeypatch):
    with sqlite3.connect(folder / "atlas.db") as db:
        db.execute("PRAGMA journal_mode = DELETE")
    real = sqlite3.connect

    def read_only(path, *args, **more):  # what a folder of root's gives to anybody else
        if not more.get("uri"):
            raise sqlite3.OperationalError("unable to open database file")
        return real(path, *args, **more)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    opened = Atlas(folder)
    assert opened.statistics(1) == STATISTICS[1]
    with pytest.raises(BadFile, match="Cannot write to the atlas"):
        opened.add([Label(1, "the sea", "human")])


def test_an_atlas_is_replaced_only_by_a_whole_one(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def features():
        yield STATISTICS[0], []
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atlas(folder, replace(ABOUT, sae="new"), [np.arange(30)], DOCUMENTS, features())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_copy_is_the_same_atlas(folder, tmp_path):
    Atlas(folder).add([Label(1, "the sea", "human")])
    shutil.copytree(folder, tmp_path / "copy")
    assert Atlas(tmp_path / "copy").texts() == {1: "the sea"}
