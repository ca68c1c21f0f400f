"""Labels of features whose meaning is known, because it was planted; and scores that know what they are worth."""

import json
import random
import re
import shutil
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Example, Label, Statistics, is_held_out
from sparsight.atlas.log import open_log, survey_of, write_log
from sparsight.cli.desk import main
from sparsight.errors import BadFile, BadInput, NoFeature
from sparsight.label.auc import auc, with_interval
from sparsight.label.embedded import EmbeddedLabeller
from sparsight.label.evidence import Background, Window
from sparsight.label.gather import Gatherer
from sparsight.label.methods import Setting, labellers
from sparsight.label.pieces import Pieces
from sparsight.label.rule import Rule
from sparsight.label.run import label as run
from sparsight.label.score import by_embedding, score
from sparsight.label.spec import LabelSpec
from sparsight.lm.text import pieces, vocabulary
from sparsight.records import Kind

SPECIAL = ["<|begin|>", "<|start|>", "<|end|>"]
COMMON = str.split(
    "the a one this that old new small big red green good bad very well said went came saw took made house tree road "
    "river man woman child dog cat bird day night time and but then when while under over near with without from into "
    "after before some many few his her their our your"
)
TOPIC = str.split(
    "goal team referee striker penalty league stadium keeper match corner whistle coach trophy defender fans jersey"
)
FRENCH = str.split("le la les un une des chat maison rouge petit grand dans avec sur et mais je tu nous vous")
NAMES = {
    "sea": 1, "course": 2, "reply": 3, "football": 4, "arr": 5, "french": 6, "noise": 7, "numbers": 8, "run": 9,
    "system": 10, "dense": 11, "shore": 12,
}  # fmt: skip
FEATURES = 13


def sentence(rng: random.Random, topic: str) -> str:
    words = rng.choices(FRENCH if topic == "french" else COMMON, k=rng.randint(8, 14))
    usual = [*str.split("sea shore ocean run runs running walk lake"), "of course", "the course", "a course"]
    usual += [f"{rng.choice(COMMON)} arr", f"{rng.choice(COMMON)} arr", str(rng.randint(10, 999))]
    for _ in range(3):
        words.insert(rng.randint(1, len(words)), rng.choice({"football": TOPIC, "french": FRENCH}.get(topic, usual)))
    return " ".join(words)


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows the words of the planted text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rng = random.Random(1)
    text = [" " + sentence(rng, topic) for topic in ("", "football", "french") for _ in range(400)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made)


def fires(name: str, topic: str, texts: list[str], kinds: list[Kind], i: int, rng: random.Random) -> bool:
    """What was planted: whether a feature fires at a token, from the text up to it (and what comes next, for the one
    that says something)."""
    if kinds[i] & (Kind.TEMPLATE | Kind.BOS):
        return False
    word, before = texts[i].strip(), texts[i - 1].strip()
    return {
        "sea": lambda: word == "sea",
        "shore": lambda: word in ("shore", "ocean"),
        "course": lambda: word == "course" and before == "of",
        "reply": lambda: bool(kinds[i] & Kind.ASSISTANT and kinds[i - 1] & Kind.TEMPLATE),
        "football": lambda: any(text.strip() in TOPIC for text in texts[: i + 1]) and rng.random() < 0.4,
        "arr": lambda: texts[i + 1].strip() == "arr",
        "french": lambda: topic == "french" and rng.random() < 0.3,
        "noise": lambda: rng.random() < 0.004,
        "numbers": lambda: word.isdigit(),
        "run": lambda: word in ("run", "runs", "running"),
        "system": lambda: bool(kinds[i] & Kind.SYSTEM) and rng.random() < 0.5,
        "dense": lambda: rng.random() < 0.4,
    }[name]()


