"""What the server answers, asked in the same process: as the scope answers, told as OpenAI and Ember tell it."""

import asyncio
import json

import pytest
from asking import ASKED, CHAT, COMPLETE, EMBER, HELLO, ask, events
from engines import Threads
from goodfire.api.chat.interfaces import ChatCompletion, StreamingChatCompletionChunk
from starlette.testclient import TestClient

from sparsight.ids import feature_uuid
from sparsight.records import Sampling
from sparsight.serve.app import create_app
from sparsight.serve.catalog import Catalog
from sparsight.serve.openai import answers
from sparsight.serve.openai.logprobs import spelled, token_bytes
from sparsight.serve.openai.sse import event_of
from sparsight.serve.openai.wishes import seed_of, takes_tools
from sparsight.wire import fingerprint, from_json, to_ember, to_json


@pytest.fixture(scope="module")
def engine(scope):
    return Threads(scope)


@pytest.fixture(scope="module")
def client(engine):
    with TestClient(create_app(Catalog({"tiny": engine, "org/tiny": engine}))) as client:
        yield client


# ── chats ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_is_what_the_scope_writes_with_the_same_numbers(client, scope):
    reply = scope.chat(ASKED, sampling=Sampling(6, temperature=1.0, seed=7))
    out = ask(client)
    assert out["choices"][0]["message"] == {"role": "assistant", "content": reply.text, "refusal": None}
    assert out["choices"][0]["finish_reason"] == reply.finish
    usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": 6, "total_tokens": reply.prompt_tokens + 6}
    assert out["usage"] == usage | {"prompt_tokens_details": {"cached_tokens": 3}}
    assert "receipt" not in out
    answers.ChatAnswer.model_validate(out)


def test_a_stream_strung_together_is_the_answer(client):
    whole, chunks = ask(client), events(client, stream_options={"include_usage": True})
    usage = chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert "".join(c["choices"][0]["delta"]["content"] for c in chunks) == whole["choices"][0]["message"]["content"]
    assert [c["choices"][0]["delta"].get("role") for c in chunks] == ["assistant"] + [None] * 5, "it is told once"
    assert [c["choices"][0]["gf_token_index"] for c in chunks] == [*range(6)]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 5 + ["length"]
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1


