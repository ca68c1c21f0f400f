"""SAELens: cfg.json + sae_weights.safetensors, read and written; and whatever SAELens itself can download.

    standard, topk, batchtopk, jumprelu, gated                                      SAEs
    transcoder, skip_transcoder, jumprelu_transcoder, jumprelu_skip_transcoder      transcoders

Whether b_dec is subtracted and how x is normalised is in cfg.json. sparsity.safetensors, beside them, is statistics.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.disk import first_line, read_json, write_json
from sparsight.errors import BadFile, BadInput, Missing
from sparsight.sae.config import SaeConfig
from sparsight.sae.disk import read_safetensors, write_safetensors
from sparsight.sae.foreign.hooks import hook_name, module_path
from sparsight.sae.foreign.strict import sound
from sparsight.sae.sae import SparseAutoEncoder

ACTIVATIONS = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "batchtopk",
    "gated": "gated",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
NORMALIZATIONS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
PREFIX = "saelens:"


def read_saelens(folder: Path) -> SparseAutoEncoder:
    """A SAELens folder, of its current layout (model and hook under `metadata`) or of the older flat one."""
    return from_saelens(read_json(folder / "cfg.json"), read_safetensors(folder / "sae_weights.safetensors"), folder)


def download_saelens(name: str) -> SparseAutoEncoder:
    """What SAELens finds under "release/sae_id", by its own loader, in float32.

    Raises Missing where SAELens is not installed, BadFile for whatever it cannot load.
    """
    release, _, sae_id = name.partition("/")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its import
            from sae_lens import SAE
    except ImportError as error:
        raise Missing("SAELens is not installed: pip install 'sparsight[saelens]'.") from error
    try:
        theirs = SAE.from_pretrained(release, sae_id, device="cpu")
        cfg, tensors = theirs.cfg.to_dict(), {k: t.detach() for k, t in theirs.state_dict().items()}
    except Exception as error:  # of the hub, of its own list, of a file: it has no errors of its own
        raise BadFile(f"No SAE at '{PREFIX}{name}': SAELens gave none ({first_line(error)}).") from error
    return from_saelens(cfg, tensors, Path(f"{PREFIX}{name}"))


def from_saelens(cfg: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> SparseAutoEncoder:
    """The SAE of a cfg.json and its tensors. folder: where they lie, for the refusal."""
    try:
        config = saelens_config(cfg, folder)
        kind = f"a SAELens {config.activation} {'transcoder' if config.transcoder else 'SAE'}"
        return sound(folder, kind, config, from_saelens_tensors(tensors, cfg, config))
    except KeyError as error:
        raise BadFile(f"'{folder}' is not a sound SAELens folder: it has no {error}.") from error
    except (BadInput, TypeError, AttributeError, RuntimeError) as error:
        raise BadFile(f"'{folder}' is not a sound SAELens folder: {first_line(error)}") from error


def saelens_config(cfg: dict[str, Any], folder: Path) -> SaeConfig:
    """What a SAELens cfg.json says, in our words. Raises BadFile for what sparsight does not compute."""
    about = {**cfg, **(cfg.get("metadata") or {})}
    architecture = str(cfg.get("architecture", "standard"))
    if architecture not in ACTIVATIONS:
        raise BadFile(f"'{folder}' is a SAELens '{architecture}' SAE; sparsight reads {sorted(ACTIVATIONS)}.")
    normalization = cfg.get("normalize_activations") or "none"
    if normalization is True:  # how older versions said it
        normalization = "expected_average_only_in"
    if normalization not in list(NORMALIZATIONS):
        fold = f"fold_activation_{'whitening' if 'whitening' in str(normalization) else 'norm_scaling_factor'}"
        todo = f"fold it into the weights with SAELens ({fold}) and save again"
        raise BadFile(f"'{folder}' normalises by '{normalization}', which its file does not hold: {todo}.")
    activation = ACTIVATIONS[architecture]
    function = cfg.get("activation_fn", cfg.get("activation_fn_str")) or "relu"
    if activation == "relu" and function == "topk":
        activation = "topk"  # how older versions said it
    elif function not in ("relu", "topk"):
        raise BadFile(f"'{folder}' is a SAELens SAE with activation '{function}'; sparsight reads relu and topk.")
    if activation == "jumprelu" and "batchtopk" in str(about.get("training_architecture")):
        activation = "batchtopk"
    hook, transcoder = about.get("hook_name") or about.get("hook_point"), "transcoder" in architecture
    if dict(about.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"):
        said = "was trained on residuals that TransformerLens had centred (center_writing_weights)"
        warnings.warn(f"The SAE in '{folder}' {said}: on the model as it is, it reads something else.", stacklevel=2)
    return SaeConfig(
        d_in=cfg["d_in"],
        d_hidden=cfg["d_sae"],
        activation=activation,
        k=cfg.get("k", (cfg.get("activation_fn_kwargs") or {}).get("k")) if activation == "topk" else None,
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", True)) and not transcoder,
        normalization=NORMALIZATIONS[normalization],
        model=about.get("model_name"),
        hook_point=place(hook, about.get("hf_hook_name")),
        d_out=cfg["d_out"] if transcoder else None,
        hook_point_out=place(about.get("hook_name_out"), about.get("hf_hook_name_out")) if transcoder else None,
        skip="skip" in architecture,
        notes={"format": "saelens", "hook_name": hook, "architecture": architecture},
    )


def place(hook: str | None, in_transformers: str | None) -> str | None:
    """A hook point, by TransformerLens' name or, where that says nothing to us, by the one in transformers."""
    ours = module_path(hook)
    return in_transformers if ours == hook and in_transformers else ours


