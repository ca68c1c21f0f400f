"""Other people's SAE files give their libraries' numbers: against each formula in float64, and the library itself."""

import copy
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FEATURES, D, random_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_sae import tokens
from test_sae_files import Evil, agree, attempt, lens, quiet, randomised, refused, same  # noqa: F401
from torch import Tensor

from sparsight.errors import BadFile, BadInput, Missing
from sparsight.sae.activation import ACTIVATIONS
from sparsight.sae.config import NORMALIZATIONS
from sparsight.sae.files import convert, load_sae, save_sae
from sparsight.sae.foreign.dictionary_learning import CLASSES
from sparsight.sae.foreign.saelens import read_saelens, write_saelens
from sparsight.sae.sae import SparseAutoEncoder

Tensors = dict[str, Tensor]


@dataclass
class Case:
    """A file of one format: its tensors and words, how they are laid down, and what the SAE computes from float64 x."""

    shapes: dict[str, tuple[int, ...]]
    formula: Callable[[Tensors, dict, Tensor], tuple[Tensor, Tensor]]
    lay: Callable[[Path, Tensors, dict], Path]
    said: dict = field(default_factory=dict)
    more: dict = field(default_factory=dict)  # what is stored beside the floating-point tensors
    unused: tuple[str, ...] = ()
    about: dict = field(default_factory=dict)  # of the config, as read
    kind: str = ""

    def tensors(self) -> Tensors:
        g = torch.Generator().manual_seed(7)
        spread = {"threshold": 0.4}
        made = {n: torch.randn(s, generator=g) * spread.get(n, 0.3) for n, s in self.shapes.items()}
        return made | ({"threshold": made["threshold"].abs()} if "threshold" in made else {})

    def write(self, folder: Path, said: dict | None = None, **changes) -> Path:
        """Laid down, with changes to the tensors; ... takes one out."""
        stored = {n: t for n, t in (self.tensors() | self.more | changes).items() if t is not ...}
        return self.lay(folder, stored, copy.deepcopy(self.said) if said is None else said)


def put(path: Path, said: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said))


def largest(pre: Tensor, k: int) -> Tensor:
    """All but the k largest are zero, and what is below zero."""
    out = torch.zeros_like(pre)
    for row, kept in zip(out, pre, strict=True):
        for i in sorted(range(len(kept)), key=lambda i, kept=kept: -float(kept[i]))[:k]:
            row[i] = max(float(kept[i]), 0)
    return out


