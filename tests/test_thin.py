"""Products of few rows, as the compiled step writes them: the same numbers, without the library."""

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code
from torch.testing import assert_close

from sparsight.lm.compiled import cpp_compiler
from sparsight.lm.thin import MOST_ROWS, ThinProducts

pytestmark = pytest.mark.skipif(not cpp_compiler(), reason="no C++ compiler")


def compiled(work):
    torch._dynamo.reset()
    return torch.compile(work, dynamic=False, options={"post_grad_custom_pre_pass": ThinProducts()})


@pytest.mark.parametrize("rows", [1, 2, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize("bias", [False, True])
def test_few_rows_are_summed_and_more_are_left_to_the_library(rows, bias):
    torch.manual_seed(rows)
    one, two = nn.Linear(48, 80, bias=bias), nn.Linear(80, 7, bias=bias)
    x = torch.randn(rows, 1, 48)

    def work(x):
        return two(torch.relu(one(x)))

    with torch.no_grad():
        out, code = run_and_get_code(compiled(work), x)
    exact = two.double()(torch.relu(one.double()(x.double())))
    assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    by_library = "mm(" in "".join(code)
    assert by_library == (rows > MOST_ROWS)


def test_bfloat16_is_summed_wide():
    torch.manual_seed(0)
    layer, x = nn.Linear(4096, 16).bfloat16(), torch.randn(1, 4096).bfloat16()
    with torch.no_grad():
        out = compiled(layer)(x)
        exact = layer.double()(x.double())
    assert_close(out.double(), exact, rtol=2**-7, atol=2**-7)
