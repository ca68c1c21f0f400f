"""A page about features that opens with no network: one HTML file with its style and its pictures in it.

What a stranger's text holds cannot act: the template escapes it, control characters and those that turn the direction
of text around are shown by name, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.bundle.bands import bands, strongest
from sparsight.atlas.bundle.drawing import Drawing, histogram, marks_of
from sparsight.atlas.bundle.moved import Moved, Tell, told
from sparsight.atlas.bundle.table import Words, _known
from sparsight.atlas.entries import Example, Label, Statistics
from sparsight.disk import first_line, write_aside
from sparsight.errors import BadFile, BadInput
from sparsight.records import SPECIAL, Kind

MOST = 2000  # features of a page: browsers do not like more
TEMPLATE = "page.html.j2"
NAMED = (Kind.BOS, Kind.TEMPLATE, Kind.SYSTEM, Kind.USER, Kind.ASSISTANT, Kind.TOOL, Kind.TEXT)
# Control characters, those that turn text around, those without width (but for the two that join letters and emoji),
# and halves of characters.
HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


@dataclass(frozen=True)
class Piece:
    """Text of one token, or of several that are silent. strength: 0 to 1 of the largest activation; peak: it is the
    token that the example is about; template: the chat template's, not anybody's words."""

    text: str
    strength: float = 0.0
    value: float = 0.0
    peak: bool = False
    template: bool = False


@dataclass(frozen=True)
class Shown:
    """An example as the page has it."""

    pieces: tuple[Piece, ...]
    value: float
    about: tuple[str, ...]
    begins: bool
    ends: bool


@dataclass(frozen=True)
class Group:
    """Examples with a heading. open: whether they show before they are asked for."""

    name: str
    note: str
    examples: tuple[Shown, ...]
    open: bool = True


@dataclass(frozen=True)
class Card:
    """All that the page says of one feature."""

    feature: int
    labels: tuple[Label, ...]
    statistics: Statistics
    facts: tuple[tuple[str, str, str], ...]
    histogram: Drawing | None
    shares: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    groups: tuple[Group, ...]
    tokens: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    near: tuple[tuple[str, tuple[tuple[int, str, str], ...]], ...]


def write_html(
    atlas: Atlas,
    to: str | Path,
    features: Iterable[int],
    words: Words | None = None,
    without: str = "",
    tell: Tell | None = None,
) -> Moved:
    """One page about features, in their order: the whole file, or what was there before.

    words: token ids to each one's text; without it ids are shown, and `without` says why. Raises NoFeature, BadInput
    for no features, or more than MOST, BadFile where the disk does not take it.
    """
    wanted = _known(atlas, features)
    if not 0 < len(wanted) <= MOST:
        raise BadInput(f"A page is of 1 to {MOST:,} features, not of {len(wanted):,}: say which.")
    labels = {feature: visible(text) for feature, text in atlas.texts().items()}
    listed = [(feature, labels.get(feature, ""), atlas.statistics(feature).flags) for feature in wanted]
    if words is None:
        words = _numbers
        without = without or "no tokenizer was given"
    cards = (_card(atlas, feature, words, labels) for feature in wanted)
    shown = {"about": atlas.about, "listed": listed, "labels": labels, "here": set(wanted)}
    page = _template().generate(
        **shown, without=visible(without), cards=told(cards, "page", len(wanted), "features", tell)
    )

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.writelines(page)

    try:
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        write_aside(Path(to), write)
    except OSError as error:
        raise BadFile(f"Cannot write '{to}': {first_line(error)}.") from error
    return Moved(to, {"features": len(wanted)}, (f"Tokens are shown as ids: {without}.",) if without else ())


def _numbers(ids: Sequence[int]) -> list[str]:
    return [f"[{id}]" for id in ids]


def visible(text: str) -> str:
    """Text in which everything shows: newlines and tabs as signs, what has no picture by its number."""
    return HIDDEN.sub(lambda found: _named(found[0]), text.replace("\n", "↵").replace("\t", "⇥"))


def _named(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    settings = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    found = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, **settings)
    found.filters |= {"visible": visible, "short": short, "percent": percent, "json": as_text}
    return found.get_template(TEMPLATE)


def short(value: float | None) -> str:
    """Three digits."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def as_text(rule: Any) -> str:
    """Plain data in one line."""
    return json.dumps(rule, ensure_ascii=False)


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _card(atlas: Atlas, feature: int, words: Words, labels: dict[int, str]) -> Card:
    one, examples = atlas.statistics(feature), atlas.examples(feature)
    show = _shower(atlas, words, max(one.max, *(e.value for e in examples), 1e-9))
    tokens = (("raises", one.top_logits), ("lowers", one.bottom_logits), ("fires on", one.top_tokens))
    near = (("by decoder direction (cosine)", one.neighbours), ("firing together (bits)", one.coactive))
    return Card(
        feature,
        tuple(atlas.labels(feature)),
        one,
        tuple(_facts(one)),
        histogram(one, marks_of(bands(one, ()))),
        tuple(_shares(one)),
        tuple(_groups(one, examples, show)),
        tuple((name, tuple(_token(*pair, words) for pair in pairs)) for name, pairs in tokens if pairs),
        tuple((name, tuple((f, labels.get(f, ""), short(v)) for f, v in pairs)) for name, pairs in near if pairs),
    )


