"""A corpus: conversations of a source, chosen and shuffled, that can be read in parts and gone on with.

Rows are numbered as they stand in the source and read in blocks of `window`; each block in an order that follows from
its row numbers and the seed alone. That is the reading order, and a position in it is a number of rows. It does not
depend on what is kept, nor on how many processes read: each of these yields its own conversations in that order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sparsight.corpus.conversation import Conversation, Unreadable
from sparsight.corpus.schemas import SCHEMAS, read_row
from sparsight.corpus.selection import Selection, Tally, draw
from sparsight.corpus.sources import open_source
from sparsight.corpus.spec import CorpusSpec, check_whole
from sparsight.errors import BadFile

LOOKED_AT = 1_000  # rows after which, again and again, the share of unreadable ones is looked at


def read(spec: CorpusSpec, skip: int = 0, rank: int = 0, world: int = 1) -> Corpus:
    """The conversations that spec names.

    skip: go on at this position, a Conversation's. rank, world: this process, from 0, and how many read the corpus;
    together they read what a single one would. Raises BadInput where there is no such source.
    """
    return Corpus(spec, skip, rank, world)


class Corpus:
    """Iterating reads the source from its beginning, each time anew, and yields Conversations.

    tally: what became of the rows that the latest iteration has read; up to `window` ahead of what it has yielded.
    Going on at a position reads the rows before it too, and yields none of them: which words were seen is known from
    them alone, and the tally is that of a reading that never stopped.

    Iterating raises BadFile where a file cannot be read on, where there are no rows, where too many are unreadable,
    and where there are fewer than were to be skipped.
    """

    def __init__(self, spec: CorpusSpec, skip: int = 0, rank: int = 0, world: int = 1) -> None:
        check_whole(skip, "skip", 0)
        check_whole(world, "world", 1)
        check_whole(rank, "rank", 0, below=world)
        self.spec = spec
        self.skip = skip
        self.rank = rank
        self.world = world
        self.source = open_source(spec)
        self.tally = Tally()

    def __iter__(self) -> Iterator[Conversation]:
        self.tally = tally = Tally()
        selection = Selection(self.spec, self.rank, self.world)
        block: dict[int, Conversation] = {}
        for place, row, origin in self.source:
            conversation = self._choose(place, row, origin, selection, tally)
            if conversation is not None:
                block[tally.rows] = conversation
            tally.rows += 1
            if tally.rows % LOOKED_AT == 0:
                self._check_readable(tally)
            if tally.rows % self.spec.window == 0:
                yield from self._in_order(block, tally.rows - self.spec.window, tally.rows)
                block = {}
        if not tally.rows:
            raise BadFile(f"There are no rows in '{self.spec.source}'.")
        self._check_readable(tally)
        if tally.rows < self.skip:
            raise BadFile(f"'{self.spec.source}' has {tally.rows:,} rows, and {self.skip:,} were read before.")
        yield from self._in_order(block, tally.rows - tally.rows % self.spec.window, tally.rows)

    def _choose(self, place: str, row: object, origin: str, selection: Selection, tally: Tally) -> Conversation | None:
        """The row as a conversation, if it is one and kept; counted either way."""
        try:
            if isinstance(row, Unreadable):
                raise row
            conversation = read_row(row, self.spec.schema, origin)
        except Unreadable as why:
            tally.skip(place, why)
            return None
        why_not = selection.why_not(conversation)
        if why_not:
            tally.dropped[why_not] += 1
            return None
        tally.kept += 1
        return conversation

    def _in_order(self, block: dict[int, Conversation], start: int, stop: int) -> Iterator[Conversation]:
        """What is kept of the rows from start to stop, in reading order, from where this reading goes on."""
        if not block or stop <= self.skip:
            return
        order = sorted(range(start, stop), key=lambda row: draw(row.to_bytes(8, "big"), "order", self.spec.seed))
        for position, row in enumerate(order, start + 1):
            if row in block and position > self.skip:
                yield replace(block.pop(row), position=position)

    def _check_readable(self, tally: Tally) -> None:
        unreadable = tally.unreadable.total()
        if unreadable > tally.rows * self.spec.most_unreadable / 100:
            why = "; ".join(f"{count:,}: {tally.first[why]}" for why, count in tally.unreadable.most_common(3))
            raise BadFile(
                f"{unreadable:,} of {tally.rows:,} rows of '{self.spec.source}' cannot be read. {why}. "
                f"Schemas that are known: {', '.join(SCHEMAS)}."
            )
