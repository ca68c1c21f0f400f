"""The kernels for a GPU give what torch's operators give: on a GPU, or in Triton's interpreter where there is none.

Whether a kernel is interpreted is settled when Triton is imported, so that is done in a process of its own. Here each
one is compiled for a GPU, which needs none.
"""

import builtins
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import test_train_kernels as of_kernels
import test_train_objective as of_objective
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.train.kernels import kernels
from sparsight.train.pairs import More
from sparsight.train.plain import Plain
from sparsight.train.spec import TrainSpec
from sparsight.train.trainer import Trainer

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
INSTALLED = find_spec("triton") is not None
RUN = INSTALLED and (INTERPRETED or DEVICE == "cuda")
installed = pytest.mark.skipif(
    not INSTALLED, reason="Triton is not installed: PyTorch's CUDA builds for Linux bring it"
)
run = pytest.mark.skipif(not RUN, reason="these run where Triton's interpreter does, or a GPU")
MORE = 10 if DEVICE == "cuda" else 1  # examples, for one that the interpreter has time for
ALL = of_objective.FEATURES

if RUN:
    from sparsight.train.kernels_cuda import Triton

    TRITON = Triton()
    TRITON.columns_of_a_part, TRITON.columns_at_once = 16, 8  # so that rows have several parts


@installed
@pytest.mark.skipif(RUN, reason="it all runs here")
def test_it_all_holds_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@run
@settings(max_examples=3 * MORE)
@given(of_kernels.shapes(), st.sampled_from([torch.float32, torch.float64]))
def test_a_whole_step_is_that_of_torchs_operators(shape, dtype):
    of_kernels.check_a_whole_step(TRITON, shape, dtype, DEVICE)


@run
@settings(max_examples=6 * MORE)
@given(of_kernels.shapes(), st.integers(1, 12), st.floats(-1, 3))
def test_the_strongest_are_the_strongest(shape, k, bound):
    of_kernels.check_the_strongest(TRITON, shape, k, bound, DEVICE)


@run
@pytest.mark.parametrize(
    ("objective", "groups"),
    [("relu", (ALL,)), ("jumprelu", (5, 20, ALL)), ("topk", (5, 20, ALL)), ("batchtopk", (ALL,)), ("gated", (ALL,))],
)
def test_the_gradient_over_pairs_is_the_dense_one(objective, groups):
    of_objective.check_the_gradient(objective, groups, TRITON, DEVICE)


@run
def test_pre_activations_in_bfloat16_are_read_as_they_are():
    pre, bias, least = (torch.randn(*size, device=DEVICE) for size in ((6, 70), (70,), (70,)))
    one, other = (do.above(pre.bfloat16(), bias, least) for do in (Plain(), TRITON))
    assert len(one) > 20
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.pre, other.pre)


@run
def test_candidates_are_few_whatever_the_guess():
    """A guess of nothing, or one too high, must not bring half of all features."""
    pre, bias = torch.randn(4, 3000, device=DEVICE), torch.zeros(3000, device=DEVICE)
    do = Triton()
    for bound in (0.0, 0.1, 2.0, 3.0, 50.0):
        pairs, k = do.candidates(pre, bias, 20, bound), 20
        counts = pairs.offsets.diff()
        assert (counts >= k).all()
        if bound != 0.1:
            assert (counts <= max(2 * k, int((pre > bound).sum(1).max()))).all(), bound


@run
def test_a_feature_that_is_active_everywhere_is_added_up_whole():
    rows, d, do = 70, 5, TRITON
    pre = torch.full((rows, 3), -1.0, device=DEVICE)
    pre[:, 1] = 1
    zero = torch.zeros(3, device=DEVICE)
    pairs = do.above(pre, zero, zero)
    columns, x = do.columns(pairs, 3), torch.randn(rows, d, device=DEVICE)
    ends = torch.tensor([3], dtype=torch.int32, device=DEVICE)
    enc, _ = do.gradients(columns, pairs.pre, pairs.pre, x, x[None], ends)
    torch.testing.assert_close(enc, torch.stack([zero.new_zeros(d), x.sum(0), zero.new_zeros(d)]), atol=1e-4, rtol=1e-5)
    assert do.sums(columns, pairs.pre).tolist() == [0, rows, 0]


