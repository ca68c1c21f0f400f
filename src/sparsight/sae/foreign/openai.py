"""OpenAI's sparse_autoencoder (Gao et al. 2024): `pre_bias`, `latent_bias`, `encoder.weight`, `decoder.weight` in a .pt

    features = activation((x − pre_bias) @ Eᵀ + latent_bias)        activation: ReLU, or TopK and then ReLU
    x_hat    = features @ Dᵀ + pre_bias

Where the activation is TopK, x is normalised first, and x_hat undoes it: less the token's mean, by its standard
deviation. That is not said in the file: the library takes it from the activation too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsight.errors import BadFile
from sparsight.sae.config import SaeConfig
from sparsight.sae.foreign.strict import fit, sound, taken, whole
from sparsight.sae.sae import CARD_NAMES, SparseAutoEncoder

KIND = "an SAE of OpenAI's sparse_autoencoder"
SHAPES = {"encoder.weight": "d_hidden d_in", "latent_bias": "d_hidden", "decoder.weight": "d_in d_hidden"}
SHAPES |= {"pre_bias": "d_in"}
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def is_openai(state: dict[Any, Any]) -> bool:
    """Whether a state dict is one of these."""
    return bool(state.keys() & {"pre_bias", "latent_bias"}) and not state.keys() & CARD_NAMES.keys()


def read_openai(path: Path, state: dict[Any, Any]) -> SparseAutoEncoder:
    """From the file's state dict. Neither model nor hook point is in it."""
    tensors = dict(state)
    for name in STATISTICS:
        tensors.pop(name, None)
    activation, of = tensors.pop("activation", "ReLU"), tensors.pop("activation_state_dict", {})
    if activation not in ("ReLU", "TopK"):
        raise BadFile(f"{taken(path, KIND)}: its activation is {activation!r}; sparsight reads ReLU and TopK.")
    sizes = fit(path, KIND, tensors, SHAPES)
    config = SaeConfig(
        d_in=sizes["d_in"],
        d_hidden=sizes["d_hidden"],
        apply_b_dec_to_input=True,
        notes={"format": "openai", "file": path.name},
    )
    if activation == "TopK":
        if not isinstance(of, dict) or of.get("postact_fn") != "ReLU":
            raise BadFile(f"{taken(path, KIND)}: sparsight reads TopK with ReLU behind it, not {str(of)[:80]}.")
        try:
            k = whole(of, "k")
        except (KeyError, ValueError) as error:
            raise BadFile(f"{taken(path, KIND)}: its activation has no k that is a whole number.") from error
        if not 0 < k <= sizes["d_hidden"]:
            raise BadFile(f"{taken(path, KIND)}: k must be between 1 and {sizes['d_hidden']}, not {k}.")
        config = replace(config, activation="topk", k=k, normalization="layer_norm")
    ours = {
        "W_enc": tensors["encoder.weight"],
        "b_enc": tensors["latent_bias"],
        "W_dec": tensors["decoder.weight"].T.contiguous(),
        "b_dec": tensors["pre_bias"],
    }
    return sound(path, KIND, config, ours)
