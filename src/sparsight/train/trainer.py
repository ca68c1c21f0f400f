"""One SAE in training: its weights, Adam's averages, and a step.

pre = x W_encᵀ             the one dense product, in bfloat16 where that is fast
pairs, coefficients        objective.py: what is active, and its gradients
update                     each feature's two rows: gradient and Adam at once, no gradient kept
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import BadInput
from sparsight.sae.sae import SaeConfig, SparseAutoEncoder
from sparsight.train.dense import Choosing
from sparsight.train.kernels import kernels
from sparsight.train.objective import OBJECTIVE, UNIT, Gradient, Work, chosen
from sparsight.train.parallel import LOWER, Team
from sparsight.train.sparsity import Sparsity
from sparsight.train.spec import TrainSpec
from sparsight.train.weights import MATRICES, Frame, beginning, finished, first_level, first_thresholds, unit

EPSILON = 1e-8
FORGETS = 0.01  # of batchtopk's threshold, per step
BELOW = 1 - 1e-5  # a threshold lies a little below the last activation that is to pass, whatever is rounded
LEVELS = 8192  # tokens that first thresholds are taken from, at most


class Trainer:
    """Trains one SAE on batches that it is given.

    x, y: a sample of raw inputs and targets, [token, d], from which the frame and the beginning are taken. y: None
    where the target is the input. dtype: of the weights; float64 is for comparisons.
    """

    def __init__(
        self,
        spec: TrainSpec,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"] | None = None,
        team: Team | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec, self.team, self.dtype, self.device = spec, team or Team(), dtype, x.device
        self.do = Choosing(kernels(self.device))
        self.d_hidden = spec.d_hidden or spec.expansion * x.shape[1]
        self._check()
        self.read = Frame.of(x)
        self.written = self.read if y is None else Frame.of(y)
        inside = self.read.inside(x[:LEVELS], dtype)
        target = inside if y is None else self.written.inside(y[:LEVELS], dtype)
        self.random = torch.Generator().manual_seed(spec.seed)
        every = beginning(spec, self.d_hidden, inside, target, self.random)
        part = self.d_hidden // self.team.features
        self.mine = slice(self.team.feature_rank * part, (self.team.feature_rank + 1) * part)
        shared = {"b_dec"}
        self.weights = {n: (w if n in shared else w[self.mine]).clone() for n, w in every.items()}
        self.mean = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.square = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.average = {name: w.clone() for name, w in self.weights.items()} if spec.ema else {}
        self.norms = self.weights["W_dec"].norm(dim=-1)
        self.since = torch.zeros(part, dtype=torch.int64, device=self.device)
        ends = [g - self.mine.start for g in spec.groups or (self.d_hidden,)]
        self.ends = torch.tensor([min(max(e, 0), part) for e in ends], dtype=torch.int32, device=self.device)
        self.sparsity = Sparsity(spec, unit(spec, every))
        self.steps, self.revived, self.bound, self.threshold = 0, 0, 0.0, 0.0
        self.spread = float((target - target.mean(0)).square().sum(-1).mean())
        self.product = torch.bfloat16 if spec.product == "bfloat16" and dtype == torch.float32 else dtype
        if self.product == torch.bfloat16 and self.device.type == "cpu" and not _multiplies_bfloat16():
            self.product = dtype
        self._rounded = self.weights["W_enc"].to(self.product)
        self._pre = torch.empty(0, device=self.device)

    def _check(self) -> None:
        spec, most = self.spec, self.d_hidden
        if spec.l0 >= most:
            raise BadInput(f"l0 is {spec.l0:g}; this SAE has {most:,} features, and fewer are to be active.")
        if spec.groups and spec.groups[-1] != most:
            raise BadInput(f"The last of the groups holds all features: {most:,}, not {spec.groups[-1]:,}.")
        if most % self.team.features:
            raise BadInput(f"{most:,} features cannot be dealt out evenly to {self.team.features} processes.")

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        s, steps = self.spec, self.spec.steps
        up = min((self.steps + 1) / max(s.warmup * steps, 1), 1.0)
        down = min((steps - self.steps) / max(s.decay * steps, 1), 1.0)
        return s.lr * up * down

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.steps * self.spec.batch

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def step(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"] | None = None) -> dict[str, float]:
        """One step on this process's rows of a batch of raw activations: what came of it, over the whole batch.

        Gives l0, fvu (of the batch: mean |x_hat − y|² / variance of the sample), coefficient, lr, and the other losses.
        """
        work = self._work(x, y)
        g = OBJECTIVE[self.spec.objective](work)
        self.bound = g.bound
        told = self._told(g, work.tokens)
        if not np.isfinite(told["fvu"]):
            return told  # whoever trains stops: nothing is changed
        self._descend(work, g)
        self._count(g, work.tokens)
        self.steps += 1
        if self.spec.penalised:
            self.sparsity.saw(told["l0"], self.steps, told["lr"])
        if self.spec.objective == "batchtopk":
            self.threshold += (g.bound / LOWER - self.threshold) * (FORGETS if self.steps > 1 else 1.0)
        every = self.spec.dead_after if self.spec.revive is None else self.spec.revive
        last = (1 - self.spec.decay) * self.spec.steps
        if every and self.tokens % every < self.spec.batch and self.steps <= last:
            self._revive(work, g)
        return told

    def _work(self, x: Tensor, y: Tensor | None) -> Work:
        inside = self.read.inside(x, self.dtype)
        target = inside if y is None else self.written.inside(y, self.dtype)
        if self._pre.shape[:1] != x.shape[:1] or self._pre.dtype != self.product:
            self._pre = torch.empty(len(x), len(self.norms), dtype=self.product, device=self.device)
        torch.mm(inside.to(self.product), self._rounded.T, out=self._pre)
        dead = self._silent.nonzero()[:, 0]
        return Work(
            self.spec,
            self.do,
            self.team,
            self.weights,
            self.norms,
            self.ends,
            inside,
            target,
            self._pre,
            len(x) * self.team.data,
            self.sparsity.coefficient if self.spec.penalised else 0.0,
            dead,
            self._everywhere(len(dead)),
            self.bound,
        )

    def _everywhere(self, dead: int) -> int:
        if self.team.features == 1:
            return dead
        count = torch.tensor(dead, device=self.device)
        self.team.over_features(count)
        return int(count)

    def _descend(self, work: Work, g: Gradient) -> None:
        t = self.steps + 1
        s, team = self.spec, self.team
        rises = s.rise > 0 and not s.penalised
        beta2 = min(s.beta2, 1 - t**-s.rise) if rises else s.beta2
        rooted = 1.0 if rises else 1 / (1 - s.beta2**t) ** 0.5  # where it rises from 0, there is nothing to correct
        hyper = [self.rate / (1 - s.beta1**t), s.beta1, beta2, EPSILON, rooted]
        adam = torch.tensor(hyper, dtype=self.dtype)
        whole = team.data > 1 or s.clip is not None
        unit = s.objective in UNIT
        encoder, decoder = (self._moved_by_adam(name) for name in MATRICES)
        if whole:
            enc, dec = self.do.gradients(g.columns, g.enc, g.dec, work.x, g.err, self.ends, g.more)
            dec += g.pull[:, None] * self.weights["W_dec"]
            if unit:
                dec -= (dec * self.weights["W_dec"]).sum(-1, keepdim=True) * self.weights["W_dec"]
            team.over_tokens(enc, dec, *(g.vectors[name] for name in sorted(g.vectors)))
            self._clip(enc, dec, g.vectors)
            self.do.descend(encoder[0], enc, encoder[1], encoder[2], adam)
            self.norms = self.do.descend(decoder[0], dec, decoder[1], decoder[2], adam, None, unit)
        else:
            self.norms = self.do.step(
                g.columns, g.enc, g.dec, work.x, g.err, self.ends, g.more, encoder, decoder, adam, g.pull, unit
            )
        for name, gradient in g.vectors.items():
            w, m, v = self._moved_by_adam(name)
            self.do.descend(w[:, None], gradient[:, None].contiguous(), m[:, None], v[:, None], adam)
        for name, average in self.average.items():
            average.lerp_(self.weights[name], 1 - (s.ema or 0.0))
        self._rounded = self.weights["W_enc"].to(self.product)

    def _moved_by_adam(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        return self.weights[name], self.mean[name], self.square[name]

    def _clip(self, enc: Tensor, dec: Tensor, vectors: dict[str, Tensor]) -> None:
        if self.spec.clip is None:
            return
        own = [enc, dec, *(v for name, v in vectors.items() if name != "b_dec")]
        square = torch.stack([g.double().square().sum() for g in own]).sum()
        self.team.over_features(square)
        norm = float((square + vectors["b_dec"].double().square().sum()).sqrt())
        if norm > self.spec.clip:
            for gradient in (enc, dec, *vectors.values()):
                gradient *= self.spec.clip / norm

    def _told(self, g: Gradient, tokens: int) -> dict[str, float]:
        """The numbers of a step, summed over the processes, in one exchange."""
        own = {"l0": g.active} | {n: v for n, v in g.losses.items() if n == "penalty"}  # of this process's features
        same = {n: v for n, v in g.losses.items() if n not in own}  # errors: of all features already
        sums = torch.stack([v.double() for v in own.values()])
        self.team.over_features(sums)
        sums = torch.cat([sums, *(v.double()[None] for v in same.values())])
        self.team.over_tokens(sums)
        told = dict(zip([*own, *same], (sums / tokens).tolist(), strict=True))
        told["fvu"] = told.pop("error") / self.spread
        return {**told, "coefficient": self.sparsity.coefficient if self.spec.penalised else 0.0, "lr": self.rate}

    def _count(self, g: Gradient, tokens: int) -> None:
        fired = g.fired
        self.team.over_tokens(fired)
        self.since += tokens
        self.since[fired > 0] = 0

    @property
    def dead(self) -> int:
        """Features that were not active for `spec.dead_after` tokens, of all processes."""
        return self._everywhere(int(self._silent.sum()))

    @property
    def _silent(self) -> Tensor:
        """Which of this process's features are dead."""
        return self.since >= self.spec.dead_after

    # ── dead features ────────────────────────────────────────────────────────────────────────────────────────────

    def _revive(self, work: Work, g: Gradient) -> None:
        """Point dead features at what is reconstructed worst (resampling: Bricken et al. 2023).

        A token is drawn for each, by its square error; the decoder row becomes the direction of its error, the encoder
        row that too (a transcoder's: of its input); the threshold is set as at the beginning.
        """
        dead = self._silent.nonzero()[:, 0]
        counts = self.team.all_features(torch.tensor([len(dead)], device=self.device))
        err, x = self.team.rows(g.err[-1]), self.team.rows(work.x)
        total = min(int(counts.sum()), int((err != 0).any(-1).sum()))
        before = int(counts[: self.team.feature_rank].sum())
        if not total:
            return
        sizes = self._sizes(~self._silent)
        chance = err.double().square().sum(-1).cpu()
        drawn = torch.multinomial(chance / chance.sum(), total, generator=self.random).to(self.device)
        drawn = drawn[before : before + len(dead)]
        dead = dead[: len(drawn)]
        if not len(dead):
            return
        w = self.weights
        out = -err[drawn] / err[drawn].norm(dim=-1, keepdim=True)
        seen = out if self.written is self.read else x[drawn] / x[drawn].norm(dim=-1, keepdim=True).clamp_min(1e-12)
        w["W_enc"][dead], w["W_dec"][dead] = seen * sizes[0], out * (1 if self.spec.objective in UNIT else sizes[1])
        level = first_level(self.spec, self.d_hidden, w["W_enc"][dead] @ x.T)
        for name, first in first_thresholds(self.spec, level).items():
            w[name][dead] = first
        for of in (self.mean, self.square):
            for name in w.keys() - {"b_dec"}:
                of[name][dead] = 0
        for name, average in self.average.items():
            if name != "b_dec":
                average[dead] = w[name][dead]
        self.norms[dead] = w["W_dec"][dead].norm(dim=-1)
        self._rounded[dead] = w["W_enc"][dead].to(self.product)
        self.since[dead] = 0
        self.revived += len(dead)

    def _sizes(self, alive: Tensor) -> Tensor:
        """The mean norms of the living features' encoder and decoder rows, of all processes; 1 where none lives."""
        told = torch.stack([*(self.weights[n][alive].norm(dim=-1).sum() for n in MATRICES), alive.sum().to(self.dtype)])
        self.team.over_features(told)
        return told[:2] / told[2] if told[2] else torch.ones_like(told[:2])

    # ── looking at it ────────────────────────────────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def validate(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, float]:
        """L0, fvu (centred, global) and the share of features that are never active, over held-out raw activations. The
        coefficient of a penalty is steered by that L0 from here on."""
        tokens, active, wrong, total, square = 0, 0.0, 0.0, 0.0, 0.0
        fired = torch.zeros(len(self.norms), dtype=torch.float64, device=self.device)
        for x, y in batches:
            work = self._work(x, y)
            g = self._inferred(work)
            self.team.over_features(g.active)
            tokens, active, wrong = tokens + len(x), active + float(g.active), wrong + float(g.losses["error"])
            fired += g.fired.double()
            exact = work.y.double()
            total, square = total + exact.sum(0), square + float(exact.square().sum())
        if not tokens:
            raise BadInput("There are no held-out tokens to validate on.")
        spread = square - float(torch.as_tensor(total).square().sum()) / tokens
        if spread <= 0:
            raise BadInput(f"The {tokens:,} held-out tokens do not differ: there is nothing to explain.")
        if self.spec.penalised:
            self.sparsity.validated(active / tokens, tokens)
        silent = self._everywhere(int((fired == 0).sum())) / self.d_hidden
        return {"l0": active / tokens, "fvu": wrong / spread, "silent": silent}

    def _inferred(self, work: Work) -> Gradient:
        """As the finished SAE will do it: batchtopk by its threshold."""
        if self.spec.objective != "batchtopk":
            return OBJECTIVE[self.spec.objective](work)
        return chosen(work, work.above(torch.full_like(self.norms, self.threshold)), 0.0)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Set batchtopk's threshold to where L0 over these held-out tokens is the one that was asked for."""
        if self.spec.objective != "batchtopk":
            return
        found, tokens = [], 0
        for x, y in batches:
            work = self._work(x, y)
            work.bound = 0.0  # that of training is too high for twice as many, and half of all pairs would be taken
            pairs, _ = self.team.strongest_of_all(work, round(2 * self.spec.l0 * work.tokens))
            found.append(pairs.pre.clone())
            tokens += work.tokens
        if tokens:
            self.threshold = BELOW * self.team.nth(torch.cat(found), round(self.spec.l0 * tokens))

    def use_average(self) -> None:
        """Go on with the average of the weights, where one was kept."""
        for name, average in self.average.items():
            self.weights[name].copy_(average)
        self.norms = self.weights["W_dec"].norm(dim=-1)
        self._rounded = self.weights["W_enc"].to(self.product)

    def sae(self, **about: Any) -> SparseAutoEncoder:
        """The SAE as it is now, for raw activations. about: more words of its config."""
        weights = {n: w if n == "b_dec" else self.team.all_features(w) for n, w in self.weights.items()}
        k = int(self.spec.l0) if self.spec.objective == "topk" else None
        if self.written is not self.read:
            about["d_out"] = self.written.centre.shape[0]
        config = SaeConfig(self.read.centre.shape[0], self.d_hidden, self.spec.objective, k, **about)
        return finished(weights, self.spec, config, self.read, self.written, self.threshold)

    # ── stopping and going on ────────────────────────────────────────────────────────────────────────────────────

    def tensors(self) -> dict[str, Tensor]:
        """All that changes; the frame follows from the sample."""
        out = {f"weights.{name}": w for name, w in self.weights.items()}
        for group in ("mean", "square", "average"):
            out |= {f"{group}.{name}": w for name, w in getattr(self, group).items()}
        return out | {"norms": self.norms, "since": self.since, "random": self.random.get_state()}

    @property
    def finite(self) -> bool:
        """Whether all weights and averages are numbers."""
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors().values())

    def facts(self) -> dict[str, Any]:
        """The rest of it, as JSON."""
        names = ("steps", "revived", "bound", "threshold")
        return {**{name: getattr(self, name) for name in names}, "sparsity": self.sparsity.facts()}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on from what tensors() and facts() gave; the sample that it began with was the same."""
        for name, tensor in tensors.items():
            group, _, which = name.partition(".")
            if which:
                getattr(self, group)[which].copy_(tensor)
        self.norms, self.since = tensors["norms"].to(self.device).clone(), tensors["since"].to(self.device).clone()
        self.random.set_state(tensors["random"])
        self._rounded = self.weights["W_enc"].to(self.product)
        self.sparsity = Sparsity(self.spec, **facts["sparsity"])
        for name in ("steps", "revived", "bound", "threshold"):
            setattr(self, name, facts[name])


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it; without them it is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
