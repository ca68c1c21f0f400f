"""SAEs on disk: the native folder, the model card's file, SAELens folders, and all that can be wrong with them."""

import ast
import json
import os
import pickle
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import FEATURES, HOOK, D, random_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_sae import card, tokens

import sparsight
from sparsight.errors import BadFile, BadInput, Mismatch
from sparsight.sae import disk
from sparsight.sae.activation import ACTIVATIONS
from sparsight.sae.config import NORMALIZATIONS
from sparsight.sae.files import load_sae, save_sae
from sparsight.sae.foreign.card import PUBLISHED, read_card, write_card
from sparsight.sae.foreign.hooks import hook_name, module_path
from sparsight.sae.foreign.saelens import read_saelens, write_saelens
from sparsight.sae.sae import SparseAutoEncoder

activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def same(one: SparseAutoEncoder, other: SparseAutoEncoder) -> bool:
    """The same tensors to the bit, and the same words."""
    a, b = one.state_dict(), other.state_dict()
    return (
        one.config == other.config
        and a.keys() == b.keys()
        and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
    )


def refused(path: Path, said: str = "", load=load_sae) -> str:
    """Loading is refused with one line that names the file; returns it."""
    with pytest.raises(BadFile, match=said) as caught:
        load(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def attempt(path: Path) -> SparseAutoEncoder | str:
    """The SAE, or the words of the BadFile; any other error passes."""
    try:
        return load_sae(path)
    except BadFile as error:
        return str(error)


# ── the native format ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("activation", "normalization"), list(product(ACTIVATIONS, NORMALIZATIONS)))
def test_what_is_saved_is_loaded_to_the_bit(tmp_path, activation, normalization, dtype):
    about = {"model": "a/model", "model_revision": "main", "notes": {"loss": [1, 2.5], "who": "Zoë"}}
    sae = random_sae(activation, dtype, normalization=normalization, apply_b_dec_to_input=True, **about)
    assert same(load_sae(save_sae(sae, tmp_path / "a" / "b")), sae)
    assert same(load_sae(save_sae(sae.altered(), str(tmp_path / "c"))), sae)
    assert load_sae(tmp_path / "c").fingerprint == sae.fingerprint
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["sae.json", "sae.safetensors"]  # no scraps


def test_an_sae_without_units_is_loaded_without(tmp_path):
    sae = SparseAutoEncoder(D, FEATURES)
    assert load_sae(save_sae(sae, tmp_path)).scale is None
    assert same(load_sae(tmp_path), sae)


def test_an_sae_with_tied_weights_can_be_saved(tmp_path):
    sae = random_sae()
    tied = {**dict(sae.named_parameters()), "W_dec": sae.W_enc}
    sae = SparseAutoEncoder.from_tensors(sae.config, tied)
    for folder in (save_sae(sae, tmp_path / "ours"), write_saelens(sae, tmp_path / "saelens")):
        torch.testing.assert_close(load_sae(folder).W_dec, sae.W_enc, rtol=0, atol=0)


def test_the_fingerprint_is_the_files_whatever_the_loaded_dtype(tmp_path):
    sae = random_sae(dtype=torch.bfloat16)
    save_sae(sae, tmp_path)
    loaded = [load_sae(tmp_path, dtype=dtype) for dtype in (None, torch.float32, torch.float16)]
    assert [one.dtype for one in loaded] == [torch.bfloat16, torch.float32, torch.float16]
    assert {one.fingerprint for one in loaded} == {sae.fingerprint}
    assert {one.scale.dtype for one in loaded} == {torch.float32}
    assert random_sae(dtype=torch.float32).fingerprint != sae.fingerprint  # other content


def test_a_file_of_mixed_dtypes_is_loaded_in_one(tmp_path):
    """Matrices in bf16 and small tensors in float32: once loaded, the maths has one dtype."""
    sae = random_sae("jumprelu")
    mixed = {n: p.bfloat16() if n.startswith("W") else p for n, p in sae.named_parameters()} | {"scale": sae.scale}
    stored = SparseAutoEncoder.from_tensors(sae.config, mixed)
    loaded = load_sae(save_sae(stored, tmp_path))
    assert load_file(tmp_path / "sae.safetensors")["b_enc"].dtype == torch.float32
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.fingerprint == stored.fingerprint
    assert loaded.encode(tokens(2, D)).dtype == torch.bfloat16
    wide = load_sae(tmp_path, dtype=torch.float32)  # nothing is lost on the way to float32
    torch.testing.assert_close(wide.b_enc, sae.b_enc, rtol=0, atol=0)


@settings(max_examples=150)
@given(st.data())
def test_no_changed_byte_of_the_weights_is_accepted(tmp_path, data):
    folder = tmp_path / "sae"
    if not folder.exists():
        save_sae(random_sae("jumprelu", torch.bfloat16, d_in=4), folder)
    weights = folder / "sae.safetensors"
    whole, known = weights.read_bytes(), load_sae(folder)
    header = 8 + int.from_bytes(whole[:8], "little")
    place = data.draw(st.integers(0, header - 1) | st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != whole[place]))
    weights.unlink()  # what is loaded is mapped from the file: never write into it
    weights.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    found = attempt(folder)
    weights.unlink()
    weights.write_bytes(whole)
    if isinstance(found, SparseAutoEncoder):  # white space in the header
        assert place < header
        assert bytes([byte]).isspace()
        assert same(found, known)
    else:
        assert "\n" not in found


