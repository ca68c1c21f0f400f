"""Folders, whole or not at all: what is written aside takes the place of what was there only when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sparsight.disk import PART, first_line
from sparsight.errors import BadFile, BadInput

OLD = f".old{PART}"


def write_folder(place: Path, mark: str, write: Callable[[Path], Any]) -> None:
    """Write a folder beside its place, and then move it there; what a killed run left beside it goes.

    mark: a file that such a folder has: what is there already is replaced where it has it, too.
    Raises BadInput where the place holds something else, BadFile where the disk does not take it.
    """
    aside, old = place.with_name(place.name + PART), place.with_name(place.name + OLD)
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        if old.exists() and not place.exists():  # killed between the two moves
            old.rename(place)
        if place.exists() and not (place / mark).is_file() and not (place.is_dir() and not any(place.iterdir())):
            raise BadInput(f"'{place}' holds something else, that would be lost: write somewhere else.")
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        if place.exists():
            place.rename(old)
        aside.rename(place)
    except OSError as error:
        raise BadFile(f"Cannot write '{place}': {first_line(error)}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()
