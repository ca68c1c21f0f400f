"""The client of Ember, goodfire 0.3.5, unmodified: it talks to a live server, with nothing changed but base_url."""

import asyncio
import json
import re
import threading
import time
from functools import partial
from types import SimpleNamespace
from uuid import UUID, uuid4

import goodfire
import httpx
import numpy as np
import pytest
from engines import Threads, live
from fastapi import FastAPI
from goodfire.api import exceptions as raised
from goodfire.api.chat.client import DEFAULT_SYSTEM_PROMPT
from goodfire.controller.controller import Controller as TheirController
from goodfire.exceptions import InferenceAbortedException
from goodfire.features.features import Feature as TheirFeature
from goodfire.features.features import FeatureEdits, FeatureGroup
from goodfire.variants.variants import Variant
from small_atlas import TEXTS, Concepts, small_atlas

from sparsight.edits import Comparison, Controller, Feature, When
from sparsight.errors import Stopped
from sparsight.ids import feature_uuid
from sparsight.lm.text import TextStream, vocabulary
from sparsight.scope.attribution import attribute
from sparsight.scope.auto_condition import auto_condition
from sparsight.scope.contrast import contrast
from sparsight.scope.contrastive import Contrastive, chat
from sparsight.scope.nearest import nearest
from sparsight.scope.scope import Scope
from sparsight.serve import ember, known
from sparsight.serve.app import create_app
from sparsight.serve.catalog import Catalog
from sparsight.serve.embedded import EmbeddedEngine
from sparsight.serve.engine import Update
from sparsight.serve.spec import ServeSpec
from sparsight.serve.store import Store

MODEL = "meta-llama/Meta-Llama-3.1-8B-Instruct"
CHAT = [{"role": "user", "content": "Hello, how are you?"}]
SYSTEM = {"role": "system", "content": "Be kind."}
GREEDY = {"temperature": 0.0, "max_completion_tokens": 12}
f = [Feature(i) for i in range(128)]


@pytest.fixture(scope="module")
def served(lm, sae, tmp_path_factory) -> Scope:
    """A model, its SAE and a small atlas of it."""
    folder = tmp_path_factory.mktemp("ember") / "atlas"
    scales = sae.scale.double().numpy()
    return Scope(lm, sae, atlas=small_atlas(folder, sae.fingerprint, vocabulary(lm.tokenizer), 128, scales))


@pytest.fixture(scope="module")
def engine(served) -> EmbeddedEngine:
    return EmbeddedEngine(served, rows=4, queue=4)


@pytest.fixture(scope="module")
def url(engine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "default_embedder", Concepts)
        with live(create_app(Catalog({"tiny": engine, MODEL: engine}))) as at:
            yield at


