"""Gemma Scope: params.npz, float32 (Lieberum et al. 2024).

    features = relu(x @ W_enc + b_enc) where x @ W_enc + b_enc > threshold        x_hat = features @ W_dec + b_dec

The file says nothing about itself. Where it lies under the names that it was published under, as the hub's cache keeps
them (gemma-scope-2b-pt-res/.../layer_20/width_16k/average_l0_71), model and hook point are known.
"""

from __future__ import annotations

import re
from pathlib import Path

from sparsight.sae.config import SaeConfig
from sparsight.sae.foreign.strict import fit, read_npz, sound
from sparsight.sae.sae import SparseAutoEncoder

KIND = "a Gemma Scope SAE"
SHAPES = {"W_enc": "d_in d_hidden", "W_dec": "d_hidden d_out", "b_enc": "d_hidden", "b_dec": "d_out"}
SHAPES |= {"threshold": "d_hidden"}
PUBLISHED = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|att|mlp|transcoders)\b.*[/\\]layer_(\d+)[/\\]")
SITES = {  # as modules of transformers' Gemma 2; the MLP's and attention's as they were trained on
    "res": "model.layers.{}",
    "att": "model.layers.{}.self_attn.o_proj.input",
    "mlp": "model.layers.{}.post_feedforward_layernorm",
}


def read_gemma_scope(path: Path) -> SparseAutoEncoder:
    """A params.npz. A transcoder's hook points have no name here: it reads an input normalised without the weight."""
    tensors = read_npz(path)
    sizes = fit(path, KIND, tensors, SHAPES)
    known = PUBLISHED.search(str(path.absolute()))
    size, tuned, site, layer = known.groups() if known else (None, None, "", "")
    d_in, d_out = sizes["d_in"], sizes["d_out"]
    config = SaeConfig(
        d_in=d_in,
        d_hidden=sizes["d_hidden"],
        activation="jumprelu",
        model=f"google/gemma-2-{size}{'-it' if tuned == 'it' else ''}" if known else None,
        hook_point=SITES[site].format(layer) if site in SITES else None,
        d_out=d_out if d_out != d_in or site == "transcoders" else None,
        notes={"format": "gemma_scope", "file": "/".join(path.absolute().parts[-4:])},
    )
    return sound(path, KIND, config, tensors | {"W_enc": tensors["W_enc"].T.contiguous()})
