"""From how many active pairs on do products of matrices beat sums over pairs, in the decoder and the gradients?

    python bench/density.py

Random pairs of so many rows and features, at several densities: decode, the latent gradient, and the gradients of both
matrices; by Numba's kernels, by torch's operators, and as products (sparsight/train/dense.py, whose DENSE says where a
training changes over). The three are done in turns; a ratio is that of a round.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import measure
import torch

from sparsight.train.dense import DENSE, Dense
from sparsight.train.kernels import kernels
from sparsight.train.pairs import Pairs
from sparsight.train.plain import Plain

D, FEATURES, ROWS = 256, 4096, 1024
DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
SLOW = 0.1  # above this density torch's operators are left out: they only get slower


def drawn(density: float) -> Pairs:
    active = torch.rand(ROWS, FEATURES, generator=torch.Generator().manual_seed(0)) < density
    offsets = torch.zeros(ROWS + 1, dtype=torch.int64)
    offsets[1:] = active.sum(1).cumsum(0)
    features = active.nonzero()[:, 1].to(torch.int32)
    return Pairs(offsets, features, torch.ones(len(features)))


def work(do: Plain, pairs: Pairs) -> Callable[[], None]:
    make = torch.Generator().manual_seed(1)
    x, weight = torch.randn(ROWS, D, generator=make), torch.randn(FEATURES, D, generator=make)
    values, bias, ends = torch.rand(len(pairs), generator=make), torch.zeros(D), torch.tensor([FEATURES])
    columns = kernels(torch.device("cpu")).columns(pairs, FEATURES)

    def once() -> None:
        err, latent, _ = do.decode(pairs, values, weight, bias, x, ends)
        do.gradients(columns, latent, values, x, err, ends)

    return once


def main(rounds: str = "5") -> None:
    compiled, rows = kernels(torch.device("cpu")), {}
    for density in DENSITIES:
        pairs = drawn(density)
        ways = {"products": Dense(), compiled.name: compiled} | ({"torch": Plain()} if density <= SLOW else {})
        cases = {name: measure.once(work(do, pairs)) for name, do in ways.items()}
        readings, _ = measure.in_rounds(cases, int(rounds))
        rows[f"{density:g}"] = measure.ratios(readings, "products")
        said = "  ".join(f"{name} {ratio[0]:.2f}" for name, ratio in rows[f"{density:g}"].items())
        print(f"density {density:<6g} {said}", flush=True)
    result = {"question": __doc__, "machine": measure.machine(), "d": D, "features": FEATURES, "rows": ROWS}
    measure.save("density", result | {"ratios": rows, "changes_over": DENSE})


if __name__ == "__main__":
    main(*sys.argv[1:])
