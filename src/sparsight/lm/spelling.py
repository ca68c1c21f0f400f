"""A tokenizer without its model, and which of its tokens stand for a text."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sparsight.disk import first_line
from sparsight.errors import BadFile, Mismatch
from sparsight.lm.text import vocabulary


def load_tokenizer(name: str, revision: str | None = None, fingerprint: str | None = None) -> PreTrainedTokenizerBase:
    """From a folder, the hub, or "demo".

    fingerprint: the vocabulary that it must have (lm.text.vocabulary). Raises BadFile, Mismatch.
    """
    place = Path(str(files("sparsight"))) / "demo" / "model" if name == "demo" else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision or None)
    except Exception as error:  # whatever transformers raises about a file or a name
        raise BadFile(f"Cannot load the tokenizer of '{name}': {first_line(error)}") from error
    if fingerprint is not None and (mine := vocabulary(tokenizer)) != fingerprint:
        raise Mismatch(f"The tokenizer of '{name}' is {mine}, not {fingerprint}: name the model by --model.")
    return tokenizer


def spellings(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, ...]]:
    """Every way that a text may stand among others in tokens: at the beginning, and after a space."""
    clean = text.encode("utf-8", "replace").decode()
    forms = [clean] if clean[:1].isspace() else [clean, f" {clean}"]
    found = (tuple(tokenizer.encode(form, add_special_tokens=False)) for form in forms)
    return [ids for ids in dict.fromkeys(found) if ids]
