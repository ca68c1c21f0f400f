"""What an evaluation found: plain frozen data, to print, to keep as JSON, to compare. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsight.disk import write_json
from sparsight.evaluate.spec import COLUMNS, SELECTIONS

SCHEMA = 1


@dataclass(frozen=True)
class Reconstruction:
    """How well x is reconstructed on one selection of tokens; the figures are those of sae/quality.py."""

    tokens: int
    l0: float
    fvu: float
    fvu_of_mean: float
    uncentred_of_mean: float
    cosine: float
    dead: float
    dense: float


@dataclass(frozen=True)
class Spliced:
    """Next-token cross-entropy, nats per token, with something else in place of x on one selection of tokens.

    tokens: how many were predicted; all four losses are over the same ones. clean: nothing replaced; spliced: x_hat;
    zero: zero; mean: the mean of x over the selection. kl: KL(clean || spliced) of the next token, nats per token.
    """

    tokens: int
    clean: float
    spliced: float
    zero: float
    mean: float
    kl: float

    @property
    def added(self) -> float:
        """What the SAE costs: spliced - clean, nats per token."""
        return self.spliced - self.clean

    @property
    def recovered(self) -> float | None:
        """(zero - spliced) / (zero - clean): 1 is as good as x, 0 as bad as zero; None where zero does no harm."""
        return _recovered(self.zero, self.spliced, self.clean)

    @property
    def recovered_from_mean(self) -> float | None:
        """The same against the mean, that does less harm than zero: the stricter of the two."""
        return _recovered(self.mean, self.spliced, self.clean)


def _recovered(ablated: float, spliced: float, clean: float) -> float | None:
    return (ablated - spliced) / (ablated - clean) if ablated > clean else None


Value = float | int | None
ROWS: tuple[tuple[str, str, Callable[[Any], Value], str], ...] = (
    ("reconstruction", "tokens", lambda r: r.tokens, "tokens reconstructed"),
    ("reconstruction", "L0", lambda r: r.l0, "active features per token, mean"),
    ("reconstruction", "FVU", lambda r: r.fvu, "fraction of variance unexplained, centred: 0 is perfect"),
    ("reconstruction", "FVU of the mean", lambda r: r.fvu_of_mean, "the same for the mean of x in place of x_hat"),
    (
        "reconstruction",
        "uncentred, of the mean",
        lambda r: r.uncentred_of_mean,
        "what that mean is credited with as variance explained where nothing is centred",
    ),
    ("reconstruction", "cosine", lambda r: r.cosine, "cosine of x and x_hat, mean over tokens"),
    ("reconstruction", "dead", lambda r: r.dead, "share of features that fired on none of these tokens"),
    (
        "reconstruction",
        "dense",
        lambda r: r.dense,
        "share of features that fired on more than {dense_above:.0%} of them",
    ),
    ("loss", "predicted", lambda s: s.tokens, "tokens predicted, by the passes below"),
    ("loss", "loss, clean", lambda s: s.clean, "next-token cross-entropy, nats per token"),
    ("loss", "loss, spliced", lambda s: s.spliced, "with x_hat in place of x"),
    ("loss", "loss, mean", lambda s: s.mean, "with the mean of x in place of x"),
    ("loss", "loss, zero", lambda s: s.zero, "with zero in place of x"),
    ("loss", "added loss", lambda s: s.added, "spliced - clean, nats per token"),
    ("loss", "recovered", lambda s: s.recovered, "(zero - spliced) / (zero - clean)"),
    ("loss", "recovered from mean", lambda s: s.recovered_from_mean, "(mean - spliced) / (mean - clean)"),
    ("loss", "KL", lambda s: s.kl, "KL(clean || spliced) of the next token, nats per token"),
)


@dataclass(frozen=True)
class Report:
    """One SAE on one text. reconstruction, loss: by selection of tokens. conversations: how many were read, in part
    or whole; skipped: how many the model's chat template refused. corpus, spec: what was asked for."""

    model: str
    dtype: str
    sae: str
    hook_point: str
    hook_point_out: str
    conversations: int
    skipped: int
    reconstruction: Mapping[str, Reconstruction]
    loss: Mapping[str, Spliced]
    corpus: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def columns(self) -> tuple[str, ...]:
        """What the values of a row are about, in order."""
        return tuple(COLUMNS[name] for name in self._selections)

    @property
    def _selections(self) -> list[str]:
        return [name for name in SELECTIONS if name in self.reconstruction or name in self.loss]

    def rows(self) -> list[tuple[str, tuple[Value, ...], str]]:
        """(name, one value a column, meaning and unit) of every figure; None where a column has none."""
        out = []
        for part, name, value, meaning in ROWS:
            figures = getattr(self, part)
            if figures:
                values = tuple(value(figures[s]) if s in figures else None for s in self._selections)
                out.append((name, values, meaning.format(**self.spec)))
        return out

    def __str__(self) -> str:
        head = f"{self.sae} at {self.hook_point} of {self.model}, {self.conversations:,} conversations"
        lines = [f"{'':24}" + "".join(f"{column:>26}" for column in self.columns)]
        for name, values, _ in self.rows():
            lines.append(f"{name:24}" + "".join(f"{said(value):>26}" for value in values))
        return "\n".join([head, *lines])

    def to_json(self) -> dict[str, Any]:
        """Plain data, the figures that follow from others included."""
        out = {"schema": SCHEMA, **asdict(self)}
        for name, spliced in self.loss.items():
            follow = {key: getattr(spliced, key) for key in ("added", "recovered", "recovered_from_mean")}
            out["loss"][name] |= follow
        return out

    def save(self, path: str | Path) -> None:
        """As a JSON file, whole or not at all."""
        write_json(Path(path), self.to_json())


def said(value: Value) -> str:
    """A figure as a table shows it."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
