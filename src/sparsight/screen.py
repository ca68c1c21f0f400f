"""How things look in a terminal: tokens tinted by activation, tables, streams. Plain text where there is no colour."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from shlex import quote
from typing import Any, BinaryIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsight.edits import Controller, Edit, Where
from sparsight.errors import BadInput
from sparsight.records import SPECIAL
from sparsight.wire import to_json

# Weak to strong. Letters and ground are set together, so that they can be read on dark and light screens alike.
TINTS = ("white on #4a3c08", "white on #6b540a", "white on #8f6c0a", "black on #c8960c", "black on #ffc21a")
SHORT = 40  # characters of a label beside others
OFF = 0.1  # of the L0 that was asked for: more is worth a word
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def console(stderr: bool = False) -> Console:
    """Standard output, or standard error; without colour where it is no terminal."""
    return Console(highlight=False, soft_wrap=True, stderr=stderr)


def note(sentence: str) -> None:
    """A word aside, on standard error: standard output holds answers only."""
    console(stderr=True).print(Text(visible(sentence), style="dim"))


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
            line.append(" ").append(tinted([labelled(reading.labels, feature)], [value / peak])).append(
                f" {value:.2f}", "dim"
            )
        out.print(line)


def show_demo(scope: Any, prompt: str, wish: Controller, out: Any) -> None:
    """The story of `sparsight demo`: the model answers, its features show, a voice is turned up."""
    page, prompt = console(), visible(prompt)
    asked = Text("you    ", style="dim").append(Text(prompt, style="bold not dim"))
    edited = [edit.feature.index for edit in wish.walk()]
    page.print(Text(f"{scope!r}\n", style="dim"))
    page.rule("the model answers", align="left")
    page.print(asked)
    page.print(Text("model  ", style="dim"), written(scope, out.plain, edited), sep="")
    page.print(Text("\nwhat fired, token by token (the strongest features of each)", style="dim"))
    for text, pairs in list(zip(texts_of(scope, out.plain), out.plain.codes, strict=True))[:10]:
        page.print(Text(f"{shown(text):>14}  ") + named(scope, pairs[:3]))
    page.print()
    page.rule("the same question, steered", align="left")
    page.print(Text(visible(str(wish)), style="dim"))
    page.print(asked)
    page.print(Text("model  ", style="dim"), written(scope, out.steered, edited), sep="")
    page.print(Text(f"\n{out.steered.receipt}", style="dim"))
    page.print(Text(f"tinted: where {the_features(edited)} by itself", style="dim"))
    tries = [
        "sparsight demo --voice butler --prompt 'What do cats eat?'",
        "sparsight read --chat 'Talk like a pirate.'",
    ]
    if lines := edit_lines(wish):
        tries.insert(0, f"sparsight chat {' '.join(f'--edit {quote(line)}' for line in lines)} --compare")
    page.print(Text("\n" + "\n".join(f"{'' if i else 'try:':<6}{one}" for i, one in enumerate(tries)), style="dim"))


def the_features(indices: list[int]) -> str:
    """As in: feature 3 is active; feature 3 or 9 is active."""
    return f"feature {' or '.join(map(str, dict.fromkeys(indices)))} is active"


def written(scope: Any, reply: Any, features: Iterable[int]) -> Text:
    """A reply's tokens, tinted by the strongest of these features."""
    values = [max(at) for at in zip(*(reply.codes.of(feature).tolist() for feature in features), strict=True)]
    peak = max(values, default=0.0) or 1.0
    return tinted(map(visible, texts_of(scope, reply)), (value / peak for value in values))


def texts_of(scope: Any, reply: Any) -> list[str]:
    """Each token's own text; a final stop token shows as nothing."""
    from sparsight.lm.text import pieces

    texts = list(pieces(scope.lm.tokenizer, reply.ids))
    return [*texts[:-1], ""] if reply.finish == "stop" and texts else texts


def named(scope: Any, pairs: Iterable[tuple[int, float]]) -> Text:
    """Features with their labels and activations."""
    line = Text()
    for feature, value in pairs:
        line.append(labelled(scope.features.labels, feature)).append(f" {value:.1f}  ", style="dim")
    return line


