"""The front door: a model and its SAE, by name."""

from __future__ import annotations

import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsight.atlas.atlas import Atlas
from sparsight.disk import read_json
from sparsight.errors import BadFile, BadInput, Mismatch
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.sae.files import load_sae
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.scope.pairing import check_pairing, is_cheap
from sparsight.scope.scope import Scope


def load(
    model: str | Path | PreTrainedModel | ObservableLanguageModel = "demo",
    sae: str | Path | SparseAutoEncoder | None = None,
    *,
    hook_point: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    tokenizer: Any = None,
    atlas: str | Path | Atlas | None = None,
    check: bool = True,
) -> Scope:
    """A Scope.

    model: "demo", the small model inside the package, with its SAE and labels; else a name on the hub, a folder, a
    loaded model. sae: a file, a folder, a repository or an SAE; needed for every model but the demo.
    hook_point: where the SAE reads; None takes what the SAE says. device, dtype: see ObservableLanguageModel.
    atlas: the folder of the SAE's atlas, which has the labels of its features, and their units, see Scope; the demo
    comes with its own.
    check: read about a thousand tokens, and warn where the SAE explains nothing of them (scope/pairing.py). On a CPU
    only where model and SAE have 50M parameters or fewer, and not for the demo as it comes.
    """
    name = None
    if isinstance(model, str) and model == "demo":
        name, check = "demo", check and not (sae is None and hook_point is None)
        model = demo_folder() / "model"
        sae = demo_folder() / "sae" if sae is None else sae
    if sae is None:
        raise BadInput("Which SAE? Give sae=: a folder, the model card's .pth, a repository on the hub, or an SAE.")
    lm = model if isinstance(model, ObservableLanguageModel) else None
    if lm and not (device is None and dtype is None and tokenizer is None):
        raise BadInput("device, dtype and tokenizer are for loading; this model is loaded already.")
    lm = lm or ObservableLanguageModel(model, device, dtype, tokenizer=tokenizer)  # type: ignore[arg-type]
    if not isinstance(sae, SparseAutoEncoder):
        sae = load_sae(sae, dtype=lm.dtype)
    lm.name = name or lm.name
    check_made_for(sae, lm)
    if name and atlas is None and hook_point in (None, sae.config.hook_point) and has_atlas(sae):
        atlas = "demo"
    scope = Scope(lm, sae, hook_point, atlas=demo_folder() / "atlas" if atlas == "demo" else atlas)
    if check and lm.has_tokenizer and is_cheap(lm, scope.sae):
        try:
            check_pairing(lm, scope.sae, scope.hook_point, stacklevel=3)
        except BadInput as why:
            warnings.warn(f"Whether this SAE fits this model could not be checked. {why}", stacklevel=2)
    if name and scope.hook_point == sae.config.hook_point:
        scope.features.labels = read_labels(demo_folder() / "labels.json", sae.fingerprint) | scope.features.labels
    return scope


def has_atlas(sae: SparseAutoEncoder) -> bool:
    """Whether the demo's atlas is there, and is of this SAE."""
    folder = demo_folder()
    return (folder / "atlas" / "atlas.db").exists() and read_json(folder / "labels.json")["sae"] == sae.fingerprint


def demo_folder() -> Path:
    """Where the embedded demo lies. Raises BadFile where this installation came without it."""
    folder = Path(str(files("sparsight"))) / "demo"
    if not (folder / "model" / "config.json").exists():
        raise BadFile(f"This installation has no embedded demo: '{folder}' is empty. `demo/` of the sources builds it.")
    return folder


def showcase() -> dict[str, Any]:
    """What `sparsight demo` shows: {"prompt", "voice", "seed"}, chosen when the demo was built."""
    return read_json(demo_folder() / "labels.json")["showcase"]


def voice_settings() -> dict[str, list[str]]:
    """The edits that turn each of the demo's voices on, as `features.edit` reads them: {"pirate": ["27=+1.2"], ...}."""
    return read_json(demo_folder() / "labels.json")["settings"]


def read_labels(path: Path, fingerprint: str) -> dict[int, str]:
    """Feature index -> label, from a labels file; none where it is about another SAE."""
    told = read_json(path) if path.exists() else {}
    return {int(i): entry["label"] for i, entry in told["labels"].items()} if told.get("sae") == fingerprint else {}


def check_made_for(sae: SparseAutoEncoder, lm: ObservableLanguageModel) -> None:
    """Raises Mismatch where the SAE names another model and the sizes show that it is right about that. Another model
    of the same width is warned of: it may be a fine-tuned one, on which the SAE still reads, or no relation."""
    made_for = sae.config.model
    ours, theirs = (str(name).rstrip("/").rsplit("/", 1)[-1].lower() for name in (lm.name, made_for))
    if made_for and sae.d_in == lm.d_model and ours not in theirs and theirs not in ours:
        doubt = "it reads sense only where that is the same model, or one fine-tuned from it"
        warnings.warn(f"This SAE was made for '{made_for}', and the model is '{lm.name}': {doubt}.", stacklevel=3)
    if (
        made_for
        and sae.d_in != lm.d_model
        and sae.config.hook_point in {f"model.layers.{i}" for i in range(lm.n_layers)}
    ):
        sizes = f"it reads {sae.d_in:,} numbers, '{lm.name}' has {lm.d_model:,}"
        raise Mismatch(f"This SAE was made for '{made_for}', not for this model: {sizes}.")
