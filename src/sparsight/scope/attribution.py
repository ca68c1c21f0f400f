"""Which features made the model say it: the logit of tokens of a prompt, shared out among the features before them.

With L the sum of the logits of tokens start .. end − 1 (each read at the token before it), x the residual at the hook
point, and the SAE's error held constant, x = Σ a_f · W_dec[f] + b_dec + error, so that to first order feature f at
token s has

    value(f, s) = a_f(s) · (∂L/∂x(s) · W_dec[f])

of it (gradient × activation; Syed, Rager and Conmy 2023, Marks et al. 2024). One pass, one backward pass to the hook
point. Exact where the rest of the model is linear; `check` says how far it is from what ablating does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.edits import Controller
from sparsight.errors import BadInput
from sparsight.lm.batch import Batch, Prompt
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.lm.tap import Tap, tapped
from sparsight.lm.text import pieces
from sparsight.records import Kind, is_whole
from sparsight.sae.codes import Codes
from sparsight.scope.scope import Scope
from sparsight.scope.separation import scipy_stats

PAIRS = 2**25  # numbers of decoder rows that are gathered at once
ROWS = 8  # ablations of a pass


@dataclass(frozen=True)
class At:
    """A feature at a token. activation: raw; value: what of the logits is due to it."""

    token: int
    activation: float
    value: float


@dataclass(frozen=True)
class Attributed:
    """A feature. value: the sum over the tokens where it is active, which are told in their order."""

    feature: int
    label: str | None
    value: float
    tokens: tuple[At, ...]


@dataclass(frozen=True, eq=False)
class Attribution:
    """prompt, texts: all of its tokens; start, end: those whose logits were shared out. logits: theirs, each
    less the mean over the vocabulary where centred. codes: one row for each token before the last target; values:
    float32 (float64 of a float64 model), one for each pair of codes. rest: of the gradient times the residual, what no
    feature has: the SAE's error and bias. labels: feature -> words."""

    prompt: Prompt
    texts: tuple[str, ...]
    start: int
    end: int
    logits: tuple[float, ...]
    centred: bool
    codes: Codes
    values: Float[Tensor, " active"]
    rest: float
    labels: Mapping[int, str]

    def top(self, k: int = 20, bos: bool = False) -> list[Attributed]:
        """The k features that raised the logits most, none that lowered them. bos: count the first token too, whose
        norm is often far off the scale, and whose value then says little."""
        return [self.of(feature, bos) for feature, value in self._totals(bos, True)[:k] if value > 0]

    def bottom(self, k: int = 20, bos: bool = False) -> list[Attributed]:
        """The k features that lowered the logits most, none that raised them."""
        return [self.of(feature, bos) for feature, value in self._totals(bos, False)[:k] if value < 0]

    def of(self, feature: int, bos: bool = False) -> Attributed:
        """One feature, with the tokens where it is active."""
        pairs = ((self.codes.features == feature) & self._counted(bos)).nonzero()[:, 0]
        where = zip(self.codes.tokens[pairs].tolist(), self.codes.values[pairs].tolist(), strict=True)
        values = self.values[pairs].tolist()
        at = tuple(At(token, a, value) for (token, a), value in zip(where, values, strict=True))
        return Attributed(feature, self.labels.get(feature), sum(values), at)

    def _counted(self, bos: bool) -> Tensor:
        """Which pairs count."""
        kinds = self.prompt.kinds[: len(self.codes)]
        return torch.tensor([bos or not kind & Kind.BOS for kind in kinds])[self.codes.tokens]

    def _totals(self, bos: bool, descending: bool) -> list[tuple[int, float]]:
        counted = self._counted(bos)
        feature, where = self.codes.features[counted].unique(return_inverse=True)
        total = torch.zeros(len(feature), dtype=torch.float64).index_add_(0, where, self.values[counted].double())
        order = total.argsort(descending=descending, stable=True)
        return list(zip(feature[order].tolist(), total[order].tolist(), strict=True))


@dataclass(frozen=True)
class Check:
    """features: those that were ablated, wherever they were active before the targets; predicted: their values;
    measured: by how much the logits fell; rank: Spearman's correlation of the two, NaN for fewer than three."""

    features: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    rank: float


def attribute(
    scope: Scope, messages: Any, start: int, end: int | None = None, *, centred: bool = True, **template: Any
) -> Attribution:
    """Features whose activation raised the logits of the tokens start .. end − 1 (None: of start alone) of the prompt.

    start: from 1 up, since the first token follows nothing; negative ones count from the end. centred: take each logit
    less the mean over the vocabulary, so that what raises all of them alike counts for nothing. template: keywords of
    the chat template; nothing is added for a reply unless asked for. Raises BadInput, TooLong.
    """
    if scope.sae.config.transcoder:
        raise BadInput(
            "A transcoder's features act at another hook point than the one they are read at: not attributed."
        )
    template.setdefault("add_generation_prompt", False)
    prompt = scope.lm.prompt(messages) if isinstance(messages, str) else scope.lm.prompt(messages, **template)
    start, end = targets(start, end, len(prompt))
    logits, flow, slope = _gradient(scope, prompt, start, end, centred)
    codes = scope.sae.encode_codes(flow)
    _, _, size = scope.sae.normalize(flow.to(scope.sae.dtype))
    values = _values(scope, codes, slope if size is None else slope * size.to(slope))
    rest = float((slope.double() * flow.double()).sum() - values.double().sum())
    texts = pieces(scope.lm.tokenizer, prompt.ids) if scope.lm.has_tokenizer else tuple(map(str, prompt.ids))
    codes, labels = codes.to("cpu"), scope.features.labels
    return Attribution(prompt, texts, start, end, logits, centred, codes, values.cpu(), rest, labels)