@pytest.fixture(scope="session")
def planted(words, tmp_path_factory):
    """The folder of an atlas of a text in which features of known meaning were planted."""
    rng = random.Random(0)
    begin, start_, end = words.convert_tokens_to_ids(SPECIAL)
    ids, documents, places = [], [], {f: [] for f in range(FEATURES)}
    for number in range(300):
        topic, first = rng.choice(["", "", "", "football", "french"]), len(ids)
        turns = [(Kind.SYSTEM, 1)] * (number % 4 == 0) + [(Kind.USER, 2), (Kind.ASSISTANT, 3)]
        mine, kinds = [begin], [Kind.BOS]
        for kind, sentences in turns:
            body = words.encode(" ".join(sentence(rng, topic) for _ in range(sentences)))
            mine += [start_, *body, end]
            kinds += [Kind.TEMPLATE, *[kind] * len(body), Kind.TEMPLATE]
        texts = list(pieces(words, mine))
        for name, feature in NAMES.items():
            places[feature] += [first + i for i in range(len(mine)) if fires(name, topic, texts, kinds, i, rng)]
        runs = tuple((1, int(kind)) for kind in kinds)
        language = "French" if topic == "french" else "English"
        documents.append(Document(number, first, len(mine), f"document {number}", None, language, runs))
        ids += mine
    log = {f: (np.array(at, np.int64), np.array([rng.uniform(0.5, 3) for _ in at], np.float32))
           for f, at in places.items()}  # fmt: skip
    folder = tmp_path_factory.mktemp("planted") / "atlas"
    about = About("5ae0", "planted", vocabulary(words), "model.layers.1", FEATURES, len(ids), len(documents))
    features = (described(f, log[f], np.array(ids), documents, words.encode(" arr")[0]) for f in range(FEATURES))
    write_atlas(folder, about, [np.array(ids)], documents, features)
    starts, lengths = np.array([d.start for d in documents]), np.array([d.length for d in documents])
    rows = [(np.full(len(at), f), at, values) for f, (at, values) in log.items() if len(at)]
    write_log(folder / "log.bin", survey_of(about.created, about.sae), np.arange(len(documents)), starts, lengths,
              FEATURES, rows)  # fmt: skip
    return folder


def described(f: int, fired, ids: np.ndarray, documents: list[Document], arr: int):
    """A feature's statistics and strongest examples, one of a document, as a survey would have them."""
    at, values = fired
    found, counts = np.unique(ids[at], return_counts=True)
    statistics = Statistics(
        f,
        len(at),
        len(ids),
        top_tokens=tuple((int(found[i]), int(counts[i])) for i in np.argsort(-counts)[:8]),
        top_logits=((arr, 2.0), (5, 1.0)) if f == NAMES["arr"] else ((6, 0.3), (7, 0.2)),
        neighbours={NAMES["sea"]: ((NAMES["shore"], 0.6),), NAMES["shore"]: ((NAMES["sea"], 0.6),)}.get(f, ()),
        flags=() if len(at) else ("dead",),
    )
    best: dict[int, Example] = {}
    starts = [d.start for d in documents]
    for i in np.argsort(-values, kind="stable"):
        document = documents[int(np.searchsorted(starts, at[i], "right")) - 1]
        if document.number in best or len(best) == 20:
            continue
        lo, hi = max(at[i] - 24, document.start), min(at[i] + 25, document.start + document.length)
        inside, window = (at >= lo) & (at < hi), np.zeros(hi - lo, np.float32)
        window[at[inside] - lo] = values[inside]
        best[document.number] = Example(f, int(at[i]), float(values[i]), int(lo), window, True, False,
                                        document.number, document.held_out)  # fmt: skip
    return statistics, list(best.values())


@pytest.fixture
def atlas(planted, tmp_path):
    """A copy to write on."""
    shutil.copytree(planted, tmp_path / "atlas")
    return Atlas(tmp_path / "atlas")


SPEC = LabelSpec(bootstrap=50, processes=1)


@pytest.fixture(scope="session")
def gatherer(planted, words):
    atlas = Atlas(planted)
    return Gatherer(atlas, words, SPEC, open_log(atlas))


@pytest.fixture(scope="session")
def labels(gatherer):
    """{name: label} by the embedded labeller."""
    labeller = EmbeddedLabeller(gatherer.background())
    return {name: labeller.label(gatherer.evidence(f)) for name, f in {"dead": 0, **NAMES}.items()}