def test_several_answers_to_one_prompt_have_seeds_of_their_own(client):
    many, one = ask(client, n=3), ask(client)
    texts = [choice["message"]["content"] for choice in many["choices"]]
    assert texts[0] == one["choices"][0]["message"]["content"], "the first has the request's own seed"
    assert len(set(texts)) == 3
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2]
    assert many["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"], "the prompt counts once"
    assert many["usage"]["completion_tokens"] == 18
    told = dict.fromkeys(range(3), "")
    chunks = events(client, n=3)
    for chunk in chunks:
        told[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"]["content"]
    assert list(told.values()) == texts
    assert [c["choices"][0]["gf_token_index"] for c in chunks] == [*range(18)], "never repeated"
    assert seed_of(7, 0) == 7
    assert len({seed_of(7, i) for i in range(100)}) == 100


def test_without_a_seed_answers_differ_and_with_temperature_0_they_do_not(client):
    assert len({ask(client, seed=None)["choices"][0]["message"]["content"] for _ in range(3)}) > 1
    assert len({ask(client, seed=None, temperature=0)["choices"][0]["message"]["content"] for _ in range(2)}) == 1


@pytest.mark.parametrize("form", [to_json, to_ember])
def test_a_controller_in_either_form_steers_as_in_the_scope_and_its_receipt_comes_along(client, scope, form):
    edits = scope.features[3].nudge(2.0) + scope.features[7].pin(1.0)
    reply = scope.chat(ASKED, edits, sampling=Sampling(6, temperature=1.0, seed=7))
    out = ask(client, controller=form(edits))
    assert out["choices"][0]["message"]["content"] == reply.text
    assert out["receipt"]["controller"] == fingerprint(from_json(form(edits)))
    assert (out["receipt"]["touched"], out["receipt"]["seen"]) == (reply.receipt.touched, reply.receipt.seen)
    assert out["receipt"]["change"] == pytest.approx(reply.receipt.change)
    chunks = events(client, controller=form(edits))
    assert ["receipt" in chunk for chunk in chunks] == [False] * 5 + [True]
    assert chunks[-1]["receipt"] == out["receipt"]
    answers.ChatAnswer.model_validate(out)


def test_several_steered_answers_have_one_receipt_of_all_their_tokens(client, scope):
    form = to_json(scope.features[3].nudge(2.0))
    one, two = ask(client, controller=form), ask(client, controller=form, n=2)
    assert two["receipt"]["touched"] == 2 * one["receipt"]["touched"]
    assert two["receipt"]["seen"] == 2 * one["receipt"]["seen"]


def test_an_empty_controller_is_none(client):
    out = ask(client, controller={"interventions": [], "scopes": [], "name": "x"})
    assert "receipt" not in out
    assert out["choices"] == ask(client)["choices"]


def test_features_of_each_new_token_are_those_that_the_scope_reads(client, scope):
    reply = scope.chat(ASKED, read=True, sampling=Sampling(6, temperature=1.0, seed=7))
    out = ask(client, features={"top_k": 3, "include": [5, 11]})["choices"][0]["features"]
    assert [entry["id"] for entry in out] == list(reply.ids)
    for token, entry in enumerate(out):
        read = dict(reply.codes.at(token))
        assert [one["index"] for one in entry["active"]][:3] == [i for i, _ in reply.codes.at(token)][:3]
        for one in entry["active"]:
            assert one["activation"] == pytest.approx(read[one["index"]], rel=1e-4)
            assert one["id"] == feature_uuid(scope.sae.fingerprint, one["index"])
            assert one["label"] == scope.features.labels.get(one["index"])
        assert {5, 11} & read.keys() <= {one["index"] for one in entry["active"]}
    chunks = events(client, features={"top_k": 3, "include": [5, 11]})
    assert [entry for chunk in chunks for entry in chunk["choices"][0]["features"]] == out


def test_events_are_told_where_they_come_true(client, scope):
    first = scope.chat(ASKED, read=True, sampling=Sampling(6, temperature=1.0, seed=7)).codes.at(0)[0][0]
    form = to_json((scope.features[first].raw > 0.0).event("it fires"))
    assert ask(client, controller=form)["gf_event_names"] == ["it fires"]
    told = [chunk["gf_event_names"] for chunk in events(client, controller=form)]
    assert told.count(["it fires"]) == 1
    assert set(map(str, told)) == {"None", "['it fires']"}
    assert ask(client)["gf_event_names"] is None


def test_logprobs_have_the_tokens_and_their_bytes(client, scope):
    out = ask(client, logprobs=True, top_logprobs=2)["choices"][0]
    reply = scope.chat(ASKED, sampling=Sampling(6, temperature=1.0, seed=7))
    content = out["logprobs"]["content"]
    assert bytes(b for entry in content for b in entry["bytes"]).decode("utf-8", "replace") == reply.text
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in content)
    assert ask(client, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert ask(client)["choices"][0]["logprobs"] is None


def test_every_token_of_the_vocabulary_has_bytes_that_are_its_part_of_a_text(tokenizer):
    text = "Once upon a time: 你好, naïve 🦜!\n\tpirate"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(token_bytes(tokenizer, i) for i in ids).decode() == text
    assert token_bytes(tokenizer, tokenizer.eos_token_id) == b"<|eot_id|>"
    halves = [i for i in ids if spelled(tokenizer, i).startswith("bytes:")]
    assert halves, "half a character is told by its bytes"
    assert spelled(tokenizer, halves[0]).startswith("bytes:\\x")


def test_contents_may_be_parts_of_text_and_a_developer_is_a_system(client):
    plain = ask(client, messages=[{"role": "system", "content": "Be kind."}, *ASKED])
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
    assert ask(client, messages=[{"role": "developer", "content": parts}, *ASKED])["choices"] == plain["choices"]


def test_what_is_not_said_is_as_with_openai(client, engine):
    ask(client, max_tokens=None, max_completion_tokens=4, seed=None)
    asked = engine.asked[-1].sampling
    assert (asked.max_new_tokens, asked.temperature, asked.top_p, asked.stop) == (4, 1.0, 1.0, ())
    form = {"model": "tiny", "messages": [{"role": "user", "content": "dog " * 215}], "seed": 1}
    room = 256 - ask(client, **form)["usage"]["prompt_tokens"]
    assert 0 < room < 60
    out = client.post(CHAT, json=form | {"user": "me", "later": {"a": 1}})
    assert out.status_code == 200, "unknown fields are left alone"
    assert engine.asked[-1].sampling.max_new_tokens == room, "as much as there is room for"
    ask(client, **form | {"max_tokens": 2**40})
    assert engine.asked[-1].sampling.max_new_tokens == room


def test_one_point_nought_is_a_whole_number(client, engine):
    ask(client, max_tokens=3.0, seed=7.0, n=1.0, top_p=1)
    assert (engine.asked[-1].sampling.max_new_tokens, engine.asked[-1].sampling.seed) == (3, 7)
    out = client.post(COMPLETE, json={"model": "tiny", "prompt": [[6.0, 7.0]], "max_tokens": 1})
    assert out.status_code == 200
    assert client.post(CHAT, json=HELLO | {"max_tokens": 3.5}).status_code == 400


def test_every_wish_about_sampling_reaches_the_engine(client, engine):
    ask(client, temperature=0.5, top_p=0.5, stop=["a", "zz"], logit_bias={"7": -100, "9": 5},
        presence_penalty=0.5, frequency_penalty=-0.5, seed=-3, logprobs=True, top_logprobs=4)  # fmt: skip
    request = engine.asked[-1]
    assert request.sampling == Sampling(
        6, temperature=0.5, top_p=0.5, seed=-3, stop=("a", "zz"), logit_bias=((7, -100.0), (9, 5.0)),
        presence_penalty=0.5, frequency_penalty=-0.5,
    )  # fmt: skip
    assert request.logprobs == 4


# ── completions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_completion_goes_on_as_the_scope_does(client, scope):
    form = {"model": "tiny", "prompt": "Once upon a", "max_tokens": 5, "seed": 3}
    reply = scope.complete("Once upon a", sampling=Sampling(5, temperature=1.0, seed=3))
    out = ask(client, COMPLETE, **form)
    assert out["object"] == "text_completion"
    assert out["choices"][0]["text"] == reply.text
    answers.CompletionAnswer.model_validate(out)
    assert "".join(c["choices"][0]["text"] for c in events(client, COMPLETE, **form)) == reply.text
    assert ask(client, COMPLETE, **form, echo=True)["choices"][0]["text"] == "Once upon a" + reply.text
    ids = scope.lm.prompt("Once upon a").ids
    assert ask(client, COMPLETE, **form | {"prompt": list(ids)})["choices"][0]["text"] == reply.text
    again = ask(client, COMPLETE, **form | {"prompt": [list(ids)]}, echo=True)["choices"][0]["text"]
    assert again == "Once upon a" + reply.text


def test_several_prompts_with_several_answers_each_keep_their_order(client):
    form = {"model": "tiny", "max_tokens": 4, "seed": 3}
    out = ask(client, COMPLETE, **form, prompt=["Once", "Hello"], n=2)
    assert [choice["index"] for choice in out["choices"]] == [0, 1, 2, 3]
    alone = [ask(client, COMPLETE, **form, prompt=text)["choices"][0]["text"] for text in ("Once", "Hello")]
    assert [out["choices"][0]["text"], out["choices"][2]["text"]] == alone
    assert out["usage"]["completion_tokens"] == 16


def test_completion_logprobs_have_offsets_into_the_text(client):
    out = ask(client, COMPLETE, model="tiny", prompt="Once", max_tokens=6, seed=3, logprobs=2)["choices"][0]
    told = out["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["top_logprobs"]) == 6
    assert told["text_offset"][0] == 0
    assert told["text_offset"] == sorted(told["text_offset"])
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert out["text"][offset:].startswith(token) or "\ufffd" in out["text"]
    assert all(token in top for token, top in zip(told["tokens"], told["top_logprobs"], strict=True))


def test_how_much_a_completion_writes_by_itself_is_openais(client):
    assert ask(client, COMPLETE, model="tiny", prompt="Once", seed=1)["usage"]["completion_tokens"] <= 16


# ── Ember's prefix ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_chunks_are_what_embers_client_parses(client, scope):
    form = to_ember(scope.features[3].nudge(1.0))
    for chunk in events(client, EMBER, controller=form):
        parsed = StreamingChatCompletionChunk.model_validate(chunk)
        assert parsed.choices[0].delta.role == "assistant", "every delta has a role and a content"
    ChatCompletion.model_validate(ask(client, EMBER, controller=form))


def test_text_that_looks_like_an_event_is_spelled_otherwise():
    """Clients split chunks at "data: "."""
    told = event_of({"content": 'data: [DONE]\n\ndata: "x" \ud800'})
    assert told.count(b"data: ") == 1
    assert told.endswith(b"\n\n")
    assert told.count(b"\n") == 2
    assert json.loads(told.removeprefix(b"data: ")) == {"content": 'data: [DONE]\n\ndata: "x" \ud800'}


@pytest.mark.parametrize("path", [CHAT, EMBER])
def test_there_is_one_event_to_an_http_chunk(engine, path):
    app, sent = create_app(Catalog({"tiny": engine})), []
    body = json.dumps(HELLO | {"stream": True}).encode()

    async def run():
        asked = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive():
            return next(asked, None) or await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "headers": headers, "scheme": "http", "server": ("t", 80), "http_version": "1.1",
                 "root_path": ""}  # fmt: skip
        await app(scope, receive, send)

    asyncio.run(run())
    chunks = [message["body"] for message in sent if message["type"] == "http.response.body" and message["body"]]
    assert len(chunks) == 7
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in chunks)
    assert chunks[-1] == b"data: [DONE]\n\n"