@pytest.fixture(autouse=True)
def loop():
    """The sync client takes the thread's event loop, and makes none."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield made
    made.close()
    asyncio.set_event_loop(None)


@pytest.fixture
def client(url) -> goodfire.Client:
    return goodfire.Client(api_key="any", base_url=url)


@pytest.fixture
def both(url):
    """The async client."""
    return goodfire.AsyncClient(api_key="any", base_url=url)


def theirs(index: int, served: Scope) -> TheirFeature:
    return TheirFeature(UUID(feature_uuid(served.sae.fingerprint, index)), TEXTS.get(index, "?"), index)


class Steered(Variant):
    """A variant with a controller made by hand: pins, factors and nested scopes."""

    def __init__(self, controller: TheirController):
        super().__init__(MODEL)
        self._controller = controller

    controller = property(lambda self: self._controller)


def post(url: str, path: str, body: dict, **more) -> httpx.Response:
    return httpx.post(f"{url}/api/inference/v1{path}", json=body, timeout=30, **more)


# ── features ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_features_are_found_by_meaning_and_keep_their_ids(client, served):
    found = client.features.search("buccaneer", model=MODEL, top_k=3)
    first = next(iter(found))
    assert (first.index_in_sae, first.label) == (3, TEXTS[3])
    assert first.uuid == UUID(feature_uuid(served.sae.fingerprint, 3))


def test_a_search_tells_relevance_strengths_and_pages(url, served):
    def page(number, size):
        params = {"query": "small animals", "page": number, "perPage": size, "model": "tiny"}
        return httpx.get(f"{url}/api/inference/v1/features/search", params=params).json()["features"]

    every = page(1, 100)
    relevance = [one["relevance"] for one in every]
    assert every[0]["index_in_sae"] == 7
    assert relevance == sorted(relevance, reverse=True)
    assert 0 < min(relevance) <= max(relevance) <= 1
    assert every[0]["max_activation_strength"] == pytest.approx(2 * float(served.sae.scale[7]))
    assert page(1, 2) + page(2, 2) == every[:4]
    assert page(1000, 100) == []


def test_features_are_ranked_anew_by_what_their_labels_mean(client, both, loop, served):
    group = FeatureGroup([theirs(i, served) for i in (9, 5, 3, 100)])
    ranked = client.features.rerank(group, "an old boat", model=MODEL, top_k=2)
    assert next(iter(ranked)).index_in_sae == 5
    assert len(ranked) == 2
    near = loop.run_until_complete(both.features.semantic_similarity(group, "an old boat", MODEL))
    assert len(near) == 4
    assert near == sorted(near, reverse=True)
    assert near[-1] == 0, "a feature without a label is near to nothing"


def test_features_are_had_by_id_and_by_index_and_unknown_ids_are_left_out(client, both, loop, served):
    ids = [feature_uuid(served.sae.fingerprint, i) for i in (127, 3)]
    other = feature_uuid("another SAE", 3)
    listed = loop.run_until_complete(both.features._list([ids[0], other, ids[1].upper().replace("-", ""), "no id"]))
    assert [(one.index_in_sae, one.label) for one in listed] == [(127, "feature 127"), (3, TEXTS[3])]
    found = client.features.lookup([3, 12], model=MODEL)
    assert {index: one.label for index, one in found.items()} == {3: TEXTS[3], 12: "feature 12"}
    with pytest.raises(raised.RequestFailedException, match="No feature 128: this SAE has 128"):
        client.features.lookup([128], model=MODEL)


def test_neighbours_are_nearest_to_the_centre_and_not_the_features_themselves(client, served):
    group = FeatureGroup([theirs(3, served), theirs(5, served)])
    near = client.features.neighbors(group, model=MODEL, top_k=6)
    assert [one.index_in_sae for one in near] == [index for index, _ in nearest(served.sae, [3, 5], 6)]
    alone = client.features.neighbors(theirs(3, served), model=MODEL)
    assert 3 not in [one.index_in_sae for one in alone]


def test_a_label_that_is_given_later_is_told_at_once(client, served, url):
    from sparsight.atlas.entries import Label

    served.atlas.add([Label(20, "talks of weather", "human")])
    assert client.features.lookup([20], model=MODEL)[20].label == "talks of weather"
    served.atlas.remove(served.atlas.label(20).id)
    assert client.features.lookup([20], model=MODEL)[20].label == "feature 20"


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_activations_are_the_raw_ones_that_the_scope_reads(client, served):
    reading = served.read(CHAT)
    context = client.features.inspect(CHAT, model=MODEL)
    assert [token._token for token in context.tokens] == list(reading.texts)
    dense = client.features.activations(CHAT, model=MODEL)
    assert dense.shape == (len(reading), 65536)
    np.testing.assert_allclose(dense[:, :128], reading.codes.dense().numpy(), rtol=1e-6)
    (strongest,) = reading.codes.at(5)[:1]
    told = context.tokens[5].inspect(k=1)
    assert (told[0].feature.index_in_sae, told[0].activation) == (strongest[0], pytest.approx(strongest[1]))


@pytest.mark.parametrize(
    ("how", "sums"),
    [
        ("frequency", lambda a: len(a)),
        ("mean", lambda a: sum(a) / len(a)),
        ("max", max),
        ("sum", sum),
    ],
)
def test_what_is_read_is_summed_up_as_asked(client, served, how, sums):
    context = client.features.inspect(CHAT, model=MODEL, aggregate_by=how)
    top, reading = context.top(k=128), served.read(CHAT)
    assert len(top) > 20
    for act in top:
        values = [v for v in reading[act.feature.index_in_sae] if v > 0.1]  # what the client counts
        assert act.activation == pytest.approx(sums(values) if values else 0, rel=1e-5)


def test_some_features_alone_can_be_asked_for(client, served):
    group = FeatureGroup([theirs(3, served), theirs(5, served)])
    context = client.features.inspect(CHAT, model=MODEL, features=group)
    assert set(context.lookup()) <= {3, 5}
    dense = context.matrix()
    np.testing.assert_allclose(dense[:, 3], served.read(CHAT)[3], rtol=1e-6)
    assert not dense[:, [i for i in range(128) if i not in (3, 5)]].any()


def test_a_variant_is_read_as_its_controller_leaves_it(client, served):
    variant = Variant(MODEL)
    variant.set(theirs(5, served), 0.5)
    plain = client.features.activations(CHAT, model=MODEL)[:, 5]
    nudged = client.features.activations(CHAT, model=variant)[:, 5]
    user = ["user" in str(kind) for kind in served.read(CHAT).kinds]
    np.testing.assert_allclose((nudged - plain)[user], 0.5 * float(served.sae.scale[5]), rtol=1e-4)
    assert not (nudged - plain)[~np.array(user)].any()


def test_tokens_are_those_of_the_templated_conversation(both, loop, lm):
    words = [{"role": "user", "content": "مرحبا 🙂 ok"}]
    tokens = loop.run_until_complete(both.features._tokenize(words, MODEL))
    assert "".join(tokens) == lm.tokenizer.apply_chat_template(words, tokenize=False)
    assert len(tokens) == len(lm.prompt(words, add_generation_prompt=False))


def test_contrast_tells_what_each_set_has(client, served, url):
    calm = [[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "I am fine."}]] * 2
    pirate = [[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "said the pirate dog"}]] * 2
    first, second = client.features.contrast(calm, pirate, model=MODEL, top_k=4)
    ours = contrast(served, pirate, calm, 4)
    assert [one.index_in_sae for one in first] == [one.feature for one in ours.without]
    assert [one.index_in_sae for one in second] == [one.feature for one in ours.with_]
    body = {"dataset_1": calm, "dataset_2": pirate, "model": "tiny", "k_to_add": 3, "k_to_remove": 2}
    told = post(url, "/chat-attribution/contrast", body).json()
    assert [len(told["dataset_1_features"]), len(told["dataset_2_features"])] == [2, 3]


def test_attribution_tells_which_features_raised_a_logit(client, served):
    chat = [*CHAT, {"role": "assistant", "content": "I am fine, said the pirate."}]
    length = len(served.read(chat))
    told = client.features.attribute(chat, index=length - 4, model=MODEL)
    ours = attribute(served, chat, length - 4).top(64)
    assert told.num_input_tokens == length
    assert [one.feature.index_in_sae for one in told.features] == [one.feature for one in ours]
    assert [one.value for one in told.features] == pytest.approx([one.value for one in ours])
    assert [at.index for at in told.features[0].token_activations] == [at.token for at in ours[0].tokens]
    with pytest.raises(raised.RequestFailedException, match="this prompt has tokens 0 to"):
        client.features.attribute(chat, index=length, model=MODEL)
    with pytest.raises(raised.RequestFailedException, match="the first follows nothing"):
        client.features.attribute(chat, index=0, model=MODEL)


def test_logits_are_those_of_the_next_token(client, lm):
    logits = client.chat.logits(CHAT, model=MODEL, top_k=5).logits
    expected = lm.forward(lm.prompt(CHAT))[0][0]
    best = [lm.tokenizer.decode([i]) for i in expected.argsort(descending=True).tolist()]
    assert list(logits) == list(dict.fromkeys(best))[:5]
    assert list(logits.values()) == sorted(logits.values(), reverse=True)
    assert max(logits.values()) == pytest.approx(float(expected.max()), rel=1e-5)


def test_logits_of_some_words_alone(client, lm):
    some = client.chat.logits(CHAT, model=MODEL, top_k=10, filter_vocabulary=["a", "dog", "<|eot_id|>", "no token"])
    expected = lm.forward(lm.prompt(CHAT))[0][0]
    assert some.logits["a"] == pytest.approx(float(expected[lm.tokenizer.convert_tokens_to_ids("a")]), rel=1e-5)
    assert "<|eot_id|>" in some.logits
    assert "no token" not in some.logits
    assert len(client.chat.logits(CHAT, model=MODEL, top_k=None).logits) > 200


def test_logits_are_steered(client, served, lm):
    variant = Variant(MODEL)
    variant.set(theirs(5, served), 3.0)
    steering = {served.hook_point: served.steering([Controller((f[5].nudge(3.0),))], [lm.prompt(CHAT)])}
    expected = lm.forward(lm.prompt(CHAT), interventions=steering)[0][0]
    logits = client.chat.logits(CHAT, model=variant, top_k=1).logits
    assert next(iter(logits.values())) == pytest.approx(float(expected.max()), rel=1e-5)
    assert logits != client.chat.logits(CHAT, model=MODEL, top_k=1).logits


# ── from a few words ──────────────────────────────────────────────────────────────────────────────────────────────

WORDS = ["the dog", "a pirate", "the day", "a time", "the answer", "a question", "the system", "little dog"]
ARR = Contrastive(
    tuple(chat("Hello?", f"{word} is fine today") for word in WORDS),
    tuple(chat("Hello?", f"arr {word} arr arr") for word in WORDS),
    "writer",
    "say arr",
)


def test_edits_are_made_from_a_wish(client, served, monkeypatch):
    """What finds them has tests of its own, and takes its time: here they are given."""
    asked = []

    def found(scope, wish, writer, places):
        asked.append((wish, places))
        return SimpleNamespace(edits=((scope.features[3], 0.7, "all"), (scope.features[50], -0.2, "all")), note="")

    monkeypatch.setattr(ember, "auto_edits", found)
    edits = client.features.AutoSteer("talk like a pirate", model=MODEL)
    assert asked == [("talk like a pirate", ("all",))], "Ember's edits act on all tokens"
    told = [(one.index_in_sae, one.label, strength) for one, strength in edits.as_dict().items()]
    assert told == [(3, TEXTS[3], 0.7), (50, "feature 50", -0.2)]
    variant = Variant(MODEL)
    variant.set(edits)
    answer = client.chat.completions.create([SYSTEM, *CHAT], model=variant, **GREEDY)
    assert (
        answer.choices[0].message["content"] == local(served, [SYSTEM, *CHAT], f[3].nudge(0.7) + f[50].nudge(-0.2)).text
    )
    raw = SimpleNamespace(edits=((served.features[3].raw, 0.7, "all"),), note="")
    monkeypatch.setattr(ember, "auto_edits", lambda scope, wish, writer, places: raw)
    with pytest.raises(raised.RequestFailedException, match="serve it with its atlas"):
        client.features.AutoSteer("talk like a pirate", model=MODEL)


def test_a_condition_is_made_from_a_wish_and_goes_back_as_it_came(client, served, monkeypatch):
    made = partial(auto_condition, chats=ARR)
    monkeypatch.setattr(ember, "auto_condition", made)
    condition = client.features.AutoConditional("say arr", model=MODEL)
    ours = made(served, "say arr")
    (feature, threshold) = ours.features[0]
    assert condition[0].left_hand[0].index_in_sae == feature.index
    assert condition[0].left_hand[0].uuid == UUID(feature_uuid(served.sae.fingerprint, feature.index))
    assert (condition[0].operator, condition[0].right_hand) == (">", pytest.approx(threshold))
    variant = Variant(MODEL)
    variant.set_when(condition, {theirs(5, served): 3.0})
    answer = client.chat.completions.create([SYSTEM, *CHAT], model=variant, **GREEDY)
    wish = Controller(whens=(When(ours.condition, Controller((f[5].nudge(3.0),))),))
    assert answer.choices[0].message["content"] == local(served, [SYSTEM, *CHAT], wish).text


def test_contrastive_conversations_are_written(client, served):
    without, with_ = client.features.generate_contrastive_stimulus("talk like a pirate")
    assert len(without) == len(with_) > 0
    assert [c[0] for c in without] == [c[0] for c in with_]
    assert all(message.keys() == {"role", "content"} for c in [*without, *with_] for message in c)
    first, second = client.features.contrast(without[:2], with_[:2], model=MODEL, top_k=2)
    assert len(first) <= 2
    assert len(second) <= 2


elsewhere = FastAPI()


@elsewhere.post("/v1/chat/completions")
async def complete(body: dict):
    """A model that writes one pair where it is asked for pirates, and else nonsense."""
    asked = json.dumps(body)
    pairs = [{"user": "Hello?", "without": "Good day.", "with": "Arr!"}] if "pirate" in asked else "no pairs"
    return {"choices": [{"message": {"content": f"Here: {json.dumps(pairs)}"}}]}


def test_a_model_elsewhere_writes_them_where_one_is_named(served):
    with live(elsewhere) as there:
        settings = ServeSpec(writer="a-model", writer_url=f"{there}/v1")
        with live(create_app(Catalog({MODEL: Threads(served)}), settings)) as at:
            client = goodfire.Client("any", base_url=at)
            without, with_ = client.features.generate_contrastive_stimulus("talk like a pirate")
            assert [[m["content"] for m in chats[0]] for chats in (without, with_)] == [
                ["Hello?", "Good day."],
                ["Hello?", "Arr!"],
            ]
            with pytest.raises(raised.RequestFailedException, match="The writer was asked for JSON"):
                client.features.generate_contrastive_stimulus("talk like a butler")


# ── bounds, and what is outside them ──────────────────────────────────────────────────────────────────────────────

TOO_LONG = CHAT * 129
MANY = "List should have at most {} items after validation, not {}"
BOUNDS = [
    ("/features/rerank", {"query": "x", "top_k": 0, "feature_ids": []}, "greater than or equal to 1"),
    ("/features/rerank", {"query": "x", "top_k": 8193, "feature_ids": []}, "less than or equal to 8192"),
    ("/features/rerank", {"query": "x", "top_k": 1, "feature_ids": ["a"] * 8193}, MANY.format(8192, 8193)),
    ("/attributions/neighbors", {"feature_indices": [], "top_k": 1}, "at least 1 item after validation, not 0"),
    ("/attributions/neighbors", {"feature_indices": [1] * 2049, "top_k": 1}, MANY.format(2048, 2049)),
    ("/attributions/neighbors", {"feature_indices": [1], "top_k": 8193}, "less than or equal to 8192"),
    ("/attributions/neighbors", {"feature_indices": [-1], "top_k": 1}, "greater than or equal to 0"),
    ("/chat-attribution/compute-features", {"messages": TOO_LONG}, MANY.format(128, 129)),
    ("/chat-attribution/compute-features", {"messages": []}, "at least 1 item after validation, not 0"),
    ("/chat-attribution/compute-features", {"messages": CHAT, "aggregate_by": "median"},
     "Input should be 'count', 'mean', 'max' or 'sum'"),
    ("/chat-attribution/compute-features", {"messages": CHAT, "include_feature_indexes": [1] * 513},
     MANY.format(512, 513)),
    ("/chat-attribution/compute-features", {"messages": CHAT, "include_feature_indexes": [128]}, "No feature 128"),
    ("/chat-attribution/contrast", {"dataset_1": [], "dataset_2": [CHAT]}, "at least 1 item"),
    ("/chat-attribution/contrast", {"dataset_1": [CHAT], "dataset_2": [CHAT] * 65}, MANY.format(64, 65)),
    ("/chat-attribution/contrast", {"dataset_1": [CHAT], "dataset_2": [CHAT], "k_to_add": 8193},
     "less than or equal to 8192"),
    ("/chat-attribution/contrast", {"dataset_1": [CHAT], "dataset_2": [CHAT], "k_to_remove": 0},
     "greater than or equal to 1"),
    ("/chat-attribution/compute-logits", {"messages": TOO_LONG, "top_k": 3}, MANY.format(128, 129)),
    ("/chat-attribution/compute-logits", {"messages": [{"role": "pirate", "content": "arr"}]}, "Input should be"),
    ("/attributions/compute-logit-attribution", {"messages": CHAT, "startIndex": 99, "endIndex": 99},
     "this prompt has tokens 0 to"),
    ("/chat/tokenize", {"messages": TOO_LONG}, MANY.format(128, 129)),
    ("/chat/completions", {"messages": TOO_LONG}, MANY.format(128, 129)),
    ("/chat/completions", {"messages": CHAT, "top_p": 1.1}, "less than or equal to 1"),
    ("/chat/completions", {"messages": CHAT, "temperature": 2.1}, "less than or equal to 2"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "says"), BOUNDS, ids=[f"{path} {says[:30]}" for path, _, says in BOUNDS])
def test_what_is_out_of_bounds_is_refused_in_pydantics_words(url, path, body, says):
    answer = post(url, path, body | {"model": "tiny"})
    assert answer.status_code == 422
    assert says in answer.text


def test_as_many_features_are_had_by_id_as_the_contract_says(served, loop):
    """Such a URL is longer than HTTP's libraries take, so that the app itself is asked."""

    def ask(ids):
        told = []
        query = "&".join(f"feature_id={id}" for id in ids).encode()
        asked = {"type": "http", "method": "GET", "path": "/api/inference/v1/features/", "query_string": query,
                 "headers": [], "http_version": "1.1", "scheme": "http", "root_path": ""}  # fmt: skip

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            told.append(message)

        loop.run_until_complete(create_app(Catalog({"tiny": EmbeddedEngine(served)}))(asked, receive, send))
        return told[0]["status"], b"".join(one.get("body", b"") for one in told[1:]).decode()

    status, body = ask([feature_uuid(served.sae.fingerprint, i) for i in range(128)] * 64)
    assert status == 200
    assert [one["index_in_sae"] for one in json.loads(body)["features"]] == [*range(128)] * 64
    status, body = ask(["x"] * 8193)
    assert (status, MANY.format(8192, 8193) in body) == (422, True)


