"""Scope x text -> Atlas: one pass over a corpus that sees what every feature fires on, in fixed memory.

Each process reads its own conversations and leaves what it has in a folder of its own beside the atlas, part-0000; the
one that is done last puts all of them together. A killed one goes on at its last checkpoint by the same command.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight import __version__
from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.entries import is_held_out
from sparsight.corpus.conversation import Conversation
from sparsight.corpus.corpus import read
from sparsight.corpus.ranks import place, share
from sparsight.corpus.selection import draw
from sparsight.corpus.sources import Files
from sparsight.corpus.spec import CorpusSpec
from sparsight.errors import BadInput, Mismatch
from sparsight.lm.batch import Batch
from sparsight.lm.text import vocabulary
from sparsight.records import KINDS, Kind, Progress
from sparsight.sae.codes import Codes
from sparsight.scope.scope import Scope
from sparsight.scope.work import Work, expected, works
from sparsight.shards.read_ahead import read_ahead
from sparsight.survey.directions import directions
from sparsight.survey.finish import Text, write
from sparsight.survey.part import STATE, Part, read_state
from sparsight.survey.spec import SurveySpec
from sparsight.survey.state import OFFSETS, Seen, State

LOCK = "lock"
FREE = ("ahead", "checkpoint")  # knobs that the atlas does not depend on
BITS = torch.tensor([int(Kind[name.upper()]) for name in KINDS])
LONGEST = 2**OFFSETS - 1  # tokens of a document
ENCODE_MEMORY = 2**27  # bytes of dense work of the SAE at any moment
Tell = Callable[[Progress], None]


def survey(
    scope: Scope,
    corpus: CorpusSpec,
    spec: SurveySpec | None = None,
    to: str | Path = "atlas",
    tell: Tell | None = None,
    rank: int | None = None,
    world: int | None = None,
) -> Atlas | None:
    """Write the atlas of a scope's SAE on this corpus into the folder `to`, and open it.

    The same call goes on where a killed run was; where the atlas is there, it is opened. rank, world: as torchrun says,
    where they are not given: each process surveys its own conversations, and the last one to be done puts the atlas
    together; the others get None. tell: hears of every pass.
    Raises Mismatch where `to` is of another survey, BadInput where the corpus has no token to count, NoChatTemplate for
    chats where the tokenizer has no template, and what reading a corpus raises.
    """
    spec, to = spec or SurveySpec(), Path(to)
    rank, world = place(rank, world)
    settings = _settings(scope, corpus, spec, world)
    if (to / "atlas.db").exists() and not any(to.glob(f"part-*/{STATE}")):
        return _there(to, settings)
    part = Part(to / f"part-{rank:04}", settings, State(scope.sae.d_hidden, spec, scope.sae.device), spec.log_tokens)
    with closing(part):
        if not part.account.ended:
            _run(scope, corpus, spec, part, rank, world, tell)
    del part
    with _alone(to):
        folders = [to / f"part-{number:04}" for number in range(world)]
        if not all(_ended(folder) for folder in folders):
            return None if not (to / "atlas.db").exists() else Atlas(to)
        _assemble(scope, spec, to, folders, settings, tell)
        for folder in folders:  # without its state a part is no part any more, even if this is killed here
            (folder / STATE).unlink()
        for folder in folders:
            shutil.rmtree(folder)
        (to / LOCK).unlink()
    return Atlas(to)


def _run(
    scope: Scope, corpus: CorpusSpec, spec: SurveySpec, part: Part, rank: int, world: int, tell: Tell | None
) -> None:
    """Read on, up to the end of this process' text."""
    began, account, state = time.monotonic(), part.account, part.state
    most, last = share(spec.tokens, rank, world), began
    kinds = Kind(int(BITS.sum()) - (0 if spec.bos else int(Kind.BOS)))
    text, length = read(corpus, account.after, rank, world), min(spec.length or LONGEST, LONGEST)
    known = tell is not None and most is None and isinstance(text.source, Files)  # the hub's are not read twice
    total = expected(scope.lm, corpus, kinds, length) // world if known else most
    made = works(scope.lm, text, spec.pass_tokens, spec.pool, length, account.number)
    made = read_ahead(made, spec.ahead) if spec.ahead else made
    with closing(read_ahead(_encoded(scope, made, int(kinds)), 1)) as passes:  # the model runs while this thread counts
        for work, wanted, codes in passes:
            if most is not None and state.tokens >= most:
                break
            _count(part, work, wanted, codes)
            account.after, account.number = work.after, work.number + 1
            if time.monotonic() - last >= spec.checkpoint:
                part.checkpoint()
                last = time.monotonic()
            if tell:
                tell(Progress("survey", state.tokens, total, "tokens", time.monotonic() - began))
    account.ended = True
    part.checkpoint()


