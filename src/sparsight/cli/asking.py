"""Options of verbs that ask a language model, and what such a run tells at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from sparsight.cli.knobs import gathered, knob_options
from sparsight.config import build
from sparsight.label.clients.spec import WAYS, EndpointSpec

SECTION = "ask"


def asking_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Which model elsewhere is asked, how, and for how much; and the model itself, as the subject."""
    verb = knob_options(SECTION, flags={"model": "ask"}, kind=EndpointSpec)(verb)
    ways = click.Choice(WAYS)
    verb = click.option("--way", type=ways, help="How the subject is asked. [default: inject]")(verb)
    return click.option("--sae", "-s", help="The subject's SAE: a folder, a repository on the hub.")(verb)


def endpoint(options: dict[str, Any]) -> EndpointSpec:
    """The settings that were given."""
    return build(EndpointSpec, gathered(options).get(SECTION, {}), SECTION)


@contextmanager
def asking(judge: Any) -> Iterator[None]:
    """While a judge, and the labeller that shares its client, may be asked."""
    try:
        yield
    finally:
        if judge is not None:
            judge.ledger.client.close()


def tally(labeller: Any, judge: Any) -> dict[str, str]:
    """What was asked and could not be read, and what it cost; nothing for those who ask nobody."""
    rows = {}
    for what, one in (("answers without a label", labeller), ("judgements", judge)):
        if nonsense := getattr(one, "nonsense", 0):
            rows[f"{what} that are nonsense"] = f"{nonsense:,}"
    if judge is not None:
        ledger = judge.ledger
        rows["prompts answered"] = f"{ledger.asked:,} ({ledger.kept:,} more were there already)"
        if ledger.spec.price_in or ledger.spec.price_out:
            rows["spent on this atlas"] = f"${ledger.dollars:,.4f}"
    return rows
