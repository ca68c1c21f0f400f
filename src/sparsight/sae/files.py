"""The native SAE format, and the one door that loads any format.

folder/
  sae.safetensors    W_enc [d_hidden, d_in], b_enc, W_dec [d_hidden, d_in], b_dec; threshold, r_mag, b_mag where
                     the activation has them; scale [d_hidden], float32: each feature's unit
  sae.json           schema, the config, the content's fingerprint, and one of scale
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.disk import first_line, read_json, write_json
from sparsight.errors import BadFile, BadInput, Mismatch
from sparsight.sae.config import SaeConfig, content_hash
from sparsight.sae.disk import read_safetensors, write_safetensors
from sparsight.sae.foreign import PUBLISHED, read_card, read_saelens
from sparsight.sae.sae import SparseAutoEncoder

SCHEMA = 1


def load_sae(
    path: str | Path,
    d_model: int | None = None,
    expansion_factor: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> SparseAutoEncoder:
    """An SAE from a file or folder of any known format, or from a Hugging Face repository.

    path: a native folder (sae.json), a SAELens folder (cfg.json), the model card's .pth file, or a repository
    "owner/name" that holds one of these. d_model, expansion_factor: as on the card; given, they are checked.
    dtype: of the loaded SAE; None keeps that of the file's encoder.
    Raises BadFile for a file that is absent, corrupt, unsafe or unknown; Mismatch where it has other sizes.
    """
    found = _found(path)
    if found.is_dir() and (found / "sae.json").exists():
        sae = read_native(found)
    elif found.is_dir() and (found / "cfg.json").exists():
        sae = read_saelens(found)
    elif found.suffix in (".pth", ".pt"):
        sae = read_card(found)
    else:
        known = "a native folder (sae.json), a SAELens folder (cfg.json) or the model card's .pth"
        raise BadFile(f"No SAE that sparsight can read at '{path}'. It reads {known}.")
    wanted = (d_model, None if expansion_factor is None else (d_model or sae.d_in) * expansion_factor)
    for asked, real, name in zip(wanted, (sae.d_in, sae.d_hidden), ("d_in", "d_hidden"), strict=True):
        if asked is not None and asked != real:
            raise Mismatch(f"Asked for an SAE with {name} {asked:,}; the one at '{path}' has {real:,}.")
    return sae.moved(device, dtype or sae.dtype)


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


def _found(path: str | Path) -> Path:
    """Where the SAE lies on this disk, after a download where the path names a repository."""
    local = Path(path)
    if local.exists():
        return local
    name = str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or local.suffix in (".pth", ".pt"):
        raise BadFile(f"No SAE at '{path}': there is no such file or folder.")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if name in PUBLISHED:
            return Path(hf_hub_download(name, PUBLISHED[name].file))
        patterns = ["sae.json", "sae.safetensors", "cfg.json", "sae_weights.safetensors"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:  # ValueError: not a name for a hub
        why = first_line(error)
        raise BadFile(f"No SAE at '{path}': no such file, and the Hugging Face hub gave none ({why}).") from error
