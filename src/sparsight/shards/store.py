"""A store: the shards of all processes that wrote to it.

store/
  manifest.json           what it is about; how many tokens, once all processes are done
  lock-0000               held by the process that writes rank 0
  rank-0000/000000 ...    its shards
  rank-0000/done.json     schema, shards, tokens: written when it is done
"""

from __future__ import annotations

import os
from pathlib import Path

from sparsight.errors import BadFile
from sparsight.shards.manifest import Manifest, read_schema
from sparsight.shards.shard import Shard, shards_of

DONE = "done.json"


def rank_folder(store: Path, rank: int) -> Path:
    """Where one process writes."""
    return store / f"rank-{rank:04}"


def is_done(store: Path, rank: int) -> bool:
    """Whether a process has written all that it had to."""
    return os.path.exists(rank_folder(store, rank) / DONE)


def all_shards(store: Path, manifest: Manifest) -> list[Shard]:
    """The complete shards of all processes, in the order of ranks. Raises BadFile where one is missing or damaged."""
    return [shard for rank in range(manifest.world) for shard in rank_shards(store, rank, manifest)]


def rank_shards(store: Path, rank: int, manifest: Manifest) -> list[Shard]:
    """The complete shards of one process, in order. Raises BadFile where one is missing or damaged."""
    folder = rank_folder(store, rank)
    found = shards_of(folder, manifest)
    if is_done(store, rank):
        said = read_schema(folder / DONE)
        for name, real in {"shards": len(found), "tokens": sum(shard.tokens for shard in found)}.items():
            if said.get(name) != real:
                raise BadFile(f"'{folder}' has {real:,} {name}; it was done with {said.get(name)!r}.")
    return found
