"""A scope elsewhere does what the same scope does here; and Neuronpedia's shapes of it."""

import json
import subprocess
import sys

import httpx
import pytest
from engines import Threads, live
from small_atlas import TEXTS, Concepts, small_atlas

import sparsight
from sparsight.errors import BadInput, Busy, NoAnswer, NoFeature, Stopped
from sparsight.lm.text import vocabulary
from sparsight.records import Kind
from sparsight.remote.wire import refusal
from sparsight.scope.scope import Scope
from sparsight.serve import known
from sparsight.serve.app import create_app
from sparsight.serve.catalog import Catalog
from sparsight.serve.openai.sse import event_of
from sparsight.serve.store import Store

CHAT = [{"role": "user", "content": "Hello, how are you?"}]
SHORT = {"max_new_tokens": 8, "temperature": 0.0}


@pytest.fixture(scope="module")
def here(lm, sae, tmp_path_factory) -> Scope:
    folder = tmp_path_factory.mktemp("native") / "atlas"
    scales = sae.scale.double().numpy()
    return Scope(lm, sae, atlas=small_atlas(folder, sae.fingerprint, vocabulary(lm.tokenizer), 128, scales))


@pytest.fixture(scope="module")
def url(here):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "default_embedder", Concepts)
        with live(create_app(Catalog({"tiny": Threads(here)}))) as at:
            yield at


@pytest.fixture(scope="module")
def there(url):
    return sparsight.connect(url)


def test_a_notebook_moves_to_a_server_by_one_line(here, there):
    for scope in (here, there):
        f = scope.features
        edit = f["pirate speech"].nudge(2.0) + f[9].pin(1.0).on("generated")
        reply = scope.chat(CHAT, edit, **SHORT)
        both = scope.compare(CHAT, edit, **SHORT)
        assert both.steered.text == reply.text
        assert both.plain.text == scope.chat(CHAT, **SHORT).text
        assert both.plain.receipt is None
        assert reply.receipt.touched > 0
        assert [len(f), f[3].label] == [128, TEXTS[3]]
        assert scope.complete("Once upon a", None, **SHORT).finish in ("stop", "length")


def test_what_is_written_there_is_what_is_written_here(here, there):
    edit = here.features[5].nudge(2.0).when(here.features[3] > 0.1) + (here.features[3] > 0.1).event("it fires")
    ours, theirs = (scope.chat(CHAT, edit, **SHORT) for scope in (here, there))
    assert (theirs.text, theirs.finish, theirs.events) == (ours.text, ours.finish, ours.events)
    assert (theirs.prompt_tokens, theirs.tokens) == (ours.prompt_tokens, len(ours.ids))
    assert theirs.receipt == ours.receipt
    chunks = list(there.chat(CHAT, edit, stream=True, **SHORT))
    assert "".join(chunk.text for chunk in chunks) == ours.text
    assert chunks[-1].receipt == ours.receipt
    heard = []
    told = there.chat(CHAT, edit, on_token=heard.append, **SHORT)
    assert (told, heard) == (theirs, chunks)
    sampled = {"temperature": 1.0, "seed": 7, "max_new_tokens": 8, "top_p": 0.9}
    assert there.chat(CHAT, **sampled).text == here.chat(CHAT, **sampled).text
    rows = there.chat([CHAT, "Once upon"], [None, edit], **SHORT)
    assert [row.text for row in rows] == [here.chat(CHAT, **SHORT).text, here.complete("Once upon", edit, **SHORT).text]


def test_what_is_read_there_is_what_is_read_here(here, there):
    ours, theirs = here.read(CHAT), there.read(CHAT)
    assert theirs.texts == ours.texts
    assert [token.kind for token in theirs.read] == list(ours.kinds)
    for token, pairs in zip(theirs.tokens(), ours.codes, strict=True):
        assert dict(token.features) == pytest.approx(dict(pairs), rel=1e-4)
    assert theirs[5] == pytest.approx(ours[5])
    assert [index for index, _ in theirs.top(5)] == [index for index, _ in ours.top(5)]
    assert theirs.labels.items() <= TEXTS.items()
    pushed = there.read([CHAT, "a text"], here.features[5].nudge(1.0))
    assert max(pushed[0][5]) > max(theirs[5])
    assert pushed[1].read[-1].kind == Kind.TEXT | Kind.PROMPT
    read = there.chat(CHAT, read=True, **SHORT).read
    local = here.chat(CHAT, read=True, **SHORT)
    assert [token.id for token in read] == list(local.ids)
    assert dict(read[0].features) == pytest.approx(dict(local.codes.at(0)), rel=1e-4)


def test_features_are_found_and_told_of(there, url, here):
    f = there.features
    assert [hit.index for hit in f.search("buccaneer", 1)] == [3]
    assert [hit.index for hit in f.search("#7 density:>0")] == [7]
    fires = [hit.index for hit in f.search('fires:"a pirate"', 5)]
    assert fires == [index for index, _ in here.read("a pirate").top(5)]
    told = f.about(3)
    assert told["label"] == TEXTS[3]
    assert told["statistics"]["max"] == pytest.approx(2 * told["scale"])
    assert len(list(f.wire.lines("/features/export", model="tiny"))) == len(TEXTS)
    with pytest.raises(NoFeature, match="No feature 128"):
        f[128]
    with pytest.raises(BadInput, match="No feature 128"):
        f.about(128)
    with pytest.raises(BadInput, match="Did you mean 'density'"):
        f.search("densty:<1")