def groups(pre: Tensor, k: int) -> Tensor:
    return torch.cat([largest(part, 1) for part in pre.split(pre.shape[-1] // k, dim=-1)], -1)


# ── the formats ──────────────────────────────────────────────────────────────────────────────────────────────────────


def sparsify(activation: str, skip: bool, transcode: bool) -> Case:
    def lay(folder: Path, tensors: Tensors, said: dict) -> Path:
        folder = folder / "layers.2.mlp"
        put(folder / "cfg.json", said)
        put(folder.parent / "config.json", {"model": "EleutherAI/pythia-70m"})
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "sae.safetensors")
        return folder

    def formula(w: Tensors, said: dict, x: Tensor) -> tuple[Tensor, Tensor]:
        pre = (x if transcode else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
        f = {"topk": largest, "groupmax": groups}[activation](pre, said["k"])
        return f, f @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if skip else 0)

    shapes = {"encoder.weight": (FEATURES, D), "encoder.bias": (FEATURES,), "W_dec": (FEATURES, D), "b_dec": (D,)}
    said = {"activation": activation, "expansion_factor": 4, "normalize_decoder": True, "num_latents": 0, "k": 8}
    said |= {"multi_topk": False, "skip_connection": skip, "transcode": transcode, "d_in": D}
    place = "gpt_neox.layers.2.mlp"
    about = {"activation": activation, "model": "EleutherAI/pythia-70m", "skip": skip, "hook_point": place}
    if transcode:
        about |= {"hook_point": f"{place}.input", "hook_point_out": place, "d_out": D}
    return Case(shapes | ({"W_skip": (D, D)} if skip else {}), formula, lay, said, about=about)


def dictionary(name: str) -> Case:
    linear = {"encoder.weight": (FEATURES, D), "encoder.bias": (FEATURES,), "decoder.weight": (D, FEATURES)}
    plain = {"W_enc": (D, FEATURES), "b_enc": (FEATURES,), "W_dec": (FEATURES, D), "b_dec": (D,)}
    gated = {"encoder.weight": (FEATURES, D), "decoder.weight": (D, FEATURES), "decoder_bias": (D,)}
    gated |= {"gate_bias": (FEATURES,), "mag_bias": (FEATURES,), "r_mag": (FEATURES,)}
    shapes = {
        "AutoEncoder": linear | {"bias": (D,)},
        "AutoEncoderNew": linear | {"decoder.bias": (D,)},
        "AutoEncoderTopK": linear | {"b_dec": (D,), "threshold": ()},
        "BatchTopKSAE": linear | {"b_dec": (D,), "threshold": ()},
        "MatryoshkaBatchTopKSAE": plain | {"threshold": ()},
        "JumpReluAutoEncoder": plain | {"threshold": (FEATURES,)},
        "GatedAutoEncoder": gated,
    }[name]
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": FEATURES, "layer": 3, "lm_name": "a/model"}
    trainer |= {"submodule_name": "resid_post_layer_3"}
    more: dict = {"k": torch.tensor(8, dtype=torch.int)} if "TopK" in name else {}
    if more:
        trainer["k"] = 8
    if "Matryoshka" in name:
        more["group_sizes"] = torch.tensor([32, FEATURES - 32])

    def lay(folder: Path, tensors: Tensors, said: dict) -> Path:
        put(folder / "config.json", said)
        torch.save(tensors, folder / "ae.pt")
        return folder

    def formula(w: Tensors, said: dict, x: Tensor) -> tuple[Tensor, Tensor]:
        if "W_enc" in w:
            pre = (x - w["b_dec"] if "Matryoshka" in name else x) @ w["W_enc"] + w["b_enc"]
            f = pre.clamp_min(0) * (pre > w["threshold"])
            return f, f @ w["W_dec"] + w["b_dec"]
        out = w["decoder.weight"].T
        if name == "GatedAutoEncoder":
            h = (x - w["decoder_bias"]) @ w["encoder.weight"].T
            f = (w["r_mag"].exp() * h + w["mag_bias"]).clamp_min(0) * (h + w["gate_bias"] > 0)
            return f, f @ out + w["decoder_bias"]
        bias = w.get("bias", w.get("b_dec", w.get("decoder.bias")))
        pre = (x if name == "AutoEncoderNew" else x - bias) @ w["encoder.weight"].T + w["encoder.bias"]
        f = largest(pre, 8) if name == "AutoEncoderTopK" else pre.clamp_min(0)
        if name == "BatchTopKSAE":
            f = f * (pre > w["threshold"])
        x_hat = f @ out + bias
        return (f * out.norm(dim=-1) if name == "AutoEncoder" else f), x_hat

    unused = ("threshold", "k") if name == "AutoEncoderTopK" else ("k", "group_sizes")
    about = {"model": "a/model", "hook_point": "model.layers.3"}
    return Case(shapes, formula, lay, {"trainer": trainer, "buffer": {"ctx_len": 128}}, more, unused, about)


def gemma_scope(d_out: int) -> Case:
    def lay(folder: Path, tensors: Tensors, said: dict) -> Path:
        folder = folder / "gemma-scope-2b-it-res" / "layer_20" / "width_16k" / "average_l0_71"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "params.npz", **{n: t.numpy() for n, t in tensors.items()})
        return folder

    def formula(w: Tensors, said: dict, x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ w["W_enc"] + w["b_enc"]
        f = pre.clamp_min(0) * (pre > w["threshold"])
        return f, f @ w["W_dec"] + w["b_dec"]

    shapes = {"W_enc": (D, FEATURES), "b_enc": (FEATURES,), "W_dec": (FEATURES, d_out), "b_dec": (d_out,)}
    about = {"model": "google/gemma-2-2b-it", "hook_point": "model.layers.20"}
    about |= {"d_out": None if d_out == D else d_out}
    return Case(shapes | {"threshold": (FEATURES,)}, formula, lay, about=about, kind="Gemma")


def llama_scope(act_fn: str, norm: str = "dataset-wise", rows: bool = True, bias: bool = False, level=0.5) -> Case:
    def lay(folder: Path, tensors: Tensors, said: dict) -> Path:
        put(folder / "hyperparams.json", said)
        (folder / "checkpoints").mkdir(exist_ok=True)
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "checkpoints" / "final.safetensors")
        return folder

    def formula(w: Tensors, said: dict, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.norm(dim=-1, keepdim=True) / D**0.5 if norm == "token-wise" else torch.ones(len(x), 1)
        read, written = (D**0.5 / said["dataset_average_activation_norm"][side] for side in ("in", "out"))
        if norm != "dataset-wise":
            read = written = 1.0
        e, b = w["encoder.weight"], w["encoder.bias"] / read
        d, c = w["decoder.weight"] * read / written, w["decoder.bias"] / written
        if rows:
            length = d.norm(dim=0)
            e, b, d = e * length[:, None], b * length, d / length
        pre = (x / size - (c if bias else 0)) @ e.T + b
        if act_fn == "relu":
            f = pre.clamp_min(0)
        else:
            f = largest(pre, 8) if act_fn == "topk" and not level else pre * (pre > level)
        return f, (f @ d.T + c) * size

    shapes = {"encoder.weight": (FEATURES, D), "encoder.bias": (FEATURES,)}
    shapes |= {"decoder.weight": (D, FEATURES), "decoder.bias": (D,)}
    place = "blocks.19.hook_resid_post"
    said = {"hook_point_in": place, "hook_point_out": place, "d_model": D, "expansion_factor": 4, "act_fn": act_fn}
    said |= {"use_decoder_bias": True, "use_glu_encoder": False, "jump_relu_threshold": level, "top_k": 8}
    said |= {"apply_decoder_bias_to_pre_encoder": bias, "norm_activation": norm, "sparsity_include_decoder_norm": rows}
    said |= {"dataset_average_activation_norm": {"in": 3.5, "out": 4.25}}
    return Case(shapes, formula, lay, said, about={"hook_point": "model.layers.19", "d_out": None})


def openai(activation: str) -> Case:
    def lay(folder: Path, tensors: Tensors, said: dict) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, folder / "8.pt")
        return folder / "8.pt"

    def formula(w: Tensors, said: dict, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, size = torch.zeros(len(x), 1), torch.ones(len(x), 1)
        if activation == "TopK":
            mean = x.mean(-1, keepdim=True)
            size = ((x - mean) ** 2).sum(-1, keepdim=True).div(D - 1).sqrt()
            x = (x - mean) / (size + 1e-5)
        pre = (x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
        f = largest(pre, 8) if activation == "TopK" else pre.clamp_min(0)
        return f, (f @ w["decoder.weight"].T + w["pre_bias"]) * size + mean

    shapes = {"encoder.weight": (FEATURES, D), "latent_bias": (FEATURES,)}
    shapes |= {"decoder.weight": (D, FEATURES), "pre_bias": (D,)}
    more = {"stats_last_nonzero": torch.zeros(FEATURES).long(), "latents_activation_frequency": torch.ones(FEATURES)}
    more |= {"latents_mean_square": torch.zeros(FEATURES), "activation": activation}
    if activation == "TopK":
        more["activation_state_dict"] = {"k": 8, "postact_fn": "ReLU"}
    return Case(shapes, formula, lay, more=more, about={"hook_point": None})


CASES = {
    **{f"sparsify {a} {s} {t}": sparsify(a, s, t) for a in ("topk", "groupmax") for s in (0, 1) for t in (0, 1)},
    **{f"dictionary_learning {name}": dictionary(name) for name in CLASSES},
    **{f"Gemma Scope {d_out}": gemma_scope(d_out) for d_out in (D, D + 8)},
    "Llama Scope": llama_scope("jumprelu"),
    "Llama Scope, free rows": llama_scope("jumprelu", rows=False),
    "Llama Scope, topk that became jumprelu": llama_scope("topk"),
    "Llama Scope, topk": llama_scope("topk", level=0),
    "Llama Scope, relu": llama_scope("relu", norm="inference", bias=True),
    "Llama Scope, token-wise": llama_scope("jumprelu", norm="token-wise"),
    "OpenAI ReLU": openai("ReLU"),
    "OpenAI TopK": openai("TopK"),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def close(mine: Tensor, theirs: Tensor) -> None:
    assert (mine - theirs).abs().max() < 1e-5


@cases
def test_a_strangers_file_gives_the_numbers_of_its_formula(tmp_path, case):
    sae, x = load_sae(case.write(tmp_path)), tokens(9, D)
    weights = {name: tensor.double() for name, tensor in case.tensors().items()}
    features, x_hat = case.formula(weights, case.said, x)
    assert 0 < (features > 0).sum() < features.numel()
    wide = sae.moved("cpu", torch.float64)  # folded weights were rounded to float32; the sums below are not
    close(wide.encode(x), features)
    close(wide(x)[0], x_hat)
    close(sae.encode(x.float()), features.float())
    close(sae(x.float())[0], x_hat.float())
    close(sae.encode_codes(x.float(), 4096).dense(), features.float())  # block by block
    assert {name: getattr(sae.config, name) for name in case.about} == case.about
    assert sae.config.transcoder == (case.about.get("d_out") is not None)


@cases
def test_a_strangers_file_is_the_same_once_it_is_native(tmp_path, case):
    sae = load_sae(case.write(tmp_path))
    assert same(load_sae(convert(case.write(tmp_path), tmp_path / "native")), sae)


@cases
def test_a_strangers_file_in_half_precision_is_read(tmp_path, case):
    dtype = torch.float16 if case.kind == "Gemma" else torch.bfloat16  # numpy has no bf16
    half = {name: t.to(dtype) for name, t in case.tensors().items()}
    sae, x = load_sae(case.write(tmp_path, **half)), tokens(9, D, dtype=torch.float32)
    weights = {name: tensor.double() for name, tensor in half.items()}
    features, x_hat = case.formula(weights, case.said, x.double())
    wide = sae.moved("cpu", torch.float64)  # the maths of the stored numbers: nothing was rounded once more
    close(wide(x.double())[0], x_hat)
    close(wide.encode(x.double()), features)


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@cases
def test_a_missing_surplus_or_misshapen_tensor_is_named(tmp_path, case):
    tensors = case.tensors()
    used = [name for name in tensors if name not in case.unused]
    for i, name in enumerate(used):
        says = refused(case.write(tmp_path / f"{i}a", **{name: ...}), "was taken for .*, but: missing")
        assert f"'{name}'" in says
        other = torch.ones(*tensors[name].shape, 2)
        refused(case.write(tmp_path / f"{i}b", **{name: other}), f"was taken for .*, but: {name} is .* must be")
        more = torch.cat([tensors[name], tensors[name][:1]]) if tensors[name].ndim else torch.ones(3)
        if case.kind != "Gemma" or name != "W_enc":  # it would read another width than it writes, as some do
            refused(case.write(tmp_path / f"{i}c", **{name: more}), r"was taken for .* is \[.*\], must be \[")
        nan = tensors[name].clone()
        nan.view(-1)[0] = float("nan")
        refused(case.write(tmp_path / f"{i}d", **{name: nan}), "was taken for .* not finite")
        whole = tensors[name].int()
        refused(case.write(tmp_path / f"{i}e", **{name: whole}), f"{name} is torch.int32, must be a dense tensor")
    refused(case.write(tmp_path / "z", extra=torch.ones(2)), r"surplus \['extra'\]")


def weights_of(path: Path) -> Path:
    found = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in (".safetensors", ".npz", ".pt")]
    return found[0]


@settings(max_examples=150)
@given(st.data())
def test_damage_to_any_file_is_a_refusal_and_never_another_error(tmp_path, data):
    name = data.draw(st.sampled_from(list(CASES)))
    path = tmp_path / name
    path = CASES[name].write(path)
    weights = weights_of(path)
    content = bytearray(weights.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1) | st.integers(0, 400))] ^= data.draw(st.integers(1, 255))
    weights.unlink()
    weights.write_bytes(bytes(content))
    found = attempt(path)
    assert isinstance(found, SparseAutoEncoder) or "\n" not in found


ODD = st.sampled_from([None, "", "x", -1, 0, 3, 1.5, True, [], [1], {}, {"a": 1}, 1e400, "1"])


@settings(max_examples=200)
@given(st.data())
def test_odd_words_in_a_config_are_a_refusal_and_never_another_error(unchecked, tmp_path, data):
    name = data.draw(st.sampled_from([name for name, case in CASES.items() if case.said]))
    said = copy.deepcopy(CASES[name].said)
    part = said["trainer"] if "trainer" in said and data.draw(st.booleans()) else said
    key = data.draw(st.sampled_from(sorted(part)))
    if data.draw(st.booleans()):
        part[key] = data.draw(ODD)
    else:
        del part[key]
    path = CASES[name].write(tmp_path / "sae", said)
    found = attempt(path)
    assert isinstance(found, SparseAutoEncoder) or ("\n" not in found and str(path) in found)
    if isinstance(found, SparseAutoEncoder):
        save_sae(found, tmp_path / "native")


def test_code_in_a_strangers_file_does_not_run(tmp_path):
    witness = tmp_path / "the code ran"
    folder = dictionary("AutoEncoder").write(tmp_path / "dictionary", bias=Evil(witness))
    refused(folder / "ae.pt", "Refused", lambda _: load_sae(folder))
    refused(openai("ReLU").write(tmp_path / "openai", pre_bias=Evil(witness)), "Refused")
    path = gemma_scope(D).write(tmp_path / "gemma") / "params.npz"
    np.savez(path, W_enc=np.array([Evil(witness)], dtype=object))
    refused(path, "Cannot read .* as .npz")
    assert not witness.exists()


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        (sparsify("topk", False, False), {"activation": "jumprelu"}, "'jumprelu'; sparsight reads topk and groupmax"),
        (sparsify("topk", False, False), {"signed": True}, "it is signed"),
        (sparsify("topk", False, False), {"num_latents": 64}, "cfg.json says .*64.*, the weights are .*128"),
        (sparsify("groupmax", False, False), {"k": 7}, "k 7 does not divide 128"),
        (llama_scope("jumprelu"), {"act_fn": "batchtopk"}, "'batchtopk'; sparsight reads relu, topk and jumprelu"),
        (llama_scope("jumprelu"), {"norm_activation": "batch-wise"}, "norm_activation is 'batch-wise'"),
        (llama_scope("jumprelu"), {"use_glu_encoder": True}, "use_glu_encoder"),
        (llama_scope("jumprelu"), {"dataset_average_activation_norm": {"in": 0, "out": 1}}, "was taken for a Llama"),
        (llama_scope("jumprelu"), {"d_model": 31}, "d_model is 31, the weights have 32"),
        (dictionary("AutoEncoder"), {"trainer": {"dict_class": "IdentityDict"}}, "of class IdentityDict; sparsight"),
        (
            dictionary("AutoEncoderTopK"),
            {"trainer": {"dict_class": "AutoEncoderTopK", "k": 9}},
            "k is 8 in ae.pt and 9",
        ),
    ],
)
def test_what_sparsight_does_not_compute_is_refused_with_the_reason(tmp_path, case, changes, said):
    refused(case.write(tmp_path, case.said | changes), said)


