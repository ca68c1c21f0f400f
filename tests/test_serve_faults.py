"""What the server makes of callers that vanish, dawdle, lie, or send what nobody should: an answer, and it goes on."""

import json
import socket
import time

import pytest
from engines import Threads, live
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sparsight.errors import BadInput, Busy
from sparsight.ids import feature_uuid
from sparsight.serve.app import create_app
from sparsight.serve.catalog import Catalog
from sparsight.serve.spec import ServeSpec
from sparsight.wire import to_json

CHAT, EMBER, COMPLETE = "/v1/chat/completions", "/api/inference/v1/chat/completions", "/v1/completions"
ASKED = [{"role": "user", "content": "Hello, how are you?"}]
JSON = {"content-type": "application/json"}
HELLO = {"model": "tiny", "messages": ASKED, "max_tokens": 4, "seed": 7}
LONG = HELLO | {"max_tokens": 150, "stream": True}


@pytest.fixture(scope="module")
def client(scope):
    with TestClient(create_app(Catalog({"tiny": Threads(scope)}), ServeSpec(body_bytes=100_000))) as client:
        yield client


@pytest.fixture
def slow(scope):
    """An engine of two rows that takes its time, and the address where it is served."""
    engine = Threads(scope, rows=2, queue=2, delay=0.02)
    with live(create_app(Catalog({"tiny": engine}), ServeSpec(body_seconds=0.3))) as url:
        yield engine, url


def goes_on(client):
    assert client.post(CHAT, json=HELLO).status_code == 200


def connected(url, body, path=CHAT, length=None):
    """A raw connection that has sent a request."""
    sock = socket.create_connection(url.removeprefix("http://").split(":"), timeout=20)
    data = json.dumps(body).encode()
    length = len(data) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    sock.sendall(head.encode() + data)
    return sock


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# ── callers that leave, and that dawdle ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_a_caller_that_leaves_frees_its_rows_at_once(slow, stream, n):
    engine, url = slow
    sock = connected(url, LONG | {"stream": stream, "n": n})
    until(lambda: engine.written > 2)
    assert engine.load().rows == n
    sock.close()
    until(lambda: engine.load().rows == 0)
    assert engine.written < 120 * n


def test_a_caller_that_leaves_while_waiting_frees_its_place_in_the_queue(slow):
    engine, url = slow
    busy = [connected(url, LONG) for _ in range(2)]
    until(lambda: engine.load().rows == 2)
    waiting = connected(url, LONG)
    until(lambda: engine.load().waiting == 1)
    waiting.close()
    until(lambda: engine.load().waiting == 0)
    for sock in busy:
        sock.close()
    until(lambda: not engine.streams)


def test_when_too_much_waits_callers_are_told_when_to_come_again(slow):
    engine, url = slow
    held = [connected(url, LONG) for _ in range(4)]
    until(lambda: len(engine.streams) == 4)
    for body in (HELLO, HELLO | {"stream": True}):
        sock = connected(url, body)
        answer = ""
        while not answer.endswith("}"):
            answer += sock.recv(4096).decode()
        sock.close()
        assert answer.startswith("HTTP/1.1 429")
        assert "retry-after: 3" in answer
        assert "server_busy" in answer
    for sock in held:
        sock.close()


def test_of_several_rows_none_is_begun_where_not_all_find_room(slow):
    engine, url = slow
    held = [connected(url, LONG) for _ in range(2)]
    until(lambda: len(engine.streams) == 2)
    with connected(url, HELLO | {"n": 3}) as sock:
        assert sock.recv(4096).decode().startswith("HTTP/1.1 429")
    until(lambda: len(engine.streams) == 2)
    for sock in held:
        sock.close()


def test_a_body_that_does_not_arrive_is_not_waited_for(slow):
    _, url = slow
    sock = connected(url, {}, length=1000)
    assert sock.recv(4096).decode().startswith("HTTP/1.1 408")
    sock.close()