@settings(max_examples=60)
@given(st.data())
def test_no_part_of_the_weights_is_accepted(tmp_path, data):
    folder = tmp_path / "sae"
    if not folder.exists():
        save_sae(random_sae(d_in=4), folder)
        (tmp_path / "whole").write_bytes((folder / "sae.safetensors").read_bytes())
    whole = (tmp_path / "whole").read_bytes()
    (folder / "sae.safetensors").unlink()
    (folder / "sae.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refused(folder / "sae.safetensors", "Cannot read .* as safetensors", lambda _: load_sae(folder))


def rewritten(folder: Path, **changes) -> Path:
    """A saved SAE whose sae.json says otherwise; a change to ... takes the key out."""
    save_sae(random_sae(), folder)
    said = json.loads((folder / "sae.json").read_text()) | changes
    (folder / "sae.json").write_text(json.dumps({k: v for k, v in said.items() if v is not ...}))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "is of schema 2; this sparsight reads schema 1"),
        ({"schema": ...}, "is of schema None"),
        ({"fingerprint": "0" * 16}, "changed or damaged: its fingerprint is .* said 0000"),
        ({"fingerprint": ...}, "changed or damaged"),
        ({"scale_fingerprint": "0" * 16}, "changed or damaged: its scale_fingerprint"),
        ({"activation": "topk", "k": 4}, "changed or damaged"),
        ({"activation": "topk"}, "not a sound native SAE: A topk SAE needs k between"),
        ({"activation": "jumprelu"}, r"missing tensors \['threshold'\], surplus tensors \[\]"),
        ({"activation": ["relu"]}, r"No activation \['relu'\]"),
        ({"normalization": "layer_norm"}, "changed or damaged"),
        ({"apply_b_dec_to_input": True}, "changed or damaged"),
        ({"d_in": 31}, r"SAE tensor \w+ is .*, must be \[.*31\]"),
        ({"d_in": -1}, "d_in must be a whole number above zero, not -1"),
        ({"d_in": "32"}, "d_in must be a whole number above zero, not '32'"),
        ({"d_hidden": None}, "d_hidden must be a whole number above zero, not None"),
        ({"d_in": ...}, "d_in"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(unchecked, tmp_path, changes, said):
    refused(rewritten(tmp_path, **changes), said)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "7", "\x00", "[" * 100_000, '{"schema": 1'])
def test_a_description_that_is_no_json_object_is_refused(tmp_path, text):
    (save_sae(random_sae(), tmp_path) / "sae.json").write_text(text)
    refused(tmp_path / "sae.json", "as JSON|holds no JSON object", lambda _: load_sae(tmp_path))


