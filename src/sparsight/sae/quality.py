"""How well an SAE stands for what it reads, over any number of tokens, in blocks.

    FVU = Σ |x − x_hat|² / Σ |x − mean|²        mean: that of x over ALL tokens counted

the fraction of variance unexplained, centred and global: 0 is perfect, 1 is what the mean gets when it stands in for
every x, and above 1 is worse than that. The sum below is kept in float64 and merged from block to block by the
formula of Chan, Golub and LeVeque (1979), so that it does not depend on how the tokens were cut into blocks:

    Σ |x − mean|² of a and b = Σ of a + Σ of b + |mean_a − mean_b|² · n_a n_b / (n_a + n_b)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.errors import BadInput
from sparsight.sae.codes import Codes
from sparsight.sae.sae import SparseAutoEncoder

BLOCK = 1024  # tokens whose copy in float64 is held at once
DENSE = 0.1  # a feature that fires on more than this share of tokens is called dense


class Quality:
    """A running account of an SAE: give it blocks of tokens, read the figures off at any time.

    d_in: width of what is reconstructed. dense_above: share of tokens above which a feature counts as dense.
    It holds d_in + d_hidden numbers, on the CPU, whatever the number of tokens.
    """

    def __init__(self, d_in: int, d_hidden: int, dense_above: float = DENSE):
        self.d_in, self.d_hidden, self.dense_above = d_in, d_hidden, dense_above
        self.tokens = 0
        self.mean: Float[Tensor, " d_in"] = torch.zeros(d_in, dtype=torch.float64)
        self.fired: Int[Tensor, " feature"] = torch.zeros(d_hidden, dtype=torch.int64)  # tokens on which each fired
        self._spread = self._error = self._cosine = 0.0  # Σ |x − mean|², Σ |x − x_hat|², Σ cos(x, x_hat)

    def __repr__(self) -> str:
        told = f"FVU {self.fvu:.3f}, L0 {self.l0:.1f}" if self.tokens else "nothing yet"
        return f"Quality({self.tokens:,} tokens, {told})"

    @torch.no_grad()
    def add(
        self,
        x: Float[Tensor, "token d_in"],
        x_hat: Float[Tensor, "token d_in"],
        features: Codes | Float[Tensor, "token feature"],
    ) -> None:
        """Count these tokens. x: what should come out (an SAE's input; a transcoder's target). Raises BadInput where
        a width is another, or a number is none."""
        width = features.d_hidden if isinstance(features, Codes) else features.shape[-1]
        if (x.shape[-1], width) != (self.d_in, self.d_hidden) or x.shape != x_hat.shape or len(x) != len(features):
            given = f"x {list(x.shape)}, x_hat {list(x_hat.shape)}, {len(features)} tokens of {width:,} features"
            raise BadInput(f"This counts {self.d_in:,} numbers and {self.d_hidden:,} features; it was given {given}.")
        for block, block_hat in zip(x.split(BLOCK), x_hat.to(x.device).split(BLOCK), strict=True):
            self._add(block, block_hat)
        if isinstance(features, Codes):
            fired = torch.bincount(features.features, minlength=self.d_hidden)
        else:
            fired = (features != 0).sum(0)
        self.fired += fired.cpu()

    def _add(self, x: Tensor, x_hat: Tensor) -> None:
        if not len(x):
            return
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        x, x_hat = x.to(wide), x_hat.to(wide)
        mean = x.mean(0)
        spread, error = (x - mean).square().sum(), (x - x_hat).square().sum()
        cosine = F.cosine_similarity(x, x_hat, dim=-1).sum()
        spread, error, cosine = torch.stack([spread, error, cosine]).tolist()
        if not error < float("inf"):
            raise BadInput("The activations or their reconstruction are no finite numbers: nothing can be measured.")
        self._take(len(x), mean.cpu().double(), spread, error, cosine)

    def _take(self, tokens: int, mean: Tensor, spread: float, error: float, cosine: float) -> None:
        total, apart = self.tokens + tokens, mean - self.mean
        self._spread += spread + float(apart.square().sum()) * self.tokens * tokens / max(total, 1)
        self.mean = self.mean + apart * (tokens / max(total, 1))
        self.tokens, self._error, self._cosine = total, self._error + error, self._cosine + cosine

    @classmethod
    def merged(cls, parts: Sequence[Quality]) -> Quality:
        """One account of all that was counted in several, by several processes for instance: at least one."""
        if len({(part.d_in, part.d_hidden, part.dense_above) for part in parts}) != 1:
            raise BadInput("Accounts of one SAE are merged, at least one, with the same threshold of dense features.")
        out = cls(parts[0].d_in, parts[0].d_hidden, parts[0].dense_above)
        for part in parts:
            out._take(part.tokens, part.mean, part._spread, part._error, part._cosine)
            out.fired = out.fired + part.fired
        return out

    @property
    def l0(self) -> float:
        """Mean number of active features per token."""
        return float(self.fired.sum()) / self._counted()

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained. Raises BadInput where there is no variance: one token, or equal ones."""
        return self._error / self._variance()

    @property
    def fvu_of_mean(self) -> float:
        """The same figure for the mean in place of x_hat: 1 by construction."""
        return self._variance() / self._variance()

    @property
    def uncentred_of_mean(self) -> float:
        """What the mean gets as "explained variance" where Σ |x|² stands in for the variance: 0 only where the mean
        is 0. A figure in that form says nothing below this one."""
        offset = self._counted() * float(self.mean.square().sum())
        return offset / (self._variance() + offset)

    @property
    def cosine(self) -> float:
        """Mean over tokens of the cosine between x and x_hat."""
        return self._cosine / self._counted()

    @property
    def dead(self) -> float:
        """Share of the features that fired on none of the tokens: it shrinks with more of them."""
        self._counted()
        return float((self.fired == 0).double().mean())

    @property
    def dense(self) -> float:
        """Share of the features that fired on more than `dense_above` of the tokens."""
        return float((self.fired > self.dense_above * self._counted()).double().mean())

    def _counted(self) -> int:
        if not self.tokens:
            raise BadInput("There are no tokens to measure on.")
        return self.tokens

    def _variance(self) -> float:
        if not self._counted() or self._spread <= 0:
            raise BadInput(f"The {self.tokens:,} tokens measured on are all alike: there is no variance to explain.")
        return self._spread


