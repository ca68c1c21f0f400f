"""How an SAE is trained: every knob, with what it means and its unit."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sparsight.config import check, knob
from sparsight.records import finite, is_whole

OBJECTIVES = ("relu", "jumprelu", "topk", "batchtopk", "gated")
PENALISED = ("relu", "jumprelu", "gated")
PRODUCTS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainSpec:
    """One SAE: what it reads, how wide it is, how sparse, and how it gets there."""

    hook_point: str | None = knob(None, "hook point that is read; None: the only one of the activations")
    hook_point_out: str | None = knob(None, "hook point that is written, of a transcoder; None: the one that is read")
    d_hidden: int | None = knob(None, "features; None: `expansion` times what it reads")
    expansion: int = knob(16, "features for each number of a token's activations, where d_hidden is not given")
    objective: str = knob("relu", f"what makes features sparse: {', '.join(OBJECTIVES)}")
    groups: tuple[int, ...] = knob((), "Matryoshka: features of each nested dictionary, ascending, the last one all")
    l0: float = knob(64.0, "active features per token to arrive at; a penalty's coefficient is steered there")

    tokens: int = knob(100_000_000, "tokens to train on, counted again where they are seen again")
    batch: int = knob(4096, "tokens of a step, of all processes together")
    lr: float = knob(3e-4, "learning rate of Adam")
    warmup: float = knob(0.02, "share of the run over which the learning rate rises from 0")
    decay: float = knob(0.2, "share of the run, at its end, over which the learning rate falls to 0")
    beta1: float = knob(0.9, "decay of Adam's mean of gradients")
    beta2: float = knob(0.99, "decay of Adam's mean of squared gradients")
    rise: float = knob(0.5, "topk, batchtopk: that decay is 1 - t^-rise at step t, until it is beta2; 0: at once")
    clip: float | None = knob(None, "largest norm of all gradients together; None: as they are")
    ema: float | None = knob(None, "decay per step of an average of the weights, which is then saved; None: none")
    product: str = knob("bfloat16", f"numbers of the encoder's product: {', '.join(PRODUCTS)}; weights are float32")

    coefficient: float = knob(
        1.0, "penalty's coefficient at the beginning, in its natural unit; any from 0.02 to 20 will do"
    )
    settle: float = knob(0.1, "share of the run over which the L0 to arrive at falls to `l0`")
    bandwidth: float = knob(0.5, "jumprelu: width of the window around a threshold in which it learns, in units of pre")
    aux: float = knob(1 / 32, "topk, batchtopk: weight of the loss that dead features have on what is left over")
    aux_k: int | None = knob(None, "dead features that share in it, for each token; None: half of d_in")
    dead: int | None = knob(
        None,
        "tokens without being active after which a feature is dead; None: a fiftieth of the run, at most 10 million",
    )
    revive: int | None = knob(None, "tokens between revivals of dead features; None: as many as `dead`; 0: never")

    fit: bool = knob(True, "topk, batchtopk: begin at the scale that reconstructs best; false: rows of norm 1")
    start: int = knob(65_536, "tokens that the input's scale, centre and the first thresholds are taken from")
    validation: int = knob(65_536, "held-out tokens of a validation")
    validate: int = knob(20, "validations in the run")
    checkpoint: float = knob(300.0, "seconds between checkpoints, at least; 0: at every step")
    seed: int = knob(0, "another number begins, and shuffles, otherwise")

    def __post_init__(self) -> None:
        groups = (self.groups,) if isinstance(self.groups, int) else tuple(self.groups)
        object.__setattr__(self, "groups", groups)
        for name, choices in (("objective", OBJECTIVES), ("product", PRODUCTS)):
            check(getattr(self, name), name, getattr(self, name) in choices, f"one of: {', '.join(choices)}")
        for name in ("hook_point", "hook_point_out"):
            given = getattr(self, name)
            check(given, name, given is None or (isinstance(given, str) and given), "a module path or None")
        for name in ("d_hidden", "expansion", "tokens", "batch", "aux_k", "dead", "start", "validation", "validate"):
            given = getattr(self, name)
            optional = name in ("d_hidden", "aux_k", "dead") and given is None
            check(given, name, optional or (is_whole(given) and finite(given, name) > 0), "a whole number above 0")
        for name in ("seed", "revive"):
            given = getattr(self, name)
            optional = name == "revive" and given is None
            check(given, name, optional or (is_whole(given) and finite(given, name) >= 0), "a whole number from 0 up")
        for name in ("lr", "l0", "coefficient", "bandwidth"):
            check(getattr(self, name), name, finite(getattr(self, name), name) > 0, "a number above 0")
        exact = self.objective != "topk" or float(self.l0).is_integer()
        check(self.l0, "l0", exact, "a whole number of features for topk")
        some = self.objective != "batchtopk" or self.l0 * self.batch >= 1
        check(self.l0, "l0", some, "at least one feature in a batch for batchtopk")
        for name in ("aux", "checkpoint", "rise"):
            check(getattr(self, name), name, finite(getattr(self, name), name) >= 0, "a number from 0 up")
        check(self.fit, "fit", isinstance(self.fit, bool), "true or false")
        for name in ("beta1", "beta2", "ema"):
            given = getattr(self, name)
            optional = name == "ema" and given is None
            check(given, name, optional or 0 <= finite(given, name) < 1, "a number from 0 to below 1")
        check(self.clip, "clip", self.clip is None or finite(self.clip, "clip") > 0, "a number above 0, or None")
        for name in ("warmup", "decay", "settle"):
            check(getattr(self, name), name, 0 <= finite(getattr(self, name), name) <= 1, "a share from 0 to 1")
        check(self.warmup, "warmup", self.warmup + self.decay <= 1, f"at most 1 together with decay ({self.decay})")
        right = all(is_whole(g) and g > 0 for g in groups) and list(groups) == sorted(set(groups))
        check(self.groups, "groups", right, "whole numbers above 0, each larger than the one before")
        check(self.tokens, "tokens", self.tokens >= self.batch, f"one batch ({self.batch:,}) or more")

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.tokens // self.batch

    @property
    def dead_after(self) -> int:
        """Tokens without being active after which a feature counts as dead."""
        return self.dead or max(min(self.tokens // 50, 10_000_000), 1)

    @property
    def penalised(self) -> bool:
        """Whether a coefficient is steered to arrive at the L0; else the L0 is exact by construction."""
        return self.objective in PENALISED

    @classmethod
    def knobs(cls) -> dict[str, str]:
        """What each knob means."""
        return {f.name: f.metadata["says"] for f in fields(cls)}