def test_a_description_that_is_no_text_is_refused(tmp_path):
    (save_sae(random_sae(), tmp_path) / "sae.json").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, "as JSON")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("W_dec"), r"missing tensors \['W_dec'\], surplus tensors \[\]"),
        (lambda t: t.update(W_extra=torch.ones(2)), r"missing tensors \[\], surplus tensors \['W_extra'\]"),
        (lambda t: t.update(b_enc=torch.zeros(FEATURES - 1)), r"b_enc is \[127\], must be \[128\]"),
        (lambda t: t.update(W_enc=t["W_enc"].T.contiguous()), r"W_enc is \[32, 128\], must be \[128, 32\]"),
        (lambda t: t["W_enc"][3].fill_(float("nan")), "W_enc holds values that are not finite"),
        (lambda t: t["b_dec"][3].fill_(float("inf")), "b_dec holds values that are not finite"),
        (lambda t: t["scale"][3].fill_(float("nan")), "scale holds values that are not finite"),
        (lambda t: t.update(W_enc=t["W_enc"].int()), "W_enc is torch.int32, must be one of torch.bfloat16"),
        (lambda t: t.update(scale=torch.ones(3)), r"scale is \[3\], must be \[128\]"),
        (lambda t: t["W_enc"][3].add_(1e-3), "changed or damaged"),
        (lambda t: t.pop("scale"), "changed or damaged"),
        (lambda t: t["scale"].mul_(2), "changed or damaged"),
        (lambda t: t.update(W_enc=t["W_enc"].half()), "changed or damaged"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, said):
    save_sae(random_sae(), tmp_path)
    tensors = {name: t.clone() for name, t in load_file(tmp_path / "sae.safetensors").items()}
    change(tensors)
    (tmp_path / "sae.safetensors").unlink()
    save_file(tensors, tmp_path / "sae.safetensors")
    refused(tmp_path, said)


@pytest.mark.parametrize("missing", ["sae.json", "sae.safetensors"])
def test_half_an_sae_is_none(tmp_path, missing):
    (save_sae(random_sae(), tmp_path) / missing).unlink()
    refused(tmp_path, "No SAE that sparsight can read at|Cannot read .* as safetensors")


# ── a save that is cut off ───────────────────────────────────────────────────────────────────────────────────────────

CUT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from sparsight.errors import BadFile
from sparsight.sae.files import load_sae, save_sae
from sparsight.sae.sae import SparseAutoEncoder
torch.set_num_threads(1)
folder, saes = Path(sys.argv[1]), []
for seed in range(2):
    sae = SparseAutoEncoder(64, 4096, dtype=torch.float32)
    sae.W_enc.copy_(torch.randn(4096, 64, generator=torch.Generator().manual_seed(seed)))
    saes.append(sae)
