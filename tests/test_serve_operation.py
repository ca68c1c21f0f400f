"""What runs a server, and what a server keeps: variants, readiness, the end, metrics, the log."""

import asyncio
import json
import logging
import time

import httpx
import pytest
import torch
from asking import CHAT, EMBER, HELLO, ask, events
from conftest import random_sae
from engines import Threads, live
from starlette.testclient import TestClient

from sparsight.edits import Controller
from sparsight.errors import BadInput, NotSteered
from sparsight.scope.scope import Scope
from sparsight.serve.app import create_app, stop
from sparsight.serve.catalog import Catalog
from sparsight.serve.logs import Lines
from sparsight.serve.openai import answers
from sparsight.serve.spec import ModelSpec, ServeSpec, check_names
from sparsight.wire import fingerprint, to_json


@pytest.fixture(scope="module")
def engine(scope):
    return Threads(scope)


@pytest.fixture(scope="module")
def client(engine):
    with TestClient(create_app(Catalog({"tiny": engine, "org/tiny": engine}))) as client:
        yield client


# ── models and variants ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_saved_variant_is_a_model_name(scope):
    engine = Threads(scope)
    edits = scope.features[3].nudge(2.0).when(scope.features[7] > -1.0)
    with TestClient(create_app(Catalog({"tiny": engine, "org/tiny": engine}))) as client:
        saved = client.put("/v1/variants/loud", json={"controller": to_json(edits), "model": "org/tiny"}).json()
        answers.VariantAnswer.model_validate(saved)
        assert saved["model"] == "org/tiny:loud"
        assert saved["says"] == str(Controller.of(edits))
        assert client.get("/v1/variants/loud").json() == saved
        assert client.get("/v1/variants").json()["data"] == [saved]
        listed = client.get("/v1/models").json()
        answers.ModelsAnswer.model_validate(listed)
        assert [one["id"] for one in listed["data"]] == ["tiny", "org/tiny", "org/tiny:loud"]
        assert client.get("/v1/models/org/tiny:loud").json() == listed["data"][-1]
        assert client.get("/v1/models/nothing").status_code == 404
        named = ask(client, model="tiny:loud")
        assert named["choices"] == ask(client, controller=to_json(edits))["choices"]
        assert named["model"] == "tiny:loud"
        more = ask(client, model="tiny:loud", controller=to_json(scope.features[9].pin(1.0)))
        assert more["receipt"]["controller"] == fingerprint(edits + scope.features[9].pin(1.0))
        assert client.delete("/v1/variants/loud").json() == {
            "id": "loud", "object": "variant.deleted", "deleted": True
        }  # fmt: skip
        assert client.get("/v1/variants/loud").status_code == 404
        assert client.delete("/v1/variants/loud").status_code == 404
        assert client.post(CHAT, json=HELLO | {"model": "tiny:loud"}).status_code == 404


def test_a_variant_that_could_not_act_is_not_saved(client):
    for controller, says in (
        ({"schema": 1, "edits": [{"op": "nudge", "feature": {"index": 999}, "value": 1.0}]}, "No feature 999"),
        ({"schema": 1, "edits": []}, "nothing to save"),
        ({"schema": 2}, "reads schema 1"),
    ):
        out = client.put("/v1/variants/x", json={"controller": controller})
        assert out.status_code == 400
        assert says in out.json()["error"]["message"]
    assert client.get("/v1/variants").json()["data"] == []
    assert client.put("/v1/variants/a%20b", json={"controller": {}}).status_code == 400


def test_each_model_has_its_own_sae_and_variants(lm, scope):
    other = Scope(lm, random_sae(seed=5))
    with TestClient(create_app(Catalog({"a": Threads(scope), "b": Threads(other)}))) as client:
        form = {"controller": to_json(scope.features[3].nudge(2.0)), "model": "b"}
        out = client.put("/v1/variants/x", json=form)
        assert out.status_code == 400, "an edit of another SAE's feature means something else"
        assert client.put("/v1/variants/x", json=form | {"model": "a"}).status_code == 200
        assert client.post(CHAT, json=HELLO | {"model": "b:x"}).status_code == 404
        prints = {ask(client, model=name)["system_fingerprint"] for name in ("a", "b")}
        assert len(prints) == 2


def test_two_models_of_one_name_are_refused():
    check_names([ModelSpec(names=("a",)), ModelSpec(names=("b",))])
    with pytest.raises(BadInput, match="Two models are served as 'a'"):
        check_names([ModelSpec(names=("a",)), ModelSpec(names=("b", "a"))])
    with pytest.raises(BadInput, match="a ':' stands before a variant"):
        ModelSpec(names=("a:b",))


# ── operation ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_whose_engine_has_died_is_not_ready(scope):
    engine = Threads(scope)
    with TestClient(create_app(Catalog({"tiny": engine}))) as client:
        assert client.get("/readyz").status_code == 200
        engine.alive = False
        assert client.get("/readyz").status_code == 503


