"""How things look in a terminal: tokens tinted by activation, tables, streams. Plain text where there is no colour."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsight.edits import Controller
from sparsight.records import SPECIAL

# Weak to strong. Letters and ground are set together, so that they can be read on dark and light screens alike.
TINTS = ("white on #4a3c08", "white on #6b540a", "white on #8f6c0a", "black on #c8960c", "black on #ffc21a")


def console() -> Console:
    """Standard output; without colour where it is no terminal."""
    return Console(highlight=False, soft_wrap=True)


def tinted(texts: Iterable[str], strengths: Iterable[float]) -> Text:
    """Tokens on a ground that is the brighter, the stronger; strengths from 0 to 1."""
    line = Text()
    for text, strength in zip(texts, strengths, strict=True):
        step = min(int(strength * len(TINTS)), len(TINTS) - 1)
        line.append(text, style=TINTS[step] if strength > 0.02 else "")
    return line


def show_reading(reading: Any, top: int) -> None:
    """One line a token: its strongest features, each with its activation."""
    out = console()
    peak = max((value for pairs in reading.codes for _, value in pairs), default=1.0) or 1.0
    for token in reading.tokens(top):
        line = Text(f"{shown(token.text):>18} ", style="dim" if token.kind & SPECIAL else "")
        for feature, value in token.features:
            label = f" {reading.labels[feature]}" if feature in reading.labels else ""
            line.append(" ").append(tinted([f"{feature}{label}"], [value / peak])).append(f" {value:.2f}", "dim")
        out.print(line)


def show_demo(scope: Any, prompt: str, wish: Controller, out: Any) -> None:
    """The story of `sparsight demo`: the model writes, its features show, one is turned up."""
    page = console()
    feature = next(iter(wish.walk())).feature
    page.print(Text(f"{scope!r}\n", style="dim"))
    page.rule("the model writes", align="left")
    page.print(Text(prompt, style="bold"), written(scope, out.plain, feature.index), sep="")
    page.print(Text("\nwhat fired, token by token (the strongest feature of each)", style="dim"))
    for text, pairs in list(zip(texts_of(scope, out.plain), out.plain.codes, strict=True))[:14]:
        page.print(Text(f"{shown(text):>14}  ") + named(scope, pairs[:3]))
    page.print()
    page.rule(f"{wish}", align="left")
    page.print(Text(prompt, style="bold"), written(scope, out.steered, feature.index), sep="")
    page.print(Text(f"\n{out.steered.receipt}", style="dim"))
    page.print(Text(f"tinted: where feature {feature.index} is active by itself", style="dim"))
    page.print(Text("\ntry:  sparsight chat --edit '" + edit_line(wish) + "' --compare", style="dim"))
    page.print(Text("      sparsight read 'Once upon a time there was a little dog.'", style="dim"))


def written(scope: Any, reply: Any, feature: int) -> Text:
    """A reply's tokens, tinted by one feature."""
    values = reply.codes.of(feature)
    peak = float(values.max()) if len(values) and float(values.max()) > 0 else 1.0
    return tinted(texts_of(scope, reply), (values / peak).tolist())


def texts_of(scope: Any, reply: Any) -> list[str]:
    """Each token's own text; a final stop token shows as nothing."""
    from sparsight.lm.text import pieces

    texts = list(pieces(scope.lm.tokenizer, reply.ids))
    return [*texts[:-1], ""] if reply.finish == "stop" and texts else texts


def named(scope: Any, pairs: Iterable[tuple[int, float]]) -> Text:
    """Features with their labels and activations."""
    line = Text()
    for feature, value in pairs:
        label = f" {scope.features.labels[feature]}" if feature in scope.features.labels else ""
        line.append(f"{feature}{label}").append(f" {value:.1f}  ", style="dim")
    return line


def show_comparison(out: Any) -> None:
    """Both answers and the receipt."""
    page = console()
    page.print(Text("unsteered  ", style="dim") + Text(out.plain.text.strip()))
    page.print(Text("steered    ", style="dim") + Text(out.steered.text.strip()))
    page.print(Text(f"           {out.steered.receipt}", style="dim"))


def comparison_json(out: Any) -> dict[str, Any]:
    """A comparison as plain data."""

    def reply(one: Any) -> dict[str, Any]:
        receipt = None if one.receipt is None else vars(one.receipt)
        top = [[[f, round(v, 4)] for f, v in pairs[:8]] for pairs in one.codes]
        return {"text": one.text, "finish": one.finish, "ids": list(one.ids), "receipt": receipt, "features": top}

    return {"plain": reply(out.plain), "steered": reply(out.steered)}


def stream(chunks: Iterator[Any]) -> str:
    """Print a reply while it is written; give its text."""
    text = ""
    for chunk in chunks:
        text += chunk.text
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return text


def lines(talks: bool) -> Iterator[str]:
    """What a person types, or what a pipe holds, line by line until /quit or the end."""
    asking = sys.stdin.isatty()
    if asking:
        how = "Talk" if talks else "Begin a text, the model goes on"
        print(f"{how}. /quit ends.", file=sys.stderr)
    while True:
        if asking:
            sys.stdout.write("> ")
            sys.stdout.flush()
        raw = sys.stdin.buffer.readline()
        line = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if not raw or line.strip() in ("/quit", "/exit"):
            return
        if line.strip():
            yield line


def show_table(about: Mapping[str, Any]) -> None:
    """Two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in about.items():
        said = (
            ("no", "yes")[value] if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else str(value)
        )
        table.add_row(Text(name, style="dim"), Text(said))
    console().print(table)


def show_doctor(found: Mapping[str, Any]) -> None:
    """The machine, then what would fit on it."""
    show_table({name: value for name, value in found.items() if name != "fits"})
    table = Table(
        title="\nWould it fit, with a 16x SAE and 8,192 tokens of KV cache, in bfloat16?",
        title_justify="left",
        box=None,
    )
    for column in ("model", "needs", "fits"):
        table.add_column(column, justify="left")
    for row in found["fits"]:
        table.add_row(row["model"], f"{row['needs_gb']:.1f} GB", "yes" if row["fits"] else "no")
    console().print(table)


def shown(text: str) -> str:
    """A token on one line."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍") or "·"


def edit_line(wish: Controller) -> str:
    """The first edit as the command line takes it."""
    edit = next(iter(wish.walk()))
    sign = {"nudge": f"{edit.value:+g}", "pin": f"{edit.value:g}", "scale": f"*{edit.value:g}", "ablate": "off"}
    return f"{edit.feature.index}={sign[edit.op]}" + ("raw" if edit.feature.unit == "raw" else "")