def test_the_client_hears_of_bounds_and_of_models_that_are_not_served(client):
    with pytest.raises(raised.RequestFailedException, match="Input should be less than or equal to 100"):
        client.features.search("pirate", model=MODEL, top_k=101)
    with pytest.raises(raised.RequestFailedException, match=f"Input should be 'tiny' or '{MODEL}'"):
        client.features.search("pirate", model="meta-llama/Llama-3.3-70B-Instruct")
    with pytest.raises(raised.RequestFailedException, match=f"Input should be 'tiny' or '{MODEL}'"):
        client.chat.completions.create(CHAT, model="gpt")
    with pytest.raises(raised.RequestFailedException, match="Nothing is looked for"):
        client.features.search("  ", model=MODEL)


@pytest.mark.parametrize("text", ["\ud800", "\x00", "🙂" * 2000, "' OR 1=1 --", 'density:<0.1 "arr" NEAR(a b)'])
def test_no_text_breaks_a_search(url, text):
    params = {"query": text.encode("utf-8", "replace").decode(), "perPage": 5, "model": "tiny"}
    assert httpx.get(f"{url}/api/inference/v1/features/search", params=params).status_code in (200, 422)
    reranked = {"query": text, "top_k": 3, "model": "tiny", "feature_ids": ["x"]}
    body = json.dumps(reranked).encode()
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}/api/inference/v1/features/rerank", content=body, headers=headers)
    assert answer.json() == {"features": []}
    logits = json.dumps({"messages": CHAT, "model": "tiny", "filter_vocabulary": [text]}).encode()
    answer = httpx.post(f"{url}/api/inference/v1/chat-attribution/compute-logits", content=logits, headers=headers)
    assert answer.status_code == 200


