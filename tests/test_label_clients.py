"""Language models elsewhere write and judge labels: whatever their server does, nothing is paid for twice, no budget is
exceeded, no key gets out, and what cannot be read leaves no label and no score."""

import copy
import inspect
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import get_type_hints

import numpy as np
import pytest
import torch
from conftest import HOOK, llama, random_sae
from hypothesis import given
from hypothesis import strategies as st

from sparsight.atlas.about import About
from sparsight.atlas.asked import spent
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Statistics
from sparsight.errors import BadInput, Mismatch, NoAnswer, OverBudget, TooLong
from sparsight.label import prompts
from sparsight.label.clients.anthropic import AnthropicClient
from sparsight.label.clients.client import Answer
from sparsight.label.clients.endpoint import retry_after
from sparsight.label.clients.ledger import Ledger
from sparsight.label.clients.openai import OpenAIClient
from sparsight.label.clients.spec import EndpointSpec
from sparsight.label.evidence import Evidence, HeldOut, Window
from sparsight.label.methods import Setting, labellers
from sparsight.label.prompts import Wording
from sparsight.label.prose import PromptedLabeller, ProseJudge, foreseen
from sparsight.label.spec import LabelSpec
from sparsight.label.subject import InjectedLabeller, Injection, Put, SubjectClient, most_agreed, placeholders
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.scope.scope import Scope

FEATURES, KEY, LABEL = 40, "sk-0123456789secret", {"label": "talk of the sea", "confidence": 0.8}
CLIENTS = {"openai": OpenAIClient, "anthropic": AnthropicClient}


# ── a server that speaks both, and can misbehave ─────────────────────────────────────────────────────────────────────


class FakeServer(ThreadingHTTPServer):
    """Answers as the APIs do. script: how the next requests are treated, before it behaves again: a number (a status),
    (status, headers, text), "hang", "cut", "garbage", or a JSON value that it sends with a 200. reply: what it says."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.script, self.lock = [], [], threading.Lock()
        self.answered, self.hold_after = [], None  # bodies that were answered; how many before it holds its tongue
        self.reply = say
        self.usage = lambda body: (50, 10)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.going = threading.Event()

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is what many of these tests are about


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.seen.append((self.path, dict(self.headers), body))
            act = server.script.pop(0) if server.script else None
            held = server.hold_after is not None and len(server.answered) >= server.hold_after
            if act is None and not held:
                server.answered.append(body)
        if act == "hang" or held:
            server.going.wait(60)
            return
        status, headers, told = 200, {}, None
        if act is None or act == "cut":
            told = json.dumps(self.wire(body))
        elif act == "garbage":
            told = "<html>so busy\x00"
        elif isinstance(act, int):
            status, told = act, json.dumps({"error": {"message": f"no {act}\nand more", "type": "x"}}, indent=2)
        elif isinstance(act, tuple):
            status, headers, told = act
        else:
            told = json.dumps(act)
        raw = told.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        if act == "cut":
            self.wfile.write(raw[: len(raw) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(raw)

    def wire(self, body):
        text, (sent, written) = self.server.reply(body), self.server.usage(body)
        if self.path.endswith("/messages"):
            usage = {"input_tokens": sent, "output_tokens": written}
            usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
            content = [{"type": "text", "text": text}]
            return {"id": "m", "type": "message", "role": "assistant", "content": content, "model": body["model"],
                    "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}  # fmt: skip
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
        if body.get("logprobs") and re.fullmatch("[01]+", text):
            choice["logprobs"] = {"content": [digit(d) for d in text], "refusal": None}
        usage = {"prompt_tokens": sent, "completion_tokens": written, "total_tokens": sent + written}
        return {"id": "c", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice],
                "usage": usage}  # fmt: skip


def digit(said):
    """A token of an answer, nine times as likely as its opposite."""
    both = [{"token": d, "logprob": float(np.log(0.9 if d == said else 0.1)), "bytes": None} for d in "01"]
    return {**both[int(said)], "top_logprobs": both}


def texts(body):
    """(what all share, what is asked) of a request in either shape."""
    said = [m["content"] for m in body["messages"]]
    return "".join(block["text"] for block in body["system"]) if "system" in body else said[0], said[-1]


def say(body):
    """A model that takes a window for the feature's where the sea is in it, or is marked in it."""
    shared, asked = texts(body)
    if shared == prompts.EXPLAIN:
        return json.dumps(LABEL)
    wanted = "<<sea>>" if shared == prompts.FUZZ else "sea"
    return "".join(str(int(wanted in row)) for row in re.findall(r"^\d+\. (.*)$", asked, re.MULTILINE))


@pytest.fixture
def server():
    with FakeServer() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.going.set()
        made.shutdown()


@pytest.fixture
def atlas(tmp_path):
    about = About("5ae0", "some model", "70ce", HOOK, d_hidden=FEATURES, tokens=4, documents=1)
    write_atlas(tmp_path / "atlas", about, [np.arange(4)], [Document(0, 0, 4, "a")],
                [(Statistics(i), []) for i in range(FEATURES)])  # fmt: skip
    return Atlas(tmp_path / "atlas")


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)