def targets(start: int, end: int | None, length: int) -> tuple[int, int]:
    """Both, counted from the beginning. Raises BadInput for tokens that are not there, or that follow nothing."""
    whole = is_whole(start) and (end is None or is_whole(end))
    first = start + length if whole and start < 0 else start
    last = first + 1 if end is None else end + length if whole and end < 0 else end
    if not whole or not 1 <= first < last <= length:
        asked = f"{start!r}" if end is None else f"{start!r} to {end!r}"
        there = f"tokens 1 to {length - 1} can be asked about (the first follows nothing); end is one past the last"
        raise BadInput(f"Tokens {asked} of this prompt of {length:,}: {there}.")
    return first, last


def check(scope: Scope, attribution: Attribution, n: int = 32) -> Check:
    """Ablate each of the n features with the largest values, of either sign, wherever it is active, and see how far the
    logits fall. Features of the first token count too. Raises Missing without scipy."""
    stats = scipy_stats()
    totals = sorted(attribution._totals(True, True), key=lambda pair: -abs(pair[1]))[:n]
    whole = _ablated(scope, attribution, [None])[0]
    measured = [whole - after for after in _ablated(scope, attribution, [feature for feature, _ in totals])]
    predicted = [value for _, value in totals]
    rank = float(stats.spearmanr(predicted, measured).statistic) if len(totals) > 2 else float("nan")
    return Check(tuple(feature for feature, _ in totals), tuple(predicted), tuple(measured), rank)


# ── passes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def tail(
    lm: ObservableLanguageModel, batch: Batch, taps: dict[str, list[Tap]], keep: int
) -> Float[Tensor, "row keep vocabulary"]:
    """The logits of each row's last tokens, with whatever gradient is being kept: the unembedding runs on those alone,
    where the model lets it."""
    options: dict[str, Any] = {}
    if lm.takes_positions and not batch.even:
        options["position_ids"] = lm.within_context(batch.positions)
    if lm._takes_logits_to_keep:
        options["logits_to_keep"] = keep
    mask = None if batch.even else batch.mask.to(torch.int64)
    with lm.turn, tapped(lm.model, taps):
        out = lm.model(input_ids=batch.ids, attention_mask=mask, use_cache=False, **options)
    return out.logits[:, -keep:]


def _gradient(
    scope: Scope, prompt: Prompt, start: int, end: int, centred: bool
) -> tuple[tuple[float, ...], Float[Tensor, "token d_in"], Float[Tensor, "token d_in"]]:
    """(the logits asked for, the residual before the last target, ∂ sum of the logits / ∂ residual, in float32 at
    least)."""
    lm = scope.lm
    lm.batch([prompt])  # raises TooLong, and for tokens that the model lacks
    kept: dict[str, Tensor] = {}

    def leaf(flow: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # from here on: what is below the hook point keeps nothing for a backward pass
        kept["x"] = flow.detach().requires_grad_(True)
        return kept["x"]

    with torch.inference_mode(False), torch.no_grad():
        logits = tail(lm, lm.batch([before(prompt, end)]), {scope.hook_point: [leaf]}, end - start)
        told = _of_targets(logits, prompt, start, end, centred)
        (slope,) = torch.autograd.grad(told.sum(), kept["x"])
    wide = torch.promote_types(slope.dtype, torch.float32)
    return tuple(told.detach()[0].tolist()), kept["x"].detach()[0], slope[0].to(wide)


def before(prompt: Prompt, end: int) -> Prompt:
    """What the last target follows."""
    return Prompt(prompt.ids[: end - 1], prompt.kinds[: end - 1])


def _of_targets(
    logits: Float[Tensor, "row keep vocabulary"], prompt: Prompt, start: int, end: int, centred: bool
) -> Float[Tensor, "row keep"]:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    ids = torch.tensor(prompt.ids[start:end], device=logits.device).expand(len(logits), -1)
    own = wide.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return own - wide.mean(-1) if centred else own


def _values(scope: Scope, codes: Codes, slope: Float[Tensor, "token d_in"]) -> Float[Tensor, " active"]:
    """a · (slope · W_dec[f]) of every active pair, some decoder rows at a time."""
    tokens, out = codes.tokens, []
    step = max(1, PAIRS // scope.sae.d_in)
    for low in range(0, len(codes.values), step):
        rows = scope.sae.W_dec[codes.features[low : low + step].long()].to(slope.dtype)
        along = (slope.to(rows.device)[tokens[low : low + step]] * rows).sum(-1)
        out.append(along * codes.values[low : low + step].to(along))
    return torch.cat(out) if out else slope.new_zeros(0)


@torch.no_grad()
def _ablated(scope: Scope, attribution: Attribution, features: Sequence[int | None]) -> list[float]:
    """The sum of the targets' logits with each of these features held at 0, wherever it is; None: with none."""
    prompt, start, end = attribution.prompt, attribution.start, attribution.end
    out: list[float] = []
    for low in range(0, len(features), ROWS):
        some = features[low : low + ROWS]
        wishes = [
            Controller() if one is None else Controller((scope.features[one].ablate().on("all", "template", "bos"),))
            for one in some
        ]
        prompts = [before(prompt, end)] * len(some)
        batch = scope.lm.batch(prompts)
        taps = scope.lm.taps({scope.hook_point: scope.steering(wishes, prompts)}, batch)
        logits = _of_targets(tail(scope.lm, batch, taps, end - start), prompt, start, end, attribution.centred)
        out += logits.sum(-1).tolist()
    return out
