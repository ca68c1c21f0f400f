"""Settings that explain themselves: a frozen dataclass, every field of which says what it means and its unit."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def knob(default: Any, says: str, **options: Any) -> Any:
    """A field that explains itself: its metadata has "says"."""
    return field(default=default, metadata={"says": says}, **options)
