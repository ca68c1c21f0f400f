"""Compiled for the processor or in torch's operators: the sparse parts of a step give the same."""

import builtins
import subprocess
import sys

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.train import dense
from sparsight.train.kernels import kernels
from sparsight.train.pairs import More
from sparsight.train.plain import Plain

PLAIN, COMPILED = Plain(), kernels(torch.device("cpu"))


@st.composite
def shapes(draw):
    rows, d_in, d_out, features = (draw(st.integers(1, most)) for most in (9, 11, 7, 30))
    ends = sorted(draw(st.sets(st.integers(1, features), max_size=3)) | {features})
    return rows, d_in, d_out, features, ends, draw(st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@given(shapes(), st.sampled_from([torch.float32, torch.float64]))
def test_both_backends_do_a_whole_step_alike(shape, dtype):
    check_a_whole_step(COMPILED, shape, dtype)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.sampled_from([torch.float32, torch.float64]), st.integers(1, 40))
def test_products_of_matrices_do_a_whole_step_alike_whatever_their_blocks(shape, dtype, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "BLOCK", block)
        check_a_whole_step(dense.Dense(), shape, dtype)


@pytest.mark.parametrize(("density", "taken"), [(0.3, "numba"), (0.8, "dense")])
def test_a_step_chooses_products_of_matrices_by_counting_pairs(density, taken, monkeypatch):
    do = dense.Choosing(COMPILED)
    assert do.sparse.name == do.name == "numba"
    called = []
    for name in ("decode", "gradients", "step"):
        for one in (do.sparse, do.dense):
            real = getattr(one, name)
            told = lambda *given, real=real, said=(one.name, name): called.append(said) or real(*given)  # noqa: E731
            monkeypatch.setattr(one, name, told)
    pre = torch.rand(20, 50, generator=torch.Generator().manual_seed(0)) - 1 + density
    x, ends = torch.randn(20, 8), torch.tensor([50], dtype=torch.int32)
    weight, state = torch.randn(50, 8), lambda: (torch.randn(50, 8), torch.zeros(50, 8), torch.ones(50, 8))
    pairs = do.above(pre, torch.zeros(50), torch.zeros(50))
    err, latent, _ = do.decode(pairs, pairs.pre, weight, torch.zeros(8), x, ends)
    hyper = torch.tensor([0.01, 0.9, 0.99, 1e-8, 1.5])
    columns = do.columns(pairs, 50)
    do.step(columns, latent, pairs.pre, x, err, ends, None, state(), state(), hyper, torch.zeros(50), False)
    assert {who for who, _ in called} == {taken}


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine has one core")
def test_torchs_threads_are_as_many_as_before():
    code = "import torch; torch.set_num_threads(1); from sparsight.train.kernels import kernels; "
    code += "kernels(torch.device('cpu')); print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine has one core")
def test_the_number_of_threads_changes_no_bit():
    threads = torch.get_num_threads()
    try:
        for many in (1, 2):
            torch.set_num_threads(many)
            do = kernels(torch.device("cpu"))
            assert numba.get_num_threads() == many
            shape = (300, 40, 30, 600, [200, 600], 5)
            check_a_whole_step(Alone(do, 1), shape, torch.float32, base=Alone(do, 2), exactly=True)
    finally:
        torch.set_num_threads(threads)
        kernels(torch.device("cpu"))


class Alone:
    """Compiled code on so many threads."""

    def __init__(self, do, threads):
        self.do, self.threads = do, threads

    def __getattr__(self, name):
        numba.set_num_threads(self.threads)
        return getattr(self.do, name)


def check_a_whole_step(other_do, shape, dtype, device="cpu", base=PLAIN, exactly=False):
    """Against Plain, on the same device."""
    rows, d_in, d_out, features, ends, seed = shape
    g = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=g, dtype=dtype).to(device)

    pre, bias, least = random(rows, features), random(features), random(features)
    x, y, b_dec, ends = (
        random(rows, d_in),
        random(rows, d_out),
        random(d_out),
        torch.tensor(ends, dtype=torch.int32, device=device),
    )
    some = torch.randperm(features, generator=g)[: features // 3].to(device)
    more = More(some, random(len(some), d_in), random(len(some), d_out))
    rows_of = [random(features, d) for d in (d_in, d_in, d_out, d_out)]
    weight = torch.nn.functional.normalize(random(features, d_out))
    hyper, pull = torch.tensor([0.01, 0.9, 0.99, 1e-8, 1.5], dtype=dtype), random(features)

    def whole(do, unit):
        pairs = do.above(pre, bias, least)
        err, latent, losses = do.decode(pairs, pairs.pre, weight, b_dec, y, ends)
        columns = do.columns(pairs, features)
        encoder = random_like(rows_of[0]), rows_of[0].clone(), rows_of[1].square()
        decoder = weight.clone(), rows_of[2].clone(), rows_of[3].square()
        given = (columns, latent, pairs.pre, x, err, ends, more)
        norms = do.step(*given, encoder, decoder, hyper, pull, unit)
        parts = (pairs.offsets, pairs.features, columns.starts, columns.rows, columns.places)
        floats = (pairs.pre, err, latent, losses, do.sums(columns, latent), *encoder, *decoder, norms)
        return parts, floats, do.gradients(*given)

    def random_like(tensor):
        return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1), dtype=dtype).to(device)

    for unit in (False, True):
        (a, u, p), (b, v, q) = whole(base, unit), whole(other_do, unit)
        for one, other in zip(a, b, strict=True):
            assert torch.equal(one, other)
        if exactly:
            assert all(torch.equal(one, other) for one, other in zip((*u, *p), (*v, *q), strict=True))
            continue
        close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
        for one, other in zip((*u, *p), (*v, *q), strict=True):
            torch.testing.assert_close(one.to(dtype), other.to(dtype), **close)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(1, 12), st.floats(-1, 3))
def test_the_strongest_are_the_strongest_whatever_the_guess_at_the_bound(shape, k, bound):
    for do in (PLAIN, COMPILED):
        check_the_strongest(do, shape, k, bound)


def check_the_strongest(do, shape, k, bound, device="cpu"):
    rows, _, _, features, _, seed = shape
    pre = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)).mul(4).round().div(4)  # many equal
    pre, bias = pre.to(device), torch.zeros(features, device=device)
    values, _ = pre.clamp_min(0).sort(dim=1, descending=True)
    pairs, bounds = do.strongest(do.candidates(pre, bias, k, bound), k)
    for row in range(rows):
        found = pairs.pre[pairs.offsets[row] : pairs.offsets[row + 1]]
        wanted = values[row, :k]
        assert torch.equal(found.sort(descending=True).values, wanted[wanted > 0])
        assert bounds[row] == 0 or bounds[row] == wanted[-1]
    assert (pre[pairs.rows, pairs.features.long()] == pairs.pre).all()


def test_pre_activations_in_bfloat16_are_read_as_they_are():
    pre, bias, least = torch.randn(40, 70).bfloat16(), torch.randn(70), torch.randn(70)
    one, other = PLAIN.above(pre, bias, least), COMPILED.above(pre, bias, least)
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.pre, other.pre)


def test_without_numba_it_says_that_it_is_slow(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **options):
        if name == "sparsight.train" and "compiled" in (args[2] or ()):
            raise ImportError("No module named 'numba'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.warns(UserWarning, match=r"Numba is not installed: .* 'sparsight\[train\]'"):
        assert kernels(torch.device("cpu")).name == "torch"
