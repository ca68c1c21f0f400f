"""Llama Scope, and what else Language-Model-SAEs saves: hyperparams.json + checkpoints/final.safetensors.

    s_in = √d / mean norm of the input       s_out = √d / mean norm of the output       (norm_activation "dataset-wise")

    E, b / s_in                 D · s_in / s_out, c / s_out                 so that raw activations are read and written
    |D|·E, |D|·b / s_in         D's columns of length 1                     where sparsity_include_decoder_norm
    features = pre where pre > jump_relu_threshold, else 0                  pre = x @ Eᵀ + b

These are the steps, in their order, of the loader that the SAEs were published with: the threshold is that of a raw
activation along a decoder row of length 1. A topk SAE with a threshold is loaded there as the jumprelu that it became.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.errors import BadFile, BadInput
from sparsight.records import finite
from sparsight.sae.config import SaeConfig
from sparsight.sae.disk import read_safetensors
from sparsight.sae.foreign.hooks import module_path
from sparsight.sae.foreign.strict import fit, settings, sound, taken, unit_rows, wide
from sparsight.sae.sae import SparseAutoEncoder

KIND = "a Llama Scope SAE"
WEIGHTS = ("sae_weights.safetensors", "checkpoints/pruned.safetensors", "checkpoints/final.safetensors")
SHAPES = {"encoder.weight": "d_hidden d_in", "encoder.bias": "d_hidden", "decoder.weight": "d_in d_hidden"}
PUBLISHED_FOR = "meta-llama/Llama-3.1-8B"  # the folders of the release are named after it
NORMALIZATIONS = {"dataset-wise": "none", "inference": "none", "token-wise": "constant_norm"}


def read_llama_scope(folder: Path) -> SparseAutoEncoder:
    """A folder of Llama Scope."""
    weights = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if weights is None:
        raise BadFile(f"{taken(folder, KIND)}: it has none of {', '.join(WEIGHTS)}.")
    tensors, file = read_safetensors(weights), folder / "hyperparams.json"
    biased = settings(file, KIND, lambda said: bool(said.get("use_decoder_bias", True)))
    sizes = fit(weights, KIND, tensors, SHAPES | ({"decoder.bias": "d_in"} if biased else {}))
    config = settings(file, KIND, lambda said: config_of(said, sizes, folder))
    ours = settings(file, KIND, lambda said: folded(said, sizes, tensors))
    if config.activation == "jumprelu":
        ours["threshold"] = settings(file, KIND, lambda said: ours["b_enc"].new_full(ours["b_enc"].shape, level(said)))
    return sound(folder, KIND, config, ours)


def config_of(said: dict[str, Any], sizes: dict[str, int], folder: Path) -> SaeConfig:
    """hyperparams.json in our words. Raises BadInput for what sparsight does not compute."""
    activation, norm = str(said["act_fn"]).lower(), said["norm_activation"]
    if activation == "topk" and level(said) > 0:
        activation = "jumprelu"
    if activation not in ("relu", "topk", "jumprelu"):
        raise BadInput(f"act_fn is {activation!r}; sparsight reads relu, topk and jumprelu.")
    if norm not in list(NORMALIZATIONS):
        raise BadInput(f"norm_activation is {norm!r}; sparsight reads {', '.join(NORMALIZATIONS)}.")
    if said.get("use_glu_encoder"):
        raise BadInput("its encoder is gated by another (use_glu_encoder), which sparsight does not compute.")
    if said["d_model"] != sizes["d_in"]:
        raise BadInput(f"d_model is {said['d_model']}, the weights have {sizes['d_in']}.")
    read, written = module_path(said["hook_point_in"]), module_path(said.get("hook_point_out") or said["hook_point_in"])
    return SaeConfig(
        d_in=sizes["d_in"],
        d_hidden=sizes["d_hidden"],
        activation=activation,
        k=said["top_k"] if activation == "topk" else None,
        apply_b_dec_to_input=bool(said.get("apply_decoder_bias_to_pre_encoder", True)),
        normalization=NORMALIZATIONS[norm],
        model=said.get("model_name") or (PUBLISHED_FOR if "Llama3_1-8B-Base" in folder.name else None),
        hook_point=read,
        hook_point_out=None if read == written else written,
        notes={"format": "llama_scope", "hook_name": said["hook_point_in"]},
    )


def folded(said: dict[str, Any], sizes: dict[str, int], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors in our layout, with the scales of input and output, and the decoder's norms, folded in."""
    d_in = sizes["d_in"]
    ours = {
        "W_enc": tensors["encoder.weight"],
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["decoder.weight"].T.contiguous(),
        "b_dec": tensors.get("decoder.bias", torch.zeros(d_in, dtype=tensors["encoder.bias"].dtype)),
    }
    if said["norm_activation"] == "dataset-wise":
        norms = said["dataset_average_activation_norm"]
        read, written = (math.sqrt(d_in) / finite(norms[side], f"the norm of the {side}put") for side in ("in", "out"))
        ours |= {"b_enc": wide(ours["b_enc"]) / read, "b_dec": wide(ours["b_dec"]) / written}
        ours["W_dec"] = wide(ours["W_dec"]) * (read / written)
        ours["W_enc"] = wide(ours["W_enc"])
    return unit_rows(ours) if said.get("sparsity_include_decoder_norm", True) else ours


def level(said: dict[str, Any]) -> float:
    """The one threshold of all features."""
    return finite(said.get("jump_relu_threshold", 0.0), "jump_relu_threshold")