def test_errors_are_the_clients_named_exceptions(served):
    store = Store(None)
    key = store.add_key("ann", requests_per_minute=1)
    with live(create_app(Catalog({MODEL: Threads(served)}), store=store)) as at:
        with pytest.raises(raised.UnauthorizedException, match="not known here"):
            goodfire.Client("wrong", base_url=at).features.lookup([1], model=MODEL)
        mine = goodfire.Client(key, base_url=at)
        mine.features._async_client._http.max_retries = 0
        assert mine.features.lookup([1], model=MODEL)
        with pytest.raises(raised.RateLimitException):
            mine.features.lookup([1], model=MODEL)
        again = post(
            at, "/features/lookup", {"indices": [1], "model": MODEL}, headers={"authorization": f"Bearer {key}"}
        )
        assert (again.status_code, int(again.headers["retry-after"]) > 0) == (429, True)


def test_a_path_that_is_not_there_is_not_found(url):
    with pytest.raises(raised.NotFoundException):
        goodfire.Client("any", base_url=f"{url}/elsewhere").features.lookup([1], model=MODEL)


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def local(served, messages, edits=None, **sampling):
    """What the scope itself writes."""
    options = {"temperature": 0.0, "max_new_tokens": 12, "top_p": 0.9, "seed": 42} | sampling
    return served.chat(messages, edits, **options)