def test_an_older_topk_dictionary_has_its_k_in_the_config_alone(tmp_path):
    case = dictionary("AutoEncoderTopK")
    bare = load_sae(case.write(tmp_path / "older", k=..., threshold=...))
    assert same(bare, load_sae(case.write(tmp_path / "newer")))
    assert bare.config.k == 8


def test_a_dictionary_of_another_place_keeps_its_name(tmp_path):
    case = dictionary("AutoEncoder")
    case.said["trainer"] |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "mlp_out_3"}
    c = load_sae(case.write(tmp_path / "mlp")).config
    assert (c.hook_point, c.notes["submodule_name"], c.notes["layer"]) == (None, "mlp_out_3", 3)
    case.said["trainer"]["submodule_name"] = "resid_post_layer_3"
    assert load_sae(case.write(tmp_path / "residual")).config.hook_point == "gpt_neox.layers.3"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": "Identity"}, "its activation is 'Identity'"),
        ({"activation_state_dict": {"k": 8, "postact_fn": "Identity"}}, "reads TopK with ReLU behind it"),
        ({"activation_state_dict": ...}, "reads TopK with ReLU behind it"),
        ({"activation_state_dict": {"k": 8.0, "postact_fn": "ReLU"}}, "no k that is a whole number"),
        ({"activation_state_dict": {"k": 0, "postact_fn": "ReLU"}}, "k must be between 1 and 128, not 0"),
    ],
)
def test_an_openai_file_of_another_activation_is_refused(tmp_path, changes, said):
    refused(openai("TopK").write(tmp_path, **changes), said)


