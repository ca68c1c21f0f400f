"""What writes for the server: one protocol, so that another engine can stand in the embedded one's place.

    stream = engine.submit(Request(prompt, sampling, controller))
    async for update in stream: ...        one new token each
    await stream.aclose()                  whoever stops listening frees the row within one step

An engine knows prompts, sampling and controllers; it knows nothing of HTTP, of keys, or of any wire.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sparsight.edits import Controller
from sparsight.lm.batch import Prompt
from sparsight.records import Receipt, Sampling
from sparsight.scope.scope import Scope

T = TypeVar("T")


@dataclass(frozen=True)
class FeatureWish:
    """Which features to tell of each new token: the top_k strongest, and those of include wherever they are active."""

    top_k: int = 8
    include: tuple[int, ...] = ()


@dataclass(frozen=True)
class Request:
    """One row's work. logprobs: None for none, else how many likeliest tokens to tell beside the chosen one. features:
    None for none. owner: whose it is; waiting requests are taken owner by owner, in turns."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    controller: Controller = field(default_factory=Controller)
    logprobs: int | None = None
    features: FeatureWish | None = None
    owner: str = ""


@dataclass(frozen=True)
class Active:
    """A feature at a token: its activation before any edit (raw), and whether this request's edits changed it there."""

    feature: int
    activation: float
    edited: bool = False


@dataclass(frozen=True)
class Update:
    """One new token of a request.

    text: what may be shown now; it lags behind inside a character or a possible stop string. finish: None, "stop" or
    "length". logprob, top: natural logarithms, of the distribution that was sampled from before temperature and
    filters; top holds (token id, logprob), likeliest first. events: names that came true at this token. receipt: with
    the last update, where the request is steered. cached: with the first, prompt tokens that were not run again.
    """

    index: int
    id: int
    text: str
    finish: str | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    features: tuple[Active, ...] = ()
    events: tuple[str, ...] = ()
    receipt: Receipt | None = None
    cached: int = 0


@dataclass(frozen=True)
class Load:
    """How busy an engine is now. rows: requests that are written at present, of `capacity`; waiting: in the queue, of
    `queue`; written: tokens so far; steps: so far."""

    rows: int
    capacity: int
    waiting: int
    queue: int
    written: int
    steps: int


class Engine(Protocol):
    """Writes for many requests at once."""

    @property
    def scope(self) -> Scope:
        """The model and its SAE, as data: names, tokenizer, features, atlas. Passes go through `run`."""
        ...

    def start(self) -> None:
        """Make ready, and prove on itself that an edit acts. Raises NotSteered where it does not: then it must not
        serve."""
        ...

    def submit(self, request: Request) -> AsyncGenerator[Update, None]:
        """Put a request into the queue. At once, not at the first `anext`: raises Busy where the queue is full,
        BadInput or TooLong for what cannot be done. While it is listened to, raises whatever ended it early."""
        ...

    async def run(self, work: Callable[[Scope], T], long: bool = False) -> T:
        """Something else that needs the model (reading, contrast, attribution), between two steps. long: of very many
        passes, so that rows go on being written between those; where this is cancelled it ends before its next pass.
        Raises what it raises, and Busy where too much waits."""
        ...

    def load(self) -> Load:
        """How busy it is."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it has started, and goes on."""
        ...

    async def drain(self, seconds: float) -> bool:
        """Take nothing new, and let what is being written end; True where all of it ended in that time."""
        ...

    def stop(self) -> None:
        """End everything; who still listens hears Stopped."""
        ...


def facts(load: Load) -> dict[str, Any]:
    """As plain data."""
    return {name: getattr(load, name) for name in Load.__dataclass_fields__}
