"""How tests ask a server: one question, its answer at once or as a stream."""

import json

CHAT, EMBER, COMPLETE = "/v1/chat/completions", "/api/inference/v1/chat/completions", "/v1/completions"
ASKED = [{"role": "user", "content": "Hello, how are you?"}]
HELLO = {"model": "tiny", "messages": ASKED, "max_tokens": 6, "seed": 7}


def ask(client, path=CHAT, **more):
    out = client.post(path, json=(HELLO if path != COMPLETE else {}) | more)
    assert out.status_code == 200, out.text
    return out.json()


def events(client, path=CHAT, **more):
    """The chunks of a stream, which ends with [DONE]."""
    out = client.post(path, json=(HELLO if path != COMPLETE else {}) | more | {"stream": True})
    assert out.status_code == 200, out.text
    assert out.headers["content-type"].startswith("text/event-stream")
    parts = out.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]