# ── where they lie ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_of_saes_names_those_that_are_in_it(tmp_path):
    sparsify("topk", False, False).write(tmp_path)
    said = refused(tmp_path, "It holds others, name one: layers.2.mlp. It reads native folders")
    for name in ("SAELens", "sparsify", "dictionary_learning", "Gemma Scope", "Llama Scope", "card", "OpenAI"):
        assert name in said


@pytest.mark.parametrize("case", [dictionary("AutoEncoder"), gemma_scope(D)])
def test_the_file_itself_may_be_named(tmp_path, case):
    folder = case.write(tmp_path)
    assert same(load_sae(weights_of(folder)), load_sae(folder))


def test_a_folder_in_a_repository_is_downloaded_alone(tmp_path, monkeypatch):
    import huggingface_hub

    sparsify("topk", False, False).write(tmp_path)
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    sae = load_sae("EleutherAI/some-saes:layers.2.mlp")
    assert sae.config.hook_point == "gpt_neox.layers.2.mlp"
    assert asked[0][0] == "EleutherAI/some-saes"
    assert {"layers.2.mlp/cfg.json", "layers.2.mlp/sae.safetensors", "config.json"} <= set(asked[0][1])
    refused("EleutherAI/some-saes", "name the folder of one: 'owner/name:folder'")