def from_saelens_tensors(tensors: dict[str, Tensor], cfg: dict[str, Any], config: SaeConfig) -> dict[str, Tensor]:
    """SAELens tensors in our names and layout, with what can be folded into the weights folded."""
    ours = dict(tensors)
    if config.activation == "gated":
        ours["b_enc"] = ours.pop("b_gate")
    if config.activation == "batchtopk" and "topk_threshold" in ours:  # saved in the middle of training
        ours["threshold"] = ours.pop("topk_threshold").to(ours["b_enc"].dtype)
    n, d = config.d_hidden, config.d_in
    shapes = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, config.width_out), "scaling_factor": (n,)}
    for name, shape in shapes.items():
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
    """A folder that `sae_lens.SAE.load_from_disk` loads; batchtopk is written as the jumprelu that it computes.

    Raises BadInput for what SAELens does not compute: groupmax, a topk or gated transcoder, an SAE that skips.
    """
    c, folder, architecture = sae.config, Path(folder), architecture_of(sae.config)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = dict(sae.named_parameters())
    tensors["W_enc"] = tensors["W_enc"].T
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "d_in": c.d_in,
        "d_sae": c.d_hidden,
        "dtype": str(sae.dtype).split(".")[-1],
        "device": "cpu",
        "apply_b_dec_to_input": c.apply_b_dec_to_input,
        "normalize_activations": {v: k for k, v in NORMALIZATIONS.items()}[c.normalization],
        "metadata": {
            "sae_lens_version": "6.0.0",  # unsaid, SAELens takes the file for an older one and drops the rest
            "model_name": c.model,
            "hook_name": hook_name(c.hook_point),
        },
    }
    if c.transcoder:
        cfg |= {"d_out": c.width_out}
        cfg["metadata"]["hook_name_out"] = hook_name(c.hook_point_out)
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


def architecture_of(config: SaeConfig) -> str:
    """SAELens' word for an SAE. Raises BadInput where it has none."""
    activation = "jumprelu" if config.activation == "batchtopk" else config.activation
    if config.transcoder and config.apply_b_dec_to_input:
        raise BadInput("SAELens' transcoders do not subtract b_dec from their input; this one does.")
    plain = {ours: theirs for theirs, ours in ACTIVATIONS.items() if "transcoder" not in theirs}
    if not config.transcoder and not config.skip and activation in plain:
        return plain[activation]
    skip, kinds = "skip_" if config.skip else "", {"relu": "", "jumprelu": "jumprelu_"}
    if config.transcoder and activation in kinds:
        return f"{kinds[activation]}{skip}transcoder"
    what = f"a {activation} {'transcoder' if config.transcoder else 'SAE'}{' with a skip connection' * config.skip}"
    raise BadInput(f"SAELens has no architecture for {what}; its architectures are {', '.join(ACTIVATIONS)}.")