@torch.no_grad()
def reconstruct(sae: SparseAutoEncoder, x: Float[Tensor, "token d_in"]) -> tuple[Float[Tensor, "token d_out"], Codes]:
    """x_hat, in the units of x and the SAE's dtype, and the features it is made of; never dense."""
    codes = sae.encode_codes(x)
    x_hat = sae.decode(codes)
    _, mean, size = sae.normalize(x.to(sae.dtype))
    return (x_hat if mean is None or size is None else x_hat * size + mean), codes


def count(
    quality: Quality,
    sae: SparseAutoEncoder,
    x: Float[Tensor, "token d_in"],
    target: Float[Tensor, "token d_out"],
) -> None:
    """Add to an account what the SAE makes of x. In blocks: where it does not fit, half of all features may fire."""
    for part, wanted in zip(x.split(BLOCK), target.split(BLOCK), strict=True):
        quality.add(wanted, *reconstruct(sae, part))


def measured(
    sae: SparseAutoEncoder, x: Float[Tensor, "token d_in"], target: Float[Tensor, "token d_out"] | None = None
) -> Quality:
    """The account of these tokens. target: what should come out; None: x itself."""
    target = x if target is None else target
    quality = Quality(target.shape[-1], sae.d_hidden)
    count(quality, sae, x, target)
    return quality


def pairing(
    sae: SparseAutoEncoder, x: Float[Tensor, "token d_in"], target: Float[Tensor, "token d_out"] | None = None
) -> float:
    """FVU of an SAE on some activations, about a thousand tokens: above 1, it was not made for these."""
    return measured(sae, x, target).fvu
