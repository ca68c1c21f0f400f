"""How features look in a terminal: a table of those that were found, a page of one, documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.bar import Bar
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sparsight.records import ROLES, SPECIAL, Kind
from sparsight.screen import shown, tinted, visible

BLOCKS = "▁▂▃▄▅▆▇█"
COLUMNS = 40  # of a sparkline
ROLE_COLOURS = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow", "text": "blue"}
LISTED = 8  # neighbours and the like
BEFORE, AFTER = 40, 60  # tokens of a document, around the first place
QUANTILES = ("0.5", "0.9", "0.99", "0.999")


def page() -> Console:
    """Where all of this goes: standard output, lines wrapped at its width."""
    return Console(highlight=False)


def found_table(hits: Sequence[Mapping[str, Any]], what: str = "score") -> Table:
    """The features that a search, or a look at neighbours, gave. what: "score" of labels, or "cosine"."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    table.add_column("feature", justify="right", style="bold")
    table.add_column("label", ratio=3, overflow="fold")
    table.add_column(what, justify="right")
    table.add_column("density", justify="right")
    table.add_column("max", justify="right")
    table.add_column("fires on", ratio=2, no_wrap=True, overflow="ellipsis")
    for hit in hits:
        value = hit["score"] if what == "cosine" else hit["label_score"]
        table.add_row(
            str(hit["feature"]),
            said(hit["label"], hit["method"]),
            "" if value is None else graded(value),
            percent(hit["density"]),
            f"{hit['max']:.3g}",
            chips(hit["top_tokens"]),
        )
    return table


def said(label: str | None, method: str | None = None) -> Text:
    """A label; a human's is marked."""
    if not label:
        return Text("no label", style="dim italic")
    return Text(visible(" ".join(label.split()))).append(" ✎" if method == "human" else "", "yellow")


def graded(value: float) -> Text:
    """A score or a cosine."""
    return Text(f"{value:.2f}", style="green" if value >= 0.8 else "yellow" if value >= 0.65 else "dim")


def percent(share: float) -> str:
    """A share of all tokens, to two digits."""
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def chips(tokens: Iterable[str], style: str = "") -> Text:
    """Tokens by themselves, side by side; a space before a word shows."""
    line = Text()
    for token in tokens:
        mark = "␣" if token.startswith(" ") else ""
        line.append(" " if line else "").append(mark, "dim").append(shown(token.removeprefix(" ")), style or "default")
        line.append(" ")
    return line


# ── one feature ───────────────────────────────────────────────────────────────────────────────────────────────────


def feature_page(told: Mapping[str, Any], documents: int) -> Group:
    """What is known of one feature. told: scope.feature_data.feature_json. documents: how many were surveyed."""
    one = told["statistics"]
    parts: list[Any] = [headline(told)]
    parts += [Padding(line, (0, 0, 0, 2)) for line in map(label_line, told["labels"][1:])]
    if not one["fires"]:
        tokens = f"It never fired on {one['tokens']:,} tokens." if one["tokens"] else "It never fired."
        parts.append(Text(f"\n  {tokens}", style="dim"))
    else:
        parts += [Padding(how_often(one, documents), (1, 0, 0, 2)), figures(told)]
    for name, key in (("strongest", "strongest"), ("a fair sample of all activations", "sample")):
        if told[key]:
            parts += [Text(), Rule(Text(name, style="dim"), align="left", style="dim")]
            parts.append(windows_table(told[key], one["max"]))
    return Group(*parts)


def headline(told: Mapping[str, Any]) -> Text:
    """Its number, its best label, and whose that is."""
    line = Text(f"feature {told['feature']}", style="bold").append("  ")
    if not told["labels"]:
        line.append("no label", "dim italic")
    else:
        line.append_text(label_line(told["labels"][0], "bold yellow"))
    for flag in told["statistics"]["flags"]:
        line.append("  ").append(f" {flag} ", "black on bright_black")
    return line


