"""Which language model is asked, how patiently, and for how much money at most: every knob with its unit. No httpx."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

from sparsight.config import check, knob
from sparsight.corpus.spec import check_whole
from sparsight.errors import BadInput
from sparsight.records import finite

WAYS = ("inject", "prompt")  # how the subject, the model itself, is asked


@dataclass(frozen=True)
class EndpointSpec:
    """An endpoint of language models. Its key is named, never held: see key_of."""

    model: str | None = knob(None, "model that is asked, by the endpoint's name for it")
    base_url: str | None = knob(None, "where the API begins, http://localhost:8000/v1; None: the method's own service")
    key_env: str | None = knob(
        None, "environment variable that holds the key; None: the service's usual one, and none for another base_url"
    )
    concurrency: int = knob(8, "requests that are under way at a time")
    timeout: float = knob(120.0, "seconds for one answer")
    retries: int = knob(6, "times that a request is sent again after a failure that may pass")
    backoff: float = knob(1.0, "seconds before the first retry; doubled for each further one, up to a minute")
    patience: float = knob(300.0, "longest wait, in seconds, that an endpoint may ask for; a longer one is an error")
    temperature: float | None = knob(None, "of the answers; None: 0 where the method has one, else the model's own")
    thinking: int = knob(0, "tokens that a model may think in before it answers; 0: one that can is asked not to")
    budget: float | None = knob(None, "dollars that this atlas's answers may cost in all, earlier runs counted in")
    price_in: float = knob(0.0, "dollars per million tokens that are sent")
    price_out: float = knob(0.0, "dollars per million tokens that are answered")
    dry_run: bool = knob(False, "send nothing: say how many prompts, tokens and dollars it would be")

    def __post_init__(self) -> None:
        for name in ("model", "base_url", "key_env"):
            given = getattr(self, name)
            check(given, name, given is None or (isinstance(given, str) and given), "a name or None")
        if self.base_url is not None:
            _check_url(self.base_url)
        for name, least in (("concurrency", 1), ("retries", 0), ("thinking", 0)):
            check_whole(getattr(self, name), name, least)
        for name in ("timeout", "backoff", "patience", "price_in", "price_out"):
            value = finite(getattr(self, name), name)
            check(value, name, value > 0 if name == "timeout" else value >= 0, "a number from 0 up")
        check(self.dry_run, "dry_run", isinstance(self.dry_run, bool), "True or False")
        if self.temperature is not None:
            value = finite(self.temperature, "temperature")
            check(value, "temperature", value >= 0, "a number from 0 up, or None")
        if self.budget is not None:
            value = finite(self.budget, "budget")
            check(value, "budget", value >= 0, "a number of dollars from 0 up")
            if not (self.price_in or self.price_out):
                raise BadInput("A budget needs prices: say price_in and price_out, in dollars per million tokens.")

    def url(self, service: str, path: str) -> str:
        """Where a request goes. service: the method's own base_url. A host alone means its /v1."""
        base = (self.base_url or service).rstrip("/")
        return f"{base}{'' if urlsplit(base).path else '/v1'}/{path}"

    def key_of(self, usual: str) -> str | None:
        """The key, from the environment. usual: the variable where the service's own key is looked for; to another
        base_url no key is sent but one that was named.

        Raises BadInput where there is none, or where it is none that a header can hold; never with the key in it.
        """
        name = self.key_env or (usual if self.base_url is None else None)
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key:
            raise BadInput(f"There is no key: set the environment variable {name}, or name another with key_env.")
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise BadInput(f"What the environment variable {name} holds is no key: it has spaces or odd characters.")
        return key

    @classmethod
    def knobs(cls) -> dict[str, str]:
        """What each knob means."""
        return {f.name: f.metadata["says"] for f in fields(cls)}


def _check_url(url: str) -> None:
    """Raises BadInput, without the URL in it where that may hold a secret."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        right, parts = False, urlsplit("")
    if parts.username or parts.password or parts.query:
        raise BadInput("A base_url holds no key: put that into an environment variable, and name it with key_env.")
    if not right:
        raise BadInput(f"base_url is as http://localhost:8000/v1, not {url[:60]!r}.")