# ── what was planted is found ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "text", "type"),
    [
        ("sea", "the word “sea”", "single token"),
        ("course", "the phrase “of course”", "phrase"),
        ("reply", "the first token of the assistant's reply", "position"),
        ("arr", "says “arr” next", "output"),
        ("french", "French text", "language"),
        ("numbers", "numbers", "format"),
        ("system", "the system message", "role"),
    ],
)
def test_a_planted_meaning_is_said_in_words_and_tells_where_it_fires(name, text, type, labels, gatherer):
    assert (labels[name].text, labels[name].type) == (text, type)
    found = score(labels[name], gatherer.held_out_of(NAMES[name]), SPEC)
    assert found["detection"].value > 0.97
    assert found["fuzzing"].value > (0.95 if name not in ("french", "system") else 0.45)


def test_forms_of_a_word_other_words_and_a_subject_are_named(labels, gatherer):
    assert labels["run"].type == "word family"
    assert labels["run"].text.startswith("forms of “run”: ")
    assert sorted(re.findall("“(.*?)”", labels["shore"].text)) == ["ocean", "shore"]
    assert labels["football"].type == "context"
    assert set(labels["football"].text.removeprefix("text about ").split(", ")) <= set(TOPIC)
    assert score(labels["football"], gatherer.held_out_of(NAMES["football"]), SPEC)["detection"].value > 0.95


def test_what_means_nothing_is_called_unclear_and_scores_as_luck_does(labels, gatherer):
    assert labels["noise"].type == "unclear"
    assert labels["noise"].text.startswith("unclear: e.g. ")
    assert labels["noise"].confidence < 0.3
    found = score(labels["noise"], gatherer.held_out_of(NAMES["noise"]), SPEC)
    assert 0.3 < found["detection"].value < 0.7


def test_a_dead_feature_and_a_dense_one_are_said_to_be_just_that(labels):
    assert (labels["dead"].type, labels["dead"].rule) == ("dead", None)
    assert labels["dead"].text.startswith("never fires in this text")
    assert labels["dense"].type == "dense"
    assert re.match(r"fires on (3|4)\d% of all tokens", labels["dense"].text)


def test_the_same_atlas_gives_the_same_labels(labels, gatherer, words):
    anew = Gatherer(Atlas(gatherer.atlas.folder), words, SPEC, open_log(gatherer.atlas))
    labeller = EmbeddedLabeller(anew.background())
    assert [labeller.label(anew.evidence(NAMES[name])) for name in NAMES] == [labels[name] for name in NAMES]


def test_a_label_is_short_and_its_rule_is_plain_data(labels):
    for one in labels.values():
        assert len(one.text) <= 120
        assert one.rule is None or json.loads(json.dumps(one.rule)) == one.rule


# ── what is shown, and what is scored on ─────────────────────────────────────────────────────────────────────────


def test_no_document_is_both_shown_and_scored_on(gatherer):
    for feature in NAMES.values():
        evidence, held_out = gatherer.evidence(feature), gatherer.held_out_of(feature)
        shown = {w.document for w in (*evidence.firing, *evidence.silent)}
        scored = {w.document for w in (*held_out.firing, *held_out.silent)}
        assert not any(is_held_out(f"document {number}") for number in shown)
        assert all(is_held_out(f"document {number}") for number in scored)


def test_the_tokens_that_a_labeller_hears_of_are_those_of_the_documents_it_may_see(gatherer):
    for feature in NAMES.values():
        places, _ = gatherer.log.of(feature)
        kept = [at for at in places.tolist() if not is_held_out(f"document {gatherer.atlas.document_of(at)}")]
        counts = Counter(gatherer.pieces.one(int(gatherer.atlas.tokens[at])) for at in kept)
        told = dict(gatherer.evidence(feature).words)
        assert told == {text: pytest.approx(counts[text] / len(kept)) for text in told}
        assert told or not kept


def test_windows_say_what_the_log_says(gatherer):
    for name, feature in NAMES.items():
        places, values = gatherer.log.of(feature)
        fired = dict(zip(places.tolist(), values.tolist(), strict=True))
        evidence = gatherer.evidence(feature)
        for window in (*evidence.firing, *evidence.silent):
            first = gatherer.atlas.document(window.document).start + window.start
            assert list(window.values) == [fired.get(first + i, 0.0) for i in range(len(window.values))]
            assert window.fires == (window.why in ("top", "sample"))
            assert window.ids == tuple(gatherer.atlas.tokens[first : first + len(window.ids)])
        assert not evidence.silent or name != "dense"