def label_line(label: Mapping[str, Any], style: str = "") -> Text:
    """A label, who wrote it, and its scores with their intervals."""
    line = Text(visible(" ".join(label["text"].split())), style=style)
    maker = " ".join(filter(None, (label["method"], label["model"])))
    line.append(f"   {visible(maker)}", "not bold dim")
    for name, score in sorted(label["scores"].items(), key=lambda pair: pair[0] != "detection"):
        between = "" if score["low"] is None else f" ({score['low']:.2f} to {score['high']:.2f})"
        line.append(f"  {visible(name)} ", "not bold dim").append_text(graded(score["value"]))
        line.append(between, "not bold dim")
    return line


def how_often(one: Mapping[str, Any], documents: int) -> Text:
    """How often, and how strongly, in two lines with the histogram."""
    often = (
        f"{percent(one['density'])} of tokens ({one['fires']:,}), in {one['documents']:,} of {documents:,} documents"
    )
    strong = f"mean {one['mean']:.3g}, max {one['max']:.3g}, unit {one['scale']:.3g}"
    line = Text("fires on ", style="dim").append(often, "default").append(f"   {strong}\n", "default")
    line.append_text(sparkline(one["histogram"]))
    quantiles = {str(share): value for share, value in one["quantiles"].items()}
    below = [f"{100 * float(q):g} % {quantiles[q]:.3g}" for q in QUANTILES if q in quantiles]
    return line.append("   below: " + ", ".join(below), "dim") if below else line


