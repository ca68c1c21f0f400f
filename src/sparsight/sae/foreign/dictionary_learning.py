"""dictionary_learning: config.json + ae.pt. `dict_class` in the config says which of its classes it is.

AutoEncoder             relu((x − bias) @ Eᵀ + b);  D scaled to columns of length 1, as its own loader does
AutoEncoderNew          relu(x @ Eᵀ + b), with a bias of the decoder: Anthropic's April update
AutoEncoderTopK         the k largest of relu((x − b_dec) @ Eᵀ + b)
BatchTopKSAE            relu((x − b_dec) @ Eᵀ + b) above one threshold; so does MatryoshkaBatchTopKSAE
JumpReluAutoEncoder     relu(x @ W_enc + b_enc) above a threshold for each feature
GatedAutoEncoder        h = (x − decoder_bias) @ Eᵀ;  relu(exp(r_mag) · h + mag_bias) where h + gate_bias > 0
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.errors import BadFile, BadInput
from sparsight.sae.config import SaeConfig
from sparsight.sae.foreign.hooks import in_causal_model
from sparsight.sae.foreign.strict import fit, read_state, settings, sound, taken, unit_rows, whole
from sparsight.sae.sae import SparseAutoEncoder

KIND = "a dictionary_learning SAE"
LINEAR = {"encoder.weight": "d_hidden d_in", "encoder.bias": "d_hidden", "decoder.weight": "d_in d_hidden"}
PLAIN = {"W_enc": "d_in d_hidden", "b_enc": "d_hidden", "W_dec": "d_hidden d_in", "b_dec": "d_in"}
GATED = {"encoder.weight": "d_hidden d_in", "decoder.weight": "d_in d_hidden", "decoder_bias": "d_in"}
GATED |= dict.fromkeys(("gate_bias", "mag_bias", "r_mag"), "d_hidden")
CLASSES = {  # dict_class: (activation, whether b_dec is subtracted, tensors)
    "AutoEncoder": ("relu", True, LINEAR | {"bias": "d_in"}),
    "AutoEncoderNew": ("relu", False, LINEAR | {"decoder.bias": "d_in"}),
    "AutoEncoderTopK": ("topk", True, LINEAR | {"b_dec": "d_in"}),
    "BatchTopKSAE": ("batchtopk", True, LINEAR | {"b_dec": "d_in", "threshold": ""}),
    "MatryoshkaBatchTopKSAE": ("batchtopk", True, PLAIN | {"threshold": ""}),
    "JumpReluAutoEncoder": ("jumprelu", False, PLAIN | {"threshold": "d_hidden"}),
    "GatedAutoEncoder": ("gated", True, GATED),
}
OURS = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "gate_bias": "b_enc",
    "mag_bias": "b_mag",
}
PLACE = re.compile(r"resid_post_layer_(\d+)")


def read_dictionary(folder: Path) -> SparseAutoEncoder:
    """A folder of dictionary_learning. Its hook point is known where submodule_name is resid_post_layer_N."""

    def reading(read: Callable[[dict[str, Any]], Any]) -> Any:
        return settings(folder / "config.json", KIND, lambda said: read(said["trainer"]))

    state, name = read_state(folder / "ae.pt"), reading(lambda trainer: str(trainer["dict_class"]))
    if name not in CLASSES:
        raise BadFile(f"{taken(folder, KIND)}: it is of class {name}; sparsight reads {', '.join(CLASSES)}.")
    activation, subtracted, shapes = CLASSES[name]
    kind, k, tensors = f"{KIND} of class {name}", k_of(folder, state), dict(state)
    said = reading(lambda trainer: trainer.get("k")) if activation == "topk" else None
    if k is not None and said not in (None, k):
        raise BadFile(f"{taken(folder, kind)}: k is {k} in ae.pt and {said} in config.json.")
    aside = {"BatchTopKSAE": ("k",), "MatryoshkaBatchTopKSAE": ("k", "group_sizes")}.get(name, ())
    for unused in ("k", "threshold") if activation == "topk" else aside:
        tensors.pop(unused, None)
    sizes = fit(folder, kind, tensors, shapes)

    def config(trainer: dict[str, Any]) -> SaeConfig:
        model, place = trainer.get("lm_name"), trainer.get("submodule_name")
        if model is not None and not isinstance(model, str):
            raise BadInput(f"lm_name is a model's name, not {model!r}.")
        layer = PLACE.fullmatch(str(place))
        return SaeConfig(
            d_in=sizes["d_in"],
            d_hidden=sizes["d_hidden"],
            activation=activation,
            k=(k or said) if activation == "topk" else None,
            apply_b_dec_to_input=subtracted,
            model=model,
            hook_point=in_causal_model(f"layers.{layer[1]}", model) if layer else None,
            notes={"format": "dictionary_learning", "dict_class": name, "layer": trainer.get("layer")}
            | ({} if layer else {"submodule_name": place}),
        )

    return sound(folder, kind, reading(config), in_our_words(name, tensors, sizes["d_hidden"]))


def k_of(folder: Path, state: dict[Any, Any]) -> int | None:
    """k, where ae.pt has it."""
    try:
        return whole(state, "k") if "k" in state else None
    except ValueError as error:
        raise BadFile(f"{taken(folder, KIND)}: {error}") from error


def in_our_words(name: str, tensors: dict[str, Tensor], d_hidden: int) -> dict[str, Tensor]:
    """Their tensors under our names and in our layout."""
    ours = {OURS.get(theirs, theirs): tensor for theirs, tensor in tensors.items()}
    turned = "W_enc" if "W_enc" in tensors else "W_dec"  # plain parameters, or the weights of a linear layer
    ours[turned] = ours[turned].T.contiguous()
    if "threshold" in ours:
        ours["threshold"] = ours["threshold"].expand(d_hidden).contiguous()
    if name == "AutoEncoder":
        norm = ours["W_dec"].norm(dim=-1)
        return ours if torch.allclose(norm, torch.ones_like(norm)) else unit_rows(ours)
    return ours