@pytest.mark.parametrize(("name", "place"), [("layers.19", "model.layers.19"), ("h.3.mlp", "transformer.h.3.mlp")])
def test_a_sparsify_folder_is_named_after_its_hook_point(tmp_path, name, place):
    folder = sparsify("topk", False, False).write(tmp_path)
    (tmp_path / "config.json").unlink()
    assert load_sae(folder.rename(tmp_path / name)).config.hook_point == place
    assert load_sae((tmp_path / name).rename(tmp_path / "my_sae")).config.hook_point is None


def test_llama_scope_folders_are_named_after_the_model(tmp_path):
    c = load_sae(llama_scope("jumprelu").write(tmp_path / "Llama3_1-8B-Base-L19R-8x")).config
    assert (c.model, c.hook_point) == ("meta-llama/Llama-3.1-8B", "model.layers.19")
    apart = llama_scope("jumprelu").said | {"hook_point_out": "blocks.19.hook_mlp_out", "model_name": "a/model"}
    c = load_sae(llama_scope("jumprelu").write(tmp_path / "other", apart)).config
    assert (c.model, c.hook_point, c.hook_point_out, c.d_out) == (
        "a/model",
        "model.layers.19",
        "model.layers.19.mlp",
        D,
    )


@pytest.mark.parametrize(
    ("path", "model", "place"),
    [
        ("gemma-scope-9b-pt-att/layer_3/width_16k", "google/gemma-2-9b", "model.layers.3.self_attn.o_proj.input"),
        (
            "models--google--gemma-scope-2b-pt-mlp/snapshots/abc/layer_25/width_16k",
            "google/gemma-2-2b",
            "model.layers.25.post_feedforward_layernorm",
        ),
        ("gemma-scope-2b-pt-transcoders/layer_5/width_16k", "google/gemma-2-2b", None),
        ("somewhere/else", None, None),
    ],
)
def test_gemma_scope_files_are_known_by_where_they_lie(tmp_path, path, model, place):
    (tmp_path / path).parent.mkdir(parents=True)
    c = load_sae(gemma_scope(D).write(tmp_path / "as published").rename(tmp_path / path)).config
    assert (c.model, c.hook_point, c.transcoder) == (model, place, "transcoders" in path)


