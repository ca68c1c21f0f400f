"""Evaluate an SAE on held-out text: first what it reconstructs, then the model's loss with it spliced in.

The first sweep runs the model up to the hook point and no further. It also finds the mean of x, that the second sweep
needs for its ablation; that one runs whole passes, on the first part of the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from sparsight.corpus import Conversation, CorpusSpec, read
from sparsight.errors import BadInput
from sparsight.evaluate.loss import Sums, add_losses, most_tokens, x_hat
from sparsight.evaluate.report import Reconstruction, Report, Spliced
from sparsight.evaluate.spec import SELECTIONS, EvaluateSpec
from sparsight.lm.batch import Batch, Prompt
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.lm.pack import cut, packed
from sparsight.records import Kind, Progress
from sparsight.sae.quality import Quality, count
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.scope.pairing import check_pairing
from sparsight.scope.scope import Scope
from sparsight.scope.work import prompt_of

Tell = Callable[[Progress], None]
GROUPS = {"bos": Kind.BOS, "template": Kind.TEMPLATE, "content": Kind(0)}  # every token is in one of them


def evaluate(
    lm: ObservableLanguageModel,
    sae: SparseAutoEncoder,
    text: CorpusSpec | Iterable[Conversation],
    spec: EvaluateSpec | None = None,
    tell: Tell | None = None,
    *,
    hook_point: str | None = None,
) -> Report:
    """The figures of an SAE on some text.

    text: a corpus, of which part="validation" is what an SAE was not trained on; or conversations. hook_point: None
    takes the SAE's own. Like every Scope, this reads with the SAE in the model's dtype. tell: hears of each pass.
    Raises BadInput where no conversation can be read, or none has a token of a selection; Mismatch, NoHookPoint where
    the SAE does not belong to the model.
    """
    spec = spec or EvaluateSpec()
    scope = Scope(lm, sae, hook_point)
    sae, points = scope.sae, (scope.hook_point, getattr(scope.sae.config, "hook_point_out", None) or scope.hook_point)
    if spec.check and lm.has_tokenizer:
        check_pairing(lm, sae, scope.hook_point, stacklevel=3)
    reading = Prompts(lm, text, spec.length)
    quality, kept = reconstructed(lm, sae, points, reading, spec, tell)
    loss = spliced(lm, sae, points, kept, {s: quality[s].mean for s in spec.splice}, spec, tell) if kept else {}
    return Report(
        model=lm.name,
        dtype=str(lm.dtype).removeprefix("torch."),
        sae=sae.fingerprint,
        hook_point=points[0],
        hook_point_out=points[1],
        conversations=reading.given,
        skipped=reading.skipped,
        reconstruction={name: figures(quality[name]) for name in spec.selections},
        loss=loss,
        corpus=named(text) if isinstance(text, CorpusSpec) else {},
        spec=spec.plain(),
    )


class Prompts:
    """Conversations as prompts, without what lies beyond `length` tokens. given: how many so far; skipped: how many
    the model's chat template refused."""

    def __init__(self, lm: ObservableLanguageModel, text: CorpusSpec | Iterable[Conversation], length: int):
        self.lm, self.length = lm, length
        self.text = read(text) if isinstance(text, CorpusSpec) else text
        self.given = self.skipped = 0

    def __iter__(self) -> Iterator[Prompt]:
        why: BadInput | None = None
        for one in self.text:
            try:
                prompt = prompt_of(self.lm, one)
            except BadInput as error:
                self.skipped, why = self.skipped + 1, why or error
                continue
            self.given += 1
            yield cut(prompt, min(self.length, self.lm.context or self.length))
        if not self.given:
            raise BadInput("There is no conversation to evaluate on." if why is None else f"None can be read: {why}")