@pytest.fixture
def make(server, atlas, key):
    """A client of the fake server, and what stands on it."""
    made = []

    def maker(method="openai", **more):
        options = {"model": "a-model", "base_url": server.url, "key_env": "SOME_KEY", "backoff": 0.01, "timeout": 20.0}
        spec = EndpointSpec(**options | more)
        made.append(CLIENTS[method](spec))
        return Ledger(atlas, made[-1], spec)

    yield maker
    for client in made:
        client.close()


def window(text: str, *fires: str, why="top") -> Window:
    pieces = tuple(re.findall(r"\w+|\W+", text))
    values = tuple(2.0 if piece in fires else 0.0 for piece in pieces)
    focus = int(np.argmax(values))
    return Window(pieces, tuple(range(len(pieces))), values, (33,) * len(pieces), focus, why, 0)


def evidence(feature: int = 0) -> Evidence:
    firing = (window(f"{feature} ships on the sea today", "sea"), window("by the sea", "sea"))
    silent = (window(f"{feature} cars on the road", why="random"), window("all at sea", why="near miss"))
    statistics = Statistics(feature, 5, 1000, 1.0, 0.1, 2.0, 4, roles={"user": 5})
    return Evidence(feature, statistics, firing, silent, ((" ship", 1.0),), (), (("sea", 0.9),), {"user": 0.5})


def judged(count: int) -> list[Window]:
    return [window(f"{i} by the {'sea' if i % 3 == 0 else 'road'} there", why="random") for i in range(count)]


