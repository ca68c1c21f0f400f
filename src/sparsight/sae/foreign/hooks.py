"""Names of places in a model: TransformerLens', a base model's, and the module paths that sparsight speaks of."""

from __future__ import annotations

HOOK_SITES = {
    "hook_resid_post": "",
    "hook_resid_pre": ".input",
    "hook_mlp_out": ".mlp",
    "hook_attn_out": ".self_attn",
    "mlp.hook_in": ".mlp.input",
}


def module_path(hook_name: str | None) -> str | None:
    """TransformerLens' name of a hook as the module path of a Llama-like model, where there is one."""
    parts = (hook_name or "").split(".", 2)
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


def in_causal_model(path: str, model: str | None) -> str:
    """A module path of a base model, such as "layers.19.mlp", as that of the causal model around it."""
    if path.startswith(("h.", "wte")):
        return f"transformer.{path}"
    neox = any(family in (model or "").lower() for family in ("pythia", "gpt-neox"))
    return f"gpt_neox.{path}" if neox else f"model.{path}"
