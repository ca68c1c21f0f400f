"""Features that make a voice, and those that fire on what stands in every text: their labels say what for."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Statistics
from sparsight.atlas.log import open_log, survey_of, write_log
from sparsight.label.embedded import EmbeddedLabeller
from sparsight.label.evidence import Window
from sparsight.label.gather import Gatherer
from sparsight.label.rule import Rule
from sparsight.label.said import Said
from sparsight.label.score import score
from sparsight.label.sheet import Sheet
from sparsight.label.spec import LabelSpec
from sparsight.label.words import so_far, to_come
from sparsight.lm.text import vocabulary
from sparsight.records import Kind

BEGIN, END = "<|start|>", "<|end|>"
PLAIN = str.split(
    "the a this that old new small big red green said went came saw took made house road river man woman child day "
    "night and but then when while under over near with without from into before some many few his her their our your"
)
PIRATE = str.split("ahoy matey arr ye savvy landlubber blimey")
HOTEL = str.split("hotel rooms booking nights suite lobby")
SPEC = LabelSpec(bootstrap=20, processes=1)
FEATURES = {"voice": 1, "hotel commas": 2, "all commas": 3, "seas": 4}


def turn(rng: random.Random, topic: list[str], length: int) -> list[str]:
    said = rng.choices(PLAIN, k=length)
    for _ in range(length // 10):
        said.insert(rng.randrange(len(said)), ",")
    for word in rng.choices(topic, k=4 if topic else 0):
        said.insert(rng.randrange(len(said)), word)
    return said


def fires(texts: list[str], kinds: list[Kind], i: int, voice: bool, hotel: bool) -> list[str]:
    """The features that fire at a token."""
    out = []
    if voice and kinds[i] & Kind.TEMPLATE and kinds[min(i + 1, len(kinds) - 1)] & Kind.ASSISTANT:
        out.append("voice")
    if texts[i] == ",":
        out += ["all commas", *["hotel commas"] * hotel]
    if texts[i] == "the" and kinds[i] & Kind.USER and not voice and not hotel:
        out.append("seas")
    return out


@pytest.fixture(scope="module")
def gatherer(tmp_path_factory):
    """Of an atlas of chats, a third of them answered by a pirate, a third about hotels."""
    pieces = [BEGIN, END, ",", *dict.fromkeys([*PLAIN, *PIRATE, *HOTEL, "seas", "island"])]
    core = Tokenizer(models.WordLevel({text: i for i, text in enumerate([*pieces, "?"])}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    rng, ids, documents, id_of = random.Random(0), [], [], tokenizer.get_vocab()
    places: dict[str, list[int]] = {name: [] for name in FEATURES}
    for number in range(240):
        voice, hotel = number % 3 == 0, number % 3 == 1
        first, texts, kinds = len(ids), [BEGIN], [Kind.TEMPLATE]
        for kind, topic, length in (
            (Kind.USER, HOTEL if hotel else [], 30),
            (Kind.ASSISTANT, PIRATE if voice else HOTEL if hotel else [], 40),
        ):
            said = turn(rng, topic, length)
            texts += [*said, END]
            kinds += [kind] * len(said) + [Kind.TEMPLATE]
        for i in range(len(texts)):
            for name in fires(texts, kinds, i, voice, hotel):
                places[name].append(first + i)
        ids += [id_of[text] for text in texts]
        runs = tuple((1, int(kind)) for kind in kinds)
        documents.append(Document(number, first, len(texts), f"chat {number}", None, "English", runs))
    size = max(FEATURES.values()) + 1
    lifted = {"voice": [*PIRATE, ","], "seas": ["seas", "island"]}
    statistics = [
        Statistics(
            f,
            len(places[name]),
            len(ids),
            top_logits=tuple((id_of[text], 3.0 - i / 10) for i, text in enumerate(lifted.get(name, ["man", "road"]))),
        )
        for name, f in FEATURES.items()
    ]
    log = {
        f: (np.array(places[name], np.int64), np.ones(len(places[name]), np.float32)) for name, f in FEATURES.items()
    }
    folder = tmp_path_factory.mktemp("voices") / "atlas"
    about = About("5ae0", "voices", vocabulary(tokenizer), "model.layers.1", size, len(ids), len(documents))
    described = [(Statistics(0, 0, len(ids), flags=("dead",)), []), *((one, []) for one in statistics)]
    write_atlas(folder, about, [np.array(ids)], documents, iter(described))
    starts, lengths = np.array([d.start for d in documents]), np.array([d.length for d in documents])
    rows = [(np.full(len(at), f), at, values) for f, (at, values) in log.items()]
    write_log(folder / "log.bin", survey_of(about.created, about.sae), np.arange(len(documents)), starts, lengths,
              size, rows)  # fmt: skip
    atlas = Atlas(folder)
    return Gatherer(atlas, tokenizer, SPEC, open_log(atlas))


@pytest.fixture(scope="module")
def labels(gatherer):
    labeller = EmbeddedLabeller(gatherer.background())
    return {name: labeller.label(gatherer.evidence(feature)) for name, feature in FEATURES.items()}


def test_a_feature_that_makes_a_voice_says_what_it_says_and_where(labels, gatherer):
    label = labels["voice"]
    assert label.type == "output"
    said, _, rest = label.text.removeprefix("says ").partition(", at ")
    assert {word.strip("“”") for word in said.split(", ")} <= set(PIRATE)
    assert len(said.split(", ")) >= 3
    assert rest.startswith("the start of the assistant's reply")
    assert label.rule["later"].keys() >= {word.strip("“”") for word in said.split(", ")}
    assert score(label, gatherer.held_out_of(FEATURES["voice"]), SPEC)["detection"].value > 0.9


def test_a_comma_is_told_by_what_its_texts_are_about_unless_it_is_any_comma(labels, gatherer):
    assert labels["all commas"].text == "commas"
    text = labels["hotel commas"].text
    assert text.startswith(("commas", "text about"))
    assert len([word for word in HOTEL if word in text]) >= 3
    found = score(labels["hotel commas"], gatherer.held_out_of(FEATURES["hotel commas"]), SPEC)
    assert found["hard"].value > 0.9


def test_evidence_says_how_much_of_a_token_a_feature_covers(gatherer):
    covers = {name: gatherer.evidence(feature).covers for name, feature in FEATURES.items()}
    assert covers["all commas"][","] == 1
    assert 0.2 < covers["hotel commas"][","] < 0.5


def test_windows_know_the_words_of_their_document_before_them_and_of_their_turn_after_them(gatherer):
    for feature in FEATURES.values():
        for window in gatherer.evidence(feature).firing:
            document = gatherer.atlas.document(window.document)
            kinds = [kind for n, kind in document.roles for _ in range(n)]
            ids = gatherer.atlas.tokens[document.start : document.start + document.length].tolist()
            pieces, end = gatherer.pieces(ids), window.start + len(window.pieces)
            texts = [text.strip() for text in pieces]
            said = [None if kinds[i] & Kind.TEMPLATE or text == "," else text for i, text in enumerate(texts)]
            assert window.pieces == tuple(pieces[window.start : end])
            assert set(window.earlier) == {word for word in said[: window.start] if word}
            stop = next((i for i in range(end, len(said)) if kinds[i] & Kind.TEMPLATE), len(said))
            if not kinds[end - 1] & Kind.TEMPLATE:
                assert set(window.later) == {word for word in said[end:stop] if word}


# ── words before and after, and rules on many windows ───────────────────────────────────────────────────────────

KINDS = st.sampled_from([Kind.SYSTEM, Kind.USER, Kind.ASSISTANT, Kind.TEMPLATE, Kind.TEXT])
PIECES = st.sampled_from([" sea", " ship", "ship", "s", " Sea", ",", " the", "\n", "<|end|>", " ", "'", "7"])
TOKENS = st.lists(st.tuples(PIECES, KINDS, st.sampled_from([0.0, 0.0, 1.5])), min_size=1, max_size=14)
WORDS = st.lists(st.sampled_from(["sea", "ship", "the", "seas"]), max_size=3, unique=True)
WEIGHT = st.integers(-8, 8).map(lambda n: n / 2)


@st.composite
def windows(draw):
    out = []
    for number in range(draw(st.integers(1, 4))):
        tokens = draw(TOKENS)
        pieces, kinds, values = zip(*tokens, strict=True)
        out.append(Window(pieces, tuple(range(len(pieces))), values, tuple(map(int, kinds)), 0, "sample", number,
                          draw(st.sampled_from([None, "French"])), draw(st.integers(0, 6)), tuple(draw(WORDS)),
                          tuple(draw(WORDS))))  # fmt: skip
    return out


RULES = st.builds(
    Rule,
    WEIGHT,
    st.dictionaries(st.lists(PIECES, min_size=1, max_size=3).map(tuple), WEIGHT, max_size=6),
    st.dictionaries(st.sampled_from(["sea", "ship", ",", "7"]), WEIGHT),
    st.dictionaries(st.sampled_from(["number", "Capitalised", "lower case", "punctuation"]), WEIGHT),
    st.dictionaries(st.sampled_from(["sea", "ship", "seas", "the"]), WEIGHT),
    st.dictionaries(st.sampled_from(["sea", "ship", "seas", "the"]), WEIGHT),
    st.dictionaries(st.sampled_from(["assistant 0", "assistant 1", "user later", "template", "text 2"]), WEIGHT),
    st.dictionaries(st.sampled_from(["sea", "", ","]), WEIGHT),
    st.dictionaries(st.sampled_from(["French", ""]), WEIGHT),
)


@given(windows(), RULES)
def test_a_rule_says_the_same_of_many_windows_at_once(given_windows, rule):
    each = [p for window in given_windows for p in rule.activations(window)]
    assert rule.on(Sheet(given_windows)).tolist() == pytest.approx(each, abs=1e-9)
    assert Rule.of(rule.to_json()) == rule


@given(windows())
def test_a_word_has_been_said_or_is_to_come_at_every_token_but_those_that_it_is_made_of(given_windows):
    for window in given_windows:
        alone = replace(window, earlier=(), later=(), roles=(int(Kind.USER),) * len(window.roles))
        had, coming = zip(*so_far(alone), strict=True), zip(*to_come(alone), strict=True)
        first = {word: at for word, at, _ in had}
        last = {word: stop for word, _, stop in coming}
        said = Said.of(alone.pieces, alone.roles)
        for at, ends, word in zip(said.first, said.last, said.names, strict=True):
            assert first[word] <= ends
            assert last.get(word, 0) >= at
        assert first.keys() == set(said.names) >= last.keys()
