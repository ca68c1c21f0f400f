"""Text to learn from: files or a dataset of the hub, as conversations; which of them, in which order. No torch."""

from sparsight.corpus.conversation import Conversation
from sparsight.corpus.corpus import Corpus, read
from sparsight.corpus.selection import Tally
from sparsight.corpus.spec import CorpusSpec

__all__ = ["Conversation", "Corpus", "CorpusSpec", "Tally", "read"]