def test_a_request_that_takes_too_long_ends_and_its_row_is_free(scope):
    engine = Threads(scope, delay=0.05)
    app = create_app(Catalog({"tiny": engine}), ServeSpec(request_seconds=0.5))
    with TestClient(app) as client:
        out = client.post(CHAT, json=LONG | {"stream": False})
        assert out.status_code == 504
        assert "longer than the 0.5 s" in out.json()["error"]["message"]
        until(lambda: not engine.streams)
        lines = client.post(CHAT, json=LONG).text.split("\n\n")
        assert "error" in json.loads(lines[-2].removeprefix("data: ")), "a stream's last words say why"
        assert "data: [DONE]" not in lines
        until(lambda: not engine.streams)


def test_a_reader_that_takes_nothing_holds_a_row_no_longer_than_its_answer_takes(scope):
    engine = Threads(scope, rows=1)
    with live(create_app(Catalog({"tiny": engine}), ServeSpec(request_seconds=60))) as url:
        sock = connected(url, LONG | {"features": {"top_k": 128}, "logprobs": True, "top_logprobs": 20})
        until(lambda: engine.asked)
        until(lambda: engine.load().rows == 0, 40)  # nothing was read, and the row is done
        sock.close()


# ── failures within ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadInput("The model's numbers overflowed."), 400, "invalid_request_error"),
        (Busy("Too much waits.", 2.0), 429, "rate_limit_error"),
        (ZeroDivisionError("a secret of the implementation"), 500, "server_error"),
    ],
)
def test_what_fails_midway_is_an_error_and_a_streams_last_event(scope, error, status, kind, caplog):
    caplog.set_level("INFO", "sparsight.serve")
    engine = Threads(scope)

    def broken(index):
        if index == 2:
            raise error

    engine.broken = broken
    with TestClient(create_app(Catalog({"tiny": engine}))) as client:
        out = client.post(CHAT, json=HELLO)
        assert (out.status_code, out.json()["error"]["type"]) == (status, kind)
        assert "secret" not in out.text
        for n in (1, 2):
            parts = client.post(CHAT, json=HELLO | {"stream": True, "n": n}).text.split("\n\n")
            assert json.loads(parts[-2].removeprefix("data: "))["error"]["type"] == kind
            assert "data: [DONE]" not in parts
        engine.broken = lambda index: None
        goes_on(client)
    told = [r for r in caplog.records if r.getMessage() == "request"]
    assert [r.facts["status"] for r in told] == [status, 200, 200, 200]
    assert [r.facts.get("failed") for r in told] == [None, str(error), str(error), None]
    assert not any(r.exc_info for r in told)
    assert sum(r.exc_info is not None for r in caplog.records) == (3 if status == 500 else 0), "what nobody foresaw"


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_body_beyond_the_limit_is_not_read(client):
    big = HELLO | {"messages": [{"role": "user", "content": "x" * 100_000}]}
    for out in (
        client.post(CHAT, json=big),
        client.post(CHAT, content=(b"x" * 1000 for _ in range(200)), headers=JSON),  # without a content-length
        client.post(CHAT, content=b"{}", headers=JSON | {"content-length": "9" * 400}),
    ):
        assert out.status_code == 413
        assert out.json()["error"]["code"] == "request_too_large"
    assert client.post(EMBER, json=big).json()["detail"].startswith("The body is larger than 100,000 bytes")
    goes_on(client)


DEEP = '{"conditionals": [], "operator": "AND"}'
NESTED = '{"interventions": [], "scopes": [{"conditionals": ' + DEEP + ', "is_active": true, "controller": '
HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"{",
    b"\xff\xfe\x00",
    b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}',
    b"[" * 50_000,
    b'{"a":' * 10_000,
    b'{"model": "tiny", "model": "tiny"}',
    b'{"model": NaN, "messages": Infinity}',
    b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "stop": "\\udfff"}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": 1e400}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": ' + b"9" * 5000 + b"}",
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "logit_bias": {"1": NaN}}',
]


