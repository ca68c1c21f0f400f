"""Who may call the server, how much, and under which names controllers are kept."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from engines import Threads
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sparsight.cli import main
from sparsight.edits import Controller, Feature
from sparsight.errors import BadFile, BadInput
from sparsight.records import Sampling
from sparsight.serve import ember
from sparsight.serve.app import create_app
from sparsight.serve.catalog import Catalog
from sparsight.serve.limits import Limits, OverLimit
from sparsight.serve.run import check_open
from sparsight.serve.spec import ServeSpec
from sparsight.serve.store import PREFIX, Key, NotYours, Store, hashed

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
CHAT = "/v1/chat/completions"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.db"


@pytest.fixture
def opened():
    """Opens stores, and closes them at the end."""
    with ExitStack() as held:
        yield lambda file: held.enter_context(Store(file))


@pytest.fixture
def served(scope, file, opened):
    """A client of a server with a key file, and that file's store."""
    with TestClient(create_app(Catalog({"tiny": Threads(scope)}), ServeSpec(), Store(file))) as client:
        yield client, opened(file)


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_told_once_and_the_file_does_not_hold_it(file, opened):
    store = opened(file)
    secret = store.add_key("anna")
    assert secret.startswith(PREFIX)
    assert len(secret) - len(PREFIX) == 43, "256 bits in base64"
    store.close()
    held = b"".join(path.read_bytes() for path in file.parent.iterdir())
    assert secret.encode() not in held
    assert secret.removeprefix(PREFIX).encode() not in held
    assert hashed(secret) in held
    assert file.stat().st_mode & 0o077 == 0, "nobody else reads it"


def test_a_key_is_known_until_it_is_revoked_by_whichever_process(file, opened):
    store, other = opened(file), opened(file)
    secret = store.add_key("anna", concurrent=2)
    assert other.key_of(secret) == store.key_of(secret)
    assert other.key_of(secret).concurrent == 2
    assert other.key_of(secret + "x") is None
    assert other.key_of("") is None
    store.revoke_key("anna")
    assert other.key_of(secret) is None
    assert other.has_keys(), "a server that had keys does not open because the last one was revoked"


def test_names_are_taken_once_and_limits_are_whole(file, opened):
    store = opened(file)
    store.add_key("anna")
    with pytest.raises(BadInput, match="There is a key 'anna' already"):
        store.add_key("anna")
    with pytest.raises(BadInput, match="No key 'bob'. There are: anna."):
        store.revoke_key("bob")
    for name in ("", "../x", "a b", "ü", "x" * 65):
        with pytest.raises(BadInput, match="A key has a name of letters"):
            store.add_key(name)
    with pytest.raises(BadInput, match="concurrent is a whole number"):
        store.add_key("eve", concurrent=0)
    with pytest.raises(BadInput, match="No limit 'dollars'"):
        store.add_key("eve", dollars=1)


def test_last_used_is_kept_and_not_written_at_every_request(file, opened):
    store = opened(file)
    key = store.key_of(store.add_key("anna"))
    store.used(key)
    first = store.keys()[0]
    assert first.last_used == pytest.approx(time.time(), abs=5)
    store.used(first)
    assert store.keys()[0].last_used == first.last_used


def test_a_file_of_something_else_is_refused_and_left_as_it_is(file, opened):
    file.write_bytes(b"these are no keys" * 400)
    with pytest.raises(BadFile, match="Cannot keep keys and variants in"):
        opened(file)
    assert file.read_bytes().startswith(b"these are no keys")
    newer = file.with_name("newer.db")
    with closing(sqlite3.connect(newer)) as db:
        db.execute("PRAGMA user_version=7")
    with pytest.raises(BadFile, match="its form is 7"):
        opened(newer)