def sparkline(histogram: Mapping[int, int]) -> Text:
    """The histogram of activations on its log scale, weak to strong, with its two ends."""
    from sparsight.atlas.histogram import edge

    if not histogram:
        return Text()
    low, high = min(histogram), max(histogram) + 1
    columns = min(COLUMNS, high - low)
    counts = [0] * columns
    for bin, count in histogram.items():
        counts[(bin - low) * columns // (high - low)] += count
    most = max(counts)
    line = Text(f"{edge(low):.2g} ", style="dim")
    for place, count in enumerate(counts):
        block = BLOCKS[min(count * len(BLOCKS) // most, len(BLOCKS) - 1)] if count else " "
        line.append(block, ramp((place + 1) / columns))
    return line.append(f" {edge(high):.3g}", "dim")


def ramp(share: float) -> str:
    """A colour from weak to strong, as the grounds of tokens have it."""
    return ("#8f6c0a", "#ab7f0a", "#c8960c", "#e3ac12", "#ffc21a")[min(int(share * 5), 4)]


def figures(told: Mapping[str, Any]) -> Padding:
    """What it fires on, what it does, and whom it is near: a line each."""
    one, table = told["statistics"], Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "on tokens": shares(told["top_tokens"], one["fires"]),
        "in roles": bars(one["roles"]),
        "in languages": bars(one["languages"]),
        "likelier": chips((entry["token"] for entry in told["top_logits"][: LISTED + 4]), "green"),
        "less likely": chips((entry["token"] for entry in told["bottom_logits"][: LISTED + 4]), "red"),
        "near": others(told["neighbours"], "cosine", "{:.2f}"),
        "together with": others(told["coactive"], "bits", "{:.1f} bits"),
    }
    for name, row in rows.items():
        if row:
            table.add_row(name, row)
    if one["duplicate_of"] is not None:
        table.add_row("the same as", Text(f"feature {one['duplicate_of']}"))
    return Padding(table, (1, 0, 0, 2))


def shares(tokens: Sequence[Mapping[str, Any]], fires: int) -> Text:
    """Top tokens, each with its share of all activations."""
    line = Text()
    for entry in tokens[: LISTED + 4]:
        line.append_text(chips([entry["token"]])).append(f"{100 * entry['fires'] / max(fires, 1):.0f} %  ", "dim")
    return line


def bars(counts: Mapping[str, int]) -> Any:
    """Shares of a whole, the largest first, each with a bar."""
    total = sum(counts.values())
    if not total:
        return None
    grid = Table.grid(padding=(0, 1))
    for name, count in sorted(counts.items(), key=lambda pair: -pair[1])[:LISTED]:
        colour = ROLE_COLOURS.get(name, "white")
        bar = Bar(total, 0, count, width=20, color=colour)
        grid.add_row(Text(visible(name), style=colour), bar, Text(f"{100 * count / total:.0f} %", style="dim"))
    return grid


def others(listed: Sequence[Mapping[str, Any]], what: str, form: str) -> Any:
    """Features beside this one, a line each."""
    if not listed:
        return None
    grid = Table.grid(padding=(0, 1))
    for entry in listed[:LISTED]:
        number = Text(str(entry["feature"]), style="bold", justify="right")
        about = said(entry["label"]) if entry["label"] else chips(entry["top_tokens"], "dim")
        grid.add_row(number, Text(form.format(entry[what]), style="dim"), about)
    return grid


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def windows_table(windows: Sequence[Mapping[str, Any]], most: float) -> Table:
    """Examples, a row each: the activation at the peak, and the text with its heat."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for window in windows:
        table.add_row(f"{window['value']:.3g}", heated(window, most))
    return table


def heated(window: Mapping[str, Any], most: float) -> Text:
    """Tokens on a ground that is the brighter, the stronger; who speaks where it changes, in place of the template's
    tokens that are silent; what was not kept is dim."""
    line, speaker, silent = Text(), "", ""
    for token, value, kind in zip(window["tokens"], window["values"], window["kinds"], strict=True):
        if kind & SPECIAL and not value:
            silent += token
            continue
        says = speaking(kind, silent) or speaker
        if silent or says != speaker:
            line.append_text(chip(says if says != speaker or len(silent) > 2 else ""))
            speaker, silent = says, ""
        text = shown(token) if token else ""  # of a character that several tokens make up, all but the last
        if value:
            line.append_text(tinted([text], [value / (most or 1.0)]))
        else:
            line.append(text, "dim" if value is None else "")
    return line.append_text(chip(speaking(0, silent))) if silent else line


def speaking(kind: int, silent: str) -> str:
    """Who speaks a token: by its kind, else by what stands in the template's tokens before it."""
    return next((n for n in ROLE_COLOURS if kind & Kind[n.upper()]), "") or next((n for n in ROLES if n in silent), "")


def chip(name: str) -> Text:
    return Text(f" {name}▸ ", style=f"bold {ROLE_COLOURS[name]}") if name else Text(" ▪ ", style="dim")


def documents_page(documents: Sequence[Mapping[str, Any]], count: int) -> Group:
    """Documents that were found: of each, the tokens around the place where what was asked for first fires."""
    first = f", the first {len(documents)}" if len(documents) < count else ""
    parts: list[Any] = [Text(f"{count:,} documents{first}")]
    for one in documents:
        about = " · ".join(filter(None, (f"document {one['document']}", one["source"], one["language"])))
        parts.append(Rule(Text(visible(about), style="dim"), align="left", style="dim"))
        fires = next((place for place, value in enumerate(one["values"]) if value), 0)
        start = max(fires - BEFORE, 0)
        part = {name: one[name][start : fires + AFTER] for name in ("tokens", "values", "kinds")}
        line = heated(part, max(one["values"], default=0.0))
        more = Text("…", style="dim")
        parts.append(Text.assemble(more if start else "", line, more if fires + AFTER < len(one["tokens"]) else ""))
    return Group(*parts)


def overview(about: Mapping[str, Any], flags: Mapping[str, int], methods: Mapping[str, int]) -> Table:
    """What an atlas is of, and what is in it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    for name, value in about.items():
        table.add_row(name, Text(f"{value:,}" if isinstance(value, int) else visible(str(value))))
    for name, counts in (("flags", flags), ("labels by", methods)):
        if counts:
            table.add_row(name, Text(", ".join(f"{what} {count:,}" for what, count in counts.items())))
    return table
