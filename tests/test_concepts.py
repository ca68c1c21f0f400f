"""What is known of the demo's text, as units of it, and how well a number tells them apart."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

import concepts
import mixture
import truth
from concepts import DOCUMENTS, SERVICES, STORIES, VOICES, Unit
from mixture import Document, Turn
from sparsight.atlas.query import Query
from sparsight.scope.load import demo_folder

TALK = (
    Turn("user", "Hi"),
    Turn("assistant", "Arr, matey", voice="pirate"),
    Turn("user", "No"),
    Turn("assistant", "Hm"),
)


@pytest.fixture(scope="module")
def core():
    return Tokenizer.from_file(str(demo_folder() / "model" / "tokenizer.json"))


def test_every_query_is_words_alone_and_no_two_are_the_same():
    asked = [one.query for group in (VOICES, DOCUMENTS, STORIES, SERVICES) for one in group.values()]
    assert len(asked) == len(set(asked)) >= 40
    assert all(Query.of(query) == Query(text=query) for query in asked)
    assert {*VOICES} == {*mixture.VOICES, "refusal"}


def test_units_are_exchanges_documents_and_turns_without_the_templates_tokens(core):
    services = json.dumps([["Hotels_1", "Hotels"], [], ["Media_2", "Media"], []])
    (one,) = truth.code([Document("here", "voice", TALK, "g", "sea")], core)
    said = [(core.decode(one.ids[part].tolist()), unit.names) for part, unit in concepts.exchanges(one)]
    assert said == [("HiArr, matey", {"pirate"}), ("NoHm", {""})]
    ((part, unit),) = concepts.whole(one)
    assert core.decode(one.ids[part].tolist()) == "HiArr, mateyNoHm"
    assert unit.names == {"voice", "sea", ""}  # a voice's source says nothing: it was another text before
    (one,) = truth.code([Document("sgd", "chat", TALK, "g", services)], core)
    turns = [(core.decode(one.ids[part].tolist()), unit.names) for part, unit in concepts.turns(one)]
    assert turns == [("Hi", {"Hotels_1", "Hotels"}), ("No", {"Media_2", "Media"})]


def test_a_story_is_about_what_it_mentions_three_times_and_not_about_what_it_never_does():
    texts = ["A dog saw a dog. Dogs bark.", "A dog and a cat.", "Hotdogs!", ""]
    units = [Unit(frozenset({"story"}), text) for text in texts]
    assert concepts.truth_of("dog", STORIES["dog"], units).tolist() == [1, -1, 0, -1]
    assert concepts.truth_of("french", DOCUMENTS["french"], [Unit(frozenset({"french"})), units[0]]).tolist() == [1, 0]


def test_auc_is_the_chance_that_one_of_the_concept_has_more_of_the_feature():
    rng = np.random.default_rng(0)
    values, true = rng.integers(0, 4, (40, 20)).astype(np.float16), rng.choice([1, 0, -1], 40)
    for feature, auc in enumerate(concepts.aucs(values, true)):
        ones, zeros = (values[true == kind, feature].astype(float) for kind in (1, 0))
        pairs = [float(a > b) + 0.5 * float(a == b) for a in ones for b in zeros]
        assert auc == pytest.approx(np.mean(pairs))
    every = (true == 1).astype(int)
    assert concepts.aucs(values, every, concepts.ranked(values)) == pytest.approx(concepts.aucs(values, every))


def test_features_that_detect_a_concept_are_chosen_on_one_part_and_measured_on_the_other():
    true = np.repeat([1, 0], 10)
    units = [Unit(frozenset({"pirate"} if one else {""})) for one in true]
    perfect, chance = true.astype(np.float16), np.zeros(20, np.float16)
    train = np.stack([perfect, perfect, chance], 1)
    held_out = np.stack([perfect, chance, perfect], 1)  # 1 told them apart by luck; 2 was not chosen
    kept, left = concepts.measured(
        {"pirate": VOICES["pirate"], "cat": VOICES["cat"]}, (units, train), (units, held_out)
    )
    assert kept["pirate"]["features"] == {"0": 1.0}
    assert left == {"cat": "0 units to choose by, 0 held out"}
