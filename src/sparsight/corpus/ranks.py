"""Which of several processes this is."""

from __future__ import annotations

import os

from sparsight.corpus.spec import check_whole
from sparsight.errors import BadInput


def place(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """(rank, world): as given, else as torchrun says in RANK and WORLD_SIZE, else the only process there is."""
    if rank is None and world is None:
        try:
            rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        except ValueError:
            raise BadInput("RANK and WORLD_SIZE, which torchrun sets, are whole numbers: unset them.") from None
    rank, world = rank or 0, 1 if world is None else world
    check_whole(world, "world", 1)
    check_whole(rank, "rank", 0, below=world)
    return rank, world


def share(tokens: int | None, rank: int, world: int) -> int | None:
    """How many of so many tokens are this process's; the shares of all add up."""
    return None if tokens is None else tokens * (rank + 1) // world - tokens * rank // world
