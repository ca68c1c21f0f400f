"""The native SAE format, and the doors: one that loads any format, one that turns it into another.

folder/
  sae.safetensors    W_enc [d_hidden, d_in], b_enc, W_dec [d_hidden, d_in], b_dec; threshold, r_mag, b_mag where
                     the activation has them; scale [d_hidden], float32: each feature's unit
  sae.json           schema, the config, the content's fingerprint, and one of scale
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.disk import first_line, read_json, write_json
from sparsight.errors import BadFile, BadInput, Mismatch
from sparsight.sae.config import SaeConfig, content_hash
from sparsight.sae.disk import read_safetensors, write_safetensors
from sparsight.sae.foreign.card import PUBLISHED, read_card, write_card
from sparsight.sae.foreign.dictionary_learning import read_dictionary
from sparsight.sae.foreign.gemma_scope import read_gemma_scope
from sparsight.sae.foreign.llama_scope import WEIGHTS as LLAMA_SCOPE_WEIGHTS
from sparsight.sae.foreign.llama_scope import read_llama_scope
from sparsight.sae.foreign.openai import is_openai, read_openai
from sparsight.sae.foreign.saelens import PREFIX, download_saelens, read_saelens, write_saelens
from sparsight.sae.foreign.sparsify import WEIGHTS as SPARSIFY_WEIGHTS
from sparsight.sae.foreign.sparsify import read_sparsify
from sparsight.sae.foreign.strict import read_state
from sparsight.sae.sae import SparseAutoEncoder

SCHEMA = 1
KNOWN = (
    "native folders (sae.json), SAELens (cfg.json + sae_weights.safetensors), sparsify (cfg.json + sae.safetensors), "
    "dictionary_learning (config.json + ae.pt), Gemma Scope (params.npz), Llama Scope (hyperparams.json), "
    "the model card's .pth and OpenAI's .pt"
)
MARKS = ("sae.json", "cfg.json", "ae.pt", "params.npz", "hyperparams.json")  # one of these makes a folder an SAE
DOWNLOADED = (*MARKS, "config.json", "sae_weights.safetensors", SPARSIFY_WEIGHTS, *LLAMA_SCOPE_WEIGHTS)


def load_sae(
    path: str | Path,
    d_model: int | None = None,
    expansion_factor: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> SparseAutoEncoder:
    """An SAE from a file or folder of any known format; the format is found by what lies there.

    path: a file or folder; a repository on the hub "owner/name", or a folder in one, "owner/name:layers.19"; or
    "saelens:release/sae_id", for all that SAELens can download. docs/formats.md has the formats.
    d_model, expansion_factor: as on the card; given, they are checked.
    dtype: of the loaded SAE; None keeps that of the file's encoder.
    Raises BadFile for a file that is absent, corrupt, unsafe or unknown; Mismatch where it has other sizes.
    """
    if str(path).startswith(PREFIX):
        sae = download_saelens(str(path).removeprefix(PREFIX))
    else:
        found = _found(path)
        reader = _reader(found)
        if reader is None:
            within = [str(p.relative_to(found)) for p in _inside(found)]
            todo = f" It holds others, name one: {', '.join(within)}." if within else ""
            raise BadFile(f"No SAE that sparsight can read at '{path}'.{todo} It reads {KNOWN}.")
        sae = reader(found)
    wanted = (d_model, None if expansion_factor is None else (d_model or sae.d_in) * expansion_factor)
    for asked, real, name in zip(wanted, (sae.d_in, sae.d_hidden), ("d_in", "d_hidden"), strict=True):
        if asked is not None and asked != real:
            raise Mismatch(f"Asked for an SAE with {name} {asked:,}; the one at '{path}' has {real:,}.")
    return sae.moved(device, dtype or sae.dtype)


def convert(
    source: str | Path | SparseAutoEncoder, to: str | Path, as_: str = "native", dtype: torch.dtype | None = None
) -> Path:
    """Any SAE in another format: what was written. Feature units are kept in the native format alone.

    source: what load_sae takes, or an SAE. to: a folder or, for "card", a file that ends in .pth or .pt.
    as_: "native", "saelens" or "card". dtype: None keeps that of the source.
    Raises BadInput for what the format cannot hold, and where `to` is the source, or an SAE of another format.
    """
    writers = {"native": save_sae, "saelens": write_saelens, "card": write_card}
    if as_ not in writers:
        raise BadInput(f"No format {as_!r} to write. There are: {', '.join(writers)}.")
    if as_ == "card" and (Path(to).suffix not in (".pth", ".pt") or Path(to).is_dir()):
        raise BadInput(f"The model card's layout is one file: name it .pth, not '{to}'.")
    if as_ != "card" and Path(to).is_file():
        raise BadInput(f"'{to}' is a file; an SAE in the format {as_} is a folder.")
    if not isinstance(source, SparseAutoEncoder):
        if Path(to).exists() and Path(source).exists() and Path(to).samefile(source):
            raise BadInput(f"'{to}' is the SAE to be converted: write it somewhere else.")
        source = load_sae(source, dtype=dtype)
    if Path(to).is_dir() and _reader(Path(to)) not in (None, {"native": read_native, "saelens": read_saelens}[as_]):
        raise BadInput(f"'{to}' holds an SAE of another format: write into a folder of its own.")
    return writers[as_](source if dtype is None else source.moved(source.device, dtype), to)


def save_sae(sae: SparseAutoEncoder, folder: str | Path) -> Path:
    """Write the native format; the folder holds the whole SAE or, if this is cut off, none."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = dict(sae.named_parameters())
    scale = {} if sae.scale is None else {"scale": sae.scale.float()}
    described: dict[str, Any] = {"schema": SCHEMA, **asdict(sae.config), "dtype": str(sae.dtype).split(".")[-1]}
    described["fingerprint"] = content_hash(sae.config, tensors)
    described["scale_fingerprint"] = content_hash(sae.config, scale)
    (folder / "sae.json").unlink(missing_ok=True)  # without it the folder is no SAE: the last file makes it whole
    write_safetensors(folder / "sae.safetensors", tensors | scale)
    write_json(folder / "sae.json", described)
    return folder


