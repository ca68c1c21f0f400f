"""Requests to a server, and its errors as this project's own."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from sparsight.errors import BadInput, Busy, Missing, NoAnswer, Stopped

SECONDS = 600.0  # that an answer may take
DONE = "[DONE]"


class Wire:
    """One server, as one caller knows it. May be used from several threads.

    url: up to the port, or as far as the "/v1" of its API. Raises Missing without httpx, BadInput for what is no URL.
    """

    def __init__(self, url: str, key: str | None = None, seconds: float = SECONDS) -> None:
        try:
            self._httpx = import_module("httpx")
        except ImportError as error:
            raise Missing("connect() asks over HTTP: pip install 'sparsight[client]'.") from error
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"A server has a URL such as http://127.0.0.1:8000, not {url[:80]!r}.")
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = self._httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=seconds)
        self._ended = weakref.finalize(self, self._client.close)

    def get(self, path: str, **query: Any) -> Any:
        """What a route answers."""
        asked = {name: value for name, value in query.items() if value is not None}
        return self._answer("GET", path, params=asked).json()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What a route answers to a body."""
        return self._answer("POST", path, json=dict(body)).json()

    def lines(self, path: str, **query: Any) -> Iterator[Any]:
        """The objects of a route that answers JSON lines."""
        for line in self._answer("GET", path, params=query).text.split("\n"):
            if line:
                yield json.loads(line)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a stream, as they come. Whoever stops listening closes it, and frees the server's row."""
        try:
            with self._client.stream("POST", path, json={**body, "stream": True}) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise refusal(answer.status_code, answer.text, answer.headers)
                for line in answer.iter_lines():
                    event = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or event == DONE:
                        continue
                    told = json.loads(event)
                    if "error" in told:
                        raise refusal(_status(told["error"]), event, {})
                    yield told
        except self._httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def close(self) -> None:
        """Let go of the connections; else it is done when nobody holds this any more."""
        self._ended()

    def _answer(self, method: str, path: str, **more: Any) -> Any:
        try:
            answer = self._client.request(method, path, **more)
        except self._httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.status_code >= 400:
            raise refusal(answer.status_code, answer.text, answer.headers)
        return answer

    def _unreachable(self, error: Exception) -> NoAnswer:
        return NoAnswer(f"No answer from {self.url}: {error or type(error).__name__}. Is the server running?")


def _status(error: Mapping[str, Any]) -> int:
    """What an error that ends a stream would have been, had the answer begun with it."""
    if error.get("code") == "stopping":
        return 503
    return 400 if error.get("type") == "invalid_request_error" else 500


def refusal(status: int, text: str, headers: Mapping[str, str]) -> Exception:
    """An answer of 400 or above as an error, in the server's words."""
    try:
        message = str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The server answered {status}: {text[:200]}"
    if status == 429:
        wait = headers.get("retry-after", "1")
        return Busy(message, float(wait) if wait.isdecimal() else 1.0)
    if status == 503:
        return Stopped(message)
    return BadInput(message) if status in (400, 404, 413, 422) else NoAnswer(message)
