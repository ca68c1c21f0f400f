"""Token ids to text while they come: never half a character, never the beginning of a stop string."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"


class TextStream:
    """The text of one row. `push` gives what may be shown now; `finish` the rest.

    The pieces together are what the tokenizer decodes from all ids, up to the first stop string. special: show
    special tokens too, by name.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), special: bool = False):
        self.tokenizer, self.special = tokenizer, special
        self.stop = tuple(stop)
        self.stopped = False
        self.text = ""  # shown so far
        self._ids: list[int] = []
        self._start, self._read = 0, 0  # ids before _read are in text or held; from _start on they are decoded again
        self._held = ""  # decoded, but perhaps the beginning of a stop string

    def push(self, token: int) -> str:
        """One more token; the text that is now certain."""
        self._ids.append(token)
        return self._show(self._decoded(last=False), last=False)

    def finish(self) -> str:
        """No more tokens; the text that was held back."""
        return self._show(self._decoded(last=True), last=True)

    def _decoded(self, last: bool) -> str:
        """New text since the last call. A few tokens before it are decoded too, since spaces depend on them."""
        known = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(known) or (text.endswith(REPLACEMENT) and not last):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        options = {"skip_special_tokens": not self.special, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(ids, **options))

    def _show(self, new: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        ends = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if ends:
            self.stopped = True
            text = text[: min(ends)]
        keep = 0 if last or self.stopped else max((_overlap(text, stop) for stop in self.stop), default=0)
        shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that a stop string could begin with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's own text, special tokens by name; together they are the whole text. A character that several
    tokens make up shows at the last of them, and the others are empty."""
    text = TextStream(tokenizer, special=True)
    out = [text.push(token) for token in ids]
    if out:
        out[-1] += text.finish()
    return tuple(out)


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """What identifies a tokenizer's ids: a hash of all its (token, id) pairs, 16 hex digits."""
    pairs = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]
