"""What Prometheus may read of a server: how busy each model is, how fast it writes, how requests fare."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sparsight.serve.catalog import Catalog

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Metrics:
    """One app's; each app has a registry of its own."""

    def __init__(self, catalog: Catalog) -> None:
        self.registry = registry = CollectorRegistry()
        of = ["model"]
        self.requests = Histogram(
            "sparsight_request_seconds",
            "From a request's first byte to its answer's last, by route and status code.",
            ["method", "route", "code"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first = Histogram(
            "sparsight_time_to_first_token_seconds",
            "From asking the engine to an answer's first token, waiting included.",
            of,
            buckets=SECONDS,
            registry=registry,
        )
        self.between = Histogram(
            "sparsight_time_between_tokens_seconds",
            "Between two tokens of an answer.",
            of,
            buckets=BETWEEN,
            registry=registry,
        )
        self.read = Counter("sparsight_prompt_tokens", "Tokens of prompts.", of, registry=registry)
        self.cached = Counter(
            "sparsight_cached_prompt_tokens", "Of those, tokens that were not run again.", of, registry=registry
        )
        self.told = Counter("sparsight_completion_tokens", "Tokens told to callers.", of, registry=registry)
        self.steered = Counter("sparsight_steered_answers", "Answers with edits.", of, registry=registry)
        registry.register(_Engines(catalog))

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _Engines(Collector):
    """Asked of the engines whenever the page is read. A model is told of under the first of its names."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def collect(self) -> Iterable[Metric]:
        gauges = {
            "rows": "Requests that are written now.",
            "capacity": "Requests that can be written at once.",
            "waiting": "Requests that wait for a row.",
            "queue": "Requests that may wait.",
        }
        counters = {"written": "Tokens written, those of vanished callers too.", "steps": "Steps of the model."}
        loads = [(self.catalog.name_of(engine), engine.load()) for engine in self.catalog.each()]
        kinds = [(GaugeMetricFamily, gauges), (CounterMetricFamily, counters)]
        for kind, names in kinds:
            for name, says in names.items():
                family = kind(f"sparsight_engine_{name}", says, labels=["model"])
                for model, load in loads:
                    family.add_metric([model], getattr(load, name))
                yield family