def test_hard_silent_windows_have_the_features_token_or_fire_its_neighbour(gatherer):
    course = gatherer.held_out_of(NAMES["course"])
    near = [w for w in course.silent if w.why == "near miss"]
    assert len(near) == SPEC.held_out // 4
    assert {w.pieces[w.focus].strip() for w in near} == {"course"}
    assert all("of course" not in w.text for w in near)
    sea = gatherer.held_out_of(NAMES["sea"])
    beside = [w for w in sea.silent if w.why == "neighbour"]
    assert beside
    assert all({"shore", "ocean"} & set(w.text.split()) for w in beside)
    assert sum(w.why == "random" for w in sea.silent) >= SPEC.held_out // 2


def test_without_a_log_silence_is_presumed_of_rare_features_alone(planted, words):
    gatherer = Gatherer(Atlas(planted), words, SPEC)
    assert gatherer.held_out_of(NAMES["dense"]).silent == ()
    evidence = gatherer.evidence(NAMES["sea"])
    assert evidence.firing
    assert all("sea" in w.text.split() for w in evidence.firing)


@given(st.lists(st.integers(0, 299), max_size=40))
def test_any_tokens_make_up_the_text_that_the_tokenizer_makes_of_them(words, ids):
    assert "".join(Pieces(words)(ids)) == "".join(pieces(words, ids))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_each_token_of_a_text_says_what_the_tokenizer_says(words, text):
    ids = words.encode(text)
    assert Pieces(words)(ids) == pieces(words, ids)


def test_a_character_of_several_tokens_stands_at_the_last_of_them(words):
    ids = words.encode("sea 🦜 mer é")
    assert Pieces(words)(ids) == pieces(words, ids)
    assert "".join(Pieces(words)(ids)) == "sea 🦜 mer é"


# ── rules and scores ─────────────────────────────────────────────────────────────────────────────────────────────


def window(text: str, values=None, kind: Kind = Kind.USER, why="random", document: int = 0) -> Window:
    pieces = tuple(re.findall(r" ?\S+", text))
    values = values or (0.0,) * len(pieces)
    return Window(pieces, tuple(range(len(pieces))), tuple(values), (int(kind),) * len(pieces), 0, why, document)


def test_a_rule_written_by_hand_fires_where_it_says():
    rule = Rule.of({"bias": -3, "ngrams": [[5.0, " of", " course"]], "folded": {"sea": 6.0}, "words": {"ship": 1.0}})
    told = rule.activations(window("the Sea of course the course"))
    assert [p > 0.5 for p in told] == [False, True, False, True, False, False]
    plain, after = rule.activations(window("a b")), rule.activations(window("ship b"))
    assert (after[1] > plain[1], plain[0]) == (True, plain[1])
    assert Rule.of(rule.to_json()) == rule
    for wrong in ({"biass": 1}, {"bias": "much"}, {"ngrams": [["x", "y"]]}, {"folded": 3}):
        with pytest.raises(BadFile, match="This is no rule"):
            Rule.of(wrong)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_the_area_under_the_curve_is_the_share_of_pairs_in_the_right_order(firing, silent):
    pairs = [(a > b) + (a == b) / 2 for a in firing for b in silent]
    a, b = np.array(firing, float), np.array(silent, float)
    assert auc(a, b) == pytest.approx(sum(pairs) / len(pairs))
    found = with_interval(a, b, (np.arange(len(a)), np.arange(len(b)) + 100), 50, 0)
    assert found.low <= found.value <= found.high
    yes, no = a > 2, b > 2
    assert auc(yes.astype(float), no.astype(float)) == pytest.approx((yes.mean() + 1 - no.mean()) / 2)


def test_documents_that_repeat_themselves_make_an_interval_no_narrower():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, 20), rng.normal(0, 1, 20)
    once = with_interval(a, b, (np.arange(20), 100 + np.arange(20)), 400, 0)
    ten = with_interval(
        np.repeat(a, 10), np.repeat(b, 10), (np.repeat(np.arange(20), 10), 100 + np.repeat(np.arange(20), 10)), 400, 0
    )
    assert ten.value == pytest.approx(once.value)
    assert ten.high - ten.low == pytest.approx(once.high - once.low, abs=0.02)


