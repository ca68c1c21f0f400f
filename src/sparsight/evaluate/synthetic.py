"""Toys: data whose true features are known, so that it can be said which of them an SAE has found.

    x = Σ magnitude · direction      over the features that are active

There are more features than dimensions, so directions share them (superposition; Elhage et al. 2022, arXiv
2209.10652). Directions are random orthonormal bases, one after the other: as well spread as so many can be. Magnitudes
are uniform between half and one and a half of their mean, which is such that |x|² is d_in on average.

    iid            all features are equally frequent, and independent
    zipf           the i-th feature fires in proportion to i^−exponent, independent
    correlated     features come in groups: most of a group's firing is in the same samples
    hierarchical   the first of a group is the parent; its children fire only where it does, which is what makes SAEs
                   absorb a parent into its children (Chanin et al. 2024, arXiv 2409.14507)

All kinds are one: blocks of `group` features (1 where independent) open with a probability of their own, and the
members of an open block fire independently. A block that is opened by a Poisson number of events, of rate −log(1 − p),
is open with probability p: so only what is active is ever drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.config import knob
from sparsight.errors import BadInput, Missing
from sparsight.records import finite
from sparsight.sae.codes import Codes
from sparsight.shards.manifest import whole
from sparsight.shards.order import key

KINDS = ("iid", "zipf", "correlated", "hierarchical")
RECOVERED = 0.9  # cosine from which a true feature counts as found (Sharkey, Braun and Millidge 2022)
DECILES = 10
DIRECTIONS, SAMPLES = 0, 1  # streams of one seed


@dataclass(frozen=True)
class Toy:
    """A distribution with known features. Raises BadInput for what cannot be."""

    kind: str = knob("iid", f"how features fire together: {', '.join(KINDS)}")
    d_in: int = knob(128, "numbers of a sample")
    features: int = knob(512, "true features")
    l0: float = knob(8.0, "active features of a sample, on average")
    exponent: float = knob(0.5, "zipf: how much rarer later features are; 0 is iid")
    group: int = knob(16, "correlated, hierarchical: features of a group")
    correlation: float = knob(0.15, "correlated: correlation of two features of a group, on or off")
    child: float = knob(0.2, "hierarchical: probability that a child fires where its parent does")
    seed: int = knob(0, "another number gives other directions and other samples")

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(f"No toy {self.kind!r}. There are: {', '.join(KINDS)}.")
        for name, least, most in (("d_in", 1, 2**24), ("features", 1, 2**24), ("group", 1, 2**24), ("seed", 0, 2**64)):
            whole(getattr(self, name), least, most, name)
        for name, low, high in (("correlation", 0, 1), ("child", 0, 1), ("exponent", -1e-9, 100), ("l0", 0, 2**24)):
            if not low < finite(getattr(self, name), name) < high:
                raise BadInput(f"{name} of a toy lies between {max(low, 0)} and {high}, not at {getattr(self, name)}.")
        if self.features % self._size:
            raise BadInput(f"{self.features} features are no whole number of groups of {self.group}.")
        if not (self._open < 1).all():
            most = self.l0 / float(self._open.max())
            raise BadInput(f"An l0 of {self.l0} is too high for this toy: it stays below {most:.4g}.")

    @property
    def _size(self) -> int:
        """Features of a block."""
        return self.group if self.kind in ("correlated", "hierarchical") else 1

    @cached_property
    def _given(self) -> Float[Tensor, " member"]:
        """Probability that a member fires when its block is open, float64."""
        given = torch.ones(self._size, dtype=torch.float64)
        if self.kind == "correlated":
            p = self.l0 / self.features
            given[:] = p + self.correlation * (1 - p)  # = p / open: two members then correlate as is asked
        elif self.kind == "hierarchical":
            given[1:] = self.child
        return given

    @cached_property
    def _open(self) -> Float[Tensor, " block"]:
        """Probability that a block is open, float64."""
        blocks = self.features // self._size
        exponent = self.exponent if self.kind == "zipf" else 0.0
        share = torch.arange(1, blocks + 1, dtype=torch.float64) ** -exponent
        return share * (self.l0 / float(share.sum() * self._given.sum()))

    @cached_property
    def frequencies(self) -> Float[Tensor, " feature"]:
        """How often each feature fires: the share of samples, float64."""
        return (self._open[:, None] * self._given).flatten()

    @cached_property
    def directions(self) -> Float[Tensor, "feature d_in"]:
        """The true features: rows of norm 1, float32, in random orthonormal bases of d_in each."""
        g = torch.Generator().manual_seed(key(self.seed, DIRECTIONS))
        bases = []
        for start in range(0, self.features, self.d_in):
            rows = min(self.d_in, self.features - start)
            q, r = torch.linalg.qr(torch.randn(self.d_in, rows, generator=g))
            bases.append((q * r.diagonal().sign()).T)  # so that no basis is likelier than another (Mezzadri 2007)
        return torch.cat(bases).contiguous()

    @property
    def magnitude(self) -> float:
        """The mean magnitude of an active feature."""
        return (self.d_in / (self.l0 * 13 / 12)) ** 0.5  # 13/12 is the mean square between 1/2 and 3/2

    def codes(self, n: int, number: int) -> Codes:
        """The active features of batch `number`, n samples: a function of the toy, n and the number alone."""
        g = torch.Generator().manual_seed(key(self.seed, SAMPLES, number))
        ends = (-torch.log1p(-self._open)).cumsum(0)
        events = int(torch.poisson(n * ends[-1:], generator=g))
        blocks = torch.searchsorted(ends, torch.rand(events, dtype=torch.float64, generator=g) * ends[-1], right=True)
        rows = torch.randint(n, (events,), generator=g)
        opened = np.unique((rows * len(ends) + blocks.clamp_(max=len(ends) - 1)).numpy())
        active = torch.from_numpy(opened)
        if self._size > 1:
            fired = torch.rand(len(active), self._size, generator=g) < self._given
            which, member = fired.nonzero(as_tuple=True)
            active = active[which] * self._size + member
        values = self.magnitude * (torch.rand(len(active), generator=g) + 0.5)
        offsets = torch.searchsorted(active, torch.arange(n + 1) * self.features)
        return Codes(offsets, (active % self.features).to(torch.int32), values, self.features)

    def sample(self, n: int, number: int) -> Float[Tensor, "sample d_in"]:
        """Batch `number` of the toy, n samples, float32: always the same for the same toy, n and number."""
        codes = self.codes(n, number)
        rows, offsets = codes.features.long(), codes.offsets[:-1]
        return F.embedding_bag(rows, self.directions, offsets, mode="sum", per_sample_weights=codes.values)


@dataclass(frozen=True)
class Recovery:
    """How much of a toy an SAE has found. Cosines are signed: a feature that points away from the truth is no match.

    mmcs: mean over the true features of the highest cosine with a learned one (Sharkey, Braun and Millidge 2022).
    mcc: mean cosine of true features with learned ones of their own, assigned one to one so that it is highest; a true
    feature that is left over counts 0 (mean correlation coefficient, as in SynthSAEBench, arXiv 2602.14687).
    recovered: share of the true features with a cosine above 0.9. dead: share of learned features that never fire.
    by_frequency: `recovered` of each tenth of the true features, the rarest tenth first.
    """

    mmcs: float
    mcc: float
    recovered: float
    dead: float
    by_frequency: tuple[float, ...]


def score(toy: Toy, W_dec: Float[Tensor, "learned d_in"], fired: Bool[Tensor, " learned"] | None = None) -> Recovery:
    """What of a toy's features is among the rows of a decoder.

    fired: which features fire at all; those that never do, and rows of zeros, are dead and match nothing.
    Raises BadInput for a decoder of another d_in, Missing where scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise Missing("scipy is not installed: pip install 'sparsight[evaluate]'.") from error
    if W_dec.ndim != 2 or W_dec.shape[1] != toy.d_in:
        raise BadInput(f"The decoder is {list(W_dec.shape)}; this toy needs [any, {toy.d_in}].")
    W_dec = W_dec.detach().float().cpu()
    norms = W_dec.norm(dim=1)
    alive = norms > 0 if fired is None else (norms > 0) & fired.cpu()
    if not alive.any():
        return Recovery(0.0, 0.0, 0.0, 1.0, (0.0,) * min(DECILES, toy.features))
    cosines = toy.directions @ (W_dec[alive] / norms[alive, None]).T
    best = cosines.max(dim=1).values
    mine, theirs = linear_sum_assignment(cosines.numpy(), maximize=True)
    found = (best > RECOVERED).double()
    tenths = found[toy.frequencies.argsort(stable=True)].tensor_split(min(DECILES, toy.features))
    return Recovery(
        mmcs=float(best.mean()),
        mcc=float(cosines[mine, theirs].sum()) / toy.features,
        recovered=float(found.mean()),
        dead=1 - float(alive.double().mean()),
        by_frequency=tuple(float(tenth.mean()) for tenth in tenths),
    )