def read_native(folder: Path) -> SparseAutoEncoder:
    """The native format. Raises BadFile where the content is not what its fingerprint says."""
    described = read_json(folder / "sae.json")
    if described.get("schema") != SCHEMA:
        known = f"this sparsight reads schema {SCHEMA}"
        raise BadFile(f"'{folder}/sae.json' is of schema {described.get('schema')!r}; {known}.")
    names = {f.name for f in fields(SaeConfig)}
    try:
        config = SaeConfig(**{name: described[name] for name in names & described.keys()})
        sae = SparseAutoEncoder.from_tensors(config, read_safetensors(folder / "sae.safetensors"))
    except (BadInput, TypeError) as error:
        raise BadFile(f"'{folder}' is not a sound native SAE: {error}") from error
    scale = content_hash(config, {} if sae.scale is None else {"scale": sae.scale})
    for name, real in (("fingerprint", sae.fingerprint), ("scale_fingerprint", scale)):
        if described.get(name) != real:
            raise BadFile(f"'{folder}' was changed or damaged: its {name} is {real}, said {described.get(name)}.")
    return sae


def _reader(found: Path) -> Callable[[Path], SparseAutoEncoder] | None:
    """Which format lies there; None for none."""
    if found.is_file():
        return _read_npz_or_state(found)
    if (found / "sae.json").exists():
        return read_native
    if (found / "hyperparams.json").exists():
        return read_llama_scope
    if (found / "params.npz").exists():
        return lambda folder: read_gemma_scope(folder / "params.npz")
    if (found / "ae.pt").exists():
        return read_dictionary
    if (found / "cfg.json").exists():
        theirs = (found / SPARSIFY_WEIGHTS).exists() and not (found / "sae_weights.safetensors").exists()
        return read_sparsify if theirs else read_saelens
    return None


def _read_npz_or_state(file: Path) -> Callable[[Path], SparseAutoEncoder] | None:
    """The reader of a single file."""
    if file.suffix == ".npz":
        return read_gemma_scope
    if file.name == "ae.pt":
        return lambda file: read_dictionary(file.parent)
    return _read_state_dict if file.suffix in (".pth", ".pt") else None


def _read_state_dict(file: Path) -> SparseAutoEncoder:
    """A .pth or .pt: the model card's, or OpenAI's."""
    state = read_state(file)
    return read_openai(file, state) if is_openai(state) else read_card(file, state)


def _inside(folder: Path) -> Iterator[Path]:
    """A few of the SAEs in a folder of folders, as repositories keep them."""
    levels = (folder.glob("*/" * depth + mark) for depth in (1, 2, 3) for mark in MARKS)
    return islice((file.parent for file in chain.from_iterable(levels)), 8)


def _found(path: str | Path) -> Path:
    """Where the SAE lies on this disk, after a download where the path names a repository."""
    local = Path(path)
    if local.exists():
        return local
    name, _, within = str(path).partition(":")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or local.suffix in (".pth", ".pt"):
        raise BadFile(f"No SAE at '{path}': there is no such file or folder.")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if name in PUBLISHED:
            return Path(hf_hub_download(name, PUBLISHED[name].file))
        patterns = [f"{within}/{file}" if within else file for file in DOWNLOADED]
        folder = Path(snapshot_download(name, allow_patterns=[*patterns, "config.json"])) / within
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:  # ValueError: not a name for a hub
        why = first_line(error)
        raise BadFile(f"No SAE at '{path}': no such file, and the Hugging Face hub gave none ({why}).") from error
    if _reader(folder) is None:
        todo = "where it holds several SAEs, name the folder of one: 'owner/name:folder'"
        raise BadFile(f"No SAE that sparsight can read at '{path}': {todo}. It reads {KNOWN}.")
    return folder
