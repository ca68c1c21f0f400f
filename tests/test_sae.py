"""The maths of a sparse autoencoder, against the plain formula in float64 and the model card's own class."""

import weakref
from dataclasses import replace
from itertools import product

import pytest
import torch
from conftest import FEATURES, HOOK, D, random_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sparsight
from sparsight.errors import BadInput, NoFeature
from sparsight.sae.activation import ACTIVATIONS, CHOOSING, evaluate, largest
from sparsight.sae.codes import Codes
from sparsight.sae.config import NORMALIZATIONS, SaeConfig
from sparsight.sae.files import load_sae, save_sae
from sparsight.sae.sae import SparseAutoEncoder

KINDS = list(product(ACTIVATIONS, (False, True), NORMALIZATIONS))
kinds = pytest.mark.parametrize(("activation", "apply", "normalization"), KINDS)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def of(activation: str, apply: bool = True, normalization: str = "none", **more) -> SparseAutoEncoder:
    return random_sae(activation, apply_b_dec_to_input=apply, normalization=normalization, **more)


def tokens(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Residuals with a mean and a size of their own, so that no normalisation leaves them as they are."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=g, dtype=torch.float64) * 1.7 + 0.4).to(dtype)


def plain(sae: SparseAutoEncoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """(reconstruction, features) in float64, written down once more, token by token, as the papers have it."""
    p = {name: parameter.double() for name, parameter in sae.named_parameters()}
    out = []
    for token in x.double().reshape(-1, x.shape[-1]):
        mean, size = torch.tensor(0.0), torch.tensor(1.0)
        if sae.config.normalization == "layer_norm":
            mean, size = token.sum() / len(token), ((token - token.mean()) ** 2).sum().div(len(token) - 1).sqrt()
            token = (token - mean) / (size + 1e-5)
        if sae.config.normalization == "constant_norm":
            size = (token**2).sum().sqrt() / len(token) ** 0.5
            token = token / size
        if sae.config.apply_b_dec_to_input:
            token = token - p["b_dec"]
        pre = p["W_enc"] @ token + p["b_enc"]
        features = pre.clamp_min(0)
        if "threshold" in p:
            features = torch.where(pre > p["threshold"], features, 0.0)
        if sae.config.activation == "gated":
            magnitude = (p["W_enc"] * p["r_mag"].exp()[:, None]) @ token + p["b_mag"]
            features = torch.where(pre > 0, magnitude.clamp_min(0), 0.0)
        if sae.config.activation == "topk":
            strongest = sorted(range(len(pre)), key=lambda i, pre=pre: -float(pre[i]))[: sae.config.k]
            features = torch.zeros_like(pre)
            features[strongest] = pre[strongest].clamp_min(0)
        if sae.config.activation == "groupmax":
            width = len(pre) // sae.config.k
            groups = [range(low, low + width) for low in range(0, len(pre), width)]
            strongest = [max(group, key=lambda i, pre=pre: float(pre[i])) for group in groups]
            features = torch.zeros_like(pre)
            features[strongest] = pre[strongest].clamp_min(0)
        out.append(((features @ p["W_dec"] + p["b_dec"]) * size + mean, features))
    x_hat, features = (torch.stack(column) for column in zip(*out, strict=True))
    return x_hat.reshape(x.shape), features.reshape(*x.shape[:-1], -1)


# ── features and reconstruction ──────────────────────────────────────────────────────────────────────────────────────


@kinds
def test_features_and_reconstruction_are_the_plain_formula_and_keep_the_leading_axes(activation, apply, normalization):
    sae, x = of(activation, apply, normalization, dtype=torch.float64), tokens(2, 3, D)
    x_hat, features = sae(x)
    wanted_x_hat, wanted = plain(sae, x)
    assert 0 < (wanted > 0).sum() < wanted.numel()
    torch.testing.assert_close(features, wanted)
    torch.testing.assert_close(x_hat, wanted_x_hat)
    torch.testing.assert_close(sae.encode(x), features, rtol=0, atol=0)
    if normalization == "none":
        torch.testing.assert_close(sae.decode(features), x_hat, rtol=0, atol=0)
    narrow = of(activation, apply, normalization, dtype=torch.float32)
    torch.testing.assert_close(narrow(x)[0].double(), wanted_x_hat, rtol=1e-4, atol=1e-4)


@activations
def test_one_token_alone_and_no_token_at_all_keep_their_shapes(activation):
    sae, x = of(activation), tokens(D, dtype=torch.float32)
    torch.testing.assert_close(sae.encode(x), sae.encode(x[None])[0])
    assert sae(x)[0].shape == (D,)
    assert sae.encode(x.new_zeros(0, D)).shape == (0, FEATURES)
    assert sae.encode_codes(x.new_zeros(2, 0, D)) == Codes.from_dense(torch.zeros(0, FEATURES))
    assert len(sae.encode_codes(x)) == 1


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_token_of_zeros_has_finite_features(normalization):
    x_hat, features = of("relu", True, normalization)(torch.zeros(1, D))
    assert torch.isfinite(x_hat).all()
    assert torch.isfinite(features).all()


@activations
def test_features_can_be_differentiated(activation):
    sae, x = of(activation, dtype=torch.float64), tokens(1, D).requires_grad_()
    features = sae.encode(x)
    active = features[0] > 0
    gain = sae.r_mag.exp()[active, None] if activation == "gated" else 1.0
    torch.testing.assert_close(torch.autograd.grad(features.sum(), x)[0][0], (gain * sae.W_enc[active]).sum(0))


# ── the model card's class ───────────────────────────────────────────────────────────────────────────────────────────


class CardAutoEncoder(torch.nn.Module):
    """As on the model card."""

    def __init__(self, d_in: int, d_hidden: int, device: torch.device, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.d_in = d_in
        self.d_hidden = d_hidden
        self.device = device
        self.encoder_linear = torch.nn.Linear(d_in, d_hidden)
        self.decoder_linear = torch.nn.Linear(d_hidden, d_in)
        self.dtype = dtype
        self.to(self.device, self.dtype)

    def encode(self, x):
        return torch.nn.functional.relu(self.encoder_linear(x))

    def decode(self, x):
        return self.decoder_linear(x)

    def forward(self, x):
        f = self.encode(x)
        return self.decode(f), f


def card(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> CardAutoEncoder:
    torch.manual_seed(seed)
    return CardAutoEncoder(D, FEATURES, torch.device("cpu"), dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_cards_state_dict_loads_as_it_is_and_gives_the_cards_numbers(dtype):
    theirs, ours = card(dtype), SparseAutoEncoder(D, FEATURES, torch.device("cpu"), dtype)
    state = theirs.state_dict()
    ours.load_state_dict(state)
    assert list(state) == list(theirs.state_dict())  # the caller's dict is as it was
    x = tokens(4, 16, D, dtype=dtype)
    for mine, card_says in zip((*ours(x), ours.encode(x)), (*theirs(x), theirs.encode(x)), strict=True):
        assert mine.dtype == dtype
        if dtype == torch.bfloat16:  # bf16 rounds a sum once: but for a rare other order of summing, the very same bits
            assert (mine != card_says).float().mean() < 0.01
        torch.testing.assert_close(mine, card_says)


def test_decoding_rounds_once_as_the_cards_linear_does():
    """The plain `features @ W_dec + b_dec` rounds twice, and changed one bf16 number of three."""
    ours = SparseAutoEncoder(D, FEATURES)
    ours.load_state_dict(card().state_dict())
    features = ours.encode(tokens(256, D, dtype=torch.bfloat16))
    exact = features.double() @ ours.W_dec.double() + ours.b_dec.double()
    assert (ours.decode(features) != exact.bfloat16()).float().mean() < 0.01


def test_weights_loaded_later_have_their_own_fingerprint():
    sae, other = SparseAutoEncoder(D, FEATURES), SparseAutoEncoder(D, FEATURES)
    blank = repr(sae)  # it shows the fingerprint, and so computes it
    sae.load_state_dict(card().state_dict())
    other.load_state_dict(card().state_dict())
    assert repr(sae) != blank
    assert sae.fingerprint == other.fingerprint != SparseAutoEncoder(D, FEATURES).fingerprint


def test_a_state_dict_travels_with_its_scale_also_inside_another_module():
    ours, theirs = random_sae(), random_sae(seed=5)
    holder = torch.nn.ModuleDict({"sae": theirs})
    holder.load_state_dict({f"sae.{name}": t for name, t in ours.state_dict().items()})
    assert torch.equal(theirs.scale, ours.scale)
    assert theirs.fingerprint == ours.fingerprint
    holder.load_state_dict({f"sae.{name}": t for name, t in card(torch.float32).state_dict().items()})
    assert theirs.scale is None  # the card's features have no units yet
    torch.testing.assert_close(theirs.encode(tokens(2, D).float()), card(torch.float32).encode(tokens(2, D).float()))


# ── sparse codes straight away ───────────────────────────────────────────────────────────────────────────────────────


def whole_numbers(activation: str, apply: bool, dtype: torch.dtype, seed: int, n: int = 24, d: int = 6, k: int = 3):
    """An SAE of small whole numbers: every sum is exact, in any order and any dtype, and ties are everywhere."""
    g = torch.Generator().manual_seed(seed)
    k_of = {"k": k} if activation in CHOOSING else {}
    sae = SparseAutoEncoder(d, n, dtype=dtype, activation=activation, apply_b_dec_to_input=apply, **k_of)
    for name, parameter in sae.named_parameters():
        if name != "r_mag":  # a gain of exactly 1
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=g))
    return sae, torch.randint(-2, 3, (9, d), generator=g).to(dtype)


@activations
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_whole_numbers_are_exact_also_at_the_threshold_and_between_equals(activation, dtype):
    for seed in range(10):
        sae, x = whole_numbers(activation, True, dtype, seed)
        for mine, wanted in zip(sae(x), plain(sae, x), strict=True):
            assert torch.equal(mine.double(), wanted)


@settings(max_examples=120)
@given(
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    st.integers(0, 9),
    st.integers(1, 30_000),
    st.integers(0, 99),
)
def test_codes_are_the_dense_features_to_the_bit_for_any_memory(activation, apply, dtype, count, memory, seed):
    sae, x = whole_numbers(activation, apply, dtype, seed)
    codes = sae.encode_codes(x[:count], memory=memory)
    assert codes == Codes.from_dense(sae.encode(x[:count]))
    assert codes.values.dtype == dtype


@kinds
def test_codes_are_the_dense_features_for_any_weights(activation, apply, normalization):
    sae, x = of(activation, apply, normalization), tokens(2, 5, D, dtype=torch.float32)
    for memory in (1, 40_000, 2**28):
        codes = sae.encode_codes(x, memory)
        torch.testing.assert_close(codes.dense(), sae.encode(x).reshape(10, -1), rtol=1e-5, atol=1e-5)


class Watched(TorchDispatchMode):
    """Bytes in new tensors that are alive, at their most, and in the largest one."""

    def __init__(self, known: Tensor):
        super().__init__()
        self.now = self.peak = self.largest = 0
        self.known, self.alive = {known.untyped_storage().data_ptr()}, {}

    def watch(self, sae: SparseAutoEncoder) -> "Watched":
        self.known |= {p.untyped_storage().data_ptr() for p in sae.parameters()}
        return self

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        out = call(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                place, size = storage.data_ptr(), storage.nbytes()
                if place in self.known or not size:
                    continue
                holders = self.alive.setdefault(place, [0, size])
                self.now += size if not holders[0] else 0
                holders[0] += 1
                weakref.finalize(tensor, self.drop, place)
                self.largest, self.peak = max(self.largest, size), max(self.peak, self.now)
        return out

    def drop(self, place: int) -> None:
        self.alive[place][0] -= 1
        if not self.alive[place][0]:
            self.now -= self.alive.pop(place)[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [-1.0, 10.0], ids=["few active", "all active"])
@pytest.mark.parametrize(("d_in", "n"), [(16, 4096), (512, 64)])
@activations
def test_encoding_to_codes_keeps_to_its_memory(unchecked, activation, d_in, n, bias, dtype):
    k_of = {"k": 32} if activation in CHOOSING else {}
    more = {"apply_b_dec_to_input": True, "normalization": "layer_norm"} | k_of
    sae = SparseAutoEncoder(d_in, n, dtype=torch.float32, activation=activation, **more)
    sae.W_enc.copy_(torch.randn(n, d_in, generator=torch.Generator().manual_seed(0)) / 2 / d_in**0.5)
    sae.b_enc.fill_(bias)
    sae, x = sae.moved("cpu", dtype), tokens(40, d_in).to(dtype)
    for memory in (64_000, 1_000_000, 5_000_000):
        with Watched(x).watch(sae) as watched:
            active = len(sae.encode_codes(x, memory).values)
        assert watched.largest <= max(memory, 16 * active)
        assert watched.peak <= memory + 60 * active + 16 * len(x)
        if bias < 0 and n == 4096 and memory == 64_000:
            assert watched.peak < len(x) * n * dtype.itemsize  # the dense matrix never exists


def test_decoding_codes_is_decoding_the_dense_features():
    sae, x = random_sae("relu", torch.float64), tokens(7, D)
    codes = sae.encode_codes(x)
    torch.testing.assert_close(sae.decode(codes), sae.decode(codes.dense()))
    nothing = Codes.from_dense(torch.zeros(3, FEATURES, dtype=torch.float64))
    torch.testing.assert_close(sae.decode(nothing), sae.b_dec.expand(3, D))
    assert sae.decode(nothing[:0]).shape == (0, D)
    half = random_sae("relu", torch.bfloat16)
    torch.testing.assert_close(half.decode(codes), half.decode(codes.dense()), rtol=2e-2, atol=2e-2)


# ── a few features alone ─────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(st.sampled_from(KINDS), st.lists(st.integers(0, FEATURES - 1), max_size=6))
def test_a_few_features_alone_are_their_columns(kind, indices):
    sae, x = of(*kind), tokens(2, 3, D, dtype=torch.float32)
    few = sae.encode_features(x, indices)
    assert few.shape == (2, 3, len(indices))
    torch.testing.assert_close(few, sae.encode(x)[..., indices], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.encode_features(x, torch.tensor(indices).long()), few, rtol=0, atol=0)


@activations
def test_a_few_features_of_a_bf16_sae_are_computed_in_float32(activation):
    """In bf16 the whole encode rounds every step; the few are exact for the same weights and the same bf16 input."""
    sae, x = of(activation, dtype=torch.bfloat16), tokens(9, D)
    few, indices = sae.encode_features(x, range(FEATURES)), torch.arange(FEATURES)
    if activation in CHOOSING:  # which ones pass depends on all of them: those of encode
        torch.testing.assert_close(few, sae.encode(x), rtol=0, atol=0)
    else:
        assert few.dtype == torch.float32
        wide = sae.moved("cpu", torch.float32)
        torch.testing.assert_close(few, wide.encode_features(x.bfloat16(), indices), rtol=0, atol=0)
        torch.testing.assert_close(few, wide.encode(x.bfloat16()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a not in CHOOSING])
def test_rows_hold_all_that_a_feature_needs(activation):
    sae, x = of(activation, dtype=torch.float64), tokens(5, D)
    rows = sae.rows([7, 3, 7])
    torch.testing.assert_close(evaluate(x, rows), plain(sae, x)[1][:, [7, 3, 7]])
    torch.testing.assert_close(rows.decoder, sae.W_dec[[7, 3, 7]], rtol=0, atol=0)
    assert sae.rows([]).encoder.shape == (0, D)


@pytest.mark.parametrize("index", [-1, FEATURES, 70_000])
def test_a_feature_that_is_not_there_is_named_with_the_range(index):
    sae, x = random_sae(), tokens(1, D, dtype=torch.float32)
    for ask in (lambda: sae.rows([0, index]), lambda: sae.encode_features(x, [index, 1])):
        with pytest.raises(NoFeature, match=rf"No feature {index}: this SAE has 128 \(0 to 127\)\."):
            ask()


def test_the_wrong_width_is_refused():
    sae = random_sae()
    for ask in (sae.encode, sae, sae.encode_codes, lambda x: sae.encode_features(x, [0])):
        with pytest.raises(BadInput, match="This SAE reads 32 numbers per token; it was given 31"):
            ask(torch.zeros(2, D - 1))
    for features in (torch.zeros(2, 127), Codes.from_dense(torch.ones(2, 127))):
        with pytest.raises(BadInput, match="This SAE has 128 features; it was given 127"):
            sae.decode(features)


# ── ties ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    st.lists(st.sampled_from([-3.5, -1.0, -0.25, 0.25, 1.0, 1e30, -1e30, 2.0]), min_size=1, max_size=20),
    st.integers(1, 25),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
)
def test_of_equal_strengths_the_lower_index_wins(pre, k, dtype):
    values, indices = largest(torch.tensor(pre, dtype=dtype), k)
    wanted = sorted(range(len(pre)), key=lambda i: (-pre[i], i))[:k]
    assert indices.tolist() == wanted
    assert torch.equal(values, torch.tensor(pre, dtype=dtype)[wanted])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_the_largest_are_the_largest_whatever_the_numbers(pre):
    values, _ = largest(torch.tensor(pre), len(pre))
    assert values.tolist() == sorted(pre, reverse=True)


# ── what an SAE is ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"activation": "tanh"}, "No activation 'tanh'. There are: relu, topk"),
        ({"normalization": "batch"}, "No normalization 'batch'. There are: none"),
        ({"activation": "topk"}, "A topk SAE needs k between 1 and 8, not None"),
        ({"activation": "topk", "k": 9}, "A topk SAE needs k between 1 and 8, not 9"),
        ({"activation": "topk", "k": 2.0}, "A topk SAE needs k between 1 and 8, not 2.0"),
        ({"d_in": 0}, "d_in must be a whole number above zero, not 0"),
        ({"d_hidden": "8"}, "d_hidden must be a whole number above zero, not '8'"),
        ({"activation": "groupmax"}, "A groupmax SAE needs k between 1 and 8, not None"),
        ({"activation": "groupmax", "k": 3}, "k 3 does not divide 8 features"),
        ({"d_out": 0}, "d_out must be a whole number above zero, not 0"),
        ({"d_out": 5, "apply_b_dec_to_input": True}, "b_dec has 5 numbers: .* from an input of 4"),
    ],
)
def test_an_impossible_sae_is_refused_with_the_reason(unchecked, asked, said):
    with pytest.raises(BadInput, match=said):
        SaeConfig(**({"d_in": 4, "d_hidden": 8} | asked))


def test_weights_are_wrapped_not_copied():
    sae = random_sae()
    for other in (sae.altered(scale=torch.ones(FEATURES)), sae.moved("cpu", torch.float32)):
        assert other.W_enc.data_ptr() == sae.W_enc.data_ptr()
        assert other.fingerprint == sae.fingerprint


def test_the_fingerprint_is_of_what_is_computed():
    sae = random_sae()
    assert sae.altered(hook_point="model.layers.9", notes={"a": 1}).fingerprint == sae.fingerprint
    assert sae.moved("cpu", torch.bfloat16).fingerprint == sae.fingerprint
    others = [random_sae(seed=1), sae.altered(apply_b_dec_to_input=True), sae.altered(normalization="layer_norm")]
    others += [sae.altered(activation="topk", k=k) for k in (8, 9)]
    assert len({sae.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_the_demos_fingerprint_stays_what_it_was():
    assert sparsight.load("demo").sae.fingerprint == "274973b2c84927b6"


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("d_out", "skip"), [(D, False), (D, True), (D + 5, False), (D + 5, True)])
@activations
def test_a_transcoder_writes_what_another_hook_point_holds(tmp_path, activation, d_out, skip, normalization):
    """Its features are those of an SAE with the same encoder; it adds the skip connection to its decoder's sum."""
    about = {"d_out": d_out, "skip": skip, "normalization": normalization, "hook_point_out": "model.layers.2.mlp"}
    sae, x = of(activation, False, dtype=torch.float64, **about), tokens(2, 3, D)
    assert sae.W_dec.shape == (FEATURES, d_out)
    x_hat, features = sae(x)
    same = dict(sae.named_parameters()) | {"W_dec": torch.zeros(FEATURES, D), "b_dec": torch.zeros(D)}
    same.pop("W_skip", None)
    plainly = replace(sae.config, d_out=None, hook_point_out=None, skip=False)
    torch.testing.assert_close(features, plain(SparseAutoEncoder.from_tensors(plainly, same), x)[1])
    out = features @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(x_hat, out + x @ sae.W_skip.T if skip else out)
    torch.testing.assert_close(sae.decode(sae.encode_codes(x)), out.reshape(-1, d_out))
    assert sae.rows([3, 9]).decoder.shape == (2, d_out)
    for other in (sae.moved("cpu", torch.float64), load_sae(save_sae(sae, tmp_path))):
        assert (other.config, other.fingerprint) == (sae.config, sae.fingerprint)
        torch.testing.assert_close(other(x)[0], x_hat)
    assert f"{D} -> {FEATURES} -> {d_out}" in repr(sae)


def test_an_sae_may_have_a_skip_connection_too():
    sae, x = of("relu", skip=True, dtype=torch.float64), tokens(4, D)
    assert not sae.config.transcoder
    torch.testing.assert_close(sae(x)[0], plain(sae, x)[0] + x @ sae.W_skip.T)


def test_a_transcoder_is_another_sae_than_one_with_the_same_weights():
    sae = of(apply=False, activation="relu")
    assert sae.altered(d_out=D).fingerprint != sae.fingerprint
    assert sae.altered(d_out=D).config.transcoder
    assert not sae.altered(hook_point_out=HOOK).config.transcoder


def test_feature_units_stay_in_float32_when_the_rest_is_cast():
    sae = random_sae()
    scale = sae.scale.clone()
    sae.to(torch.bfloat16)
    assert sae.dtype is torch.bfloat16
    assert torch.equal(sae.scale, scale)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [3, [1.7], [True, False]])
def test_indices_are_a_list_of_whole_numbers(sae, wrong):
    with pytest.raises(BadInput, match="a list of whole numbers"):
        sae.encode_features(torch.zeros(1, sae.d_in), wrong)