def test_contrast_and_causes_are_those_of_the_scope(here, there):
    with_ = [[*CHAT, {"role": "assistant", "content": "said the pirate dog"}]] * 2
    without = [[*CHAT, {"role": "assistant", "content": "I am fine."}]] * 2
    ours, theirs = (scope.contrast(with_, without, 4) for scope in (here, there))
    assert [one["feature"] for one in theirs.with_] == [one.feature for one in ours.with_]
    assert theirs.note == ours.note
    ours, theirs = (scope.attribute(CHAT, 5, 7) for scope in (here, there))
    assert [one["feature"] for one in theirs.top(5)] == [one.feature for one in ours.top(5)]
    assert theirs.logits == pytest.approx(ours.logits)


def test_what_cannot_be_done_there_is_said_as_here(there, url):
    with pytest.raises(BadInput, match="Input should be 'tiny'"):
        sparsight.connect(url, model="large")
    with pytest.raises(BadInput, match="A server takes no top_k"):
        there.chat(CHAT, top_k=5)
    with pytest.raises(BadInput, match="No sampling option 'temprature'"):
        there.chat(CHAT, temprature=5)
    with pytest.raises(BadInput, match="a URL such as"):
        sparsight.connect("localhost:8000")
    with pytest.raises(NoAnswer, match="Is the server running"):
        sparsight.connect("http://127.0.0.1:9")
    with pytest.raises(BadInput, match="no edit to compare"):
        there.compare(CHAT, None)
    with pytest.raises(BadInput, match="one of the two"):
        there.wire.post("/read", {"model": "tiny"})
    for status, kind in ((429, Busy), (503, Stopped), (500, NoAnswer), (401, NoAnswer), (400, BadInput)):
        assert isinstance(refusal(status, '{"error": {"message": "so"}}', {"retry-after": "7"}), kind)
    assert refusal(429, "<html>", {"retry-after": "7"}).retry_after == 7


def test_a_key_is_shown(here):
    store = Store(None)
    key = store.add_key("ann")
    with live(create_app(Catalog({"tiny": Threads(here)}), store=store)) as at:
        assert sparsight.connect(at, key).model == "tiny"
        with pytest.raises(NoAnswer, match="wants a key"):
            sparsight.connect(at)


def test_a_notebook_on_a_server_needs_no_torch(url):
    code = f"""
import sys, sparsight
scope = sparsight.connect({url!r})
scope.compare({CHAT!r}, scope.features["pirate speech"].nudge(1.0), max_new_tokens=4)
scope.read("a text")
print(sorted({{"torch", "transformers"}} & set(sys.modules)))"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ── Neuronpedia's shapes ──────────────────────────────────────────────────────────────────────────────────────────


def ask(url, path, **body):
    answer = httpx.post(f"{url}/api/{path}", json={"modelId": "tiny", **body}, timeout=30)
    assert answer.status_code == body.pop("status", 200), answer.text
    return answer.json()


def test_what_fires_on_a_text_is_told_in_neuronpedias_shapes(url, here):
    text, reading = "the pirate dog", here.read("the pirate dog")
    told = ask(url, "search-all", text=text, numResults=5)
    assert told["tokens"] == list(reading.texts)
    assert [int(one["index"]) for one in told["result"]] == [index for index, _ in reading.top(5)]
    for one in told["result"]:
        assert one["maxValue"] == one["values"][one["maxValueIndex"]] == max(one["values"][1:])
    at_two = ask(url, "search-all", text=text, sortIndexes=[2], numResults=3)["result"]
    assert [int(one["index"]) for one in at_two] == [index for index, _ in reading.codes.at(2)[:3]]
    topk = ask(url, "search-topk-by-token", text=text, numResults=4, densityThreshold=-1)
    assert [one["position"] for one in topk["results"]] == list(range(1, len(reading)))
    first = topk["results"][0]["topFeatures"]
    assert [(one["featureIndex"], one["activationValue"]) for one in first] == [
        (index, pytest.approx(value)) for index, value in reading.codes.at(1)[:4]
    ]
    assert ask(url, "search-topk-by-token", text=text)["results"][0]["topFeatures"] == [], "all are dense in this atlas"


def test_a_chat_is_steered_in_neuronpedias_shapes(url, here):
    body = {"defaultChatMessages": CHAT, "steeredChatMessages": CHAT, "temperature": 0.0, "n_tokens": 8}
    told = ask(url, "steer-chat", features=[{"index": 5, "strength": 2.0}], strength_multiplier=3.0, **body)
    edit = here.features[5].raw.nudge(6.0)
    assert told["DEFAULT"]["raw"] == here.chat(CHAT, **SHORT).text
    assert told["STEERED"]["raw"] == here.chat(CHAT, edit, **SHORT).text
    assert told["STEERED"]["chatTemplate"][0] == CHAT[0]
    assert told["receipt"]["touched"] > 0
    answer = httpx.post(
        f"{url}/api/steer-chat", json={"modelId": "tiny", **body, "features": [{"index": 500, "strength": 1}]}
    )
    assert (answer.status_code, "No feature 500" in answer.text) == (400, True)


def test_an_error_that_ends_a_stream_is_the_error_that_it_would_have_been(here):
    engine = Threads(here)

    def break_off(error):
        def broken(index):
            if index == 2:
                raise error

        return broken

    with live(create_app(Catalog({"tiny": engine}))) as url:
        there = sparsight.connect(url)
        for error in (BadInput("The numbers overflowed."), Stopped("The server stopped.")):
            engine.broken = break_off(error)
            with pytest.raises(type(error), match=str(error)):
                list(there.chat(CHAT, stream=True, **SHORT))


def test_a_line_end_of_unicode_within_a_stream_ends_no_event():
    said = "one\u2028two\x85three\u2029data: four"
    (line,) = event_of({"text": said}).decode().splitlines()[:-1]
    assert json.loads(line.removeprefix("data: ")) == {"text": said}
    assert line.count("data: ") == 1
