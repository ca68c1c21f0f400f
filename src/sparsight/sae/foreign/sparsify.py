"""EleutherAI's sparsify: cfg.json + sae.safetensors, in a folder that is named after its hook point ("layers.19").

    features = top k of relu((x − b_dec) @ Eᵀ + b)       or, for groupmax, the largest of each of k groups
    x_hat    = features @ W_dec + b_dec                  + x @ W_skipᵀ, where there is a skip connection

A transcoder reads a module's input, from which b_dec is not subtracted, and writes its output.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sparsight.disk import read_json
from sparsight.errors import BadFile, BadInput
from sparsight.sae.config import SaeConfig
from sparsight.sae.disk import read_safetensors
from sparsight.sae.foreign.hooks import in_causal_model
from sparsight.sae.foreign.strict import fit, settings, sound
from sparsight.sae.sae import SparseAutoEncoder

KIND = "a sparsify SAE"
WEIGHTS = "sae.safetensors"
SHAPES = {"encoder.weight": "d_hidden d_in", "encoder.bias": "d_hidden", "W_dec": "d_hidden d_in", "b_dec": "d_in"}
PLACE = re.compile(r"(layers|h)\.\d+(\.\w+)*|embed_tokens|embed_in|wte")


def read_sparsify(folder: Path) -> SparseAutoEncoder:
    """A sparsify folder. Where its name is a place in the model, the hook point is known; config.json beside it, as
    the training leaves it, names the model."""
    model = model_of(folder.parent / "config.json")
    tensors = read_safetensors(folder / WEIGHTS)
    skip = settings(folder / "cfg.json", KIND, lambda said: bool(said.get("skip_connection", False)))
    sizes = fit(folder, KIND, tensors, SHAPES | ({"W_skip": "d_in d_in"} if skip else {}))

    def config(said: dict[str, Any]) -> SaeConfig:
        activation = said.get("activation", "topk")
        if activation not in ("topk", "groupmax"):
            raise BadInput(f"its activation is {activation!r}; sparsight reads topk and groupmax.")
        if said.get("signed"):
            raise BadInput("it is signed: its features may be below zero, which sparsight does not compute.")
        said_sizes = {"d_in": said["d_in"], "d_hidden": said.get("num_latents") or sizes["d_hidden"]}
        if said_sizes != sizes:
            raise BadInput(f"cfg.json says {said_sizes}, the weights are {sizes}.")
        transcode = bool(said.get("transcode", False))
        place = in_causal_model(folder.name, model) if PLACE.fullmatch(folder.name) else None
        return SaeConfig(
            d_in=sizes["d_in"],
            d_hidden=sizes["d_hidden"],
            activation=activation,
            k=said["k"],
            apply_b_dec_to_input=not transcode,
            model=model,
            hook_point=f"{place}.input" if place and transcode else place,
            d_out=sizes["d_in"] if transcode else None,
            hook_point_out=place if transcode else None,
            skip=skip,
            notes={"format": "sparsify", "folder": folder.name},
        )

    ours = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
    made = settings(folder / "cfg.json", KIND, config)
    return sound(folder, KIND, made, {ours.get(name, name): tensor for name, tensor in tensors.items()})


def model_of(file: Path) -> str | None:
    """The model's name in the training's config.json, if there is one."""
    try:
        model = read_json(file).get("model")
    except BadFile:
        return None
    return model if isinstance(model, str) else None