# ── the libraries themselves, where they are installed ───────────────────────────────────────────────────────────────


def peer(name: str):
    """A library, imported in silence; its tests are left out where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


@pytest.mark.parametrize("case", [c for n, c in CASES.items() if "sparsify" in n], ids=lambda c: str(c.said))
def test_sparsify_itself_gives_the_same(tmp_path, case):
    peer("sparsify")
    from sparsify import SparseCoder

    folder, x = case.write(tmp_path), tokens(9, D, dtype=torch.float32)
    ours, theirs = load_sae(folder), SparseCoder.load_from_disk(folder)
    found = theirs(x)
    close(ours(x)[0], found.sae_out)
    close(ours.encode(x), torch.zeros(9, FEATURES).scatter(-1, found.latent_indices, found.latent_acts))


@pytest.mark.parametrize("case", [c for n, c in CASES.items() if "dictionary" in n], ids=lambda c: str(c.said))
def test_dictionary_learning_itself_gives_the_same(tmp_path, case):
    peer("dictionary_learning.utils")
    from dictionary_learning.utils import load_dictionary

    folder, x = case.write(tmp_path), tokens(9, D, dtype=torch.float32)
    ours, (theirs, _) = load_sae(folder), load_dictionary(str(folder), "cpu")
    close(ours.encode(x), theirs.encode(x).detach())
    close(ours(x)[0], theirs(x).detach())


TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("d_out", [D, D + 8])
@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_saelens_transcoders_are_ours_both_ways(lens, tmp_path, architecture, d_out, normalization):  # noqa: F811
    from sae_lens.saes.sae import SAEMetadata

    _, made, config = lens.SAE, *lens.registry.get_sae_class(architecture)
    about = SAEMetadata(hook_name="blocks.5.mlp.hook_in", hook_name_out="blocks.5.hook_mlp_out")
    sizes = {"d_in": D, "d_sae": FEATURES, "d_out": d_out, "apply_b_dec_to_input": False}
    theirs = randomised(made(config(**sizes, normalize_activations=normalization, metadata=about)))
    theirs.save_model(tmp_path / "theirs")
    save_file({"sparsity": torch.zeros(FEATURES)}, tmp_path / "theirs" / "sparsity.safetensors")
    ours, x = load_sae(tmp_path / "theirs"), tokens(2, 7, D, dtype=torch.float32)
    agree(ours, theirs, x)
    c = ours.config
    assert (c.hook_point, c.hook_point_out, c.d_out) == ("model.layers.5.mlp.input", "model.layers.5.mlp", d_out)
    agree(ours, lens.SAE.load_from_disk(write_saelens(ours, tmp_path / "back")), x)
    assert same(load_sae(tmp_path / "back"), ours)


@pytest.mark.usefixtures("quiet")
def test_what_saelens_downloads_is_read_through_it(lens, tmp_path, monkeypatch):  # noqa: F811
    kept, asked = lens.SAE.load_from_disk(write_saelens(random_sae("jumprelu", model="a/model"), tmp_path)), []

    def download(release: str, sae_id: str, device: str):
        asked.append((release, sae_id))
        if release == "nothing":
            raise ValueError("Release nothing not found\nin the directory")
        return kept

    monkeypatch.setattr(lens.SAE, "from_pretrained", download)
    sae = load_sae("saelens:gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
    assert asked == [("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")]
    assert same(sae, load_sae(tmp_path))
    refused("saelens:nothing/at/all", r"SAELens gave none \(Release nothing not found\)")
    assert same(load_sae(convert("saelens:a/b", tmp_path / "native")), sae)


def test_without_saelens_its_prefix_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(Missing, match=r"pip install 'sparsight\[saelens\]'"):
        load_sae("saelens:a/b")


# ── out, and in again ────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=120)
@given(st.data())
def test_what_is_exported_is_imported_as_it_was(tmp_path, data):
    """Any SAE in any format: the same when it is read again, or a refusal that says why it cannot be written."""
    drawn = st.fixed_dictionaries(
        {
            "activation": st.sampled_from(ACTIVATIONS),
            "dtype": st.sampled_from([torch.bfloat16, torch.float32]),
            "normalization": st.sampled_from(NORMALIZATIONS),
            "apply_b_dec_to_input": st.booleans(),
            "skip": st.booleans(),
            "model": st.none() | st.just("a/model"),
            "hook_point_out": st.none() | st.just("model.layers.2.mlp"),
            "d_in": st.sampled_from([4, D]),
        }
    ).map(lambda drawn: random_sae(**drawn))
    sae, as_ = data.draw(drawn), data.draw(st.sampled_from(["native", "saelens", "card"]))
    to = tmp_path / ("sae.pth" if as_ == "card" else as_)
    try:
        written = convert(sae, to, as_)
    except BadInput as error:
        c = sae.config
        plain = c.activation == "relu" and c.normalization == "none" and not c.apply_b_dec_to_input
        odd = c.transcoder or c.skip
        impossible = {"card": not plain or odd, "saelens": odd or c.activation == "groupmax"}
        if not impossible.get(as_):
            raise AssertionError(f"{c} was refused as {as_}") from error
        return
    back = load_sae(written)
    assert back.fingerprint == sae.fingerprint
    kept = {"notes": {}} | ({"model": sae.config.model, "hook_point": sae.config.hook_point} if as_ == "card" else {})
    bare = SparseAutoEncoder.from_tensors(sae.config, dict(sae.named_parameters()))  # the others have no feature units
    assert same(back.altered(**kept), sae if as_ == "native" else bare)


@pytest.mark.parametrize(
    ("sae", "said"),
    [
        (random_sae("groupmax"), "no architecture for a groupmax SAE;"),
        (random_sae("topk", d_out=D), "no architecture for a topk transcoder;"),
        (random_sae("relu", skip=True), "no architecture for a relu SAE with a skip connection;"),
    ],
    ids=str,
)
def test_what_saelens_cannot_hold_is_refused_and_nothing_is_written(tmp_path, sae, said):
    with pytest.raises(BadInput, match=said):
        write_saelens(sae, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_conversion_says_what_it_cannot_do(tmp_path):
    folder, other, aside = (save_sae(random_sae(), tmp_path / name) for name in ("sae", "other", "folder.pth"))
    theirs = sparsify("topk", False, False).write(tmp_path / "theirs")
    for to, as_, said in (
        (tmp_path / "x", "gguf", "No format 'gguf' to write. There are: native, saelens, card"),
        (tmp_path / "x", "card", "is one file: name it .pth"),
        (folder, "native", "is the SAE to be converted"),
        (tmp_path / "sae" / ".." / "sae", "saelens", "is the SAE to be converted"),
        (theirs, "native", "holds an SAE of another format"),
        (other, "saelens", "holds an SAE of another format"),
        (aside, "card", "is one file: name it .pth"),
        (folder / "sae.json", "saelens", "is a file; an SAE in the format saelens is a folder"),
    ):
        with pytest.raises(BadInput, match=said):
            convert(folder, to, as_)
    with pytest.raises(BadFile, match="No SAE at"):
        convert(tmp_path / "missing", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    half = load_sae(convert(folder, tmp_path / "half", dtype=torch.bfloat16))
    assert (half.dtype, half.scale.dtype) == (torch.bfloat16, torch.float32)
    assert same(read_saelens(convert(folder, tmp_path / "lens", "saelens")), load_sae(tmp_path / "lens"))
