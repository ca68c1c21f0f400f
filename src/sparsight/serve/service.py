"""What a server has: its models, settings, keys and variants, limits, metrics. One of it for each app."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from sparsight import __version__
from sparsight.edits import Controller
from sparsight.serve.catalog import Catalog
from sparsight.serve.engine import Engine
from sparsight.serve.limits import Limits
from sparsight.serve.metrics import Metrics
from sparsight.serve.spec import ServeSpec
from sparsight.serve.store import Store, Variant
from sparsight.serve.writer import writer_of


@dataclass(frozen=True)
class Served:
    """What a model name stands for. name: as asked for; controller: of the variant, empty where it names none."""

    name: str
    engine: Engine
    controller: Controller = field(default_factory=Controller)

    @property
    def fingerprint(self) -> str:
        """Changes with whatever could change an answer of an unsteered request."""
        scope = self.engine.scope
        about = f"{scope.lm.name}/{scope.lm.dtype}/{scope.hook_point}/{scope.sae.fingerprint}/{__version__}"
        return f"fp_{hashlib.sha256(about.encode()).hexdigest()[:12]}"


@dataclass
class Service:
    """strict: without keys, callers must call this machine by an address or as localhost, so that no web page can have
    its own name lead here. ready: engines have started; failure: why one did not; draining: nothing new is taken in."""

    catalog: Catalog
    settings: ServeSpec
    store: Store
    limits: Limits = field(default_factory=Limits)
    strict: bool = False
    ready: bool = False
    failure: Exception | None = None
    draining: bool = False
    stopped: bool = False

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.catalog)
        self.writer = writer_of(self.settings)

    def served(self, name: str) -> Served:
        """By "model", or "model:variant". Raises NoModel."""
        if name in self.catalog.engines:
            return Served(name, self.catalog[name])
        base, colon, saved = name.rpartition(":")
        variant = self.store.variant(saved) if colon and base in self.catalog.engines else None
        if variant is None or not self.is_of(variant, base):
            self.catalog[name]  # raises
        assert variant is not None
        return Served(name, self.catalog[base], variant.controller)

    def is_of(self, variant: Variant, name: str) -> bool:
        """Whether a variant was saved for this model, under whichever of its names."""
        engines = self.catalog.engines
        return variant.model in engines and engines[variant.model] is engines.get(name)

    @property
    def needs_key(self) -> bool:
        """Whether a caller has to show a key: where there are any, and wherever others can reach this server."""
        return not self.settings.is_local or self.store.has_keys()
