"""One HTTP endpoint, asked with patience: what may pass is tried again, what will not is told at once.

Tried again, after a wait that doubles (or as long as Retry-After says): 408, 409, 425, 429, 5xx, no connection, no
answer in time, an answer that breaks off or is no JSON. A parameter that this endpoint refuses though it is only nice
to have is left out from then on.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from sparsight.disk import first_line
from sparsight.errors import Missing, NoAnswer
from sparsight.label.clients.client import Answer, Hold, Question
from sparsight.label.clients.spec import EndpointSpec

PASSING = {408, 409, 425, 429}
LONGEST_BACKOFF = 60.0  # seconds
MOST_BYTES = 16 << 20  # of an answer
FIRST_TRIES = 2  # retries of a connection to an endpoint that nobody has reached yet: it is likely misspelt
ROOM = 256  # tokens that a chat template may add to a prompt, generously


class Failed(Exception):
    """One attempt that failed. again: whether another may succeed; billed: whether it may have cost something all the
    same; after: seconds that the endpoint wants to be left alone; status: of HTTP; reached: whether anybody was there.
    """

    def __init__(self, why: str, *, again: bool, billed: bool, after: float | None = None, status: int | None = None,
                 reached: bool = True) -> None:  # fmt: skip
        super().__init__(why)
        self.again, self.billed, self.after, self.status, self.reached = again, billed, after, status, reached


class Shape(Exception):
    """An answer that is JSON, but not what this kind of API answers."""


class Unsaid(Exception):
    """An answer that ended at its limit before it said anything."""


class Endpoint:
    """Sends JSON to one URL, from any number of threads, spec.concurrency of them at a time. headers may hold the key:
    it is in no message of ours.

    dispensable: {name: pattern of the refusals that mean it}, of what a body can go without.
    Raises Missing where httpx is not installed.
    """

    def __init__(
        self, spec: EndpointSpec, url: str, headers: Mapping[str, str], key: str | None, dispensable: Mapping[str, str]
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise Missing("httpx is not installed: pip install 'sparsight[label]'.") from error
        self.spec, self.url, self.host, self._key = spec, url, urlsplit(url).netloc, key
        limits = httpx.Limits(max_connections=spec.concurrency, max_keepalive_connections=spec.concurrency)
        timeout = httpx.Timeout(spec.timeout, pool=None)
        self._http = httpx.Client(headers=dict(headers), limits=limits, timeout=timeout, follow_redirects=False)
        self._dispensable, self._without = dispensable, frozenset[str]()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._slots = threading.BoundedSemaphore(spec.concurrency)
        self._not_before, self._reached = 0.0, False

    def close(self) -> None:
        """Send nothing more; whoever waits to try again gives up."""
        self._closed.set()
        self._http.close()

    def post(
        self, make: Callable[[frozenset[str]], Any], read: Callable[[Any], Answer], hold: Hold = nullcontext
    ) -> Answer:
        """What the endpoint answers. make: the body, without the things that are named; read: the answer's JSON as an
        Answer, or Shape. Raises NoAnswer with the host, the status and what was said."""
        tries = 0
        while True:
            self._wait(self._not_before - time.monotonic())
            without = self._without
            try:
                with self._slots, hold():
                    return self._once(make(without), read)
            except Failed as failure:
                if self._refused(failure, without):
                    continue
                most = self.spec.retries if failure.reached or self._reached else min(FIRST_TRIES, self.spec.retries)
                if not failure.again or tries >= most:
                    raise self._told(failure, tries) from failure
                if failure.after is not None and failure.after > self.spec.patience:
                    raise NoAnswer(
                        f"{self.host} asks to be left alone for {failure.after:,.0f} s: run this again then, and what "
                        "was answered so far is not asked again."
                    ) from failure
                self._rest(failure, tries)
                tries += 1

    def _once(self, body: Any, read: Callable[[Any], Answer]) -> Answer:
        import httpx

        deadline = time.monotonic() + self.spec.timeout
        try:
            with self._http.stream("POST", self.url, json=body) as response:
                status, headers, raw = response.status_code, response.headers, self._read(response, deadline)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            why = f"cannot be reached: {self._safe(first_line(error))}"
            raise Failed(why, again=True, billed=False, reached=False) from error
        except httpx.TimeoutException as error:
            raise Failed(f"gave no answer in {self.spec.timeout:g} s", again=True, billed=True) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            why = f"broke off its answer: {self._safe(first_line(error))}"
            raise Failed(why, again=True, billed=True) from error
        self._reached = True
        text = raw.decode("utf-8", "replace")
        if not 200 <= status < 300:
            raise self._failure(status, text, retry_after(headers))
        try:
            told = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Failed(f"answered what is no JSON: {self._first(text)}", again=True, billed=True) from error
        if isinstance(told, Mapping) and told.get("error"):  # gateways pass a refusal on within a 200
            code = told["error"].get("code") if isinstance(told["error"], Mapping) else None
            raise self._failure(code if isinstance(code, int) else 400, text, retry_after(headers))
        try:
            return read(told)
        except Shape as error:
            why = f"answered in another shape ({error}; is this the right base_url?): {self._first(text)}"
            raise Failed(why, again=False, billed=True) from error
        except Unsaid as error:
            why = "used its tokens up before it said anything: give it room to think in (thinking=4096)"
            raise Failed(why, again=False, billed=True) from error

    def _read(self, response: Any, deadline: float) -> bytes:
        """The body. A timeout of httpx is of one piece of it; this one is of all."""
        raw = bytearray()
        for piece in response.iter_bytes():
            raw += piece
            if time.monotonic() > deadline:
                raise Failed(f"gave no whole answer in {self.spec.timeout:g} s", again=True, billed=True)
            if len(raw) > MOST_BYTES:
                raise Failed(f"answered more than {MOST_BYTES >> 20} MiB", again=False, billed=True)
        return bytes(raw)

    def _failure(self, status: int, text: str, after: float | None) -> Failed:
        spent = "insufficient_quota" in text  # a 429 that no patience helps
        again = (status in PASSING or (status >= 500 and status != 501)) and not spent
        return Failed(f"answered {status}: {self._first(text)}", again=again, billed=False, after=after, status=status)

    def _refused(self, failure: Failed, without: frozenset[str]) -> bool:
        """Whether it was because of something that the body can go without, and was not yet without."""
        if failure.status not in (400, 403, 422):
            return False
        for name, pattern in self._dispensable.items():  # one at a time: the rest may be taken then
            if name not in without and re.search(pattern, str(failure), re.IGNORECASE):
                self._without = self._without | {name}
                return True
        return False

    def _rest(self, failure: Failed, tries: int) -> None:
        """Wait before the next try; where the endpoint said how long, all threads do."""
        if failure.after is not None:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + failure.after)
        self._wait(min(self.spec.backoff * 2**tries, LONGEST_BACKOFF) * random.uniform(0.5, 1))

    def _wait(self, seconds: float) -> None:
        if self._closed.wait(max(seconds, 0)) if seconds > 0 else self._closed.is_set():
            raise NoAnswer(f"{self.host} is not asked any more: the client was closed.")

    def _told(self, failure: Failed, tries: int) -> NoAnswer:
        times = f" ({tries + 1} times)" if tries else ""
        hint = {401: " Is the key right?", 403: " Is the key right?", 404: " Are base_url and model right?"}
        return NoAnswer(f"{self.host} {failure}{times}.{hint.get(failure.status or 0, '')}")

    def _first(self, text: str) -> str:
        """What an answer says, in one line: its error's message where it is JSON with one, else its first line."""
        try:
            told = json.loads(text)
            error = told.get("error", told) if isinstance(told, Mapping) else told
            text = error.get("message") or error.get("detail") or text if isinstance(error, Mapping) else str(error)
        except (ValueError, RecursionError):
            pass
        lines = [line.strip() for line in str(text).splitlines() if line.strip()]
        return self._safe(lines[0] if lines else "(nothing)")

    def _safe(self, text: str) -> str:
        """Without the key, should somebody have repeated it, and not too long."""
        return (text.replace(self._key, "***") if self._key else text)[:300]


def most_tokens(question: Question, thinking: int) -> tuple[float, int]:
    """What a question can cost at most: no tokenizer makes more tokens than there are bytes."""
    sent = len((question.shared + question.text).encode()) + ROOM
    return float(sent), question.most_tokens + thinking


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, of a Retry-After in seconds or as a date (RFC 9110, 10.2.3), or of OpenAI's retry-after-ms."""
    said, milliseconds = headers.get("retry-after", ""), headers.get("retry-after-ms", "")
    for text, unit in ((milliseconds, 1e-3), (said, 1.0)):
        if re.fullmatch(r"\d{1,9}(\.\d+)?", text.strip()):
            return float(text) * unit
    try:
        date = parsedate_to_datetime(said)
    except (ValueError, TypeError, IndexError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max((date - datetime.now(UTC)).total_seconds(), 0.0)


def whole(told: Any) -> int:
    """A count of tokens, 0 where it is none."""
    return told if isinstance(told, int) and not isinstance(told, bool) and told >= 0 else 0