def _token(id: int, value: float, words: Words) -> tuple[str, str]:
    return visible("".join(words([id]))), short(value)


def _facts(one: Statistics) -> Iterator[tuple[str, str, str]]:
    """(name, figure, what it means)."""
    rare = f"1 in {1 / one.density:,.0f} tokens" if 0 < one.density < 0.1 else percent(one.density)
    yield "density", rare, f"fires on {one.fires:,} of {one.tokens:,} tokens"
    yield "documents", f"{one.documents:,}", "in which it fires"
    yield "largest", short(one.max), "activation"
    yield "mean", short(one.mean), f"of its activations, ± {short(one.deviation)}"
    yield "unit", short(one.scale), "activation that edits count in"
    if one.decoder_norm:
        yield "norms", f"{short(one.decoder_norm)} / {short(one.encoder_norm)}", "of its decoder and encoder directions"


def _shares(one: Statistics) -> Iterator[tuple[str, tuple[tuple[str, float], ...]]]:
    """Where it fires: shares of its places, by role, language and place in the document."""
    for name, counts in (("roles", one.roles), ("languages", one.languages)):
        if total := sum(counts.values()):
            most = sorted(counts.items(), key=lambda pair: -pair[1])[:6]
            yield name, tuple((visible(str(key)), count / total) for key, count in most)
    if total := sum(one.positions):
        starts = [0, *(2**i for i in range(len(one.positions) - 1))]
        last = len(starts) - 1
        named = [f"token {s + 1}" if i < 2 else f"from {s + 1}" for i, s in enumerate(starts)]
        pairs = ((named[i] if i < last else f"{named[i]} on", n / total) for i, n in enumerate(one.positions) if n)
        yield "place in the document", tuple(pairs)


def _groups(one: Statistics, examples: Sequence[Example], show: Callable[[Example], Shown]) -> Iterator[Group]:
    if best := strongest(examples):
        yield Group("Strongest", f"{len(best)} places with the largest activations", tuple(map(show, best)))
    for band in bands(one, examples):
        if band.examples:
            name = f"{100 * band.begins:.3g} to {100 * band.ends:.3g} % of its activations"
            note = f"{short(band.low)} to {short(band.high)}: a fair sample of what lies between these quantiles"
            yield Group(name, note, tuple(map(show, band.examples)), open=False)


def _shower(atlas: Atlas, words: Words, most: float) -> Callable[[Example], Shown]:
    def show(one: Example) -> Shown:
        document = atlas.document(one.document)
        ids = [int(id) for id in atlas.tokens[one.start : one.start + len(one.values)]]
        kinds = _kinds(document.roles, one.start - document.start, len(ids))
        pieces = _pieces(words(ids), one.values, kinds, one.at - one.start, most)
        role = next((str(name) for name in NAMED if kinds[one.at - one.start] & name), None)
        about = (role, document.language, "held out" if one.held_out else None)
        begins, ends = one.start <= document.start, one.start + len(ids) >= document.start + document.length
        return Shown(pieces, one.value, tuple(visible(each) for each in about if each), begins, ends)

    return show


def _pieces(
    texts: Sequence[str], values: np.ndarray, kinds: Sequence[Kind], peak: int, most: float
) -> tuple[Piece, ...]:
    """Silent tokens run together. A token that is a part of a character, and so has no text, adds to the one that shows
    it."""
    out: list[Piece] = []
    held, marked = 0.0, False
    for place, (text, value, kind) in enumerate(zip(texts, values.tolist(), kinds, strict=True)):
        held, marked, template = max(held, value), marked or place == peak, bool(kind & SPECIAL)
        if not text:
            continue
        one = Piece(text, min(held / most, 1.0), held, marked, template)
        last = out[-1] if out else None
        if last and not (one.strength or one.peak or last.strength or last.peak) and last.template == template:
            out[-1] = replace(last, text=last.text + text)
        else:
            out.append(one)
        held, marked = 0.0, False
    return tuple(replace(one, text=visible(one.text)) for one in out)


def _kinds(runs: Sequence[tuple[int, int]], first: int, count: int) -> list[Kind]:
    """What each of some tokens of a document is; nothing where the document does not say."""
    kinds = [Kind(kind) for length, kind in runs for _ in range(length)][first : first + count]
    return kinds + [Kind(0)] * (count - len(kinds))