def reconstructed(
    lm: ObservableLanguageModel,
    sae: SparseAutoEncoder,
    points: tuple[str, str],
    prompts: Iterable[Prompt],
    spec: EvaluateSpec,
    tell: Tell | None,
) -> tuple[dict[str, Quality], list[Prompt]]:
    """An account of each selection of tokens, and the prompts that the loss is to be measured on."""
    width = sae.d_in if points[0] == points[1] else lm.width(points[1])
    groups = {group: Quality(width, sae.d_hidden, spec.dense_above) for group in GROUPS}
    kept: list[Prompt] = []
    seen = done = 0
    began = monotonic()

    def noted() -> Iterator[tuple[None, Prompt]]:
        nonlocal seen
        for prompt in within(prompts, spec.tokens):
            if seen < spec.loss_tokens:
                kept.append(prompt)
            seen += len(prompt)
            yield None, prompt

    for _, batch in packed(noted(), lm, spec.batch_tokens):
        flow = lm.activations(batch, list(dict.fromkeys(points)))
        for group, quality in groups.items():
            chosen = in_group(batch, group)
            x, target = (flow[point][chosen.to(flow[point].device)].to(sae.device) for point in points)
            count(quality, sae, x, target)
        done += int(batch.mask.sum())
        if tell:
            tell(Progress("reconstruct", done, spec.tokens, "tokens", monotonic() - began))
    return {name: Quality.merged([groups[group] for group in groups_of(name)]) for name in SELECTIONS}, kept


def spliced(
    lm: ObservableLanguageModel,
    sae: SparseAutoEncoder,
    points: tuple[str, str],
    prompts: list[Prompt],
    means: dict[str, Tensor],
    spec: EvaluateSpec,
    tell: Tell | None,
) -> dict[str, Spliced]:
    """The losses of each selection of tokens. means: of what flows at the second hook point, by selection."""
    prompts = list(within(prompts, spec.loss_tokens))
    sums = {name: Sums() for name in means}
    done, total, began = 0, sum(map(len, prompts)), monotonic()
    for _, batch in packed(((None, p) for p in prompts), lm, min(spec.batch_tokens, most_tokens(lm))):
        clean, _ = lm.run(batch, {}, all_logits=True)
        for name, mean in means.items():
            replacements = {
                "spliced": x_hat(sae),
                "zero": lambda x: x.new_zeros(()),
                "mean": lambda x, mean=mean: mean.to(x.dtype).to(x.device),
            }
            add_losses(sums[name], lm, batch, clean, selected(batch, name), points, replacements)
        done += int(batch.mask.sum())
        if tell:
            tell(Progress("splice", done, total, "tokens", monotonic() - began))
    for name, one in sums.items():
        if not one.tokens:
            raise BadInput(f"No token of '{name}' is predicted in {total:,} tokens of this text.")
    parts = ("clean", "spliced", "zero", "mean")
    return {
        name: Spliced(one.tokens, **{part: one.mean(part) for part in parts}, kl=one.kl / one.tokens)
        for name, one in sums.items()
    }


def within(prompts: Iterable[Prompt], tokens: int) -> Iterator[Prompt]:
    """The first prompts, up to so many tokens; the last one is cut."""
    for prompt in prompts:
        yield cut(prompt, tokens)
        tokens -= len(prompt)
        if tokens <= 0:
            return


def in_group(batch: Batch, group: str) -> Tensor:
    """Which tokens of the batch are in a group, [batch, pos]. A row's first token counts as BOS, whatever it is: much
    of a model's attention rests there, and its residual is far off the others'."""
    bos = batch.mask & ((batch.positions == 0) | ((batch.kinds & int(Kind.BOS)) != 0))
    template = batch.mask & ~bos & ((batch.kinds & int(Kind.TEMPLATE)) != 0)
    return {"bos": bos, "template": template, "content": batch.mask & ~bos & ~template}[group]


def selected(batch: Batch, selection: str) -> Tensor:
    """Which tokens of the batch are in a selection, [batch, pos]."""
    return torch.stack([in_group(batch, group) for group in groups_of(selection)]).any(0)


def groups_of(selection: str) -> list[str]:
    """The groups that make up a selection."""
    return [group for group, kind in GROUPS.items() if not kind & SELECTIONS[selection]]


def figures(quality: Quality) -> Reconstruction:
    """The account of a selection as plain numbers."""
    return Reconstruction(**{f.name: getattr(quality, f.name) for f in fields(Reconstruction)})


def named(text: CorpusSpec) -> dict[str, Any]:
    """Which text that was, without the token that opens it."""
    return {name: value for name, value in asdict(text).items() if name != "hub_token"}
