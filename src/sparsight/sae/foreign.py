"""Other people's SAE files: one function each, read and written.

card       the model card's .pth: a state dict `encoder_linear.*`, `decoder_linear.*`; relu; no config beside it
SAELens    cfg.json + sae_weights.safetensors; standard, topk, batchtopk, jumprelu, gated
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsight.errors import BadFile, BadInput
from sparsight.sae.disk import first_line, read_json, read_safetensors
from sparsight.sae.sae import CARD_NAMES, SaeConfig, SparseAutoEncoder, from_card_names


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


def read_card(path: Path) -> SparseAutoEncoder:
    """The model card's file. Model and hook point are known where the file keeps its published name."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except pickle.UnpicklingError as error:
        raise BadFile(f"Refused '{path}': it holds more than tensors, and loading it could run code.") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise BadFile(f"Cannot read '{path}' as a PyTorch state dict: {first_line(error)}") from error
    if not isinstance(state, dict) or state.keys() != CARD_NAMES.keys():
        found = sorted(map(str, state))[:8] if isinstance(state, dict) else type(state).__name__
        raise BadFile(f"'{path}' is not the model card's SAE: it must hold {sorted(CARD_NAMES)}, it holds {found}.")
    if any(not isinstance(t, Tensor) or not t.is_floating_point() for t in state.values()):
        raise BadFile(f"'{path}' holds something other than floating-point tensors.")
    weight = state["encoder_linear.weight"]
    if weight.ndim != 2:
        raise BadFile(f"'{path}': encoder_linear.weight must have 2 axes, it has {weight.ndim}.")
    known = next((p for p in PUBLISHED.values() if p.file == path.name), None)
    config = SaeConfig(
        d_in=weight.shape[1],
        d_hidden=weight.shape[0],
        model=known and known.model,
        hook_point=known and known.hook_point,
        notes={"format": "goodfire", "file": path.name},
    )
    return sound(path, "the model card's SAE", config, from_card_names(state))


def write_card(sae: SparseAutoEncoder, path: str | Path) -> Path:
    """The model card's layout, for a relu SAE; reading it again gives the same weights."""
    c = sae.config
    if c.activation != "relu" or c.apply_b_dec_to_input or c.normalization != "none":
        raise BadInput(f"The model card's layout holds plain relu SAEs; this one is {c.activation}, {c.normalization}.")
    tensors = {theirs: getattr(sae, ours).detach().cpu() for theirs, ours in CARD_NAMES.items()}
    tensors["decoder_linear.weight"] = tensors["decoder_linear.weight"].T.contiguous()
    path = Path(path)
    torch.save(tensors, path.with_name(path.name + ".part"))
    path.with_name(path.name + ".part").replace(path)
    return path