# ── what is asked, in both shapes ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", CLIENTS)
def test_a_model_elsewhere_writes_a_label(server, make, method):
    labeller = PromptedLabeller(make(method))
    label = labeller.label(evidence(3))
    assert (label.feature, label.text, label.confidence) == (3, "talk of the sea", 0.8)
    assert (label.method, label.model, label.prompt) == (method, "a-model", labeller.prompt)
    ((path, headers, body),) = server.seen
    headers = {name.lower(): value for name, value in headers.items()}
    shared, asked = texts(body)
    assert shared == prompts.EXPLAIN
    assert "3 ships on the <<sea>> today" in asked
    assert "3 cars on the road" in asked
    assert '" ship"' in asked
    if method == "openai":
        assert (path, headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    else:
        assert (path, headers["x-api-key"], headers["anthropic-version"]) == ("/v1/messages", KEY, "2023-06-01")
        assert body["system"][-1]["cache_control"] == {"type": "ephemeral"}


@pytest.mark.parametrize("method", CLIENTS)
def test_a_judge_answers_for_each_window_in_the_callers_order(server, make, method):
    judge, windows = ProseJudge(make(method)), judged(50)
    high, low = (0.9, 0.1) if method == "openai" else (1.0, 0.0)  # where there are probabilities
    wanted = [high if "sea" in w.pieces else low for w in windows]
    assert judge.detect("talk of the sea", windows) == pytest.approx(wanted)
    marked = [(w, i % len(w.pieces)) for i, w in enumerate(windows)]
    wanted = [high if w.pieces[at] == "sea" else low for w, at in marked]
    assert judge.fuzz("talk of the sea", marked) == pytest.approx(wanted)
    assert len(server.seen) == 6, "50 windows are three prompts of at most 24"
    orders = [re.findall(r'^\d+\. "(?:<<)?(\d+)', texts(body)[1], re.MULTILINE) for _, _, body in server.seen[:3]]
    assert sorted(int(i) for order in orders for i in order) == list(range(50))
    assert all(order != sorted(order, key=int) for order in orders), "not in an order that could tell"
    assert judge.ask(windows, "talk of the sea") == judge.detect("talk of the sea", windows)
    assert len(server.seen) == 6, "and no prompt twice"


def test_requests_are_what_the_published_types_say(make):
    pydantic = pytest.importorskip("pydantic")
    openais = pytest.importorskip("openai.types.chat.completion_create_params").CompletionCreateParamsNonStreaming
    anthropics = pytest.importorskip("anthropic.types.message_create_params").MessageCreateParamsNonStreaming
    label, detect = prompts.explain(evidence(), Wording()), prompts.detect("the sea", judged(4))
    for method, kind in (("openai", openais), ("anthropic", anthropics)):
        check, known = pydantic.TypeAdapter(kind), get_type_hints(kind)
        for question in (label, detect):
            body = make(method).client.body(question)
            assert body.keys() <= known.keys()
            read = check.validate_python(body)
            assert list(read["messages"]) == body["messages"]  # these are looked at only when they are taken
            with pytest.raises(pydantic.ValidationError):
                list(check.validate_python({**body, "messages": [{"role": "judge"}]})["messages"])
            with pytest.raises(pydantic.ValidationError):
                check.validate_python({**body, "max_tokens": "many"})


def test_the_answers_of_our_server_are_what_the_published_types_say(server, make):
    completion = pytest.importorskip("openai.types.chat").ChatCompletion
    message = pytest.importorskip("anthropic.types").Message
    for method, kind in (("openai", completion), ("anthropic", message)):
        client, told = make(method).client, []
        post = client.endpoint.post
        client.endpoint.post = lambda body, read, hold, post=post, told=told: post(
            body, lambda raw, read=read, told=told: told.append(raw) or read(raw), hold
        )
        client.ask(prompts.detect("the sea", judged(4)))
        kind.model_validate(told[0])
        with pytest.raises(ValueError, match="validation error"):
            kind.model_validate({**told[0], "model": None})


# ── a server that misbehaves ─────────────────────────────────────────────────────────────────────────────────────────


PASSING = {
    "429": 429,
    "429 with Retry-After": (429, {"retry-after": "0"}, "slow down"),
    "429 with a date": (429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, "slow down"),
    "408": 408,
    "500": 500,
    "503": 503,
    "overloaded": 529,
    "hang": "hang",
    "cut": "cut",
    "garbage": "garbage",
    "empty": (200, {}, ""),
    "an error within a 200": {"error": {"message": "upstream is busy", "code": 502}},
}


@pytest.mark.parametrize("act", PASSING.values(), ids=PASSING)
@pytest.mark.parametrize("method", CLIENTS)
def test_a_failure_that_may_pass_is_tried_again(server, make, method, act):
    server.script = [act, act]
    labeller = PromptedLabeller(make(method, timeout=0.3 if act == "hang" else 20.0))
    assert labeller.label(evidence()).text == "talk of the sea"
    assert len(server.seen) == 3


LASTING = {
    "401": (401, "answered 401: no 401. Is the key right?"),
    "404": (404, "answered 404: no 404. Are base_url and model right?"),
    "400": (400, "answered 400: no 400."),
    "a page": ((404, {}, "\n<html>\nno such page\n"), "answered 404: <html>"),
    "a redirect": ((302, {"location": "http://127.0.0.1:1/"}, "over there"), "answered 302: over there"),
    "no money": ((429, {}, '{"error": {"message": "pay", "code": "insufficient_quota"}}'), "answered 429: pay"),
    "a list": ([1, 2], "answered in another shape"),
    "an object": ({"hello": 1}, "answered in another shape"),
    "no choice": ({"choices": [], "content": "x"}, "answered in another shape"),
    "an image": (
        {"choices": [{"message": {"content": [{"type": "image"}]}}], "content": [{"type": "text", "text": 5}]},
        "its content is no text",
    ),
}


@pytest.mark.parametrize(("act", "told"), LASTING.values(), ids=LASTING)
@pytest.mark.parametrize("method", CLIENTS)
def test_a_failure_that_will_not_pass_is_told_at_once(server, atlas, make, method, act, told):
    server.script = [act]
    with pytest.raises(NoAnswer) as error:
        PromptedLabeller(make(method)).label(evidence())
    assert str(error.value).startswith(f"{server.host} ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert len(server.seen) == 1
    assert spent(atlas).prompts == 0


def test_patience_ends_and_says_how_often_it_was_tried(server, make):
    server.script = [500] * 10
    with pytest.raises(NoAnswer, match=r"127.0.0.1:\d+ answered 500: no 500 \(3 times\)."):
        PromptedLabeller(make(retries=2)).label(evidence())
    assert len(server.seen) == 3


def test_nobody_there_is_told_without_waiting_long(make, key):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(NoAnswer, match=r"127.0.0.1:\d+ cannot be reached: .* \(3 times\)"):
            PromptedLabeller(make(base_url=url)).label(evidence())


def test_all_wait_as_long_as_the_server_asks(server, make):
    ledger, began = make(concurrency=4), time.monotonic()
    server.script = [(429, {"retry-after": "1"}, "slow down")]
    labeller = PromptedLabeller(ledger)
    labeller.label(evidence(0))
    assert 0.9 < time.monotonic() - began < 5
    server.script = [(429, {"retry-after": "1"}, "slow down")]
    began, first = time.monotonic(), threading.Thread(target=labeller.label, args=(evidence(1),))
    first.start()
    time.sleep(0.3)
    labeller.label(evidence(2))  # another thread, that was told nothing
    first.join()
    assert time.monotonic() - began > 0.9
    server.script = [(429, {"retry-after": "100000"}, "come back tomorrow")]
    with pytest.raises(NoAnswer, match=r"asks to be left alone for 100,000 s: run this again then"):
        labeller.label(evidence(3))


def test_no_more_requests_are_under_way_than_was_said_whoever_asks(server, make):
    going, lock = [0, 0], threading.Lock()

    def slowly(body):
        with lock:
            going[0] += 1
            going[1] = max(going)
        time.sleep(0.02)
        with lock:
            going[0] -= 1
        return json.dumps(LABEL)

    server.reply = slowly
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(PromptedLabeller(make(concurrency=3, timeout=5.0)).label, map(evidence, range(24))))
    assert all(found)
    assert going[1] == 3


def test_retry_after_is_read_in_seconds_in_milliseconds_and_as_a_date():
    assert retry_after({"retry-after": "17"}) == 17
    assert retry_after({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) == pytest.approx(60, abs=3)
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert all(retry_after({"retry-after": odd}) is None for odd in ("soon", "-5", "", "1e9", "Wed, 99 Oct"))


def test_what_an_endpoint_does_not_take_is_left_out_from_then_on(server, make):
    def refuse(text):
        return (400, {}, json.dumps({"error": {"message": text}}))

    server.script = [
        refuse("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        refuse("Unsupported value: 'temperature' does not support 0.0 with this model."),
        refuse("top_logprobs must be at most 5"),
        refuse("logprobs are not supported with this model"),
        refuse("System role not supported"),
    ]
    judge = ProseJudge(make())
    assert judge.detect("talk of the sea", judged(6)) == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert [body.get("top_logprobs") for _, _, body in server.seen] == [20, 20, 20, 5, None, None]
    last = server.seen[-1][2]
    assert "max_completion_tokens" in last
    assert not {"max_tokens", "temperature", "logprobs"} & last.keys()
    assert [message["role"] for message in last["messages"]] == ["user"]
    judge.detect("another label", judged(6))
    assert len(server.seen) == 7, "it is not tried again"


def test_a_model_that_thinks_is_asked_not_to_or_given_room(server, make):
    client = make("anthropic").client
    question = prompts.explain(evidence(), Wording())
    assert client.body(question)["thinking"] == {"type": "disabled"}
    server.script = [
        (400, {}, '{"error": {"message": "thinking.type: disabled is not supported by this model"}}'),
        {"content": [{"type": "thinking", "thinking": "hm"}], "stop_reason": "max_tokens", "usage": {}},
    ]
    with pytest.raises(NoAnswer, match=r"used its tokens up before it said anything: .*thinking=4096"):
        client.ask(question)
    server.script = [{"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}] * 2
    with pytest.raises(NoAnswer, match="thinking=4096"):
        make().client.ask(question)
    roomy = make(thinking=4096)
    assert roomy.client.ask(question).text == "", "where it had room, it is nonsense as any other"
    assert roomy.client.body(question)["max_tokens"] == question.most_tokens + 4096
    body = make("anthropic", thinking=4096).client.body(question)
    assert not {"thinking", "temperature"} & body.keys()
    assert make("anthropic", temperature=0.5).client.body(question)["temperature"] == 0.5


# ── answers that cannot be read ──────────────────────────────────────────────────────────────────────────────────────


NO_LABELS = (
    "", "the sea", "{", "[]", "null", '{"label": "the sea"}', '{"label": 5, "confidence": 1}',
    '{"label": "the sea", "confidence": "high"}', '{"label": "the sea", "confidence": 1.5}',
    '{"label": "the sea", "confidence": NaN}', '{"label": "the sea", "confidence": true}',
    '{"label": "...", "confidence": 0.5}', 'Here it is: {"label": "the sea", "confidence": 1}',
    json.dumps({"label": "sea " * 99, "confidence": 1}), '{"label": "a\\u0007b", "confidence": 1}',
)  # fmt: skip


@pytest.mark.parametrize("nonsense", NO_LABELS)
def test_nonsense_leaves_no_label_and_is_counted(server, make, nonsense):
    server.reply = lambda body: nonsense
    labeller = PromptedLabeller(make())
    assert labeller.label(evidence()) is None
    assert (labeller.labelled, labeller.unclear, labeller.nonsense) == (0, 0, 1)


def test_a_model_may_see_nothing(server, make):
    server.reply = lambda body: '{"label": "", "confidence": 0}'
    labeller = PromptedLabeller(make())
    assert labeller.label(evidence()) is None
    assert (labeller.labelled, labeller.unclear, labeller.nonsense) == (0, 1, 0)
    assert labeller.label(replace(evidence(), firing=())) is None, "and where nothing fires nobody is asked"
    assert len(server.seen) == 1


@pytest.mark.parametrize("text", ['```json\n{"label": "the sea", "confidence": 1}\n```',
                                  '<think>hm, {"label"</think>\n{"label": "the  sea", "confidence": 1}'])  # fmt: skip
def test_a_fence_and_thoughts_before_are_no_nonsense(text):
    assert prompts.read_label(text) == ("the sea", 1.0)


@pytest.mark.parametrize("nonsense", ["", "1", "0101010", "010101 2", "yes no yes", "1,0,1,0,1,0", "[0,1,0,1,0,1]"])
def test_digits_that_are_not_so_many_leave_no_score(server, make, nonsense):
    server.reply = lambda body: nonsense
    judge = ProseJudge(make())
    assert judge.detect("talk of the sea", judged(6)) is None
    assert (judge.answers, judge.nonsense) == (0, 1)


@given(st.text() | st.text("01 \n`", max_size=12), st.integers(1, 8))
def test_whatever_is_answered_is_read_strictly(text, count):
    found = prompts.read_digits(Answer(text), count)
    assert found is None or (len(found) == count and set(found) <= {0.0, 1.0})
    label = prompts.read_label(text)
    assert label is None or json.loads(prompts.said(text))["label"].split() == label[0].split()


def test_probabilities_are_those_of_each_digit_given_the_ones_before_also_where_a_token_has_several():
    log = {
        token: float(np.log(p)) for token, p in {"010": 0.5, "011": 0.2, "000": 0.1, "110": 0.15, "no": 0.05}.items()
    }
    answer = Answer("0101", chances=(("010", log), (" 1", {" 1": float(np.log(0.75)), "0": float(np.log(0.25))})))
    assert prompts.read_digits(answer, 4) == pytest.approx([0.15 / 0.95, 0.7 / 0.8, 0.2 / 0.7, 0.75])
    other = replace(answer, text="0111")
    assert prompts.read_digits(other, 4) == [0, 1, 1, 1], "chances of another text are none of this one"


# ── what it costs ────────────────────────────────────────────────────────────────────────────────────────────────────


def label_all(atlas, labeller, threads):
    with ThreadPoolExecutor(threads) as pool:
        for label in pool.map(labeller.label, map(evidence, range(FEATURES))):
            atlas.add([label])


@pytest.mark.parametrize("method", CLIENTS)
@pytest.mark.parametrize("most", [0.0, 0.013, 0.05])
def test_a_budget_is_never_exceeded_by_eight_at_a_time(server, atlas, make, method, most):
    bills = []

    def usage(body):  # every prompt costs as much as it can
        shared, asked = texts(body)
        bill = len((shared + asked).encode()), body["max_tokens"]
        with server.lock:
            bills.append((bill[0] * 1.0 + bill[1] * 3.0) / 1e6)
        return bill

    server.usage = usage
    server.script = [500, "cut", 429, "cut"]  # the bill of those that are cut off comes all the same
    ledger = make(method, concurrency=8, budget=most, price_in=1.0, price_out=3.0)
    with pytest.raises(OverBudget, match=r"of the budget of \$"):
        label_all(atlas, PromptedLabeller(ledger), 8)
    done = spent(atlas).prompts
    assert sum(bills) <= spent(atlas).dollars <= most
    assert done - 8 < len(atlas.all_labels()) <= done, "what was done is kept"
    if most:
        assert done > 0.5 * most / max(bills) - 3, "and most of it was used"
    server.seen.clear()
    server.script.clear()
    label_all(atlas, PromptedLabeller(make(method, budget=10.0, price_in=1.0, price_out=3.0)), 8)
    assert len(atlas.all_labels()) == FEATURES
    assert len(server.seen) == FEATURES - done, "a later run pays for the rest alone"


def test_earlier_runs_count_against_the_budget(server, atlas, make):
    server.usage = lambda body: (1_000, 100)
    first = make(price_in=1.0, price_out=1.0)
    PromptedLabeller(first).label(evidence(0))
    assert first.dollars == pytest.approx(1.1e-3)
    again = make(price_in=1.0, price_out=1.0, budget=1.2e-3)
    assert again.dollars == pytest.approx(1.1e-3)
    with pytest.raises(OverBudget, match=r"there is \$0.0001 left: it was not sent"):
        PromptedLabeller(again).label(evidence(1))
    assert PromptedLabeller(again).label(evidence(0)).text == "talk of the sea", "what is there costs nothing"


def test_what_a_cache_gives_costs_less_and_what_nobody_counted_costs_the_most_it_could(server, atlas, make):
    def wire(usage):
        return {"content": [{"type": "text", "text": json.dumps(LABEL)}], "usage": usage}

    server.script = [
        wire({"input_tokens": 100, "output_tokens": 0, "cache_creation_input_tokens": 1000}),
        wire({"input_tokens": 100, "output_tokens": 0, "cache_read_input_tokens": 1000}),
        wire({}),
    ]
    ledger, spends = make("anthropic", price_in=1.0), [0.0]
    for feature in range(3):
        PromptedLabeller(ledger).label(evidence(feature))
        spends.append(spent(atlas).dollars)
    question = prompts.explain(evidence(2), Wording())
    most = 1.25 * (len((question.shared + question.text).encode()) + 256)
    assert np.diff(spends) * 1e6 == pytest.approx([100 + 1250, 100 + 100, most])


def test_a_dry_run_sends_nothing_and_says_what_it_would_be(server, atlas, make):
    ledger = make(price_in=2.0, price_out=4.0, dry_run=True, thinking=70)
    labeller = PromptedLabeller(ledger)
    questions = [labeller.question(evidence(i)) for i in range(10)]
    estimate = ledger.estimate(questions)
    letters = [(len(q.shared), len(q.text)) for q in questions]
    tokens = sum(-(-a // 4) + -(-b // 4) for a, b in letters)
    assert (estimate.prompts, estimate.tokens_in, estimate.tokens_out) == (10, tokens, 10 * 100)
    assert estimate.dollars == pytest.approx((2 * tokens + 4 * 1000) / 1e6)
    assert "10 prompts: " in str(estimate)
    assert "by characters / 4" in str(estimate)
    words = ledger.estimate(questions, lambda text: len(text.split()), "the tokenizer of a-model")
    assert words.tokens_in == sum(len(q.shared.split()) + len(q.text.split()) for q in questions)
    assert "by the tokenizer of a-model" in str(words)
    held_out = HeldOut(0, tuple(judged(30)), tuple(judged(30)))
    whole = [*foreseen(labeller, ProseJudge(ledger), evidence(), held_out)]
    assert [q.purpose for q in whole] == ["explain", *["detect"] * 3, *["fuzz"] * 3]
    assert [*foreseen(labeller, None, evidence(), held_out)] == whole[:1]
    with pytest.raises(BadInput, match="dry run"):
        labeller.label(evidence())
    assert not server.seen
    assert spent(atlas).prompts == 0
    PromptedLabeller(make(thinking=70)).label(evidence(4))
    assert (ledger.estimate(questions).prompts, ledger.estimate(questions).kept) == (9, 1)


def test_the_same_question_at_the_same_time_is_sent_once(server, make):
    ledger = make()
    question = prompts.explain(evidence(), Wording())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ledger.ask(question).text, range(16)))
    assert len(server.seen) == 1
    assert set(answers) == {json.dumps(LABEL)}
    assert (ledger.asked, ledger.kept) == (1, 15)


KILLED = """
import re, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.entries import Statistics
from sparsight.label.clients.ledger import Ledger
from sparsight.label.clients.openai import OpenAIClient
from sparsight.label.clients.spec import EndpointSpec
from sparsight.label.evidence import Evidence, Window
from sparsight.label.prose import PromptedLabeller
FEATURES = 40
{}
assert "torch" not in sys.modules
spec = EndpointSpec(model="a-model", base_url=sys.argv[2], key_env="SOME_KEY", price_in=1.0)
atlas = Atlas(sys.argv[1])
label_all(atlas, PromptedLabeller(Ledger(atlas, OpenAIClient(spec), spec)), 4)
"""


def test_a_run_that_was_killed_goes_on_without_asking_anything_twice(server, atlas, key):
    code = KILLED.format("".join(map(inspect.getsource, (window, evidence, label_all))))
    command = [sys.executable, "-c", code, str(atlas.folder), server.url]
    server.hold_after = 11
    with subprocess.Popen(command) as run:
        deadline = time.monotonic() + 60
        while spent(atlas).prompts < 11 or len(server.seen) < 15:  # eleven are answered and kept, four are under way
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGKILL)
    answered, labelled = [texts(body)[1] for body in server.answered], len(atlas.all_labels())
    assert labelled <= 11
    server.hold_after = None
    server.going.set()
    subprocess.run(command, check=True, timeout=60)
    asked = [texts(body)[1] for _, _, body in server.seen]
    assert all(asked.count(text) == 1 for text in answered), "nobody is asked what was answered"
    assert len(set(asked)) == FEATURES
    assert len(asked) == FEATURES + 4, "only what was under way is asked again"
    assert len(atlas.all_labels()) == FEATURES
    assert spent(atlas).prompts == FEATURES


# ── the key ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_key_is_in_no_file_no_error_and_no_log(server, atlas, make, caplog):
    caplog.set_level(logging.DEBUG)
    told = []
    for method in CLIENTS:
        ledger = make(method, retries=1)
        server.script = [500, (401, {}, f"Incorrect API key provided: {KEY}"), (400, {}, json.dumps({"key": KEY}))]
        for feature in range(3):
            try:
                PromptedLabeller(ledger).label(evidence(feature))
            except NoAnswer as error:
                told += [str(error), repr(error), repr(error.__cause__)]
        told += [repr(ledger), repr(ledger.client), repr(ledger.spec)]
    assert sum("***" in text for text in told) >= 4
    told += [record.getMessage() for record in caplog.records]
    assert len(caplog.records) > 10
    assert not any(KEY in text for text in told)
    files = [path.read_bytes() for path in atlas.folder.rglob("*") if path.is_file()]
    assert any(b"talk of the sea" in data for data in files)
    assert not any(KEY.encode() in data for data in files)


def test_the_services_own_key_goes_to_no_other_host(server, make, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    for method in CLIENTS:
        PromptedLabeller(make(method, key_env=None)).label(evidence())
    assert not any(KEY in value for _, headers, _ in server.seen for value in headers.values())
    assert OpenAIClient(EndpointSpec(model="m")).endpoint.url == "https://api.openai.com/v1/chat/completions"
    assert AnthropicClient(EndpointSpec(model="m")).endpoint.url == "https://api.anthropic.com/v1/messages"
    assert EndpointSpec(base_url="http://localhost:11434").url("", "x") == "http://localhost:11434/v1/x"
    assert EndpointSpec(base_url="http://localhost:1/api/").url("", "x") == "http://localhost:1/api/x"


@pytest.mark.parametrize("odd", [f"{KEY}\nx: y", f"{KEY} y", f"{KEY}é"])
def test_what_cannot_be_a_key_is_refused_without_being_shown(monkeypatch, odd):
    monkeypatch.setenv("SOME_KEY", odd)
    with pytest.raises(BadInput, match="SOME_KEY") as error:
        OpenAIClient(EndpointSpec(model="m", key_env="SOME_KEY"))
    assert KEY not in str(error.value)
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(BadInput, match="There is no key: set the environment variable SOME_KEY"):
        OpenAIClient(EndpointSpec(model="m", key_env="SOME_KEY"))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"base_url": "localhost:8000"}, "base_url is as http"),
        ({"base_url": f"http://me:{KEY}@host/v1"}, "holds no key"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "holds no key"),
        ({"budget": 5.0}, "A budget needs prices"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"price_in": -1}, "price_in"),
    ],
)
def test_wrong_settings_say_what_is_right(wrong, told):
    with pytest.raises(BadInput, match=told) as error:
        EndpointSpec(**wrong)
    assert KEY not in str(error.value)


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_windows_are_shown_in_one_line_each_with_what_fires_marked():
    lines = window('say "ahoy"\nmatey << 3', "ahoy", "matey")
    marks = {lines.pieces.index("ahoy"), lines.pieces.index("matey")}
    assert json.loads(prompts.shown(lines, marks)) == 'say "<<ahoy>>"\n<<matey>> < < 3'
    assert "\n" not in prompts.shown(lines, marks)
    split = Window(("a", "", "", "é", "b"), (1, 2, 3, 4, 5), (0.0, 1.0, 0.0, 0.0, 0.0), (0,) * 5, 1, "top", 0)
    assert json.loads(prompts.shown(split, {1})) == "a<<é>>b", "a character of several tokens is marked whole"
    run = Window(tuple("abcde"), (1, 2, 3, 4, 5), (0.0, 1.0, 1.0, 0.0, 0.0), (0,) * 5, 2, "top", 0)
    assert json.loads(prompts.shown(run, {1, 2}, before=1, after=1)) == "<<bc>>d"


