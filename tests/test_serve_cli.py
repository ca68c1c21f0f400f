"""`sparsight serve` as people run it: a process, clients that know nothing of it, keys, signals, a sudden end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import openai
import pytest

from sparsight.cli import main
from sparsight.edits import Controller, Feature
from sparsight.scope.load import showcase, voice_settings
from sparsight.wire import fingerprint, to_json

START = 25  # seconds of CPU time that a server may take until it answers, imports included
PIRATE = re.compile(r"\b(arr+|aye|ahoy|matey|me hearty|ye|yer|shiver|captain)\b", re.IGNORECASE)


class Server:
    """A process, with a file of keys that outlives it. lines: of its log so far."""

    def __init__(self, file):
        self.file, self.lines, self.told = file, [], threading.Condition()
        self.start()

    def start(self):
        args = ["serve", "--port", "0", "--rows", "4", "--queue", "8", "--keys", str(self.file)]
        self.child = subprocess.Popen([sys.executable, "-m", "sparsight", *args], stderr=subprocess.PIPE, text=True)
        self.lines.clear()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        self.url = self.event("listening")["url"]
        self.started = cpu_seconds(self.child.pid)

    def _listen(self):
        for line in self.child.stderr:
            with self.told:
                self.lines.append(json.loads(line))
                self.told.notify_all()

    def event(self, name):
        """The line of the log that tells of it, once there is one."""

        def found():
            return next((line for line in self.lines if line["event"] == name), None)

        with self.told:
            assert self.told.wait_for(found, 120), self.lines
            return found()

    def end(self, sig):
        """Its exit code."""
        self.child.send_signal(sig)
        return self.ended()

    def ended(self):
        code = self.child.wait(60)
        self.listener.join()
        self.child.stderr.close()
        return code


def cpu_seconds(pid):
    """That a process has taken so far; 0 where the system does not say."""
    path = Path(f"/proc/{pid}/stat")
    if not path.exists():
        return 0
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("serve") / "keys.db"


@pytest.fixture(scope="module")
def key(file):
    return made_key(file, "anna")


@pytest.fixture(scope="module")
def server(file, key):
    made = Server(file)
    yield made
    if made.child.poll() is None:
        made.end(signal.SIGKILL)


@pytest.fixture
def client(server, key):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as made:
        yield made


def made_key(file, name):
    done = said_by("keys", "add", name, "--keys", str(file), "--json")
    return json.loads(done)["key"]


def said_by(*args):
    """What a verb prints; in this process, since a new one imports for seconds."""
    from contextlib import redirect_stdout
    from io import StringIO

    said = StringIO()
    with redirect_stdout(said):
        assert main([str(arg) for arg in args]) == 0
    return said.getvalue()


def pirate():
    """The demo's own setting: nudges, each at some kind of token."""
    edits = []
    for line in voice_settings()["pirate"]:
        index, strength, where = re.fullmatch(r"(\d+)=([+-][\d.]+)@(\w+)", line).groups()
        edits.append(Feature(int(index)).nudge(float(strength)).on(where))
    return Controller(tuple(edits))


def ask(client, model="demo", **more):
    said = [{"role": "user", "content": showcase()["prompt"]}]
    return client.chat.completions.create(
        model=model, messages=said, seed=showcase()["seed"], temperature=0, max_tokens=40, **more
    )


def test_it_is_ready_within_seconds_and_an_unmodified_client_makes_a_pirate_of_it(server, client):
    assert server.started < START
    assert [model.id for model in client.models.list()] == ["demo"]
    plain, steered = ask(client), ask(client, extra_body={"controller": to_json(pirate())})
    assert not PIRATE.search(plain.choices[0].message.content)
    assert PIRATE.search(steered.choices[0].message.content)
    assert steered.model_extra["receipt"]["controller"] == fingerprint(pirate())
    assert steered.model_extra["receipt"]["touched"] > 0
    chunks = list(ask(client, extra_body={"controller": to_json(pirate())}, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == steered.choices[0].message.content


def test_keys_are_made_listed_and_revoked_while_it_runs(server, file):
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    secret = made_key(file, "ben")
    bens = openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)
    assert ask(bens).choices
    listed = {key["name"]: key for key in json.loads(said_by("keys", "list", "--keys", file, "--json"))}
    assert set(listed) == {"anna", "ben"}
    assert listed["ben"]["last_used"] is not None
    assert secret not in json.dumps(listed)
    said_by("keys", "revoke", "ben", "--keys", file)
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        ask(bens)
    bens.close()


def test_what_everybody_could_reach_wants_a_key(tmp_path, capsys):
    where = tmp_path / "none.db"
    assert main(["serve", "--host", "0.0.0.0", "--port", "0", "--keys", str(where)]) == 1
    said = capsys.readouterr().err
    assert "without any key lets everybody in" in said
    assert f"sparsight keys add NAME --keys {where}" in said


def test_after_a_kill_keys_and_variants_are_there_and_nothing_is_being_written(server, key):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        saved = httpx.put(
            f"{server.url}/v1/variants/pirate",
            json={"controller": to_json(pirate())},
            headers={"authorization": f"Bearer {key}"},
        )
        assert saved.status_code == 200, saved.text
        before = ask(client, "demo:pirate").choices[0].message.content
        long = ask(client, stream=True, extra_body={"logit_bias": {"4": -100, "1": -100}, "max_tokens": 400})
        next(iter(long))
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            list(long)
    server.start()
    load = httpx.get(f"{server.url}/healthz").json()["models"]["demo"]
    assert (load["rows"], load["waiting"]) == (0, 0)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["demo", "demo:pirate"]
        assert ask(client, "demo:pirate").choices[0].message.content == before
    assert httpx.get(f"{server.url}/v1/models").status_code == 401


def test_told_to_end_it_lets_its_answers_end_first(server, client):
    going = ask(client, stream=True, extra_body={"logit_bias": {"4": -100, "1": -100}, "max_tokens": 150})
    chunks = [next(iter(going))]
    server.child.send_signal(signal.SIGTERM)
    chunks += list(going)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len(chunks) == 150
    assert server.ended() == 0
    assert {"draining", "stopped"} <= {line["event"] for line in server.lines}
