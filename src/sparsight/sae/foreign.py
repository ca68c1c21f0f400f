"""Other people's SAE files: one function each, read and written.

card       the model card's .pth: a state dict `encoder_linear.*`, `decoder_linear.*`; relu; no config beside it
SAELens    cfg.json + sae_weights.safetensors; standard, topk, batchtopk, jumprelu, gated
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.disk import first_line, read_json, write_aside, write_json
from sparsight.errors import BadFile, BadInput
from sparsight.sae.disk import read_safetensors, write_safetensors
from sparsight.sae.sae import CARD_NAMES, SaeConfig, SparseAutoEncoder, rename_card


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickles of other protocols
            state = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:  # torch's own words advise to load it all the same
        raise BadFile(f"Refused '{path}': it is damaged, or holds code that loading it could run.") from error
    except Exception as error:  # a damaged pickle raises nearly anything: IndexError, KeyError, struct.error, ...
        raise BadFile(f"Cannot read '{path}' as a PyTorch state dict: {first_line(error)}") from error
    if not isinstance(state, dict):
        raise BadFile(f"'{path}' is not the model card's SAE: it holds a {type(state).__name__}, not a state dict.")
    if state.keys() != CARD_NAMES.keys():
        missing, surplus = sorted(CARD_NAMES.keys() - state.keys()), sorted(map(str, state.keys() - CARD_NAMES.keys()))
        raise BadFile(f"'{path}' is not the model card's SAE: missing tensors {missing}, surplus {surplus[:8]}.")
    if any(not isinstance(t, Tensor) or not t.is_floating_point() or t.layout != torch.strided for t in state.values()):
        raise BadFile(f"'{path}' holds something other than floating-point tensors.")
    weight = state["encoder_linear.weight"]
    if weight.ndim != 2 or not weight.numel():
        raise BadFile(f"'{path}': encoder_linear.weight must be [d_hidden, d_in], it is {list(weight.shape)}.")
    for name in (name for name, t in state.items() if t.ndim != (2 if "weight" in name else 1)):
        raise BadFile(f"'{path}': {name} has {state[name].ndim} axes.")
    known = next((p for p in PUBLISHED.values() if p.file == path.name), None)
    config = SaeConfig(
        d_in=weight.shape[1],
        d_hidden=weight.shape[0],
        model=known and known.model,
        hook_point=known and known.hook_point,
        notes={"format": "goodfire", "file": path.name},
    )
    rename_card(state)
    return sound(path, "the model card's SAE", config, state)


def write_card(sae: SparseAutoEncoder, path: str | Path) -> Path:
    """The model card's layout, for a relu SAE; reading it again gives the same weights."""
    c = sae.config
    if c.activation != "relu" or c.apply_b_dec_to_input or c.normalization != "none":
        what = f"{c.activation}, normalization {c.normalization}, apply_b_dec_to_input {c.apply_b_dec_to_input}"
        raise BadInput(f"The model card's layout holds plain relu SAEs; this one is {what}.")
    tensors = {theirs: getattr(sae, ours).detach().cpu() for theirs, ours in CARD_NAMES.items()}
    tensors["decoder_linear.weight"] = tensors["decoder_linear.weight"].T.contiguous()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda part: torch.save(tensors, part))
    return path


SAELENS_ACTIVATIONS = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "batchtopk",
    "gated": "gated",
}
SAELENS_NORMALIZATIONS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
HOOK_SITES = {"hook_resid_post": "", "hook_resid_pre": ".input", "hook_mlp_out": ".mlp", "hook_attn_out": ".self_attn"}


def read_saelens(folder: Path) -> SparseAutoEncoder:
    """A SAELens folder, of its current layout (model and hook under `metadata`) or of the older flat one."""
    cfg = read_json(folder / "cfg.json")
    tensors = read_safetensors(folder / "sae_weights.safetensors")
    try:
        config = saelens_config(cfg, folder)
        return sound(folder, f"a SAELens {config.activation} SAE", config, from_saelens_tensors(tensors, cfg, config))
    except KeyError as error:
        raise BadFile(f"'{folder}' is not a sound SAELens folder: it has no {error}.") from error
    except (BadInput, TypeError, AttributeError) as error:
        raise BadFile(f"'{folder}' is not a sound SAELens folder: {first_line(error)}") from error