SAELENS_ACTIVATIONS = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "batchtopk",
    "gated": "gated",
}
SAELENS_NORMALIZATIONS = {
    "none": "none",
    None: "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}


def read_saelens(folder: Path) -> SparseAutoEncoder:
    """A SAELens folder, of its current layout (model and hook under `metadata`) or of the older flat one."""
    cfg = read_json(folder / "cfg.json")
    tensors = read_safetensors(folder / "sae_weights.safetensors")
    architecture = cfg.get("architecture", "standard")
    normalization = cfg.get("normalize_activations", "none")
    if architecture not in SAELENS_ACTIVATIONS:
        raise BadFile(f"'{folder}' is a SAELens '{architecture}' SAE; sparsight reads {sorted(SAELENS_ACTIVATIONS)}.")
    if normalization not in SAELENS_NORMALIZATIONS:
        todo = "fold it into the weights with SAELens (fold_activation_norm_scaling_factor) and save again"
        raise BadFile(f"'{folder}' normalises by '{normalization}', which its file does not hold: {todo}.")
    activation = SAELENS_ACTIVATIONS[architecture]
    if activation == "relu" and cfg.get("activation_fn", cfg.get("activation_fn_str", "relu")) == "topk":
        activation = "topk"  # how older versions said it
    k = cfg.get("k", (cfg.get("activation_fn_kwargs") or {}).get("k"))
    about = {**cfg, **(cfg.get("metadata") or {})}
    try:
        config = SaeConfig(
            d_in=cfg["d_in"],
            d_hidden=cfg["d_sae"],
            activation=activation,
            k=k if activation == "topk" else None,
            apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", True)),
            normalization=SAELENS_NORMALIZATIONS[normalization],
            model=about.get("model_name"),
            hook_point=module_path(about.get("hook_name")),
            notes={"format": "saelens", "hook_name": about.get("hook_name"), "architecture": architecture},
        )
        ours = from_saelens_tensors(tensors, cfg, activation)
    except KeyError as error:
        raise BadFile(f"'{folder}' is not a sound SAELens folder: it has no {error}.") from error
    return sound(folder, f"a SAELens {architecture} SAE", config, ours)


def from_saelens_tensors(tensors: dict[str, Tensor], cfg: dict[str, Any], activation: str) -> dict[str, Tensor]:
    """SAELens tensors in our names and layout, with what can be folded into the weights folded."""
    ours = dict(tensors)
    ours["W_enc"] = tensors["W_enc"].T.contiguous()
    if activation == "gated":
        ours["b_enc"] = ours.pop("b_gate")
    if "scaling_factor" in ours:  # older versions: the features' values are multiplied on the way out
        ours["W_dec"] = ours["W_dec"] * ours.pop("scaling_factor").unsqueeze(-1)
    if cfg.get("rescale_acts_by_decoder_norm"):  # features count their decoder row's length; the row has length 1
        norm = ours["W_dec"].norm(dim=-1)
        ours["W_enc"], ours["b_enc"] = ours["W_enc"] * norm.unsqueeze(-1), ours["b_enc"] * norm
        ours["W_dec"] = ours["W_dec"] / norm.clamp_min(torch.finfo(norm.dtype).tiny).unsqueeze(-1)
    if activation == "batchtopk" and "threshold" in ours and ours["threshold"].ndim == 0:
        ours["threshold"] = ours["threshold"].expand(len(ours["b_enc"])).contiguous()
    return ours


def write_saelens(sae: SparseAutoEncoder, folder: str | Path) -> Path:
    """A folder that `sae_lens.SAE.load_from_disk` loads; batchtopk is written as the jumprelu that it computes."""
    c, folder = sae.config, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {v: k for k, v in SAELENS_ACTIVATIONS.items()} | {"batchtopk": "jumprelu"}
    tensors = {name: p.detach().cpu().contiguous() for name, p in sae.named_parameters()}
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    cfg: dict[str, Any] = {
        "architecture": names[c.activation],
        "d_in": c.d_in,
        "d_sae": c.d_hidden,
        "dtype": str(sae.dtype).split(".")[-1],
        "device": "cpu",
        "apply_b_dec_to_input": c.apply_b_dec_to_input,
        "normalize_activations": {v: k for k, v in SAELENS_NORMALIZATIONS.items() if k}[c.normalization],
        "metadata": {"model_name": c.model, "hook_name": hook_name(c.hook_point)},
    }
    if c.activation == "topk":
        cfg |= {"k": c.k, "rescale_acts_by_decoder_norm": False}
    if c.activation == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg, indent=2) + "\n")
    return folder


def module_path(hook_name: str | None) -> str | None:
    """TransformerLens' name of a hook as the module path of a Llama-like model, where there is one."""
    parts = (hook_name or "").split(".")
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdigit():
        site = {
            "hook_resid_post": "",
            "hook_resid_pre": ".input",
            "hook_mlp_out": ".mlp",
            "hook_attn_out": ".self_attn",
        }
        if parts[2] in site:
            return f"model.layers.{parts[1]}{site[parts[2]]}"
    return hook_name


def hook_name(module_path: str | None) -> str | None:
    """The way back, for the residual stream after a layer."""
    parts = (module_path or "").split(".")
    if len(parts) == 3 and parts[:2] == ["model", "layers"]:
        return f"blocks.{parts[2]}.hook_resid_post"
    return module_path


def sound(path: Path, kind: str, config: SaeConfig, tensors: dict[str, Tensor]) -> SparseAutoEncoder:
    """The SAE, or a BadFile that says which format the file was taken for."""
    try:
        return SparseAutoEncoder.from_tensors(config, tensors)
    except BadInput as error:
        raise BadFile(f"'{path}' was taken for {kind}, but: {error}") from error