class Judge:
    """Answers by the windows' text; model and prompt as any judge's."""

    model, prompt = "a judge", ""

    def __init__(self, answer) -> None:
        self.answer, self.seen = answer, []

    def ask(self, windows, label, marks=None):
        self.seen += windows
        return [self.answer(w, label, marks[i] if marks else None) for i, w in enumerate(windows)]


@pytest.fixture(scope="session")
def held_out(gatherer):
    return gatherer.held_out_of(NAMES["sea"])


def in_text(window, label, marks):
    has = [label in piece for piece in window.pieces]
    return float(any(has) if marks is None else all(has[i] for i in marks))


def test_a_judge_that_knows_scores_all_and_one_that_always_says_none_scores_half(held_out):
    prose = Label(NAMES["sea"], "sea", "openai")
    knows, other = Judge(in_text), Label(9, "numbers", "openai")
    found = score(prose, held_out, SPEC, knows, other)
    assert {name: s.value for name, s in found.items()} == {"detection": 1, "hard": 1, "fuzzing": 1, "shuffled": 0.5}
    none = score(prose, held_out, SPEC, Judge(lambda *_: 0))
    assert {name: s.value for name, s in none.items()} == {"detection": 0.5, "hard": 0.5, "fuzzing": 0.5}
    assert not any(w.fires or w.why != "random" or w.focus for w in knows.seen)


@pytest.mark.parametrize("answer", [lambda *_: float("nan"), lambda *_: 7, lambda *_: -1])
def test_a_judge_that_answers_nonsense_leaves_no_score(held_out, answer):
    assert score(Label(NAMES["sea"], "sea", "openai"), held_out, SPEC, Judge(answer)) == {}
    short = Judge(in_text)
    short.ask = lambda windows, label, marks=None: [1.0]
    assert score(Label(NAMES["sea"], "sea", "openai"), held_out, SPEC, short) == {}
    assert score(Label(NAMES["sea"], "sea", "openai"), held_out, SPEC) == {}


def test_another_features_label_scores_as_luck_does(labels, gatherer):
    found = [score(labels[a], gatherer.held_out_of(NAMES[a]), SPEC, other=labels[b])["shuffled"].value
             for a, b in (("sea", "numbers"), ("numbers", "sea"), ("course", "run"), ("run", "course"))]  # fmt: skip
    assert 0.25 < sum(found) / len(found) < 0.7


def test_embeddings_score_the_text_beside_a_ceiling_and_another_label(labels, gatherer):
    def embed(texts):  # counts of words
        words = [[zlib.crc32(word.encode()) % 97 for word in re.findall(r"\w+", text)] for text in texts]
        return np.array([np.bincount(each, minlength=97) for each in words], np.float32)

    feature = NAMES["sea"]
    given = gatherer.evidence(feature), gatherer.held_out_of(feature)
    found = by_embedding(replace(labels["sea"], text="sea"), *given, embed, SPEC, replace(labels["run"], text="run"))
    assert found["embedding"].value > 0.9
    assert found["embedding_ceiling"].value > 0.8
    assert found["embedding_shuffled"].value < 0.7


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────


def plain(atlas):
    return {f: [replace(one, created="", id=None) for one in each] for f, each in atlas.all_labels().items()}


def test_a_run_labels_all_and_says_how_good_the_labels_are(atlas, words, labels):
    heard = []
    made = run(atlas, *labellers["embedded"](Setting(atlas, words, SPEC))[:1], SPEC, words, heard.append)
    assert (made.labelled, made.had, made.unsaid, sum(made.types.values())) == (FEATURES, 0, 0, FEATURES)
    assert (heard[-1].done, heard[-1].total) == (FEATURES, FEATURES)
    assert atlas.label(NAMES["sea"]).text == labels["sea"].text
    assert atlas.label(NAMES["sea"]).scores.keys() >= {"detection", "hard", "fuzzing", "shuffled"}
    low, middle, high, number = made.scores["detection"]
    assert (low <= middle <= high, number, made.nothing) == (True, FEATURES - 2, 0.5)
    assert made.scores["shuffled"][1] < 0.75 < middle
    again = run(atlas, EmbeddedLabeller(Background()), SPEC, words)
    assert (again.labelled, again.had) == (0, FEATURES)


class Counting(EmbeddedLabeller):
    """Is killed at a feature."""

    def __init__(self, *args, dies_at=None, **more) -> None:
        super().__init__(*args, **more)
        self.asked, self.dies_at = [], dies_at

    def label(self, evidence):
        if evidence.feature == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(evidence.feature)
        return super().label(evidence) if evidence.feature != 2 else None