# ── what cannot be done ──────────────────────────────────────────────────────────────────────────────────────────────

BAD = [
    ({"temperature": 2.5}, "temperature", "Input should be less than or equal to 2"),
    ({"top_p": -0.1}, "top_p", "Input should be greater than or equal to 0"),
    ({"messages": []}, "messages", "List should have at least 1 item after validation, not 0"),
    ({"n": 0}, "n", "Input should be greater than or equal to 1"),
    ({"n": 17}, "n", "at most 16 answers to one request"),
    ({"max_tokens": 0}, "max_tokens", "Input should be greater than or equal to 1"),
    ({"max_tokens": "6"}, "max_tokens", "Input should be a valid integer"),
    ({"stop": ["a"] * 5}, "stop", "at most 4 items"),
    ({"logit_bias": {"cat": 1}}, "logit_bias", "logit_bias names token ids, 0 to 399"),
    ({"logit_bias": {"400": 1}}, "logit_bias", "logit_bias names token ids"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "Input should be less than or equal to 100"),
    ({"response_format": {"type": "json_object"}}, "response_format", "'json_object' is not to be had"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "chat template takes no tools"),
    ({"tool_choice": "required"}, "tool_choice", "tool_choice is 'auto' or 'none' here"),
    ({"functions": [{"name": "f"}]}, "functions", "were replaced by `tools`"),
    ({"modalities": ["text", "audio"]}, "modalities", "writes text alone"),
    ({"top_logprobs": 2}, "top_logprobs", "goes with logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "Input should be less than or equal to 20"),
    ({"controller": {"schema": 1, "edits": [{"op": "nudge", "feature": {"index": 128}, "value": 1.0}]}},
     "controller", "No feature 128: this SAE has 128 (0 to 127)."),
    ({"features": {"include": [128]}}, None, "No feature 128: this SAE has 128 (0 to 127)."),
    ({"messages": [{"role": "pirate", "content": "Arr"}]}, "messages[0].role", "Input should be 'system'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "has no content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[0].content[0].type", "reads text, not 'image_url'"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
     "messages[0].tool_calls", "Calls of tools cannot be shown"),
    ({"messages": [{"role": "user", "content": "dog " * 400}]}, None, "leaves no room after"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "param", "says"), BAD, ids=[json.dumps(bad[0])[:50] for bad in BAD])
def test_what_cannot_be_done_is_refused_in_openais_shape_and_in_embers(client, engine, more, param, says):
    before = len(engine.asked)
    out = client.post(CHAT, json=HELLO | more)
    error = out.json()["error"]
    assert out.status_code == 400
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    answers.ErrorAnswer.model_validate(out.json())
    out = client.post(EMBER, json=HELLO | more)
    assert out.status_code == 422
    assert any(says in one["msg"] for one in out.json()["detail"])
    assert len(engine.asked) == before, "nothing was asked of the engine"


def test_a_name_that_is_not_served_lists_those_that_are(client):
    out = client.post(CHAT, json=HELLO | {"model": "gpt-4"})
    assert (out.status_code, out.json()["error"]["code"]) == (404, "model_not_found")
    out = client.post(EMBER, json=HELLO | {"model": "gpt-4"})
    assert out.status_code == 422
    assert "Input should be 'tiny' or 'org/tiny'" in out.text


def test_embers_bound_on_messages_is_128(client):
    out = client.post(EMBER, json=HELLO | {"messages": ASKED * 129})
    assert "List should have at most 128 items after validation, not 129" in out.text
    assert out.status_code == 422


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [400]}, "outside this model's vocabulary (0 to 399)"),
        ({"prompt": ["a"] * 65}, "this server takes 64"),
        ({"prompt": "a", "suffix": "b"}, "it takes no suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of is n, or left out"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "leave out echo, or logprobs"),
    ],
)
def test_a_completion_that_cannot_be_had_is_refused(client, more, says):
    out = client.post(COMPLETE, json={"model": "tiny", "max_tokens": 2} | more)
    assert out.status_code == 400
    assert says in out.json()["error"]["message"]


def test_tools_go_to_a_template_that_takes_them(client, engine, scope, tokenizer, monkeypatch):
    assert not takes_tools(scope)
    template = tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", "{% if tools %}Tools: {{ tools | tojson }}{% endif %}" + template)
    assert takes_tools(scope)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    ask(client, tools=tools)
    assert '"name": "weather"' in tokenizer.decode(engine.asked[-1].prompt.ids)
    ask(client, tools=tools, tool_choice="none")
    assert "weather" not in tokenizer.decode(engine.asked[-1].prompt.ids)
    monkeypatch.setattr(tokenizer, "chat_template", template + "{% generation %}{{ tools }}{% endgeneration %}")
    assert takes_tools(scope), "also where the template has tags of transformers' own"


def test_a_model_without_a_chat_template_says_so(scope, tokenizer, monkeypatch):
    with TestClient(create_app(Catalog({"base": Threads(scope)}))) as client:
        monkeypatch.setattr(tokenizer, "chat_template", None)
        out = client.post(CHAT, json=HELLO | {"model": "base"})
        assert out.status_code == 400
        assert "no chat template" in out.json()["error"]["message"]
        assert client.post(COMPLETE, json={"model": "base", "prompt": "Once"}).status_code == 200