@torch.no_grad()
def _encoded(
    scope: Scope, made: Generator[Work, None, None], kinds: int
) -> Generator[tuple[Work, Tensor | None, Codes | None], None, None]:
    """Each pass with its tokens of these kinds, as places in the flattened batch, and the codes of those."""
    with closing(made):
        for work in made:
            if work.batch is None:
                yield work, None, None
                continue
            wanted = ((work.batch.kinds.flatten() & kinds) != 0).nonzero().squeeze(1)
            yield work, wanted, scope.sae.encode_codes(_residual(scope, work.batch, wanted), ENCODE_MEMORY)


def _count(part: Part, work: Work, wanted: Tensor | None, codes: Codes | None) -> None:
    """What is kept of one pass."""
    account, batch = part.account, work.batch
    account.cut, account.refused = account.cut + work.cut, account.refused + work.refused
    account.first_refused = account.first_refused or work.why
    if batch is None or wanted is None or codes is None:
        return
    seen = _seen(part, work, batch, wanted, codes.values.device)
    part.state.add(seen, codes)
    lengths = batch.mask.sum(1).tolist()
    _write(part, work, batch, lengths)
    _log(part, work, seen, codes, lengths)


def _residual(scope: Scope, batch: Batch, wanted: Tensor) -> Tensor:
    """[token, d_in] at the hook point, of these tokens of the batch."""
    rows: list[Tensor] = []

    def keep(flow: Tensor) -> None:
        if flow.ndim != 3 or flow.shape[:2] != batch.ids.shape:
            raise BadInput(f"'{scope.hook_point}' gives {list(flow.shape)}, and not a row for each token.")
        rows.append(flow.reshape(-1, flow.shape[-1]).index_select(0, wanted.to(flow.device)))

    scope.lm.run(batch, {scope.hook_point: [keep]}, stop=True)
    return rows[0]


def _seen(part: Part, work: Work, batch: Batch, wanted: Tensor, device: torch.device) -> Seen:
    """What is known of these tokens, where the SAE is."""
    known = {name: number for number, name in enumerate(part.account.languages, 1)}
    most = part.state.spec.languages
    for one in work.conversations:
        if one.language and one.language not in known and len(known) < most - 1:
            part.account.languages.append(one.language)
            known[one.language] = len(known) + 1
    of = [
        (one.position, int(is_held_out(one.id)), known.get(one.language, most) if one.language else 0, _hash(one) >> 33)
        for one in work.conversations
    ]
    at, half, language, drawn = (torch.tensor(column, device=device) for column in zip(*of, strict=True))
    bits = batch.kinds.flatten()[wanted]
    kind = ((bits.unsqueeze(1) & BITS.to(bits.device)) != 0).int().argmax(1)
    document, offset, id = wanted // batch.ids.shape[1], batch.positions.flatten()[wanted], batch.ids.flatten()[wanted]
    document, offset, id, kind = (column.to(device) for column in (document, offset, id, kind))
    return Seen(document, offset, id, kind, at, half, language, drawn)


def _write(part: Part, work: Work, batch: Batch, lengths: list[int]) -> None:
    """The documents of a pass, all of their tokens."""
    ids = [row[len(row) - n :] for row, n in zip(batch.ids.tolist(), lengths, strict=True)]
    kinds = [row[len(row) - n :] for row, n in zip(batch.kinds.tolist(), lengths, strict=True)]
    told = [
        {
            "at": one.position,
            "length": length,
            "id": one.id,
            "source": one.source,
            "language": one.language,
            "roles": [(len(list(run)), kind) for kind, run in groupby(row)],
        }
        for one, length, row in zip(work.conversations, lengths, kinds, strict=True)
    ]
    part.write(ids, told)