def labelled(labels: Mapping[int, str], feature: int) -> str:
    """A feature's index, and the beginning of its label where it has one."""
    label = shown(labels.get(feature, ""))
    return f"{feature} {label if len(label) <= SHORT else label[: SHORT - 1].rstrip() + '…'}".rstrip()


def show_comparison(out: Any) -> str:
    """Both answers and the receipt; gives the steered text."""
    page = console()
    page.print(Text("unsteered  ", style="dim") + Text(visible(out.plain.text.strip())))
    page.print(Text("steered    ", style="dim") + Text(visible(out.steered.text.strip())))
    if out.steered.receipt:
        page.print(Text(f"           {out.steered.receipt}", style="dim"))
    return str(out.steered.text)


def stream(chunks: Iterator[Any]) -> str:
    """Print a reply while it is written, then its receipt; give its text."""
    text, receipt = "", None
    for chunk in chunks:
        text, receipt = text + chunk.text, chunk.receipt
        sys.stdout.write(visible(chunk.text))
        sys.stdout.flush()
    sys.stdout.write("\n")
    if receipt:
        console().print(Text(f"{receipt}", style="dim"))
    sys.stdout.flush()
    return text


def answer_json(prompt: str, reply: Any, plain: Any = None) -> dict[str, Any]:
    """One answer of a chat as plain data; plain: the unsteered one, where both were asked for."""
    data = {"prompt": prompt, "text": reply.text, "finish": reply.finish, "receipt": receipt_json(reply)}
    return data if plain is None else data | {"plain": plain.text}


def demo_json(scope: Any, prompt: str, wish: Controller, out: Any) -> dict[str, Any]:
    """The demo as plain data: each reply's tokens and, place by place, their strongest features."""

    def reply(one: Any) -> dict[str, Any]:
        top = [[[f, round(v, 4)] for f, v in pairs[:8]] for pairs in one.codes]
        said = {"text": one.text, "finish": one.finish, "receipt": receipt_json(one)}
        return said | {"ids": list(one.ids), "tokens": texts_of(scope, one), "features": top}

    replies = {"plain": reply(out.plain), "steered": reply(out.steered)}
    seen = {f for one in replies.values() for pairs in one["features"] for f, _ in pairs}
    labels = {str(f): scope.features.labels[f] for f in sorted(seen & scope.features.labels.keys())}
    return {"prompt": prompt, "edit": to_json(wish), "edit_words": str(wish), **replies, "labels": labels}


def receipt_json(reply: Any) -> dict[str, Any] | None:
    """A reply's receipt as plain data."""
    return None if reply.receipt is None else dict(vars(reply.receipt))


def standard_input() -> BinaryIO:
    """Standard input's bytes. Raises BadInput where it was closed."""
    if sys.stdin is None:
        raise BadInput("Standard input is closed: there is nothing to read. Pipe text into sparsight.")
    return sys.stdin.buffer


def lines(talks: bool) -> Iterator[str]:
    """What a person types, or what a pipe holds, line by line until /quit or the end."""
    source = standard_input()
    asking = source.isatty()
    if asking:
        note(f"{'Talk' if talks else 'Begin a text, the model goes on'}. /reset begins anew, /quit ends.")
    while True:
        if asking:
            sys.stderr.write("> ")
            sys.stderr.flush()
        raw = source.readline()
        line = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if not raw or line.strip() in ("/quit", "/exit"):
            return
        if line.strip():
            yield line


