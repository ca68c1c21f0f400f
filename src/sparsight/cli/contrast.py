"""Verbs that ask why: contrast, attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from sparsight.cli.options import as_json, model_options, print_json
from sparsight.cli.talk import _scope
from sparsight.errors import BadInput


@click.command()
@click.argument("with_", metavar="WITH")
@click.argument("without", metavar="WITHOUT")
@model_options
@click.option("--top", "-k", type=click.IntRange(0, 10_000), default=10, show_default=True, help="Of either side.")
@click.option("--where", multiple=True, help="Which tokens: assistant, user, ... [default: the assistant's, else all]")
@click.option("--pool", default="mean", show_default=True, help="Of a chat's tokens: mean or peak.")
@click.option("--paired", is_flag=True, help="The first of one file belongs to the first of the other, and so on.")
@click.option("--held-out", default=0.25, show_default=True, help="Share of the chats that take no part in choosing.")
@as_json
def contrast(with_: str, without: str, top: int, where: tuple[str, ...], json_: bool, **more: Any) -> None:
    """Features that tell the chats of one file from those of another, both ways.

    A file holds chats, as for harvest (JSON lines, JSON, Parquet), or a text on each line (.txt).
    """
    from sparsight.scope.contrast import contrast as between

    how = {name: more.pop(name) for name in ("pool", "paired", "held_out")}
    sides = [_chats(source) for source in (with_, without)]
    scope, _ = _scope(more)
    found = between(scope, sides[0], sides[1], top, where=where or None, **how)
    print_json(asdict(found)) if json_ else _show_contrast(found)


@click.command()
@click.argument("text")
@model_options
@click.option("--chat", "as_chat", is_flag=True, help="Read TEXT as a user's message, within the chat template.")
@click.option("--reply", help="What the model answers to TEXT: its tokens are asked about.")
@click.option(
    "--start", type=int, help="The first token that is asked about. [default: the last of all, or the reply's]"
)
@click.option("--end", type=int, help="One past the last of them. [default: that one alone, or the whole reply]")
@click.option("--top", "-k", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@click.option("--plain-logits", is_flag=True, help="The logits themselves, not less the mean over the vocabulary.")
@click.option("--check", "checked", is_flag=True, help="Ablate the features with the largest values, and compare.")
@as_json
def attribute(
    text: str,
    as_chat: bool,
    reply: str | None,
    start: int | None,
    end: int | None,
    top: int,
    plain_logits: bool,
    checked: bool,
    json_: bool,
    **more: Any,
) -> None:
    """Which features raised the logits of tokens of TEXT, and at which tokens before them."""
    from sparsight.records import Kind
    from sparsight.scope.attribution import attribute as share_out
    from sparsight.scope.attribution import check

    scope, _ = _scope(more)
    said: Any = [{"role": "user", "content": text}] if as_chat or reply is not None else text
    if reply is not None:
        said = [*said, {"role": "assistant", "content": reply}]
    prompt = scope.lm.prompt(said) if isinstance(said, str) else scope.lm.prompt(said, add_generation_prompt=False)
    own = [i for i, kind in enumerate(prompt.kinds) if kind & Kind.ASSISTANT] if reply is not None else []
    if reply is not None and not own:
        raise BadInput("The reply is empty: there is nothing to ask about.")
    first = start if start is not None else own[0] if own else -1
    last = end if end is not None or start is not None or not own else own[-1] + 1
    found = share_out(scope, prompt, first, last, centred=not plain_logits)
    told = check(scope, found) if checked else None
    print_json(_attribution_json(found, top, told)) if json_ else _show_attribution(found, top, told)


def _chats(source: str) -> list[Any]:
    """The conversations of a file, in its order."""
    from sparsight.corpus.corpus import read
    from sparsight.corpus.spec import CorpusSpec

    found = read(CorpusSpec(source, documents="line", drop_duplicates=False, window=1, most_unreadable=0.0))
    return [list(one.messages) if one.text is None else one.text for one in found]


def _show_contrast(found: Any) -> None:
    from sparsight import screen

    out = screen.console()
    for name, side, chats, held in zip(
        ("with", "without"), (found.with_, found.without), found.chats, found.held_out, strict=True
    ):
        beside = f", judged on {held} others" if held else ""
        out.print(f"[bold]{name}[/bold]: {chats} chats{beside}; {found.tokens}, {found.pool}")
        out.print(_rows(_feature_row(one) for one in side) if side else "  nothing")
    if found.note:
        screen.note(found.note)


def _feature_row(one: Any) -> list[str]:
    """As in a table."""
    q = "–" if one.q is None else f"{one.q:.2g}"
    held = "–" if one.held_out is None else f"{one.held_out:.2f}"
    means = f"{one.mean:.3g} / {one.other:.3g}"
    return [str(one.feature), one.label or "", f"{one.score:.2f}", means, f"{one.auc:.2f}", held, q]


def _rows(rows: Any) -> Any:
    from rich.table import Table

    from sparsight.screen import visible

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("feature", "label", "score", "mean / other", "AUC", "held out", "q"):
        table.add_column(name, justify="left" if name == "label" else "right")
    for row in rows:
        table.add_row(*map(visible, row))
    return table


def _show_attribution(found: Any, top: int, told: Any) -> None:
    from rich.text import Text

    from sparsight import screen

    out = screen.console()
    target = "".join(found.texts[found.start : found.end])
    of = "less the mean over the vocabulary" if found.centred else "as it is"
    out.print(Text(f"logit of {target!r}: {sum(found.logits):.2f}, {of}", "bold"))
    for name, some in (("raised by", found.top(top)), ("lowered by", found.bottom(top))):
        out.print(Text(name, "dim"))
        for one in some:
            strongest = sorted(one.tokens, key=lambda at: -abs(at.value))[:4]
            where = ", ".join(f"{screen.shown(found.texts[at.token])!r} {at.value:+.2f}" for at in strongest)
            label = screen.labelled(found.labels, one.feature)
            out.print(Text(f"{one.value:+8.2f}  {label}  ").append(where, "dim"))
    out.print(Text(f"{found.rest:+8.2f}  in what the SAE does not explain", "dim"))
    if told:
        out.print(Text(f"ablating the {len(told.features)} largest: rank correlation {told.rank:.2f}"))


def _attribution_json(found: Any, top: int, told: Any) -> dict[str, Any]:
    """As plain data."""
    sides: dict[str, Sequence[Any]] = {"raised": found.top(top), "lowered": found.bottom(top)}
    data = {"tokens": list(found.texts), "start": found.start, "end": found.end, "logits": list(found.logits)}
    data |= {"centred": found.centred, "rest": found.rest}
    data |= {name: [asdict(one) for one in some] for name, some in sides.items()}
    return data | ({} if told is None else {"check": asdict(told)})
