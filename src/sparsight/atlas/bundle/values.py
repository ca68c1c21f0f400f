"""Values of a stranger's row, each of the type that it should have; what is not raises BadFile with its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sparsight.errors import BadFile


class Row:
    """One row, and where it stands: "'labels.csv', line 3"."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def wrong(self, said: str) -> BadFile:
        return BadFile(f"{self.where}: {said}.")

    def index(self, name: str, below: int) -> int:
        """A feature. As text, too: "12", "12.0"."""
        value = self.values.get(name)
        try:
            number = float(value) if isinstance(value, str) else value
            if isinstance(number, bool) or number is None or number != int(number):
                raise ValueError
        except (ValueError, TypeError, OverflowError):
            raise self.wrong(f"{name} is a feature's number, not {_short(value)}") from None
        if not 0 <= number < below:
            raise self.wrong(f"no feature {int(number)}: this SAE has {below:,} (0 to {below - 1})")
        return int(number)

    def text(self, name: str, default: str | None = None) -> str:
        """Text that a table can hold: Unicode without NUL."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(f"{name} is text, not {_short(value)}")
        return self.clean(value, name)

    def clean(self, text: str, name: str = "a name") -> str:
        """The text, where a table can hold it."""
        if fault := unfit(text):
            raise self.wrong(f"{name} holds {fault}")
        return text

    def number(self, name: str, default: float | None = None) -> float | None:
        """A finite number; text of one does, empty text is none."""
        value = self.values.get(name)
        if value is None or value == "":
            return default
        try:
            number = float(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise self.wrong(f"{name} is a number, not {_short(value)}")
        return float(number)

    def whole(self, name: str, default: int | None = None) -> int | None:
        """A whole number, at least 0."""
        value = self.number(name)
        if value is None:
            return default
        if value != int(value) or value < 0:
            raise self.wrong(f"{name} is a whole number, not {_short(self.values[name])}")
        return int(value)

    def list_of(self, name: str, kind: Callable[[Any], bool], what: str) -> list[Any]:
        """A list, all of whose members are of a kind; one that is absent or null is empty."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(kind(one) for one in value):
            raise self.wrong(f"{name} is a list of {what}, not {_short(value)}")
        return value

    def numbers(self, name: str) -> list[float]:
        return [float(one) for one in self.list_of(name, is_number, "finite numbers")]

    def texts(self, name: str) -> list[str]:
        return self.list_of(name, lambda one: isinstance(one, str), "texts")


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def unfit(text: str) -> str | None:
    """What of a text no table could hold, in words; None where all is well."""
    if "\0" in text:
        return "a NUL character, which neither CSV nor databases take"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"half a character ({text.encode('ascii', 'backslashreplace').decode()[:40]}), which is no Unicode"
    return None


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
