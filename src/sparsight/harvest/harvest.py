"""Model x text -> Shards: a store of activations on the disk, that a killed run goes on with by the same command.

Beside the manifest each process leaves an account, harvest-0000.json: what became of every token, but no times, so
that a run that was killed and went on leaves the same store, to the bit, as one that did not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from sparsight.corpus.ranks import place
from sparsight.corpus.spec import CorpusSpec
from sparsight.disk import first_line, read_json, write_json
from sparsight.errors import BadFile, Mismatch
from sparsight.harvest.spec import Harvested, HarvestSpec
from sparsight.harvest.stream import Reader, measure
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import Progress
from sparsight.scope import work
from sparsight.shards.manifest import NAME, Manifest, read_manifest
from sparsight.shards.read_ahead import read_ahead
from sparsight.shards.writer import ShardWriter

FREE = ("ahead", "tokens_per_shard")  # knobs that the rows do not depend on; the second is the manifest's


def harvest(
    lm: ObservableLanguageModel,
    corpus: CorpusSpec,
    spec: HarvestSpec,
    to: str | Path,
    rank: int | None = None,
    world: int | None = None,
    tell: Callable[[Progress], None] | None = None,
) -> Harvested:
    """Write the activations of the corpus into the store `to`, made if it is not there.

    The same call goes on after the last complete shard; where all is done, it tells what was done. rank, world: as
    torchrun says, where they are not given; each process writes its own conversations. tell: is told of every pass.
    Raises DiskFull before anything is written where there is no room for what is expected, Mismatch where `to` is of
    another harvest, and what stream and ShardWriter raise; complete shards outlive any error.
    """
    began, path = time.monotonic(), Path(to)
    rank, world = place(rank, world)
    about = _manifest(lm, corpus, spec, path, world)
    with ShardWriter(path, about, rank, about.notes["expected"]) as writer:
        notes = writer.manifest.notes  # of whichever process was first
        if not writer.done:
            total = notes["expected"] // world
            facts = {"disk_gb": about.bytes_for(notes["expected"]) / 1e9}

            def told() -> None:
                if tell:
                    tell(Progress("harvest", writer.tokens, total, "tokens", time.monotonic() - began, facts))

            told()
            reader = Reader(lm, corpus, spec, notes["outliers"], writer.position, rank, world)
            with closing(read_ahead(iter(reader), 1)) as pieces:  # the model runs while this thread writes
                for position, piece in pieces:
                    columns = [piece.pop(name) for name in ("ids", "kinds", "conversations")]
                    writer.append(piece, *columns, position=position)
                    told()
            _write_account(path, rank, reader)
    return Harvested(**_account(path, rank), seconds=time.monotonic() - began)


def expected(lm: ObservableLanguageModel, corpus: CorpusSpec, spec: HarvestSpec) -> int:
    """How many tokens a harvest keeps, at most: `tokens`, else an estimate that reads the whole corpus."""
    if spec.tokens is not None:
        return spec.tokens
    return work.expected(lm, corpus, spec.kinds, spec.length)


def _manifest(lm: ObservableLanguageModel, corpus: CorpusSpec, spec: HarvestSpec, path: Path, world: int) -> Manifest:
    """What the store is about; with the notes of the store that is there, if this harvest has begun."""
    settings = {name: value for name, value in asdict(spec).items() if name not in FREE}
    settings = json.loads(json.dumps(settings))
    if (path / NAME).exists():
        notes = read_manifest(path).notes
        there = notes.get("harvest")
        if not isinstance(there, dict) or not {"outliers", "expected"} <= notes.keys():
            raise Mismatch(f"The store '{path}' was not made by a harvest: write into another folder.")
        if other := [f"{n} {there.get(n)!r}, not {settings[n]!r}" for n in settings if there.get(n) != settings[n]]:
            raise Mismatch(f"The store '{path}' was harvested with {'; '.join(other)}: write into another folder.")
    else:
        most = expected(lm, corpus, spec)
        notes = {"harvest": settings, "expected": most, "outliers": measure(lm, corpus, spec)}
    template = lm.tokenizer.chat_template
    return Manifest(
        model=lm.name,
        model_revision=getattr(lm.model.config, "_commit_hash", None) or "",
        hook_points=_widths(lm, spec),
        dtype=spec.dtype,
        corpus=corpus.identity,
        chat_template=hashlib.sha256(json.dumps(template).encode()).hexdigest()[:16] if template else "",
        kept=spec.keep,
        tokens_per_shard=spec.tokens_per_shard,
        world=world,
        notes=notes,
    )


def _widths(lm: ObservableLanguageModel, spec: HarvestSpec) -> dict[str, int]:
    """{hook point: d_in}, by a pass over one token."""
    token = torch.zeros(1, 1, dtype=torch.int64, device=lm.device)
    flows = lm.activations(token, spec.hook_points)
    return {point: int(flows[point].shape[-1]) for point in spec.hook_points}


def _account_file(path: Path, rank: int) -> Path:
    return path / f"harvest-{rank:04}.json"


def _write_account(path: Path, rank: int, reader: Reader) -> None:
    """Before the writer is closed: what is done then has its account."""
    counts = {"tokens": reader.counts.tokens, **reader.counts.said()}
    said: dict[str, Any] = {**counts, "outliers": reader.outliers, "corpus": reader.tally}
    try:
        write_json(_account_file(path, rank), said)
    except OSError as error:
        raise BadFile(f"Cannot write '{_account_file(path, rank)}': {first_line(error)}") from error


def _account(path: Path, rank: int) -> dict[str, Any]:
    said = read_json(_account_file(path, rank))
    wanted = {f.name for f in fields(Harvested)} - {"seconds"}
    if said.keys() != wanted:
        raise BadFile(f"'{_account_file(path, rank)}' is no account of a harvest: it has {', '.join(said)}.")
    return said