known, seen = {sae.fingerprint for sae in saes}, {"whole": 0, "none": 0}
random.seed(0)
save_sae(saes[0], folder)
for _ in range(40):
    child = os.fork()
    if not child:
        while True:
            save_sae(random.choice(saes), folder)
    time.sleep(random.uniform(0.001, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        assert load_sae(folder).fingerprint in known
        seen["whole"] += 1
    except BadFile:
        assert not (folder / "sae.json").exists()
        seen["none"] += 1
print(seen["whole"], seen["none"])
"""


def test_a_save_that_is_killed_leaves_a_whole_sae_or_none(tmp_path):
    """The process is killed at forty moments, in the middle of saving one SAE over another."""
    environment = os.environ | {"PYTHONPATH": str(Path(sparsight.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CUT, str(tmp_path / "sae")]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    whole, none = map(int, out.stdout.split())
    assert whole + none == 40
    assert none > 0  # it was indeed cut off in the middle


@pytest.mark.parametrize("form", ["ours", "saelens"])
@pytest.mark.parametrize("step", range(6))
def test_a_save_that_fails_at_any_step_leaves_a_whole_sae_or_none(tmp_path, monkeypatch, form, step):
    """Steps: the writing, the fsync and the renaming of each of the two files."""
    save, name = {"ours": (save_sae, "sae.json"), "saelens": (write_saelens, "cfg.json")}[form]
    old, new, left = random_sae(seed=1), random_sae(seed=2), [step]
    save(old, tmp_path)

    def failing(call):
        def attempt(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise OSError("No space left on device")
            return call(*args, **kwargs)

        return attempt

    with monkeypatch.context() as patch:
        patch.setattr(disk, "save_file", failing(disk.save_file))
        patch.setattr(Path, "write_text", failing(Path.write_text))
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(os, "replace", failing(os.replace))
        with pytest.raises(OSError, match="No space left"):
            save(new, tmp_path)
    assert not (tmp_path / name).exists()
    refused(tmp_path, "No SAE that sparsight can read")
    torch.testing.assert_close(load_sae(save(new, tmp_path)).W_enc, new.W_enc, rtol=0, atol=0)  # and the next is well


# ── the model card's file ────────────────────────────────────────────────────────────────────────────────────────────


def card_file(path: Path, dtype: torch.dtype = torch.bfloat16, **changes) -> Path:
    """The card's state dict in a .pth, with changes; ... takes the key out."""
    state = {name: t.clone() for name, t in card(dtype).state_dict().items()} | changes
    torch.save({k: v for k, v in state.items() if v is not ...}, path)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_cards_file_is_loaded_and_gives_the_cards_numbers(tmp_path, dtype, zipped):
    path, x = tmp_path / "llama-3-8b-d-hidden.pth", tokens(5, D, dtype=dtype)
    torch.save(card(dtype).state_dict(), path, _use_new_zipfile_serialization=zipped)
    sae = load_sae(str(path), D, FEATURES // D)
    for mine, card_says in zip(sae(x), card(dtype)(x), strict=True):
        torch.testing.assert_close(mine, card_says)
    by_hand = SparseAutoEncoder(D, FEATURES, dtype=dtype)
    by_hand.load_state_dict(card(dtype).state_dict())
    assert sae.fingerprint == by_hand.fingerprint
    assert (sae.dtype, sae.config.model, sae.config.hook_point) == (dtype, None, None)
    wide = load_sae(path, d_model=D, expansion_factor=4, device=torch.device("cpu"), dtype=torch.float64)
    assert wide.dtype == torch.float64


@pytest.mark.parametrize("asked", [{"d_model": 31}, {"d_model": D, "expansion_factor": 8}, {"expansion_factor": 8}])
def test_sizes_that_were_asked_for_are_checked(tmp_path, asked):
    with pytest.raises(Mismatch, match=r"Asked for an SAE with d_\w+ [\d]+; the one at .* has \d+"):
        load_sae(card_file(tmp_path / "sae.pth"), **asked)
    assert load_sae(tmp_path / "sae.pth", expansion_factor=4).d_hidden == FEATURES


def test_the_published_file_knows_its_model_and_hook_point(tmp_path, monkeypatch):
    """From the repository's name (the download is a stand-in), and from the file alone where it kept its name."""
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(card_file(tmp_path / file))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for repository, published in PUBLISHED.items():
        sae = load_sae(repository)
        assert asked[-1] == (repository, published.file)
        assert (sae.config.model, sae.config.hook_point) == (published.model, published.hook_point)
        assert load_sae(tmp_path / published.file).config == sae.config
    assert PUBLISHED["Goodfire/Llama-3.1-8B-Instruct-SAE-l19"].hook_point == "model.layers.19"


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch '{self.witness}'",)


def test_a_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path):
    path, witness = tmp_path / "sae.pth", tmp_path / "the code ran"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(Evil(witness), protocol=protocol))
        refused(path, "Refused .*: it is damaged, or holds code that loading it could run")
    torch.save({"encoder_linear.weight": Evil(witness)}, path)
    refused(path, "Refused")
    torch.save({"encoder_linear.weight": Evil(witness)}, path, _use_new_zipfile_serialization=False)
    refused(path, "Refused")
    torch.save(card(), path)  # a whole module: its class would be looked up
    refused(path, "Refused")
    assert not witness.exists()
    pickle.loads(pickle.dumps(Evil(witness)))
    assert witness.exists()  # the code was live


def test_pickles_are_read_only_with_weights_only():
    """Over all of sparsight's source: torch.load has weights_only=True, and nothing else unpickles."""
    loads = 0
    for file in Path(sparsight.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called == "torch.load":
                    loads += 1
                    given = {k.arg: k.value for k in node.keywords}
                    assert ast.unparse(given["weights_only"]) == "True", file
                assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"), file
                assert not any(k.arg == "allow_pickle" for k in node.keywords), file
    assert loads > 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list, not a state dict"),
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        ({}, r"missing tensors \['decoder_linear.bias', .*\], surplus \[\]"),
        ({"W_enc": torch.zeros(2, 2)}, r"missing tensors .*, surplus \['W_enc'\]"),
        ({3: torch.zeros(2)}, r"surplus \['3'\]"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "sae.pth")
    refused(tmp_path / "sae.pth", said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder_linear.bias": ...}, r"missing tensors \['decoder_linear.bias'\], surplus \[\]"),
        ({"pre_bias": torch.zeros(3)}, r"missing tensors \[\], surplus \['pre_bias'\]"),
        ({"decoder_linear.bias": torch.zeros(D + 1)}, r"decoder_linear.bias is \[33\], must be \[d_in 32\]"),
        (
            {"decoder_linear.weight": torch.zeros(FEATURES, D)},
            r"must be \[d_in 32, d_hidden 128\]",
        ),
        ({"decoder_linear.weight": torch.zeros(2, 2, 2)}, r"decoder_linear.weight is \[2, 2, 2\], must be"),
        ({"encoder_linear.weight": torch.zeros(3)}, r"encoder_linear.weight is \[3\], must be \[d_hidden, d_in\]"),
        (
            {"encoder_linear.weight": torch.zeros(0, D)},
            r"encoder_linear.weight is \[0, 32\], must be \[d_hidden, d_in\]",
        ),
        ({"encoder_linear.bias": torch.zeros(FEATURES).int()}, "bias is .*, must be a dense tensor"),
        ({"encoder_linear.bias": "hello"}, "bias is .*, must be a dense tensor"),
        (
            {"encoder_linear.bias": torch.zeros(FEATURES).to_sparse()},
            "bias is .*, must be a dense tensor",
        ),
        (
            {"encoder_linear.bias": torch.zeros(FEATURES).to(torch.float8_e5m2)},
            "is torch.float8_e5m2, must be",
        ),
        ({"encoder_linear.bias": torch.full((FEATURES,), float("nan"))}, "b_enc holds values that are not finite"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(tmp_path, changes, said):
    refused(card_file(tmp_path / "sae.pth", **changes), said)


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_file_is_refused_whatever_the_damage(tmp_path, data):
    """Zipped or not, cut or changed: a BadFile or (torch checks no sum of the numbers) an SAE of the same shape."""
    zipped = data.draw(st.booleans())
    whole = tmp_path / f"whole{zipped}"
    if not whole.exists():
        small = {k: t[:4, :4] if t.ndim == 2 else t[:4] for k, t in card().state_dict().items()}
        small = {k: t.clone() for k, t in small.items()}
        torch.save(small, whole, _use_new_zipfile_serialization=zipped)
    content = bytearray(whole.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "sae.pth"
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(content))
    found = attempt(path)
    if isinstance(found, SparseAutoEncoder):
        assert found.W_enc.shape == (4, 4)
        assert len(content) == len(whole.read_bytes())
    else:
        assert "\n" not in found


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02.", b"version https://git-lfs.github.com/"]
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "sae.pth").write_bytes(content)
    refused(tmp_path / "sae.pth", "Cannot read .* as a PyTorch state dict: .+|Refused .* damaged")


def test_writing_the_cards_file_and_reading_it_again_is_the_identity(tmp_path):
    theirs = card_file(tmp_path / "theirs.pth")
    sae = load_sae(theirs)
    ours = write_card(sae, tmp_path / "new" / "ours.pth")
    assert same(read_card(ours).altered(notes={}), sae.altered(notes={}))
    assert load_sae(ours).fingerprint == sae.fingerprint
    state = torch.load(ours, weights_only=True)
    card().load_state_dict(state)  # strictly: the card's own class takes it
    for name, tensor in card().state_dict().items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype
    assert [p.name for p in ours.parent.iterdir()] == ["ours.pth"]


@pytest.mark.parametrize("sae", [random_sae("topk"), random_sae(apply_b_dec_to_input=True)], ids=["topk", "b_dec"])
def test_the_cards_layout_holds_plain_relu_only(tmp_path, sae):
    with pytest.raises(BadInput, match="holds plain relu SAEs; this one is"):
        write_card(sae, tmp_path / "sae.pth")


# ── paths ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["missing.pth", "./missing", "a/b/c", "missing", "~/x", "/nowhere/x"])
def test_a_path_that_is_not_there_is_named(path):
    refused(path, "No SAE at '.*': there is no such file or folder")


@pytest.mark.parametrize("path", ["nobody/nothing", "my runs/sae 1", "runs/" + "x" * 200])
def test_a_repository_that_is_not_there_is_named(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused(path, "no such file, and the Hugging Face hub gave none")


def test_a_file_of_no_known_format_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    for path in (tmp_path, tmp_path / "weights.bin"):
        refused(path, "It reads native folders .sae.json., .*Gemma Scope .*, the model card's .pth")


# ── SAELens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def lens():
    pytest.importorskip("sae_lens", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its import, and of its open files
        import sae_lens
    return sae_lens


KINDS = {
    "standard": ("StandardSAE", {}),
    "topk": ("TopKSAE", {"k": 9}),
    "topk, rescaled": ("TopKSAE", {"k": 9, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("JumpReLUSAE", {}),
    "gated": ("GatedSAE", {}),
}


def theirs(lens, kind: str, hook: str = "blocks.5.hook_resid_post", **more):
    """One of SAELens' SAEs with random weights."""
    name, config = KINDS[kind]
    from sae_lens.saes.sae import SAEMetadata

    about = SAEMetadata(model_name="a/model", hook_name=hook)
    made = getattr(lens, name)(getattr(lens, name + "Config")(d_in=D, d_sae=FEATURES, metadata=about, **config, **more))
    return randomised(made)


def randomised(made):
    g = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=g) * 0.3)
    return made


@pytest.fixture
def quiet():
    """SAELens leaves the files open that it writes and reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def agree(ours: SparseAutoEncoder, made, x: torch.Tensor) -> None:
    """The same features and reconstruction, from the same numbers."""
    features = made.encode(x)
    assert 0 < (features > 0).sum() < features.numel()
    assert (ours.encode(x) - features).abs().max() < 1e-5
    assert (ours(x)[0] - made(x)).abs().max() < 1e-5
    assert (ours.encode_codes(x).dense() - features.reshape(-1, FEATURES)).abs().max() < 1e-5


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_saelens_numbers_are_our_numbers_both_ways(lens, tmp_path, kind, apply, normalization):
    made = theirs(lens, kind, apply_b_dec_to_input=apply, normalize_activations=normalization)
    made.save_model(tmp_path / "theirs")
    ours, x = load_sae(tmp_path / "theirs"), tokens(2, 7, D, dtype=torch.float32)
    agree(ours, made, x)
    assert (ours.config.model, ours.config.hook_point) == ("a/model", "model.layers.5")
    back = lens.SAE.load_from_disk(write_saelens(ours, tmp_path / "back"))
    agree(ours, back, x)
    assert (back.cfg.metadata.model_name, back.cfg.metadata.hook_name) == ("a/model", "blocks.5.hook_resid_post")
    again = load_sae(tmp_path / "back")
    assert same(again, ours)
    assert again.fingerprint == ours.fingerprint
    assert same(load_sae(save_sae(ours, tmp_path / "native")), ours)


@pytest.mark.usefixtures("quiet")
def test_a_batchtopk_sae_of_saelens_is_the_same_saved_for_use_or_in_training(lens, tmp_path):
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    made = randomised(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D, d_sae=FEATURES, k=8)))
    made.topk_threshold.fill_(0.7)
    made.save_inference_model(tmp_path / "use")
    made.save_model(tmp_path / "training")
    use, x = load_sae(tmp_path / "use"), tokens(9, D, dtype=torch.float32)
    agree(use, lens.SAE.load_from_disk(tmp_path / "use"), x)
    training = load_sae(tmp_path / "training")
    torch.testing.assert_close(training.encode(x), use.encode(x))
    torch.testing.assert_close(training(x)[0], use(x)[0])
    assert use.config.activation == training.config.activation == "batchtopk"


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "groupmax"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_exported_to_saelens_is_imported_to_the_bit(lens, tmp_path, activation, dtype):
    sae = random_sae(activation, dtype, apply_b_dec_to_input=True, normalization="layer_norm", model="a/model")
    back = read_saelens(write_saelens(sae, tmp_path))
    bare = SparseAutoEncoder.from_tensors(sae.config, dict(sae.named_parameters()))  # SAELens has no feature units
    assert same(back.altered(notes={}), bare)
    assert back.fingerprint == sae.fingerprint
    made = lens.SAE.load_from_disk(tmp_path)
    assert str(made.dtype) == str(dtype)
    if dtype == torch.float32:
        agree(sae, made, tokens(5, D, dtype=dtype))


def lens_folder(folder: Path, tensors: dict | None = None, **changes) -> Path:
    """A SAELens folder with another cfg.json; a change to ... takes the key out."""
    write_saelens(random_sae(), folder)
    cfg = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in cfg.items() if v is not ...}))
    if tensors is not None:
        file = folder / "sae_weights.safetensors"
        stored = load_file(file) | tensors
        file.unlink()
        save_file({k: v.clone() for k, v in stored.items() if v is not ...}, file)
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "temporal"}, "is a SAELens 'temporal' SAE; sparsight reads .*'gated'"),
        ({"architecture": ["standard"]}, "sparsight reads"),
        ({"normalize_activations": "expected_average_only_in"}, "fold it .*activation_norm_scaling_factor.* again"),
        ({"normalize_activations": True}, "fold it into the weights with SAELens"),
        ({"normalize_activations": "covariance_whitening"}, "fold_activation_whitening"),
        ({"normalize_activations": ["none"]}, "normalises by"),
        ({"activation_fn": "tanh-relu"}, "with activation 'tanh-relu'; sparsight reads relu and topk"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {}}, "A topk SAE needs k between"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": [1]}, "not a sound SAELens folder"),
        ({"d_in": ...}, "it has no 'd_in'"),
        ({"d_sae": 127}, r"W_enc is \[32, 128\], must be \[32, 127\]"),
        ({"d_sae": "128"}, "d_hidden must be a whole number above zero"),
        ({"metadata": "none"}, "not a sound SAELens folder"),
        ({"metadata": {"hook_name": 5}}, "not a sound SAELens folder"),
        ({"architecture": "jumprelu"}, r"taken for a SAELens jumprelu SAE.*missing tensors \['threshold'\]"),
        ({"architecture": "gated"}, "it has no 'b_gate'"),
    ],
)
def test_a_saelens_folder_that_we_do_not_compute_is_refused_with_what_to_do(unchecked, tmp_path, changes, said):
    refused(lens_folder(tmp_path, **changes), said)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"W_dec": ...}, "it has no 'W_dec'"),
        ({"extra": torch.ones(2)}, r"surplus tensors \['extra'\]"),
        ({"W_enc": torch.zeros(2, 3, 4)}, r"W_enc is \[2, 3, 4\], must be \[32, 128\]"),
        ({"scaling_factor": torch.ones(3)}, r"scaling_factor is \[3\], must be \[128\]"),
        ({"b_dec": torch.full((D,), float("nan"))}, "b_dec holds values that are not finite"),
        ({"W_enc": torch.zeros(D, FEATURES).int()}, "W_enc is torch.int32"),
    ],
)
def test_a_saelens_folder_with_other_weights_is_refused(tmp_path, tensors, said):
    refused(lens_folder(tmp_path, tensors), said)


def test_a_saelens_folder_without_its_weights_is_refused(tmp_path):
    (lens_folder(tmp_path) / "sae_weights.safetensors").unlink()
    refused(tmp_path, "Cannot read .* as safetensors")


def test_older_saelens_folders_are_read(tmp_path):
    """Before version 6: everything flat, topk as an activation, false for no normalisation, factors on the way out."""
    factor = torch.rand(FEATURES) + 0.5
    flat = {"metadata": ..., "architecture": ..., "apply_b_dec_to_input": ..., "normalize_activations": False}
    flat |= {"model_name": "gpt2", "hook_point": "blocks.3.hook_resid_pre", "activation_fn_str": "topk"}
    flat |= {"activation_fn_kwargs": {"k": 5}, "finetuning_scaling_factor": True}
    sae = load_sae(lens_folder(tmp_path, {"scaling_factor": factor}, **flat))
    plain, c = random_sae(), sae.config
    assert (c.activation, c.k, c.apply_b_dec_to_input, c.normalization) == ("topk", 5, True, "none")
    assert (c.model, c.hook_point) == ("gpt2", "model.layers.3.input")
    torch.testing.assert_close(sae.W_dec, plain.W_dec * factor[:, None])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.5.hook_resid_post", "model.layers.5"),
        ("blocks.5.hook_resid_pre", "model.layers.5.input"),
        ("blocks.12.hook_mlp_out", "model.layers.12.mlp"),
        ("blocks.0.hook_attn_out", "model.layers.0.self_attn"),
        ("transformer.h.3", "transformer.h.3"),
        ("blocks.5.attn.hook_z", "blocks.5.attn.hook_z"),
        (None, None),
    ],
)
def test_hooks_have_names_in_both_worlds(theirs, ours):
    assert module_path(theirs) == ours
    assert hook_name(ours) == theirs
    assert module_path(hook_name(HOOK)) == HOOK


@pytest.mark.parametrize(
    "path", ["model.layers.5.mlp.down_proj", "model.layers.5.post_attention_layernorm.output", "x"]
)
def test_a_hook_point_that_saelens_has_no_name_for_is_kept(path):
    assert module_path(hook_name(path)) == path