def test_variants_belong_to_the_key_that_saved_them(file, opened):
    store = opened(file)
    wish = Controller.of(Feature(3).nudge(0.5))
    store.save("pirate", "tiny", wish, "anna")
    assert opened(file).variant("pirate").controller == wish
    with pytest.raises(NotYours):
        store.save("pirate", "tiny", wish, "bob")
    with pytest.raises(NotYours):
        store.delete("pirate", "bob")
    louder = Controller.of(Feature(3).nudge(2))
    store.save("pirate", "tiny", louder, "anna")
    assert [one.controller for one in store.variants()] == [louder]
    assert store.delete("pirate", "anna")
    assert not store.delete("pirate", "anna")


def test_what_was_saved_before_there_were_keys_is_everybodys_until_somebody_saves_it_anew(file, opened):
    store = opened(file)
    wish = Controller.of(Feature(3).nudge(0.5))
    store.save("pirate", "tiny", wish)
    store.save("poet", "tiny", wish)
    assert store.delete("poet", "bob")
    assert store.save("pirate", "tiny", wish, "anna").owner == "anna"
    with pytest.raises(NotYours):
        store.delete("pirate", "bob")


def test_what_was_told_to_be_saved_survives_a_kill(file, opened):
    code = (
        "import sys\nfrom sparsight.edits import Controller, Feature\nfrom sparsight.serve.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "for i in range(100000):\n"
        "    store.save(f'v{i}', 'tiny', Controller.of(Feature(i).nudge(0.5)))\n"
        "    sys.stdout.write(f'{i}\\n'); sys.stdout.flush()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True)
    told = [int(child.stdout.readline()) for _ in range(25)]
    os.kill(child.pid, signal.SIGKILL)
    told += [int(line) for line in child.communicate()[0].splitlines()]
    kept = {one.name: one.controller for one in opened(file).variants()}
    assert len(told) >= 25
    assert all(kept[f"v{i}"] == Controller.of(Feature(i).nudge(0.5)) for i in told)
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    def __init__(self):
        self.at = 0.0

    def __call__(self):
        return self.at


@given(st.integers(1, 50), st.lists(st.floats(0, 30), max_size=80))
def test_no_minute_has_more_requests_than_twice_the_limit_and_waiting_as_told_helps(limit, waits):
    clock, key = Clock(), Key("anna", 0.0, requests_per_minute=limit)
    limits, entered = Limits(clock), []
    for wait in waits:
        clock.at += wait
        try:
            limits.enter(key)
        except OverLimit as error:
            clock.at += error.retry_after + 1e-6
            limits.enter(key)
        entered.append(clock.at)
        limits.leave(key)
    for at in entered:
        assert sum(at <= other < at + 60 for other in entered) <= 2 * limit


def test_tokens_may_be_overdrawn_and_are_then_waited_for():
    clock, key = Clock(), Key("anna", 0.0, tokens_per_minute=60)
    limits = Limits(clock)
    limits.enter(key)
    limits.charge(key, 120)
    limits.leave(key)
    with pytest.raises(OverLimit, match="may use 60 tokens a minute") as error:
        limits.enter(key)
    assert error.value.retry_after == pytest.approx(61)
    clock.at += 61
    limits.enter(key)


def test_one_callers_limits_are_not_anothers():
    limits = Limits(Clock())
    anna, bob = (Key(name, 0.0, concurrent=1) for name in ("anna", "bob"))
    limits.enter(anna)
    limits.enter(bob)
    with pytest.raises(OverLimit, match="The key 'anna' has 1 requests running"):
        limits.enter(anna)
    limits.leave(anna)
    limits.enter(anna)


# ── over HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_keys_this_machine_needs_none_and_other_interfaces_are_refused(served, file):
    client, store = served
    assert client.post(CHAT, json=HELLO).status_code == 200
    with pytest.raises(BadInput, match="without any key lets everybody in who can reach it: make one with"):
        check_open(ServeSpec(host="0.0.0.0"), store)
    store.add_key("anna")
    check_open(ServeSpec(host="0.0.0.0"), store)
    assert [ServeSpec(host=host).is_local for host in ("127.0.0.1", "localhost", "::1", "::", "10.0.0.1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_with_keys_a_missing_or_wrong_one_is_401_before_anything_is_read(served):
    client, store = served
    secret = store.add_key("anna")
    for headers in ({}, bearer("sk-wrong"), {"authorization": f"Basic {secret}"}, {"authorization": "Bearer"}):
        out = client.post(CHAT, content=b"{ no JSON", headers=headers)  # nor does it say what it is
        assert out.status_code == 401, headers
        assert out.json()["error"]["code"] == "invalid_api_key"
        assert out.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/nothing").status_code == 401
    assert client.post("/api/inference/v1/chat/completions", json=HELLO).status_code == 401
    assert client.post(CHAT, json=HELLO, headers=bearer(secret)).status_code == 200
    assert store.keys()[0].last_used is not None
    for path in ("/healthz", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200, "whoever runs the server needs no key"
    store.revoke_key("anna")
    assert client.post(CHAT, json=HELLO, headers=bearer(secret)).status_code == 401, "in a running server too"


def test_a_file_that_cannot_be_read_is_said_to_be_so_and_not_which(served, caplog):
    client, store = served
    secret = store.add_key("anna")
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("ALTER TABLE keys RENAME TO others")
    out = client.post(CHAT, json=HELLO, headers=bearer(secret))
    assert (out.status_code, out.json()["error"]["code"]) == (503, "storage")
    assert str(store.path) not in out.text
    assert "no such table: keys" in caplog.text
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("ALTER TABLE others RENAME TO keys")
    assert client.post(CHAT, json=HELLO, headers=bearer(secret)).status_code == 200


def test_a_locked_file_keeps_nobody_waiting(served):
    client, store = served
    secret = store.add_key("anna")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert client.post(CHAT, json=HELLO, headers=bearer(secret)).status_code == 200
        assert time.monotonic() - began < 3
        with pytest.raises(BadFile, match="database is locked"):
            store.add_key("bob")
        db.execute("ROLLBACK")
    assert client.post(CHAT, json=HELLO, headers=bearer(secret)).status_code == 200
    assert store.keys()[0].last_used is not None


def test_a_key_is_not_read_from_a_file_that_is_gone(served):
    client, store = served
    secret = store.add_key("anna")
    assert client.post(CHAT, json=HELLO, headers=bearer(secret)).status_code == 200
    store.path.rename(store.path.with_name("gone.db"))
    assert client.post(CHAT, json=HELLO, headers=bearer(secret)).status_code == 503
    with closing(Store(store.path)):
        assert client.post(CHAT, json=HELLO, headers=bearer(secret)).status_code == 503, "nor from another one"


def test_a_variant_that_cannot_be_read_is_the_only_one(served, caplog):
    client, store = served
    wish = Controller.of(Feature(3).nudge(2))
    for name in ("bad", "good"):
        store.save(name, "tiny", wish)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as db:
        db.execute("""UPDATE variants SET controller = '{"schema": 2}' WHERE name = 'bad'""")
    assert [one["name"] for one in client.get("/v1/variants").json()["data"]] == ["good"]
    assert "The variant 'bad' in" in caplog.text
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["tiny", "tiny:good"]
    for name, status in (("good", 200), ("bad", 503)):
        assert client.post(CHAT, json=HELLO | {"model": f"tiny:{name}"}).status_code == status


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_server_writes_for_itself_is_charged_too(served, monkeypatch, fails):
    client, store = served
    secret = store.add_key("anna", tokens_per_minute=100)

    def writing(scope, text, writer):
        scope.chat("Hello", sampling=Sampling(20, temperature=0.0))
        if fails:
            raise BadInput("Nothing came of it.")
        return [], []

    monkeypatch.setattr(ember, "contrastive", writing)
    asked = {"specification": "a wish"}
    where = "/api/inference/v1/attributions/generate-contrastive-dataset"
    assert client.post(where, json=asked, headers=bearer(secret)).status_code == (422 if fails else 200)
    service = client.app.state.service
    wrote = len(service.catalog.first.scope.chat("Hello", sampling=Sampling(20, temperature=0.0)).ids)
    spent = 100 - service.limits.budgets["anna", "tokens"].left
    prompt = len(service.catalog.first.scope.lm.prompt("Hello"))
    assert spent == pytest.approx(prompt + wrote - 1, abs=2), "the last token is not run"


def test_over_a_limit_is_429_with_the_time_to_wait(served):
    client, store = served
    one = bearer(store.add_key("anna", requests_per_minute=1))
    assert client.post(CHAT, json=HELLO, headers=one).status_code == 200
    out = client.post(CHAT, json=HELLO, headers=one)
    assert out.status_code == 429
    assert 50 <= int(out.headers["retry-after"]) <= 60
    assert out.json()["error"]["code"] == "rate_limit_exceeded"
    few = bearer(store.add_key("bob", tokens_per_minute=5))
    assert client.post(CHAT, json=HELLO, headers=few).status_code == 200, "let in while the budget is not used up"
    assert client.post(CHAT, json=HELLO, headers=few).status_code == 429


def test_a_place_is_given_back_however_a_request_ends(served):
    client, store = served
    one = bearer(store.add_key("anna", concurrent=1))
    for body in (HELLO, HELLO | {"model": "none"}, HELLO | {"temperature": 9}, HELLO | {"stream": True}):
        assert client.post(CHAT, json=body, headers=one).status_code != 429
    assert client.post(CHAT, json=HELLO, headers=one).status_code == 200


def test_a_variant_of_one_key_is_used_by_all_and_changed_by_its_owner(served):
    client, store = served
    anna, bob = bearer(store.add_key("anna")), bearer(store.add_key("bob"))
    form = {"controller": {"schema": 1, "edits": [{"op": "nudge", "feature": {"index": 3}, "value": 2.0}]}}
    saved = client.put("/v1/variants/pirate", json=form, headers=anna)
    assert saved.status_code == 200
    assert saved.json()["owner"] == "anna"
    assert client.put("/v1/variants/pirate", json=form, headers=bob).status_code == 403
    assert client.delete("/v1/variants/pirate", headers=bob).status_code == 403
    out = client.post(CHAT, json=HELLO | {"model": "tiny:pirate"}, headers=bob).json()
    assert out["receipt"]["touched"] > 0
    assert client.delete("/v1/variants/pirate", headers=anna).json()["deleted"] is True
    assert client.post(CHAT, json=HELLO | {"model": "tiny:pirate"}, headers=bob).status_code == 404


# ── on the command line ──────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_are_made_listed_and_revoked(capsys, file, opened):
    assert main(["keys", "add", "anna", "--keys", str(file), "--concurrent", "2"]) == 0
    secret, note = capsys.readouterr()
    assert opened(file).key_of(secret.strip()).name == "anna"
    assert "It is shown this once" in note
    assert main(["keys", "list", "--keys", str(file)]) == 0
    listed = capsys.readouterr().out
    assert "anna" in listed
    assert "2 concurrent" in listed
    assert secret.strip() not in listed
    assert main(["keys", "revoke", "anna", "--keys", str(file)]) == 0
    assert opened(file).key_of(secret.strip()) is None
    assert main(["keys", "revoke", "anna", "--keys", str(Path(file).with_name("none.db"))]) == 1
    assert "no such file" in capsys.readouterr().err


def test_the_default_file_is_in_the_users_data_folder(monkeypatch, tmp_path, capsys, opened):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert main(["keys", "add", "anna"]) == 0
    assert ServeSpec().keys_file == tmp_path / "sparsight" / "serve.db"
    assert opened(ServeSpec().keys_file).has_keys()