def test_an_answer_is_the_scopes_own_streamed_or_not(client, both, loop, served):
    messages = [SYSTEM, *CHAT]
    answer = client.chat.completions.create(messages, model=MODEL, **GREEDY)
    expected = local(served, messages)
    assert answer.choices[0].message["content"] == expected.text
    assert answer.choices[0].finish_reason == expected.finish
    chunks = list(client.chat.completions.create(messages, model=MODEL, stream=True, **GREEDY))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == expected.text
    assert [chunk.choices[0].gf_token_index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [expected.finish]
    assert all(chunk.choices[0].delta.role == "assistant" for chunk in chunks)

    async def streamed():
        written = await both.chat.completions.create(CHAT, model=MODEL, stream=True, system_prompt="Be kind.", **GREEDY)
        return "".join([chunk.choices[0].delta.content async for chunk in written])

    assert loop.run_until_complete(streamed()) == expected.text
    whole = both.chat.completions.create(CHAT, model=MODEL, system_prompt="Be kind.", **GREEDY)
    assert loop.run_until_complete(whole).choices[0].message["content"] == expected.text


def test_the_clients_own_system_message_comes_first_unless_there_is_one(client, served):
    own = {"role": "system", "content": DEFAULT_SYSTEM_PROMPT}
    answer = client.chat.completions.create(CHAT, model=MODEL, **GREEDY)
    assert answer.choices[0].message["content"] == local(served, [own, *CHAT]).text
    answer = client.chat.completions.create([SYSTEM, *CHAT], model=MODEL, **GREEDY)
    assert answer.choices[0].message["content"] == local(served, [SYSTEM, *CHAT]).text


def test_seeds_repeat_stops_stop_and_lengths_limit(client, served):
    def said(**more):
        asked = {"temperature": 1.0, "max_completion_tokens": 20} | more
        return client.chat.completions.create(CHAT, model=MODEL, system_prompt="", **asked).choices[0]

    first = said(seed=1)
    assert first == said(seed=1)
    assert first.message != said(seed=2).message
    assert said(max_completion_tokens=3, seed=1).finish_reason == "length"
    letter = next(c for c in first.message["content"][3:] if c.isalnum())
    stopped = said(seed=1, stop=[letter])
    assert stopped.message["content"] == first.message["content"].split(letter)[0]
    assert stopped.finish_reason == "stop"
    assert said(seed=1, stop=letter) == stopped


def test_nudges_pins_and_factors_do_what_they_say(client, served):
    a, b, c = (theirs(i, served) for i in (5, 9, 11))
    by_hand = TheirController()
    by_hand[a] += 2.0
    by_hand[b] = 1.5
    by_hand[c] *= 0.0
    steered = client.chat.completions.create([SYSTEM, *CHAT], model=Steered(by_hand), **GREEDY)
    expected = local(served, [SYSTEM, *CHAT], f[5].nudge(2.0) + f[9].pin(1.5) + f[11].scale(0.0))
    assert steered.choices[0].message["content"] == expected.text
    assert expected.text != local(served, [SYSTEM, *CHAT]).text
    variant = Variant(MODEL)
    variant.set(FeatureEdits([(a, 2.0), (b, -1.0)]))
    edited = client.chat.completions.create([SYSTEM, *CHAT], model=variant, **GREEDY)
    expected = local(served, [SYSTEM, *CHAT], f[5].nudge(2.0) + f[9].nudge(-1.0))
    assert edited.choices[0].message["content"] == expected.text


def test_an_empty_variant_changes_nothing(client, served):
    answer = client.chat.completions.create([SYSTEM, *CHAT], model=Variant(MODEL), **GREEDY)
    assert answer.choices[0].message["content"] == local(served, [SYSTEM, *CHAT]).text


@pytest.mark.parametrize("join", ["and", "or"])
def test_edits_hold_where_conditions_do(client, served, join):
    a, b = theirs(3, served), theirs(7, served)
    theirs_all = (a > 0.4) & (b < 0.6) if join == "and" else (a > 0.4) | (b < 0.6)
    ours = (f[3] > 0.4) & (f[7] < 0.6) if join == "and" else (f[3] > 0.4) | (f[7] < 0.6)
    variant = Variant(MODEL)
    variant.set(theirs(9, served), 1.0)
    variant.set_when(theirs_all, {theirs(5, served): 3.0})
    answer = client.chat.completions.create([SYSTEM, *CHAT], model=variant, **GREEDY)
    wish = Controller((f[9].nudge(1.0),), (When(ours, Controller((f[5].nudge(3.0),))),))
    assert answer.choices[0].message["content"] == local(served, [SYSTEM, *CHAT], wish).text


def test_scopes_nest_and_features_are_compared_with_features(client, served):
    a, b, c = (theirs(i, served) for i in (3, 7, 11))
    by_hand = TheirController()
    with by_hand.when(FeatureGroup([a, b]) > 0.2):
        by_hand[theirs(5, served)] += 2.0
        with by_hand.when(c >= a):
            by_hand[theirs(9, served)] = 2.0
    inner = When(Comparison((f[11],), ">=", (f[3],)), Controller((f[9].pin(2.0),)))
    outer = When(Comparison((f[3], f[7]), ">", 0.2), Controller((f[5].nudge(2.0),), (inner,)))
    answer = client.chat.completions.create([SYSTEM, *CHAT], model=Steered(by_hand), **GREEDY)
    assert answer.choices[0].message["content"] == local(served, [SYSTEM, *CHAT], Controller(whens=(outer,))).text


def crossing(served, messages):
    """(feature, threshold in feature units, index of the token) of a condition that first holds within the answer."""
    reply = served.chat(messages, read=True, temperature=0.0, max_new_tokens=12)
    prompt = served.lm.prompt(messages)
    before = served.read(prompt).codes.dense()[["template" not in str(k) and "bos" not in str(k) for k in prompt.kinds]]
    written = reply.codes.dense()
    for feature in range(128):
        peak, late = float(before[:, feature].max()), float(written[2:, feature].max())
        if late > 1.2 * max(peak, float(written[:2, feature].max())) + 0.1:
            threshold = late / 1.1
            index = int((written[:, feature] > threshold).nonzero()[0])
            if index < len(reply.ids) - 1:
                return feature, threshold / float(served.sae.scale[feature]), index
    raise AssertionError("no feature grows while this model writes")


@pytest.mark.parametrize("streaming", [True, False])
def test_an_abort_ends_the_answer_and_frees_its_row(client, served, engine, streaming):
    messages = [SYSTEM, *CHAT]
    feature, threshold, index = crossing(served, messages)
    variant = Variant(MODEL)
    variant.abort_when(theirs(feature, served) > threshold)
    asked = {"model": variant, "temperature": 0.0, "max_completion_tokens": 200 if streaming else 12}
    seen = []

    def write():
        written = client.chat.completions.create(messages, stream=streaming, **asked)
        for chunk in written if streaming else ():
            seen.append(chunk)  # kept when the next one ends it

    with pytest.raises(InferenceAbortedException, match="conditional check"):
        write()
    if streaming:
        assert len(seen) in (index, index + 1)
    until = time.monotonic() + 10
    while engine.load().rows or engine.load().waiting:
        assert time.monotonic() < until, "the row is still written"
        time.sleep(0.01)


def test_a_handler_hears_of_its_condition_with_the_text_so_far(client, served):
    messages = [SYSTEM, *CHAT]
    feature, threshold, _ = crossing(served, messages)
    heard = []
    variant = Variant(MODEL)
    variant.handle_when(theirs(feature, served) > threshold, heard.append)
    chunks = list(client.chat.completions.create(messages, model=variant, stream=True, **GREEDY))
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert heard
    assert text.startswith(heard[0].response_so_far)
    assert [name for chunk in chunks for name in chunk.gf_event_names or []] == list(variant._handlers)
    heard.clear()
    whole = client.chat.completions.create(messages, model=variant, **GREEDY)
    assert [context.response_so_far for context in heard] == [text] == [whole.choices[0].message["content"]]
    assert whole.gf_event_names == list(variant._handlers)


# ── the wire ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_event_is_an_http_chunk_of_its_own(url):
    body = {"messages": CHAT, "model": "tiny", "stream": True, "temperature": 0, "max_tokens": 8}
    with httpx.stream("POST", f"{url}/api/inference/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        pieces = list(answer.iter_raw())
    *events, done = pieces
    assert done == b"data: [DONE]\n\n"
    for number, event in enumerate(events):
        assert re.fullmatch(rb"data: \{.*\}\n\n", event, re.DOTALL)
        assert event.count(b"data: ") == 1
        told = json.loads(event.removeprefix(b"data: "))
        assert {"object", "id", "created", "model", "system_fingerprint", "gf_event_names", "choices"} <= told.keys()
        (choice,) = told["choices"]
        assert choice.keys() >= {"index", "delta", "gf_token_index", "finish_reason"}
        assert set(choice["delta"]) == {"role", "content"}
        assert choice["gf_token_index"] == number


READ_AT_ONCE = 48 << 10  # bytes: httpcore reads 64 KiB, in which each event has a frame of its own


class Scripted(Threads):
    """An engine that writes a given text, token by token, at once: no more than what a client reads at once, since
    this one takes what it reads for whole events."""

    text = ""

    async def _told(self):
        tokenizer = self.scope.lm.tokenizer
        ids, shown = tokenizer.encode(self.text, add_special_tokens=False), TextStream(tokenizer)
        for index, id in enumerate(ids):
            last = index == len(ids) - 1
            await asyncio.sleep(0)
            piece = shown.push(id) + (shown.finish() if last else "")
            yield Update(index, id, piece, "stop" if last else None)

    def submit(self, request):
        return self._told()


@pytest.mark.parametrize(
    "text",
    [
        "مرحبا بك، كيف حالك اليوم؟ " * 2,
        "👩‍👩‍👧‍👦🏴‍☠️🙂🇩🇪 ",
        'data: {"a": 1}\n\ndata: [DONE]\n\n',
        "日本語 ไทย עברית 😀\u2028\u0000end",
    ],
    ids=["arabic", "emoji", "events in the text", "scripts"],
)  # fmt: skip
def test_any_text_arrives_as_it_was_written(served, text):
    engine = Scripted(served)
    engine.text = text
    with live(create_app(Catalog({MODEL: engine}))) as at:
        client = goodfire.Client("any", base_url=at)
        sent = post(at, "/chat/completions", {"messages": CHAT, "model": MODEL, "stream": True}).content
        assert len(sent) < READ_AT_ONCE, "it would be cut within an event, however it is written"
        chunks = list(client.chat.completions.create(CHAT, model=MODEL, stream=True))
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == text
        assert not any("\ufffd" in chunk.choices[0].delta.content for chunk in chunks)
        whole = client.chat.completions.create(CHAT, model=MODEL)
        assert whole.choices[0].message["content"] == text


def test_a_feature_of_another_sae_is_refused_and_one_saved_at_ember_counts_by_its_index(url, served):
    def asked(id):
        variant = Variant(MODEL)
        variant.set(TheirFeature(UUID(id), "five", 5), 3.0)
        return post(url, "/chat/completions", {"messages": CHAT, "model": "tiny", "temperature": 0, "max_tokens": 10,
                                               "controller": variant.controller.json()})  # fmt: skip

    other = asked(feature_uuid(served.sae.fingerprint, 6))
    assert other.status_code == 422
    assert "The uuid is that of feature 6, and index_in_sae says 5" in other.text
    refused = asked(feature_uuid("another SAE", 5))
    assert refused.status_code == 422
    assert "Feature 5 was found on another SAE" in refused.text
    same = local(served, CHAT, f[5].nudge(3.0), max_new_tokens=10).text
    for id in (str(uuid4()), feature_uuid(served.sae.fingerprint, 5), feature_uuid(None, 5)):
        assert asked(id).json()["choices"][0]["message"]["content"] == same


def test_many_clients_at_once_get_their_own_answers(url, served):
    answers, wishes = {}, {seed: Variant(MODEL) for seed in range(4)}
    for seed, variant in wishes.items():
        variant.set(theirs(5, served), float(seed))

    def ask(seed):
        body = {"messages": CHAT, "model": "tiny", "temperature": 0, "max_tokens": 10,
                "controller": wishes[seed].controller.json()}  # fmt: skip
        answers[seed] = post(url, "/chat/completions", body).json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in wishes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in wishes:
        assert answers[seed] == local(served, CHAT, f[5].nudge(float(seed)) if seed else None, max_new_tokens=10).text


# ── without an atlas ──────────────────────────────────────────────────────────────────────────────────────────────


def test_without_an_atlas_labels_alone_are_searched(scope, monkeypatch):
    for embedder, asked in ((lambda: None, "pirate"), (Concepts, "buccaneer")):
        monkeypatch.setattr(known, "default_embedder", embedder)
        with live(
            create_app(Catalog({"tiny": Threads(Scope(scope.lm, scope.sae, labels=scope.features.labels))}))
        ) as at:
            client = goodfire.Client("any", base_url=at)
            (first, *_) = client.features.search(asked, model="tiny")
            assert (first.index_in_sae, first.label) == (3, "pirate speech")
            ranked = client.features.rerank(FeatureGroup([theirs(i, scope) for i in (7, 3, 50)]), asked, model="tiny")
            assert [one.index_in_sae for one in ranked] == [3, 7, 50]


def test_where_the_sentence_model_fails_words_are_looked_for_and_the_next_search_tries_again(scope, monkeypatch):
    told = known.Known(Scope(scope.lm, scope.sae, labels=scope.features.labels))

    def failing():
        raise OSError("no room")

    monkeypatch.setattr(known, "default_embedder", failing)
    assert told.found("pirate", 0, 1)[0]["index_in_sae"] == 3
    monkeypatch.setattr(known, "default_embedder", Concepts)
    assert told.found("buccaneer", 0, 1)[0]["index_in_sae"] == 3


def test_the_reading_of_labels_ends_with_the_server_and_begins_anew_with_the_next(served, monkeypatch):
    begun, going = threading.Event(), threading.Event()

    class Slow(Concepts):
        name = "slow"

        def embed(self, texts):
            begun.set()
            assert going.wait(30)
            return super().embed(texts)

    monkeypatch.setattr(known, "default_embedder", Slow)
    told = known.Known(served)
    reading = told.read_labels()
    assert begun.wait(30)
    closing = threading.Thread(target=told.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive(), "a batch that is being read ends first"
    going.set()
    closing.join(30)
    assert isinstance(reading.exception(), Stopped)
    assert told.found("buccaneer", 0, 1)[0]["index_in_sae"] == 3