@given(st.lists(st.text(max_size=3), min_size=1, max_size=8), st.data())
def test_marks_change_nothing_of_the_text(pieces, data):
    ids = tuple(range(len(pieces)))
    shown = Window(tuple(pieces), ids, (0.0,) * len(ids), ids, 0, "top", 0)
    marks = data.draw(st.sets(st.sampled_from(ids)))
    text = json.loads(prompts.shown(shown, marks))
    if not {"<", ">"} & set("".join(pieces)):
        assert text.replace("<<", "").replace(">>", "") == shown.text


def test_silent_windows_of_every_kind_are_shown():
    kinds = ["random"] * 10 + ["near miss"] * 2 + ["neighbour"] * 3
    silent = tuple(window(f"{i} road", why=why) for i, why in enumerate(kinds))
    asked = prompts.explain(replace(evidence(), silent=silent), Wording(silent=6)).text
    assert [asked.count(told) for told in prompts.SILENT.values()] == [2, 2, 2]


def test_labels_by_other_words_or_settings_are_other_labels(make):
    labellers = [PromptedLabeller(make(), Wording()), PromptedLabeller(make(), Wording(firing=5)),
                 PromptedLabeller(make(temperature=0.5)), ProseJudge(make())]  # fmt: skip
    assert len({one.prompt for one in labellers}) == 4
    assert PromptedLabeller(make(concurrency=3, timeout=9)).prompt == labellers[0].prompt


