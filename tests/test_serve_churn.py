"""The server with its true engine, and callers as they are: some leave, some read slowly, some come by the hundred."""

import asyncio
import json
import socket
import struct
import time

import httpx
import pytest
from engines import live

from sparsight.edits import Controller, Feature
from sparsight.serve.app import create_app
from sparsight.serve.catalog import Catalog
from sparsight.serve.embedded import EmbeddedEngine
from sparsight.serve.spec import ServeSpec
from sparsight.wire import to_json

CHAT, END = "/v1/chat/completions", 4  # the token that ends an answer
ROWS, QUEUE = 4, 12
F = [Feature(i) for i in range(128)]
CONTROLLERS = [
    None,
    to_json(F[3].nudge(4)),
    to_json(F[9].pin(3) + F[27].scale(-2)),
    to_json(F[3].nudge(6).on("generated").when(F[9] > 0.1)),
    to_json((F[9] > 0.1).event("nine") + F[64].nudge(-5)),
    to_json(Controller((F[3].nudge(7),), min_nudge_entropy=1.0)),  # has an unedited twin
]


@pytest.fixture(scope="module")
def engine(scope):
    return EmbeddedEngine(scope, rows=ROWS, queue=QUEUE, chunk=32)


@pytest.fixture(scope="module")
def url(engine):
    with live(create_app(Catalog({"tiny": engine}), ServeSpec(body_bytes=100_000, body_seconds=1.0))) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    """One for all tests: to make one takes longer than a request."""
    with httpx.Client(base_url=url, timeout=60) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(client, engine):
    """After each test every row, slot and place is free again, and the server answers."""
    yield
    until = time.monotonic() + 60
    while engine._busy():
        assert time.monotonic() < until, f"the engine still writes: {engine.load()}"
        time.sleep(0.01)
    rows = engine.rows
    assert (rows.rows, rows.twins, engine.reading, len(engine.waiting), list(engine.jobs)) == ([], [], None, 0, [])
    assert [held for held in rows.table.steered if held is not None] == []
    assert client.get("/readyz").status_code == 200
    assert client.post(CHAT, json=form(tokens=2)).status_code == 200


def form(i=0, tokens=16, stream=False, **more):
    """A request; with other edits for each i."""
    controller = CONTROLLERS[i % len(CONTROLLERS)]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hello, how are you?"}], "stream": stream}
    asked |= {"max_tokens": tokens, "temperature": 0, "logit_bias": {str(END): -100}}
    return asked | ({} if controller is None else {"controller": controller}) | more