def show_table(about: Mapping[str, Any]) -> None:
    """Two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for row, value in about.items():
        said = (
            ("no", "yes")[value] if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else str(value)
        )
        table.add_row(Text(shown(row), style="dim"), Text(visible(said)))
    console().print(table)


def show_doctor(found: Mapping[str, Any]) -> None:
    """The machine, then what would fit on it."""
    show_table({name: value for name, value in found.items() if name not in ("fits", "dtype")})
    page, dtype = console(), found["dtype"]
    page.print(Text(f"\nWould it fit in {dtype}, with a 16x SAE and 8,192 tokens of KV cache?", style="italic"))
    dtypes = ("bfloat16", "float32") if dtype == "float32" else (dtype,)
    table = Table("model", *(f"needs in {name}" for name in dtypes), "fits", box=None)
    for row in found["fits"]:
        needs = [f"{row['needs_gb'][name]:.1f} GB" for name in dtypes]
        table.add_row(row["model"], *needs, "yes" if row["fits"] else "no")
    page.print(table)
    if dtype == "float32":
        page.print(Text("float32 is the default on a CPU; --dtype bfloat16 halves what is needed.", style="dim"))


def plain(found: Any) -> Any:
    """What a stage gave back as plain data for JSON."""
    if isinstance(found, list | tuple):
        return [plain(one) for one in found]
    return found.to_json() if hasattr(found, "to_json") else asdict(found) if is_dataclass(found) else found  # type: ignore[arg-type]


def show_harvested(out: Any, to: str) -> None:
    """What became of every token of a harvest."""
    show_table(
        {"shards": to, "tokens kept": out.tokens, "conversations": out.conversations, "seconds": f"{out.seconds:.1f}"}
    )
    page = console()
    table = Table("", "tokens", box=None)
    for what, counts in (("kept", out.kept), ("dropped", out.dropped)):
        for why, count in counts.items():
            table.add_row(Text(f"{what}: {why}"), f"{count:,}")
    page.print(table)
    if out.cut:
        page.print(Text(f"{out.cut:,} conversations were cut.", style="dim"))
    if out.refused:
        page.print(Text(visible(f"{out.refused:,} were refused, the first: {out.first_refused}"), style="dim"))


def show_trained(about: Mapping[str, Any]) -> None:
    """An SAE that was trained, and a word where its L0 is another than was asked for."""
    l0, target = about["l0"], about["target l0"]
    figures = {"L0": f"{l0:g}, asked for {target:g}", "FVU": about["fvu"], "never active": f"{about['silent']:.1%}"}
    rows = {name: value for name, value in about.items() if name not in ("target l0", "l0", "fvu", "silent")}
    show_table(rows | {f"held out: {name}": value for name, value in figures.items()})
    if abs(l0 / target - 1) > OFF:
        note(
            "L0 is not where it was asked to be. In a short run it has no time to settle: `sparsight train plot` shows."
        )


def show_report(report: Any) -> None:
    """The figures of an evaluation, each with its meaning where there is room."""
    page = console()
    page.print(
        Text(visible(f"{report.sae} at {report.hook_point} of {report.model}, {report.conversations:,} conversations"))
    )
    wide = page.width >= 120  # else the meanings would be a word a line
    table = Table("", *report.columns, *([""] if wide else []), box=None)
    for name, values, meaning in report.rows():
        table.add_row(name, *(said(value) for value in values), *([Text(meaning, style="dim")] if wide else []))
    page.print(table)


def said(value: float | int | None) -> str:
    """A figure as a table shows it."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def visible(text: str) -> str:
    """Text whose control characters a terminal shows instead of obeying them; newlines and tabs stay."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def shown(text: str) -> str:
    """A token on one line."""
    return visible(text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")) or "·"


def edit_lines(wish: Controller) -> list[str]:
    """The edits as the command line takes them; none of them where it could not say them all."""
    lines = [edit_line(edit) for edit in wish.edits]
    return [line for line in lines if line] if wish == Controller(wish.edits) and all(lines) else []


def edit_line(edit: Edit) -> str | None:
    """An edit as the command line takes it; None where that has no words for it."""
    places = [*edit.where.kinds, *edit.where.positions]
    number = f"{edit.value:g}" if float(f"{edit.value:g}") == edit.value else repr(edit.value)
    if edit.condition is not None or len(places) != 1 or (edit.op == "pin" and number.startswith("-")):
        return None
    change = {"nudge": number if number.startswith("-") else f"+{number}", "scale": f"*{number}", "ablate": "off"}
    raw = "raw" if edit.feature.unit == "raw" and edit.op != "ablate" else ""
    where = "" if edit.where == Where() else f"@{places[0]}"
    return f"{edit.feature.index}={change.get(edit.op, number)}{raw}{where}"