# ── the model itself ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def talker(tokenizer):
    """A random model that says something, if nothing that makes sense."""
    return Scope(ObservableLanguageModel(llama(seed=1), tokenizer=tokenizer), random_sae())


def test_the_model_is_asked_what_its_own_directions_mean_and_is_as_it_was(talker):
    before, early = talker.lm.forward("Once upon a time")[0], Injection(at="model.layers.0")
    labeller = InjectedLabeller(talker, early)
    plain, answers = labeller._said([None])[0], labeller.answers(7)
    assert len(answers) == 5
    assert len({plain, *answers}) > 2, "what is put there changes what is said, and so does how much"
    assert answers == InjectedLabeller(talker, early).answers(7), "the same again"
    assert labeller.anyway == InjectedLabeller(talker, early).anyway
    assert plain in labeller.anyway
    assert labeller.answers(8) != answers
    labels = [labeller.label(evidence(feature)) for feature in range(6)]
    assert labels == [InjectedLabeller(talker, early).label(evidence(feature)) for feature in range(6)]
    assert labeller.labelled + labeller.nonsense == 6
    assert torch.equal(talker.lm.forward("Once upon a time")[0], before)
    assert not any(module._forward_hooks for module in talker.lm.model.modules())


def test_what_the_model_says_at_most_strengths_is_the_label(talker, monkeypatch):
    labeller = InjectedLabeller(talker)
    assert labeller.at == HOOK
    said = ["a letter", "ships of pirates", "pirates and ships", "a pirates ship", "\x00 \x00"]
    monkeypatch.setattr(labeller, "answers", lambda feature: said)
    monkeypatch.setattr(InjectedLabeller, "anyway", "a letter or a ship")
    label = labeller.label(evidence(5))
    assert (label.feature, label.text, label.method) == (5, "ships of pirates", "subject")
    assert 0 < label.confidence < 1
    assert label.prompt != InjectedLabeller(talker, Injection(tokens=9)).prompt
    monkeypatch.setattr(labeller, "answers", lambda feature: ["a letter"] * 5)
    assert labeller.label(evidence(5)) is None
    assert (labeller.labelled, labeller.nonsense) == (1, 1)