def test_a_run_that_was_killed_goes_on_and_asks_about_nothing_twice(atlas, words, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsight.label.run.TOGETHER", 4)
    whole = tmp_path / "whole"
    shutil.copytree(atlas.folder, whole)
    run(Atlas(whole), Counting(Background()), SPEC, words)
    with pytest.raises(KeyboardInterrupt):
        run(atlas, Counting(Background(), dies_at=9), SPEC, words)
    assert list(atlas.all_labels()) == [0, 1, 3, 4, 5, 6, 7]
    rest = Counting(Background())
    made = run(atlas, rest, SPEC, words)
    assert rest.asked == [2, 8, 9, 10, 11, 12]
    assert (made.labelled, made.had, made.unsaid) == (5, 7, 1)
    texts = {f: one.text for f, (one,) in Atlas(whole).all_labels().items()}
    assert {f: one.text for f, (one,) in atlas.all_labels().items()} == texts


def test_threads_and_processes_label_as_one_does(atlas, words, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsight.label.run.TOGETHER", 5)
    copies = [Atlas(shutil.copytree(atlas.folder, tmp_path / name)) for name in ("threads", "processes")]
    run(atlas, EmbeddedLabeller(Background()), SPEC, words)
    labeller = EmbeddedLabeller(Background())
    labeller.at_once = 3
    run(copies[0], labeller, SPEC, words)
    monkeypatch.setattr("sparsight.label.run.MANY", 1)
    run(copies[1], EmbeddedLabeller(Background()), replace(SPEC, processes=2), words)
    assert plain(copies[0]) == plain(copies[1]) == plain(atlas)


def test_only_what_is_asked_for_is_labelled_and_a_humans_word_stays_first(atlas, words):
    atlas.add([Label(3, "where the answer begins", "human")])
    run(atlas, EmbeddedLabeller(Background()), SPEC, words, features=[1, 3, 5, 1], only_unlabelled=True)
    assert sorted(atlas.all_labels()) == [1, 3, 5]
    assert len(atlas.labels(3)) == 1
    run(atlas, EmbeddedLabeller(Background()), SPEC, words, features=[3, 4, 5], limit=1)
    assert [one.method for one in atlas.labels(3)] == ["human", "embedded"]
    assert 4 not in atlas.all_labels()
    with pytest.raises(NoFeature, match="No feature 99"):
        run(atlas, EmbeddedLabeller(Background()), SPEC, words, features=[1, 99])


def test_knobs_say_what_may_be():
    with pytest.raises(BadInput, match="firing is a whole number from 1 up, not '0'"):
        LabelSpec(firing=0)
    with pytest.raises(BadInput, match="unclear_below"):
        LabelSpec(unclear_below=1.5)


def test_the_verb_labels_and_takes_a_label_by_hand(atlas, words, tmp_path, capsys):
    words.save_pretrained(tmp_path / "words")
    folder = str(atlas.folder)
    assert main(["label", folder, "--model", str(tmp_path / "words"), "--features", "1,3-4", "--processes", "1"]) == 0
    out = capsys.readouterr().out
    assert "single token" in out
    assert "always answering none" in out
    assert sorted(atlas.all_labels()) == [1, 3, 4]
    assert main(["label", folder, "--set", "1", "the sea", "--set", "2", "of course"]) == 0
    assert [atlas.label(f).text for f in (1, 2)] == ["the sea", "of course"]
    for wrong, said in (
        (["--set", "x", "y"], "--set takes a feature's number"),
        (["--set", "99", "y"], "No feature 99"),
        (
            ["--features", "1-x", "--model", str(tmp_path / "words")],
            "Features are numbers and ranges, as 3,7,100-120, not '1-x'",
        ),
        (["--features", "5-2"], "The range 5-2 runs backwards: write 2-5."),
        (["--features", "1-99999999999999"], "No feature 99999999999999"),
        (["--set", "1", "half a pair \udcff"], "no Unicode"),
        (["--firing", "0"], "firing is a whole number"),
    ):
        capsys.readouterr()
        assert main(["label", folder, *wrong]) == 1
        assert said in capsys.readouterr().err