@pytest.mark.parametrize("body", HOSTILE, ids=[repr(body[:40]) for body in HOSTILE])
def test_no_bytes_make_more_than_an_error(client, body):
    for path in (CHAT, EMBER, COMPLETE):
        out = client.post(path, content=body, headers=JSON)
        assert out.status_code in (400, 404, 422), out.text
        told = out.json()
        assert "error" in told or "detail" in told


def nested(depth, ours=False):
    if ours:
        wrap = '{"edits": [], "whens": [{"condition": {"op": "AND", "parts": []}, "controller": '
        inner = '{"edits": []}'
        form = wrap * depth + inner + "}]}" * depth
        return form.replace("{", '{"schema": 1, ', 1)
    inner = '{"interventions": [], "scopes": []}'
    return NESTED * depth + inner + ', "event_name": null}]}' * depth


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("depth", [30, 300, 1000])
def test_a_controller_nested_too_deep_is_refused(scope, ours, depth):
    body = json.dumps(HELLO)[:-1] + ', "controller": ' + nested(depth, ours) + "}"
    with TestClient(create_app(Catalog({"tiny": Threads(scope)}))) as client:
        for path in (CHAT, EMBER):
            out = client.post(path, content=body, headers=JSON)
            assert out.status_code == (200 if depth == 30 else 400 if path == CHAT else 422), out.text
        form = '{"controller": ' + nested(depth, ours) + "}"
        put = client.put("/v1/variants/deep", content=form, headers=JSON)
        assert put.status_code == (200 if depth == 30 else 400), put.text
        if depth == 30:
            assert client.get("/v1/variants").status_code == 200, "what was saved can be read"
            assert client.post(CHAT, json=HELLO | {"model": "tiny:deep"}).status_code == 200
        goes_on(client)


STRENGTHS = ["NaN", "Infinity", "-Infinity", "1e400", "1e39", '"1"', "true", "null", "[1]", "9" * 400]


@pytest.mark.parametrize("strength", STRENGTHS, ids=lambda text: text[:8])
def test_no_strength_makes_more_than_an_error(client, strength):
    ours = '{"schema": 1, "edits": [{"op": "nudge", "feature": {"index": 3}, "value": %s}]}'
    embers = '{"interventions": [{"mode": "pin", "features": {"features": [{"index_in_sae": 3}]}, "value": %s}]}'
    for form in (ours, embers):
        body = json.dumps(HELLO)[:-1] + f', "controller": {form % strength}}}'
        out = client.post(CHAT, content=body, headers=JSON)
        assert out.status_code == 400, out.text
        assert out.json()["error"]["param"] in ("controller", None)
        assert client.post(EMBER, content=body, headers=JSON).status_code == 422
    goes_on(client)


@pytest.mark.parametrize(
    "form",
    [
        {"schema": 1, "edits": [{"op": "nudge", "feature": {"index": 128}, "value": 1}]},
        {"schema": 1, "edits": [{"op": "nudge", "feature": {"index": -1}, "value": 1}]},
        {"schema": 1, "edits": [{"op": "nudge", "feature": {"index": 3, "sae": "another"}, "value": 1}]},
        {"schema": 1, "edits": [{"op": "nudge", "feature": {"index": 3}, "value": 1, "where": [-300]}]},
        {"schema": 1, "edits": [{"op": "nudge", "feature": {"index": 3}, "value": 1, "where": ["everywhere"]}]},
        {"schema": 1, "edits": [{"op": "explode", "feature": {"index": 3}, "value": 1}]},
        {"schema": 1, "edits": 3},
        {"schema": 1, "edits": [None]},
        {"schema": "1", "edits": []},
        {"interventions": [{"mode": "nudge"}]},
        {"interventions": [{"mode": "nudge", "features": {"features": [{"index_in_sae": 1.5}]}, "value": 1}]},
        *({"interventions": [{"mode": "nudge", "features": {"features": [{"uuid": feature_uuid("a", 5),
           "index_in_sae": wrong}]}, "value": 1}]} for wrong in (5, True, "\ud800", [[]], None)),
        {"scopes": [{"conditionals": None}]},
        {"anything": "else"},
    ],
)  # fmt: skip
def test_a_controller_that_says_nothing_sensible_is_refused(client, form):
    asked = {"content": json.dumps(HELLO | {"controller": form}), "headers": {"content-type": "application/json"}}
    out = client.post(CHAT, **asked)
    assert out.status_code == 400, out.text
    assert client.post(EMBER, **asked).status_code == 422