def saelens_config(cfg: dict[str, Any], folder: Path) -> SaeConfig:
    """What a SAELens cfg.json says, in our words. Raises BadFile for what sparsight does not compute."""
    about = {**cfg, **(cfg.get("metadata") or {})}
    architecture = str(cfg.get("architecture", "standard"))
    if architecture not in SAELENS_ACTIVATIONS:
        raise BadFile(f"'{folder}' is a SAELens '{architecture}' SAE; sparsight reads {sorted(SAELENS_ACTIVATIONS)}.")
    normalization = cfg.get("normalize_activations") or "none"
    if normalization is True:  # how older versions said it
        normalization = "expected_average_only_in"
    if normalization not in list(SAELENS_NORMALIZATIONS):
        fold = f"fold_activation_{'whitening' if 'whitening' in str(normalization) else 'norm_scaling_factor'}"
        todo = f"fold it into the weights with SAELens ({fold}) and save again"
        raise BadFile(f"'{folder}' normalises by '{normalization}', which its file does not hold: {todo}.")
    activation = SAELENS_ACTIVATIONS[architecture]
    function = cfg.get("activation_fn", cfg.get("activation_fn_str")) or "relu"
    if activation == "relu" and function == "topk":
        activation = "topk"  # how older versions said it
    elif function not in ("relu", "topk"):
        raise BadFile(f"'{folder}' is a SAELens SAE with activation '{function}'; sparsight reads relu and topk.")
    if activation == "jumprelu" and "batchtopk" in str(about.get("training_architecture")):
        activation = "batchtopk"
    hook = about.get("hook_name") or about.get("hook_point")
    if dict(about.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"):
        said = "was trained on residuals that TransformerLens had centred (center_writing_weights)"
        warnings.warn(f"The SAE in '{folder}' {said}: on the model as it is, it reads something else.", stacklevel=2)
    return SaeConfig(
        d_in=cfg["d_in"],
        d_hidden=cfg["d_sae"],
        activation=activation,
        k=cfg.get("k", (cfg.get("activation_fn_kwargs") or {}).get("k")) if activation == "topk" else None,
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", True)),
        normalization=SAELENS_NORMALIZATIONS[normalization],
        model=about.get("model_name"),
        hook_point=module_path(hook),
        notes={"format": "saelens", "hook_name": hook, "architecture": architecture},
    )


def from_saelens_tensors(tensors: dict[str, Tensor], cfg: dict[str, Any], config: SaeConfig) -> dict[str, Tensor]:
    """SAELens tensors in our names and layout, with what can be folded into the weights folded."""
    ours = dict(tensors)
    if config.activation == "gated":
        ours["b_enc"] = ours.pop("b_gate")
    if config.activation == "batchtopk" and "topk_threshold" in ours:  # saved in the middle of training
        ours["threshold"] = ours.pop("topk_threshold").to(ours["b_enc"].dtype)
    n, d = config.d_hidden, config.d_in
    for name, shape in {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "scaling_factor": (n,)}.items():
        if name in ours.keys() | {"W_enc", "b_enc", "W_dec"} and ours[name].shape != shape:
            raise BadInput(f"tensor {name} is {list(ours[name].shape)}, must be {list(shape)}.")
    ours["W_enc"] = ours["W_enc"].T.contiguous()
    if "scaling_factor" in ours:  # older versions: the features' values are multiplied on the way out
        ours["W_dec"] = ours["W_dec"] * ours.pop("scaling_factor").unsqueeze(-1)
    if cfg.get("rescale_acts_by_decoder_norm"):  # features count their decoder row's length; the row has length 1
        norm = ours["W_dec"].norm(dim=-1)
        ours["W_enc"], ours["b_enc"] = ours["W_enc"] * norm.unsqueeze(-1), ours["b_enc"] * norm
        ours["W_dec"] = ours["W_dec"] / norm.clamp_min(torch.finfo(norm.dtype).tiny).unsqueeze(-1)
    if config.activation == "batchtopk" and "threshold" in ours and ours["threshold"].ndim == 0:
        ours["threshold"] = ours["threshold"].expand(n).contiguous()
    return ours


def write_saelens(sae: SparseAutoEncoder, folder: str | Path) -> Path:
    """A folder that `sae_lens.SAE.load_from_disk` loads; batchtopk is written as the jumprelu that it computes."""
    c, folder = sae.config, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {v: k for k, v in SAELENS_ACTIVATIONS.items()} | {"batchtopk": "jumprelu"}
    tensors: dict[str, Tensor] = dict(sae.named_parameters())
    tensors["W_enc"] = tensors["W_enc"].T
    cfg: dict[str, Any] = {
        "architecture": names[c.activation],
        "d_in": c.d_in,
        "d_sae": c.d_hidden,
        "dtype": str(sae.dtype).split(".")[-1],
        "device": "cpu",
        "apply_b_dec_to_input": c.apply_b_dec_to_input,
        "normalize_activations": {v: k for k, v in SAELENS_NORMALIZATIONS.items()}[c.normalization],
        "metadata": {
            "sae_lens_version": "6.0.0",  # unsaid, SAELens takes the file for an older one and drops the rest
            "model_name": c.model,
            "hook_name": hook_name(c.hook_point),
        },
    }
    if c.activation == "topk":
        cfg |= {"k": c.k, "rescale_acts_by_decoder_norm": False}
    if c.activation == "batchtopk":
        cfg["metadata"]["training_architecture"] = "batchtopk"
    if c.activation == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    (folder / "cfg.json").unlink(missing_ok=True)  # without it the folder is no SAE: the last file makes it whole
    write_safetensors(folder / "sae_weights.safetensors", tensors)
    write_json(folder / "cfg.json", cfg)
    return folder


def module_path(hook_name: str | None) -> str | None:
    """TransformerLens' name of a hook as the module path of a Llama-like model, where there is one."""
    parts = (hook_name or "").split(".")
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdigit() and parts[2] in HOOK_SITES:
        return f"model.layers.{parts[1]}{HOOK_SITES[parts[2]]}"
    return hook_name


def hook_name(module_path: str | None) -> str | None:
    """The way back."""
    parts = (module_path or "").split(".", 3)
    site = {site.lstrip("."): hook for hook, site in HOOK_SITES.items()}.get("".join(parts[3:]))
    if len(parts) >= 3 and parts[:2] == ["model", "layers"] and site:
        return f"blocks.{parts[2]}.{site}"
    return module_path


def sound(path: Path, kind: str, config: SaeConfig, tensors: dict[str, Tensor]) -> SparseAutoEncoder:
    """The SAE, or a BadFile that says which format the file was taken for."""
    try:
        return SparseAutoEncoder.from_tensors(config, tensors)
    except BadInput as error:
        raise BadFile(f"'{path}' was taken for {kind}, but: {error}") from error