@run
@pytest.mark.parametrize("objective", ["topk", "jumprelu"])
def test_a_trainer_goes_the_same_way(objective, monkeypatch):
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(16, 12, generator=g).to(DEVICE) for _ in range(2)]
    spec = TrainSpec(objective=objective, d_hidden=24, l0=3.0, batch=16, tokens=16 * 50, lr=1e-2, product="float32")
    trainers = [Trainer(spec, torch.cat(x)) for _ in range(2)]
    for trainer, do in zip(trainers, (Plain(), TRITON), strict=True):
        trainer.do = do
        for batch in x:
            trainer.step(batch)
    for name, tensor in trainers[0].tensors().items():
        torch.testing.assert_close(tensor, trainers[1].tensors()[name], atol=1e-4, rtol=1e-3, msg=name)


@installed
@pytest.mark.skipif(INTERPRETED, reason="what is interpreted cannot be compiled")
@pytest.mark.parametrize("product", [torch.float32, torch.bfloat16])
def test_every_kernel_compiles_for_a_gpu(product):
    """At the sizes of an 8B model: a residual of 4,096."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from sparsight.train import compiled_cuda
    from sparsight.train.kernels_cuda import Triton, _warps

    types = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}
    seen = set()

    class Compiling(Triton):
        def _run(self, name, grid, *given, **constants):
            kernel = getattr(compiled_cuda, name)
            said = [f"*{types[a.dtype]}" if isinstance(a, torch.Tensor) else "i32" for a in given]
            names = [n for n in kernel.arg_names if n not in constants]
            settled = constants | {
                n: 1 for n, a in zip(names, given, strict=True) if isinstance(a, int) and a == 1
            }  # as when it runs
            signature = dict(zip(names, said, strict=True)) | dict.fromkeys(settled, "constexpr")
            source = ASTSource(kernel, signature, constexprs=settled)
            options = {"num_warps": _warps(constants), "enable_fp_fusion": True}
            assert compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]
            seen.add(name)
            if name == "count_above":
                given[4].zero_()

    do, rows, features, d = Compiling(), 2, 64, 4096
    pre, bias, x = torch.zeros(rows, features, dtype=product), torch.zeros(features), torch.zeros(rows, d)
    matrix, some, hyper = torch.zeros(features, d), torch.arange(3), torch.zeros(5)
    do.above(pre, bias, bias)
    do.strongest(do.candidates(pre, bias, 1), 1)
    for ends in ([features], [8, features]):
        ends = torch.tensor(ends, dtype=torch.int32)
        pairs, _ = do.strongest(do.candidates(pre, bias, 4, 0.5), 4)
        err, latent, _ = do.decode(pairs, pairs.pre, matrix, x[0], x, ends)
        do.dots(pairs, err, ends, matrix)
        columns = do.columns(pairs, features)
        do.sums(columns, latent)
        given = (columns, latent, pairs.pre, x, err, ends, More(some, matrix[:3], matrix[:3]))
        do.gradients(*given)
        do.step(*given, (matrix,) * 3, (matrix,) * 3, hyper, bias, True)
        do.descend(matrix, matrix, matrix, matrix, hyper, bias, True)
        do.descend(*(bias[:, None],) * 4, hyper)
    made = {"count_above", "take_above", "lower_floors", "take_strongest", "decode", "dots", "sums"}
    assert seen == made | {"gradients", "step", "descend"}


def test_without_triton_it_says_that_a_gpu_is_slow(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **options):
        if name == "sparsight.train.kernels_cuda":
            raise ImportError("No module named 'triton'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.warns(UserWarning, match=r"Triton is not installed: .* several times slower\. PyTorch's CUDA build"):
        assert kernels(torch.device("cuda")).name == "torch"