def test_a_direction_is_put_at_the_word_and_nowhere_else(scope):
    prompt, places, norm = InjectedLabeller(scope)._prompt
    assert len(places) == 2
    vector = torch.randn(scope.lm.d_model)
    put = Put(places, [None, vector])
    _, _, read = scope.lm.forward([prompt, prompt], [HOOK], {HOOK: put})
    plain, changed = read[HOOK]
    assert torch.equal(plain, scope.lm.activations([prompt], [HOOK])[HOOK][0])
    elsewhere = [i for i in range(len(prompt)) if i not in places]
    assert torch.equal(changed[places], vector.expand(2, -1))
    assert torch.equal(changed[elsewhere], plain[elsewhere])
    assert norm == pytest.approx(float(plain[1:].norm(dim=-1).median()), rel=1e-5)


def test_the_word_is_found_whatever_tokens_it_is_in():
    assert placeholders(["the", ' "', "X", '"?', ' "X', '" is']) == [2, 4]
    assert placeholders(["the", " XX", ' "x"']) == []


def test_a_model_without_a_chat_template_is_asked_by_text(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    scope = Scope(ObservableLanguageModel(llama(max_position_embeddings=8192), tokenizer=plain), random_sae())
    assert len(InjectedLabeller(scope).answers(3)) == 5
    answer = SubjectClient(scope).ask(prompts.detect("the sea", judged(3)))
    assert answer.tokens_in > 100


def test_strengths_and_places_that_are_none_are_refused(scope):
    for wrong in ((1.0,), (0.0, 1.0), ()):
        with pytest.raises(BadInput, match="strengths is two or more numbers above 0"):
            Injection(wrong)
    with pytest.raises(BadInput, match=r"model\.layers\.40"):
        InjectedLabeller(scope, Injection(at="model.layers.40"))


def test_the_answer_that_others_agree_with_is_taken():
    plain = "a letter of the alphabet"
    answers = ["a letter of the alphabet", "a ship of pirates", "pirates and their ship", "pirates!", "zz zz zz"]
    text, agreement = most_agreed(plain, answers)
    assert text == "pirates and their ship" or text == "a ship of pirates"
    assert 0 < agreement < 1
    assert most_agreed(plain, ["one thing", "another matter", "!!", ""]) is None
    assert most_agreed(plain, [plain] * 4) is None, "what is said anyway says nothing"
    assert most_agreed("", ["the same"] * 3) == ("the same", 1.0)


def test_the_model_itself_labels_and_judges_by_a_prompt(tokenizer, atlas):
    scope = Scope(ObservableLanguageModel(llama(max_position_embeddings=8192), tokenizer=tokenizer), random_sae())
    ledger = Ledger(atlas, SubjectClient(scope))
    labeller, judge = PromptedLabeller(ledger), ProseJudge(ledger)
    assert labeller.method == "subject"
    assert labeller.label(evidence()) is None, "a random model raves"
    assert judge.detect("the sea", judged(3)) is None
    assert (labeller.nonsense, judge.nonsense, spent(atlas).dollars) == (1, 1, 0.0)
    PromptedLabeller(ledger).label(evidence())
    assert (ledger.asked, ledger.kept) == (2, 1), "its answers are kept too"


def test_a_model_that_reads_little_is_shown_less_and_one_that_reads_too_little_says_so(tokenizer, atlas):
    def labeller(context):
        lm = ObservableLanguageModel(llama(max_position_embeddings=context), tokenizer=tokenizer)
        return PromptedLabeller(Ledger(atlas, SubjectClient(Scope(lm, random_sae()))))

    many = replace(evidence(), firing=evidence().firing * 6, silent=evidence().silent * 4)
    rich = labeller(8192)
    whole = rich.question(many)
    assert whole.text.count("ships on the") == 6
    tokens = len(rich.ledger.client._prompt(whole))  # so many, and no room for an answer
    assert 1 <= labeller(tokens).question(many).text.count("ships on the") < 6
    with pytest.raises(TooLong, match="cannot read a prompt with even 2 windows"):
        labeller(256).question(many)
    windows = judged(24)
    (whole,) = ProseJudge(rich.ledger).questions(windows, "the sea")
    some = ProseJudge(labeller(len(rich.ledger.client._prompt(whole[1]))).ledger).questions(windows, "the sea")
    assert len(some) == 2
    assert sorted(at for places, _ in some for at in places) == list(range(24))
    with pytest.raises(TooLong, match="cannot judge even one window"):
        ProseJudge(labeller(256).ledger).questions(windows, "the sea")


# ── by name ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_labellers_are_made_by_name(server, atlas, scope, key):
    spec = EndpointSpec(model="a-model", base_url=server.url, key_env="SOME_KEY")

    def made(method, **options):
        return labellers[method](Setting(atlas, None, LabelSpec(), options))

    for method in CLIENTS:
        labeller, judge = made(method, endpoint=spec)
        assert labeller.at_once == 8
        assert labeller.label(evidence()).text == "talk of the sea"
        assert judge.detect("talk of the sea", judged(3)) is not None
        assert labeller.ledger is judge.ledger
        labeller.ledger.client.close()
        with pytest.raises(BadInput, match="Which model"):
            made(method)
    with pytest.raises(Mismatch, match=f"is of SAE 5ae0, not of {scope.sae.fingerprint}"):
        made("subject", scope=scope)
    with pytest.raises(BadInput, match="way is one of: inject, prompt"):
        made("subject", scope=scope, way="guess")
    with pytest.raises(BadInput, match="The subject is the model itself"):
        made("subject")
    atlas.about = replace(atlas.about, sae=scope.sae.fingerprint)
    assert isinstance(made("subject", scope=scope)[0], InjectedLabeller)
    assert isinstance(made("subject", scope=scope, way="prompt")[0], PromptedLabeller)
