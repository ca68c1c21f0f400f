"""A server as a process of its own: how it says where it listens, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from engines import Threads

from sparsight.cli import main
from sparsight.errors import BadInput
from sparsight.serve.app import create_app
from sparsight.serve.catalog import Catalog
from sparsight.serve.run import listening
from sparsight.serve.spec import ServeSpec

PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from engines import Threads
from sparsight.scope.load import load
from sparsight.serve.app import create_app
from sparsight.serve.catalog import Catalog
from sparsight.serve.logs import to_standard_error
from sparsight.serve.run import serve
from sparsight.serve.spec import ServeSpec
from sparsight.serve.store import Store
to_standard_error()
engine = Threads(load("demo"), delay=0.1)
serve(create_app(Catalog({"demo": engine}), ServeSpec(port=0, drain_seconds=60), Store(sys.argv[2])))
"""
ASKED = {"model": "demo", "messages": [{"role": "user", "content": "Tell me about dogs."}], "max_tokens": 20}


class Process:
    """lines: of its log so far."""

    def __init__(self, *args):
        self.child = subprocess.Popen([sys.executable, *args], stderr=subprocess.PIPE, text=True)
        self.lines, self.told = [], threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.child.stderr:
            with self.told:
                self.lines.append(json.loads(line))
                self.told.notify_all()

    def event(self, name):
        def found():
            return next((line for line in self.lines if line["event"] == name), None)

        with self.told:
            assert self.told.wait_for(found, 120), self.lines
            return found()


@pytest.fixture
def process(tmp_path):
    made = Process("-c", PROCESS, str(Path(__file__).parent), str(tmp_path / "keys.db"))
    yield made
    made.child.kill()
    made.child.wait()
    made.child.stderr.close()


def test_a_server_that_is_told_to_end_lets_its_answers_end_first(process):
    url = process.event("listening")["url"]
    with httpx.Client(base_url=url, timeout=60) as client:
        saved = {"controller": {"schema": 1, "edits": [{"op": "nudge", "feature": {"index": 27}, "value": 1.0}]}}
        assert client.put("/v1/variants/loud", json=saved).status_code == 200
        with client.stream("POST", "/v1/chat/completions", json=ASKED | {"stream": True}) as stream:
            told = stream.iter_text()
            first = next(told)
            os.kill(process.child.pid, signal.SIGTERM)
            process.event("draining")
            assert client.get("/readyz").status_code == 503, "it still answers, so that a balancer hears of it"
            assert client.post("/v1/chat/completions", json=ASKED).status_code == 503
            rest = "".join(told)
        assert (first + rest).endswith("data: [DONE]\n\n")
    assert process.child.wait(30) == 0
    assert {"model ready", "listening", "draining", "stopped"} <= {line["event"] for line in process.lines}
    assert all(re.fullmatch(r"[\d-]+T[\d:]+\.\d{3}Z", line["time"]) for line in process.lines)


def test_a_port_that_is_taken_is_told_before_a_model_is_started(scope):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        app = create_app(Catalog({"tiny": Threads(scope)}), ServeSpec(port=taken.getsockname()[1]))
        with pytest.raises(BadInput, match="Cannot listen at 127.0.0.1, port .* Give another --port"):
            listening(app.state.service)
    app = create_app(Catalog({"tiny": Threads(scope)}), ServeSpec(host="no.such.host.invalid"))
    with pytest.raises(BadInput, match="Cannot listen at no.such.host.invalid"):
        listening(app.state.service)


def test_the_verb_refuses_before_it_loads_anything(capsys, tmp_path):
    keys = ["--keys", str(tmp_path / "keys.db")]
    for args, code, says in (
        (["--host", "0.0.0.0", *keys], 1, "without any key lets everybody in"),
        (["--port", "70000", *keys], 1, "[serve] port is a number from 0 to 65535"),
        (["--rows", "many", *keys], 2, "rows is a whole number"),
        (["--config", str(tmp_path / "none.toml"), *keys], 1, "Cannot read"),
        (["--alias", "a:b", *keys], 1, "a ':' stands before a variant"),
    ):
        assert main(["serve", *args]) == code
        assert says in capsys.readouterr().err


def test_several_models_come_from_a_file(tmp_path, monkeypatch):
    from sparsight.cli import serve as verbs

    (tmp_path / "serve.toml").write_text(
        '[serve]\nport = 9000\nrows = 4\n[[model]]\nnames = ["small", "demo"]\n'
        '[[model]]\nmodel = "gpt2"\nsae = "sae"\nnames = "gpt2"\n'
    )
    settings, models = verbs._settings(None, str(tmp_path / "serve.toml"), {"serve__rows": 8})
    assert (settings.port, settings.rows) == (9000, 8), "the command line stands above the file"
    assert [model.served for model in models] == [("small", "demo"), ("gpt2",)]
    with pytest.raises(BadInput, match="says which models are served"):
        verbs._settings("gpt2", str(tmp_path / "serve.toml"), {})
    settings, models = verbs._settings("some/model", None, {"model__sae": "x", "model__names": ("a", "b")})
    assert [(model.model, model.sae, model.served) for model in models] == [("some/model", "x", ("a", "b"))]
    assert verbs._settings(None, None, {})[1][0].served == ("demo",)
