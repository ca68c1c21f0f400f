"""Which models a server serves, and under which names. A model may have several names; there may be several models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sparsight.errors import BadInput
from sparsight.serve.engine import Engine


class NoModel(BadInput):
    """A model name that is not served."""


class Catalog:
    """engines: served name -> engine, in the order in which they are listed."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        if not engines:
            raise BadInput("A server needs a model to serve.")
        self.engines = dict(engines)

    def __iter__(self) -> Iterator[str]:
        return iter(self.engines)

    def __getitem__(self, name: str) -> Engine:
        """Raises NoModel, which lists the served names in the words that Ember's clients look for."""
        if name not in self.engines:
            names = [f"'{served}'" for served in self.engines]
            listed = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
            raise NoModel(f"Input should be {listed}. Asked for {name!r}.")
        return self.engines[name]

    @property
    def first(self) -> Engine:
        """The engine of the first name: where a route names no model."""
        return next(iter(self.engines.values()))

    def each(self) -> list[Engine]:
        """Every engine once."""
        return list(dict.fromkeys(self.engines.values()))

    def name_of(self, engine: Engine) -> str:
        """The first name that an engine is served under."""
        return next(name for name, served in self.engines.items() if served is engine)
