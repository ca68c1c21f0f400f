"""How a server is set up: where it listens, what it serves, what it takes in. Plain settings, without torch."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sparsight.config import check, knob
from sparsight.errors import BadInput


@dataclass(frozen=True)
class ServeSpec:
    """One server process."""

    host: str = knob("127.0.0.1", "address to listen at; any but this machine's own needs a key; 0.0.0.0: all")
    port: int = knob(8000, "port to listen at; 0: any that is free")
    rows: int = knob(32, "requests that a model writes at once")
    queue: int = knob(256, "requests that may wait for a row, of each model; those beyond are told to come again")
    longest: int | None = knob(
        None,
        "tokens that a row holds, prompt and answer together; None: the model's context, which may take much memory",
    )
    prefix_bytes: int = knob(
        2**28, "memory for the beginnings of prompts that were read, on the model's device; 0: none"
    )
    compiled: bool = knob(False, "decode with a compiled step")
    keys: str | None = knob(
        None, "SQLite file of keys and saved variants; None: in the data folder of this user, sparsight/serve.db"
    )
    request_seconds: float = knob(600.0, "longest that a request may take, its answer included")
    drain_seconds: float = knob(30.0, "time that running answers have to end in, after SIGTERM")
    body_bytes: int = knob(8_000_000, "largest body of a request, in bytes")
    body_seconds: float = knob(30.0, "longest that a body may take to arrive")
    choices: int = knob(16, "largest `n`, answers to one request")
    prompts: int = knob(64, "most prompts in one request for completions")
    writer: str | None = knob(
        None, "model elsewhere that writes contrastive chats, by its endpoint's name; None: the served one"
    )
    writer_url: str | None = knob(None, "where that endpoint's API begins; None: OpenAI's own")
    writer_key_env: str | None = knob(
        None, "environment variable with its key; None: OPENAI_API_KEY, and none for another writer_url"
    )
    cors: tuple[str, ...] = knob((), "web origins whose pages may call this server, as https://example.org; *: any")
    log_prompts: bool = knob(False, "write what is asked and answered into the log")

    def __post_init__(self) -> None:
        origins = (self.cors,) if isinstance(self.cors, str) else tuple(self.cors)
        object.__setattr__(self, "cors", origins)
        check(self.host, "host", self.host, "an address, as 127.0.0.1")
        check(self.port, "port", 0 <= self.port < 65536, "a number from 0 to 65535")
        for name in ("rows", "queue", "body_bytes", "choices", "prompts"):
            check(getattr(self, name), name, getattr(self, name) >= 1, "a whole number from 1 up")
        check(self.longest, "longest", self.longest is None or self.longest >= 2, "a whole number from 2 up")
        check(self.prefix_bytes, "prefix_bytes", self.prefix_bytes >= 0, "a number of bytes from 0 up")
        for name in ("request_seconds", "body_seconds"):
            check(getattr(self, name), name, 0 < getattr(self, name) <= 1e9, "a number of seconds above 0")
        check(self.drain_seconds, "drain_seconds", 0 <= self.drain_seconds <= 1e9, "a number of seconds from 0 up")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def keys_file(self) -> Path:
        """Where keys and variants are kept."""
        return default_keys_file() if self.keys is None else Path(self.keys).expanduser()


@dataclass(frozen=True)
class ModelSpec:
    """One model that is served, and its SAE."""

    model: str = knob("demo", "'demo', a folder, a name on the hub")
    sae: str | None = knob(None, "a folder, the model card's .pth, a repository on the hub; the demo has its own")
    hook_point: str | None = knob(None, "where the SAE reads; None: what the SAE says")
    atlas: str | None = knob(None, "folder of the SAE's atlas: labels and units of its features")
    device: str | None = knob(None, "cpu, cuda, mps, auto; None: the GPU where there is one")
    dtype: str | None = knob(None, "bfloat16, float16, float32; None: the model's own on a GPU, float32 on a CPU")
    names: tuple[str, ...] = knob((), "names that it is served under, the first one its own; none: its model's name")

    def __post_init__(self) -> None:
        names = (self.names,) if isinstance(self.names, str) else tuple(self.names)
        object.__setattr__(self, "names", names)
        for name in self.served:
            if not name or ":" in name or not name.isprintable():
                raise BadInput(f"A model is not served as {name!r}: a ':' stands before a variant. Give another name.")

    @property
    def served(self) -> tuple[str, ...]:
        """The names that it is served under."""
        return self.names or (self.model.rstrip("/").rsplit("/", 1)[-1] if _is_folder(self.model) else self.model,)


def check_names(models: Iterable[ModelSpec]) -> None:
    """Raises BadInput where two models have one name."""
    names = [name for model in models for name in dict.fromkeys(model.served)]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"Two models are served as '{name}'. Give them other names: --alias, or names in [[model]].")


def _is_folder(model: str) -> bool:
    return Path(model).expanduser().is_dir()


def default_keys_file() -> Path:
    """Keys and variants, where no file is named: in this user's data folder."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "sparsight" / "serve.db"
