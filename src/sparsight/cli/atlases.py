"""An atlas, its tokenizer and its features, as they are named on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparsight.errors import BadFile, BadInput, NoFeature

DEMO = ("demo", "sparsight demo")
DIGITS = 18  # of a feature's number, at most


def folder_of(atlas: str) -> Path:
    """Where an atlas lies; "demo" is that of the embedded demo."""
    return Path(str(files("sparsight"))) / "demo" / "atlas" if atlas in DEMO else Path(atlas).expanduser()


def open_atlas(atlas: str) -> Any:
    """Raises BadFile."""
    from sparsight.atlas.atlas import Atlas

    folder = folder_of(atlas)
    if atlas in DEMO and not folder.exists():
        make = "make one with `sparsight survey demo --corpus chats.jsonl --to atlas`"
        raise BadFile(f"This installation has no atlas of the demo: {make}, and name its folder.")
    return Atlas(folder)


def model_of(about: Any, named: str | None) -> str:
    """The model that was named, else the one that the atlas names. Raises BadInput where neither does."""
    name = named or about.model
    if not name:
        raise BadInput("The atlas names no model: name it by --model.")
    return "demo" if name in DEMO else name


def tokenizer_of(about: Any, named: str | None) -> Any:
    """The tokenizer of that model, which has to be the one that the atlas is of. Raises BadFile, BadInput, Mismatch."""
    from sparsight.lm.spelling import load_tokenizer

    return load_tokenizer(model_of(about, named), None if named else about.model_revision, about.tokenizer)


def selected(said: Iterable[str], count: int) -> list[int]:
    """Features from text: "12", "3,7,100-120". count: how many there are. Raises BadInput, NoFeature."""
    found: dict[int, None] = {}
    for part in (part.strip() for one in said for part in one.split(",") if part.strip()):
        ends = [end.strip().removeprefix("#") for end in part.split("-")]
        if len(ends) > 2 or not all(end.isascii() and end.isdecimal() and len(end) <= DIGITS for end in ends):
            raise BadInput(f"Features are numbers and ranges, as 3,7,100-120, not '{part[:40]}'.")
        first, last = int(ends[0]), int(ends[-1])
        if last < first:
            raise BadInput(f"The range {part} runs backwards: write {last}-{first}.")
        if last >= count:
            raise NoFeature(f"No feature {last}: this SAE has {count:,} (0 to {count - 1}).")
        found |= dict.fromkeys(range(first, last + 1))
    if not found:
        raise BadInput("Which features? Name some, as 3,7,100-120.")
    return list(found)