def _log(part: Part, work: Work, seen: Seen, codes: Codes, lengths: list[int]) -> None:
    """The activations of those documents of a pass that are among the chosen."""
    numbers = [_hash(one) >> 1 for one in work.conversations]
    wanted = [part.chosen.wants(n, one.position) for n, one in zip(numbers, work.conversations, strict=True)]
    if not any(wanted):
        return
    codes, offset = codes.to("cpu"), seen.offset.cpu()
    ends = seen.document.bincount(minlength=len(numbers)).cumsum(0).tolist()
    for row, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if wanted[row]:
            part.log(numbers[row], int(seen.at[row]), lengths[row], offset[start:end], codes[start:end])


def _hash(one: Conversation) -> int:
    """A number below 2^64 that follows from a document's id alone."""
    return draw(one.id.encode(), "survey")


def _settings(scope: Scope, corpus: CorpusSpec, spec: SurveySpec, world: int) -> dict[str, Any]:
    """What a part and its atlas are of."""
    knobs = {name: value for name, value in asdict(spec).items() if name not in FREE}
    about = {"sae": scope.sae.fingerprint, "model": scope.lm.name, "tokenizer": vocabulary(scope.lm.tokenizer)}
    return {**about, "hook_point": scope.hook_point, "corpus": corpus.identity, "processes": world, **knobs}


def _there(to: Path, settings: dict[str, Any]) -> Atlas:
    """The atlas that is there. Raises Mismatch where it is of another survey."""
    atlas = Atlas(to)
    about = atlas.about
    told = {**vars(about), **about.settings, "tokens": about.settings.get("tokens")}
    if other := [f"{n} {told.get(n)!r}, not {v!r}" for n, v in settings.items()
                 if n != "processes" and told.get(n) != v]:  # fmt: skip
        raise Mismatch(f"The atlas '{to}' is of a survey with {'; '.join(other)}: write into another folder.")
    for left in to.glob("part-*"):  # by one that was killed when all was done
        shutil.rmtree(left)
    return atlas


def _ended(folder: Path) -> bool:
    return (folder / STATE).exists() and read_state(folder, "cpu")[0]["account"]["ended"]


@contextmanager
def _alone(to: Path) -> Iterator[None]:
    """Of several processes one at a time; one that is killed holds up nobody."""
    with (to / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _assemble(
    scope: Scope, spec: SurveySpec, to: Path, folders: list[Path], settings: dict[str, Any], tell: Tell | None
) -> None:
    """The atlas of what all parts have counted."""
    lm, sae, began = scope.lm, scope.sae, time.monotonic()
    parts = [Part(folder, settings, State(sae.d_hidden, spec, sae.device), spec.log_tokens) for folder in folders]
    for part in parts:
        part.close()
    state, languages = parts[0].state, parts[0].account.languages
    for part in parts[1:]:
        languages = _united(state, languages, part.state, part.account.languages)
        state.merge(part.state)
    if not state.tokens:
        why = next((f" First refused: {one}" for part in parts if (one := part.account.first_refused)), "")
        for folder in folders:
            shutil.rmtree(folder)
        raise BadInput(f"Nothing to survey: the corpus has no token to count.{why}")

    def told(stage: str, done: int) -> None:
        if tell:
            tell(Progress(stage, done, sae.d_hidden, "features", time.monotonic() - began))

    weights = directions(lm, sae, spec.logits, spec.neighbours, partial(told, "directions"))
    text = Text.of(folders)
    about = About(
        sae=sae.fingerprint,
        model=lm.name,
        tokenizer=settings["tokenizer"],
        hook_point=scope.hook_point,
        d_hidden=sae.d_hidden,
        tokens=int(text.length.sum()),
        documents=len(text.at),
        model_revision=getattr(lm.model.config, "_commit_hash", None) or "",
        corpus=settings["corpus"],
        settings={name: settings[name] for name in asdict(spec) if name not in FREE},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        program=f"sparsight {__version__}",
    )
    write(
        to, about, text, state, languages, [part.chosen for part in parts], weights, sae.device, partial(told, "atlas")
    )


def _united(state: State, names: list[str], other: State, others: list[str]) -> list[str]:
    """The languages of both, with the other's counts put where they are counted here."""
    most = state.spec.languages
    names = names + [name for name in others if name not in names][: most - 1 - len(names)]
    to = [0, *(names.index(name) + 1 if name in names else most for name in others)]
    moved = torch.zeros_like(other.languages)
    to += [most] * (moved.shape[1] - len(to))
    moved.index_add_(1, torch.tensor(to, device=moved.device), other.languages)
    other.languages = moved
    return names