def callers(url):
    """Of many requests at once. A connection is used once: an idle one may be closed while it is taken up again."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=60, limits=limits)


def opened(url, asked, buffer=None):
    """A connection on which the request was sent, and nothing read."""
    host, port = url.removeprefix("http://").split(":")
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.connect((host, int(port)))
    body = json.dumps(asked).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    sock.sendall(head.encode() + b"connection: close\r\n\r\n" + body)
    sock.settimeout(60)
    return sock


def reset(sock):
    """Leave without a word: the other side hears of it as an error."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def everything(sock):
    """What comes until the other side closes."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    sock.close()
    return b"".join(parts)


def text_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def alone(client):
    """What is written for each controller when nobody else asks."""
    texts = [text_of(client.post(CHAT, json=form(i))) for i in range(len(CONTROLLERS))]
    assert len(set(texts)) > 3
    return texts


def test_who_stays_is_answered_as_ever_while_others_vanish(url, alone):
    async def stay(many, i):
        return text_of(await many.post(CHAT, json=form(i)))

    async def main():
        async with callers(url) as many:
            staying = [asyncio.create_task(stay(many, i)) for i in range(len(CONTROLLERS))]
            for i in range(12):
                leaving = await asyncio.to_thread(opened, url, form(i, 120, stream=True))
                if i % 3:  # some have heard a word; some leave while they wait
                    await asyncio.to_thread(leaving.recv, 100)
                (reset if i % 2 else socket.socket.close)(leaving)
                await asyncio.sleep(0.01)
            return await asyncio.gather(*staying)

    assert asyncio.run(main()) == alone


def test_a_slow_reader_holds_no_row_and_misses_nothing(url, client, engine):
    asked = form(1, 200, stream=True, features={"top_k": 128}, logprobs=True, top_logprobs=20)
    slow = opened(url, asked, buffer=2048)
    until = time.monotonic() + 60
    while engine.rows.written == 0 or engine.load().rows or engine.load().waiting:  # its answer is written meanwhile
        assert time.monotonic() < until
        time.sleep(0.01)
    assert text_of(client.post(CHAT, json=form(2, 4)))
    heard = everything(slow)
    assert heard.count(b"data: {") == 200
    assert len(heard) > 400_000  # more than buffers on the way hold
    assert b"data: [DONE]\n\n" in heard


def test_a_flood_is_written_or_told_when_to_come_again(url, alone):
    async def one(many, i):
        await asyncio.sleep(i % 10 / 100)
        return await many.post(CHAT, json=form(i))

    async def main():
        async with callers(url) as many:
            asked = [asyncio.create_task(one(many, i)) for i in range(90)]
            health = await many.get("/healthz")
            return await asyncio.gather(*asked), health.json()["models"]["tiny"]

    answers, load = asyncio.run(main())
    assert {answer.status_code for answer in answers} == {200, 429}
    assert load["waiting"] <= QUEUE
    for i, answer in enumerate(answers):
        if answer.status_code == 200:
            assert text_of(answer) == alone[i % len(alone)]
        else:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["code"] == "server_busy"
    assert sum(answer.status_code == 200 for answer in answers) >= ROWS + QUEUE


def test_who_comes_again_as_told_is_answered(url):
    async def patient(many, i):
        for _ in range(30):
            answer = await many.post(CHAT, json=form(i, 4))
            if answer.status_code == 200:
                return True
            await asyncio.sleep(float(answer.headers["retry-after"]) / 4)
        return False

    async def main():
        async with callers(url) as many:
            return await asyncio.gather(*(patient(many, i) for i in range(40)))

    assert all(asyncio.run(main()))


def nest(depth):
    """A controller so many levels deep, as text."""
    head = '{"schema":1,"edits":[],"whens":['
    test = '{"condition":{"left":[{"index":1}],"op":">","right":0},"controller":'
    middle = f'{test}{{"edits":[],"whens":[' * depth
    return head + middle + "]}}" * depth + "]}"


def sent(controller):
    """A request's bytes, with this text for a controller."""
    return json.dumps(form()).encode()[:-1] + b', "controller": ' + controller.encode() + b"}"


BODIES = {
    "an unknown feature": (sent('{"schema":1,"edits":[{"op":"ablate","feature":{"index":128}}]}'), 400, "128"),
    "a feature of another SAE": (
        sent('{"schema":1,"edits":[{"op":"ablate","feature":{"index":1,"sae":"0123"}}]}'),
        400,
        "SAE",
    ),
    "NaN": (sent('{"schema":1,"edits":[{"op":"nudge","feature":{"index":1},"value":NaN}]}'), 400, "finite"),
    "no end": (sent('{"schema":1,"edits":[{"op":"nudge","feature":{"index":1},"value":1e999}]}'), 400, "finite"),
    "150 levels": (sent(nest(150)), 400, "nested too deep"),
    "1,000 levels": (sent(nest(1000)), 400, ""),
    "20,000 levels of nothing": (sent("[" * 20_000 + "]" * 20_000), 400, ""),
    "too many edits of a feature": (
        sent(json.dumps(to_json(Controller(tuple(F[1].nudge(0.1).on(i) for i in range(20)))))),
        400,
        "at most 16",
    ),
    "a body that is too large": (b" " * 200_000, 413, "100,000 bytes"),
    "half a body": (json.dumps(form()).encode()[:-9], 400, ""),
    "no text": (b"\xff\xfe\x00" * 30, 400, ""),
    "nothing": (b"", 400, ""),
}


@pytest.mark.parametrize("what", BODIES)
def test_what_cannot_be_read_is_refused_in_words_while_others_are_answered(url, client, what):
    body, status, says = BODIES[what]
    other = opened(url, form(1, 12, stream=True))
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert b"data: [DONE]" in everything(other)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]


def test_a_body_that_stops_midway_ends_in_time(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n".encode()
            + b'{"mod'
        )
        assert b" 408 " in sock.recv(65536)