def test_json_without_its_content_type_is_refused(client):
    """So that a page of another origin cannot send it without asking first."""
    out = client.post(CHAT, content=json.dumps(HELLO), headers={"content-type": "text/plain"})
    assert out.status_code == 400
    assert "content-type: application/json" in out.json()["error"]["message"]


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1:8000", True), ("localhost", True), ("[::1]:80", True), ("x.localhost:1", True), ("evil.com", False),
     ("evil.com:8000", False), ("127.0.0.1.evil.com", False), ("", False), ("localhost.evil.com:1", False)],
)  # fmt: skip
def test_without_keys_a_web_page_whose_name_leads_here_is_not_let_in(scope, host, here):
    app = create_app(Catalog({"tiny": Threads(scope)}))
    app.state.service.strict = True
    with TestClient(app) as client:
        assert client.get("/v1/models", headers={"host": host}).status_code == (200 if here else 401)


scalars = st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.text(max_size=5)
lists = st.lists(scalars | st.dictionaries(st.text(max_size=5), scalars, max_size=3), max_size=3)
json_values = scalars | lists | st.dictionaries(st.text(max_size=5), scalars | lists, max_size=3)
FIELDS = "model messages n stop seed logit_bias controller features stream top_logprobs max_tokens temperature "
FIELDS += "stream_options tools response_format tool_choice prompt"
some_fields = st.dictionaries(st.sampled_from(FIELDS.split()), json_values, min_size=1, max_size=3)


@settings(max_examples=40)
@given(some_fields, st.sampled_from([CHAT, EMBER]))
def test_whatever_a_field_holds_is_an_answer_or_an_error_in_shape(client, more, path):
    out = client.post(path, content=json.dumps(HELLO | {"max_tokens": 1} | more), headers=JSON)
    assert out.status_code in (200, 400, 404, 422, 429), out.text
    if out.status_code != 200:
        assert "detail" in out.json() if path == EMBER else set(out.json()["error"]) == {
            "message", "type", "param", "code"
        }  # fmt: skip


def test_a_steered_answer_whose_numbers_overflow_is_an_error_and_the_next_is_none(client, scope):
    huge = to_json(scope.features[3].raw.nudge(3e38))
    assert client.post(CHAT, json=HELLO | {"controller": huge}).status_code == 400
    goes_on(client)


def test_what_no_queue_here_could_ever_hold_is_not_told_to_come_again(scope):
    with TestClient(create_app(Catalog({"tiny": Threads(scope, rows=2, queue=3)}))) as client:
        asked = {"model": "tiny", "prompt": ["a", "b", "c"], "max_tokens": 1}
        answer = client.post(COMPLETE, json=asked | {"n": 2})
        assert answer.status_code == 400, answer.text
        assert "6 answers at once; this server has room for 5" in answer.json()["error"]["message"]
        assert client.post(COMPLETE, json=asked).status_code == 200


def test_a_controller_larger_than_a_row_could_hold_is_refused_before_it_is_read(scope):
    with TestClient(create_app(Catalog({"tiny": Threads(scope)}))) as client:
        edits = [{"op": "ablate", "feature": {"index": 1}, "where": [i]} for i in range(20_000)]
        answer = client.post(CHAT, json=HELLO | {"controller": {"schema": 1, "edits": edits}})
        assert answer.status_code == 400
        assert "32,768 objects and lists" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (CHAT, b'{"model": }', "The body is not JSON: Expecting value (character 10)"),
        (CHAT, b"", "The body is empty"),
        ("/v1/embeddings", b"{}", "There is nothing at /v1/embeddings: /openapi.json lists"),
    ],
)
def test_what_is_no_request_is_told_what_is_wrong_with_it(client, path, body, says):
    assert says in client.post(path, content=body, headers=JSON).json()["error"]["message"]
