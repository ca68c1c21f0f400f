"""Log-probabilities in OpenAI's two forms. Each token has its text and its bytes, which may be half a character."""

from __future__ import annotations

import json
from functools import cache, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsight.serve.engine import Update

LEAST = -9999.0  # stands for a probability of nothing, which JSON has no number for


def chat_entry(tokenizer: PreTrainedTokenizerBase, update: Update, top: int) -> dict[str, Any]:
    """One token of a chat's `logprobs.content`."""
    best = [_told(tokenizer, token, logprob) for token, logprob in update.top[:top]]
    return {**_told(tokenizer, update.id, update.logprob), "top_logprobs": best}


def _told(tokenizer: PreTrainedTokenizerBase, token: int, logprob: float | None) -> dict[str, Any]:
    raw = token_bytes(tokenizer, token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": number(logprob), "bytes": list(raw)}


class CompletionLogprobs:
    """A completion's `logprobs`. offset: characters before the next token, from the beginning of the text on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, top: int) -> None:
        self.tokenizer, self.top, self.offset = tokenizer, top, 0

    def of(self, update: Update) -> dict[str, Any]:
        """Of one token. A token that is half a character is told by its bytes, as OpenAI does."""
        best = {spelled(self.tokenizer, token): number(logprob) for token, logprob in update.top[: self.top]}
        said = spelled(self.tokenizer, update.id)
        best.setdefault(said, number(update.logprob))
        out = {
            "tokens": [said],
            "token_logprobs": [number(update.logprob)],
            "top_logprobs": [best],
            "text_offset": [self.offset],
        }
        self.offset += len(update.text)
        return out


def number(logprob: float | None) -> float:
    """A finite one."""
    return LEAST if logprob is None else max(LEAST, float(logprob))


def spelled(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token's text; "bytes:\\xe4\\xbd" where it is no whole character."""
    raw = token_bytes(tokenizer, token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


@lru_cache(maxsize=65_536)
def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """What a token adds to a text, in UTF-8: of a byte-level vocabulary, or one that falls back to bytes; else by
    decoding. A special token is spelled by its name."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(piece, str):
        return b""
    if token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder:
        return piece.encode("utf-8", "replace")
    if is_byte_level(tokenizer) and all(letter in byte_of() for letter in piece):
        return bytes(byte_of()[letter] for letter in piece)
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    if "▁" in piece:
        return piece.replace("▁", " ").encode("utf-8", "replace")
    return str(tokenizer.decode([token])).encode("utf-8", "replace")


@cache
def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether its vocabulary is spelled in GPT-2's letters for bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = None if backend is None else json.loads(backend.to_str()).get("decoder")
    if decoder is None:
        return False
    return any(one.get("type") == "ByteLevel" for one in [decoder, *decoder.get("decoders", ())])


@cache
def byte_of() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others follow from U+0100 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