@pytest.mark.parametrize(("seconds", "last"), [(60.0, "data: [DONE]"), (0.1, "stopping")])
def test_a_draining_server_says_so_and_lets_answers_end_or_cuts_them_off(scope, seconds, last):
    engine = Threads(scope, delay=0.05)
    app = create_app(Catalog({"tiny": engine}), ServeSpec(drain_seconds=seconds))
    with live(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/readyz").status_code == 200
        with client.stream("POST", CHAT, json=HELLO | {"stream": True, "max_tokens": 12}) as stream:
            told = stream.iter_text()
            first = next(told)
            loop = next(iter(engine.streams)).loop
            ended = asyncio.run_coroutine_threadsafe(stop(app.state.service), loop)
            while not app.state.service.draining:
                time.sleep(0.01)
            ready, health, refused = client.get("/readyz"), client.get("/healthz"), client.post(CHAT, json=HELLO)
            rest = "".join(told)
        ended.result(60)
    assert ready.status_code == 503
    assert health.json()["status"] == "draining"
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert last in (first + rest).split("\n\n")[-2]
    assert engine.stopped


def test_an_engine_that_does_not_steer_serves_nothing(scope):
    class Broken(Threads):
        def start(self):
            raise NotSteered("An edit of feature 12 changed nothing.")

    app = create_app(Catalog({"tiny": Broken(scope)}))
    with pytest.raises(NotSteered), TestClient(app):
        pass
    assert isinstance(app.state.service.failure, NotSteered)


def test_an_answer_without_a_receipt_is_no_answer(scope, monkeypatch):
    from dataclasses import replace

    from engines import Stream

    made = Stream._update
    monkeypatch.setattr(Stream, "_update", lambda self, chunk: replace(made(self, chunk), receipt=None))
    with TestClient(create_app(Catalog({"tiny": Threads(scope)}))) as client:
        assert client.post(CHAT, json=HELLO).status_code == 200
        out = client.post(CHAT, json=HELLO | {"controller": to_json(scope.features[3].nudge(1.0))})
        assert out.status_code == 500
        assert "no receipt" in out.json()["error"]["message"]


def test_metrics_do_not_grow_with_words_that_callers_make_up(client):
    for i in range(3):
        client.request(f"FOO{i}", f"/made/up/{i}")
    told = client.get("/metrics").text
    assert "FOO" not in told
    assert 'method="other",route="none"' in told


def test_metrics_count_tokens_and_tell_how_busy_each_model_is(scope):
    with TestClient(create_app(Catalog({"tiny": Threads(scope), "again": Threads(scope)}))) as client:
        ask(client, controller=to_json(scope.features[3].nudge(1.0)))
        client.post(CHAT, json=HELLO | {"temperature": 9})
        events(client, EMBER)
        page = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert lines['sparsight_completion_tokens_total{model="tiny"}'] == "12.0"
    assert lines['sparsight_cached_prompt_tokens_total{model="tiny"}'] == "6.0"
    assert lines['sparsight_steered_answers_total{model="tiny"}'] == "1.0"
    assert lines['sparsight_engine_written_total{model="tiny"}'] == "12.0"
    assert lines['sparsight_engine_capacity{model="again"}'] == "4.0"
    assert lines['sparsight_engine_waiting{model="tiny"}'] == "0.0"
    assert lines['sparsight_time_to_first_token_seconds_count{model="tiny"}'] == "2.0"
    assert lines['sparsight_time_between_tokens_seconds_count{model="tiny"}'] == "10.0"
    for code, path in (("200", CHAT), ("400", CHAT), ("200", EMBER)):
        assert lines[f'sparsight_request_seconds_count{{code="{code}",method="POST",route="{path}"}}'] == "1.0"


@pytest.mark.parametrize("asked", [False, True])
def test_the_log_is_json_lines_and_holds_what_was_said_only_where_asked(scope, caplog, asked):
    caplog.set_level(logging.INFO, "sparsight.serve")
    with TestClient(create_app(Catalog({"tiny": Threads(scope)}), ServeSpec(log_prompts=asked))) as client:
        out = client.post(CHAT, json=HELLO | {"controller": to_json(scope.features[3].nudge(1.0))})
    lines = [json.loads(Lines().format(record)) for record in caplog.records if record.name == "sparsight.serve"]
    line = next(line for line in lines if line["event"] == "request")
    assert line["id"] == out.headers["x-request-id"]
    assert (line["status"], line["route"], line["model"]) == (200, CHAT, "tiny")
    assert line["completion_tokens"] == 6
    assert line["prompt_tokens"] > 0
    assert line["controller"] == out.json()["receipt"]["controller"]
    assert ("how are you" in json.dumps(line)) is asked
    said = out.json()["choices"][0]["message"]["content"]
    assert (line.get("answers") == [said]) is asked


def test_pages_of_other_origins_may_call_only_where_it_is_said(scope):
    origin = {"origin": "https://example.org", "access-control-request-method": "POST"}
    with TestClient(create_app(Catalog({"tiny": Threads(scope)}))) as client:
        assert "access-control-allow-origin" not in client.options(CHAT, headers=origin).headers
    with TestClient(create_app(Catalog({"tiny": Threads(scope)}), ServeSpec(cors=("https://example.org",)))) as client:
        assert client.options(CHAT, headers=origin).headers["access-control-allow-origin"] == "https://example.org"
        out = client.post(CHAT, json=HELLO | {"model": "no"}, headers=origin)
        assert out.headers["access-control-allow-origin"] == "https://example.org", "errors can be read too"


def test_the_openapi_page_tells_how_errors_look(client):
    page = client.get("/openapi.json").json()
    chat = page["paths"][CHAT]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= chat.keys()
    assert "422" not in chat
    assert "text/event-stream" in chat["200"]["content"]
    assert chat["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    assert "422" in page["paths"][EMBER]["post"]["responses"]


def test_settings_that_cannot_be_meant_are_refused():
    for more, says in (({"port": 70_000}, "port is a number"), ({"rows": 0}, "rows is a whole number"),
                       ({"host": ""}, "host is an address"), ({"request_seconds": 0}, "request_seconds")):  # fmt: skip
        with pytest.raises(BadInput, match=says):
            ServeSpec(**more)
    assert torch.get_num_threads() == 1
