"""The model card's .pth: a state dict `encoder_linear.*`, `decoder_linear.*`; relu; no config beside it.

features = relu(x @ Eᵀ + b)        x_hat = features @ Dᵀ + c
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsight.disk import write_aside
from sparsight.errors import BadInput
from sparsight.sae.config import SaeConfig
from sparsight.sae.foreign.strict import fit, read_state, sound
from sparsight.sae.sae import CARD_NAMES, SparseAutoEncoder, rename_card

KIND = "the model card's SAE"
SHAPES = {
    "encoder_linear.weight": "d_hidden d_in",
    "encoder_linear.bias": "d_hidden",
    "decoder_linear.weight": "d_in d_hidden",
    "decoder_linear.bias": "d_in",
}


@dataclass(frozen=True)
class Published:
    """What a published .pth does not say about itself."""

    file: str
    model: str
    hook_point: str


PUBLISHED = {
    "Goodfire/Llama-3.1-8B-Instruct-SAE-l19": Published(
        "Llama-3.1-8B-Instruct-SAE-l19.pth", "meta-llama/Llama-3.1-8B-Instruct", "model.layers.19"
    ),
    "Goodfire/Llama-3.3-70B-Instruct-SAE-l50": Published(
        "Llama-3.3-70B-Instruct-SAE-l50.pt", "meta-llama/Llama-3.3-70B-Instruct", "model.layers.50"
    ),
}


def read_card(path: Path, state: dict[Any, Any] | None = None) -> SparseAutoEncoder:
    """The model card's file. Model and hook point are known where the file keeps its published name.

    state: what is in the file, if it was read before.
    """
    state = read_state(path) if state is None else state
    sizes = fit(path, KIND, state, SHAPES)
    known = next((p for p in PUBLISHED.values() if p.file == path.name), None)
    config = SaeConfig(
        d_in=sizes["d_in"],
        d_hidden=sizes["d_hidden"],
        model=known and known.model,
        hook_point=known and known.hook_point,
        notes={"format": "goodfire", "file": path.name},
    )
    rename_card(state)
    return sound(path, KIND, config, state)


def write_card(sae: SparseAutoEncoder, path: str | Path) -> Path:
    """The model card's layout, for a relu SAE; reading it again gives the same weights."""
    c = sae.config
    if c.activation != "relu" or c.apply_b_dec_to_input or c.normalization != "none" or c.transcoder or c.skip:
        what = f"{c.activation}, normalization {c.normalization}, apply_b_dec_to_input {c.apply_b_dec_to_input}"
        what += ", a transcoder" * c.transcoder + ", with a skip connection" * c.skip
        raise BadInput(f"The model card's layout holds plain relu SAEs; this one is {what}.")
    tensors = {theirs: getattr(sae, ours).detach().cpu() for theirs, ours in CARD_NAMES.items()}
    tensors["decoder_linear.weight"] = tensors["decoder_linear.weight"].T.contiguous()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda part: torch.save(tensors, part))
    return path
