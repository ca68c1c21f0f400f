"""Prompts on their way into the model: a long one chunk by chunk, so that rows that are written go on between; short
ones that wait at once together, in one pass.

They are run apart from the rows, with the same pass and the same edits as `Scope.chat`, from where a beginning is
known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from sparsight.edits import Controller
from sparsight.lm.batch import Batch, Prompt
from sparsight.lm.cache import full_cache, pairs
from sparsight.lm.generate import entropy_of
from sparsight.scope.effect import Effect, saw
from sparsight.scope.scope import Scope
from sparsight.scope.steering import Steering
from sparsight.serve.prefix import BLOCK, Prefixes, Tally, chain


class Prompting:
    """One prompt. After the last chunk: `logits` [1, vocabulary], `past`, and `twin`: the unedited model's KV, where
    entropy bounds ask for it. cached: tokens that were not run."""

    def __init__(self, scope: Scope, prompt: Prompt, controller: Controller, prefixes: Prefixes | None):
        self.scope, self.prompt, self.prefixes = scope, prompt, prefixes
        self.steering = Steering(scope.sae, [controller], [len(prompt)], scope.hook_point)
        self.past = full_cache()
        self.twin: Cache | None = full_cache() if self.steering.needs_entropy else None
        self.logits: Tensor | None = None
        self.cached = 0
        self._tallies: list[Tally] = []
        self._effects: list[Effect] = []
        self._names: list[bytes] = []
        if prefixes is not None and not self.steering.needs_entropy:  # of a twin nothing is kept
            self._names = chain(prompt, controller, self.steering.steered[0].program)
            known, self._tallies = prefixes.find(self._names)
            if known is not None:
                self.past = known
            self.cached = len(self._tallies) * BLOCK
            self._restore()
        self.done = self.cached

    @property
    def left(self) -> int:
        """Tokens that have not been run."""
        return len(self.prompt) - self.done

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self, tokens: int) -> None:
        """Runs up to so many tokens."""
        lm, stop = self.scope.lm, min(self.done + tokens, len(self.prompt))
        batch, entropy = self._batch(stop), None
        if self.steering.needs_entropy:
            logits, _ = lm.run(batch, {}, self.twin, use_cache=True, all_logits=True)
            entropy = entropy_of(logits)
        taps = {self.scope.hook_point: [lambda flow: self.act(flow, batch, entropy)]} if self.acts else {}
        self.logits, _ = lm.run(batch, taps, self.past, use_cache=True)
        self.ran(batch)

    @property
    def acts(self) -> bool:
        """Whether edits or events may touch the prompt."""
        return self.steering.acts and self.steering.touches_prompt

    def ran(self, batch: Batch) -> None:
        """Notes that these tokens, the next ones, were run."""
        if not self.acts:
            saw(self.steering.b, batch.kinds)
        self.done += batch.ids.shape[1]
        if not self.left:
            self._keep()

    def _batch(self, stop: int) -> Batch:
        """The tokens from those that were run up to `stop`."""
        device, start = self.scope.lm.device, self.done
        ids, kinds = self.prompt.ids[start:stop], [int(kind) for kind in self.prompt.kinds[start:stop]]
        mask = torch.ones(1, stop, dtype=torch.bool, device=device)
        return Batch(torch.tensor([ids], device=device), mask, torch.tensor([kinds], device=device), even=True)

    def act(self, flow: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        """Its edits, on its own tokens."""
        done = self.steering.act(flow, batch.kinds, batch.positions, entropy)
        if self._names:
            self._effects.append(done._replace(out=done.touched))  # the rest is small
        return done.out

    # ── what is kept for the next one ────────────────────────────────────────────────────────────────────────────

    def _restore(self) -> None:
        """The receipt's numbers of the tokens that are not run."""
        b = self.steering.b
        b["seen"] += self.cached
        b["touched"] += sum(tally.touched for tally in self._tallies)
        b["ratio"] += sum(tally.share for tally in self._tallies)
        for event in {event for tally in self._tallies for event in tally.fired}:
            b["fired"][0, event] = True

    def _keep(self) -> None:
        if self.prefixes is None or not self._names:
            return
        new = len(self._names) - len(self._tallies)
        self.prefixes.keep(self._names, self.past, [*self._tallies, *self._told(new)])

    def _told(self, blocks: int) -> list[Tally]:
        """What edits did in each of the blocks that were run."""
        if not self._effects or not blocks:
            return [Tally()] * blocks
        tokens = blocks * BLOCK

        def cut(name: str) -> Tensor:
            whole = torch.cat([getattr(effect, name)[0] for effect in self._effects])
            return whole[:tokens].unflatten(0, (blocks, BLOCK))

        touched, share = cut("touched").sum(1).tolist(), cut("share").sum(1).tolist()
        fired = cut("happened").any(1).tolist()
        return [
            Tally(t, s, frozenset(i for i, hit in enumerate(f) if hit))
            for t, s, f in zip(touched, share, fired, strict=True)
        ]


@torch.inference_mode(False)
@torch.no_grad()
def run_together(promptings: Sequence[Prompting]) -> None:
    """Whole prompts, of which nothing has been run and none asks for entropy, in one pass; each is edited by itself."""
    lm, point = promptings[0].scope.lm, promptings[0].scope.hook_point
    batch = Batch.of_prompts([one.prompt for one in promptings], lm.pad_token, lm.device)
    starts = [batch.ids.shape[1] - len(one.prompt) for one in promptings]
    own = [one._batch(len(one.prompt)) for one in promptings]
    acting = [row for row, one in enumerate(promptings) if one.acts]

    def edit(flow: Tensor) -> Tensor:
        out = flow.clone()
        for row in acting:
            out[row : row + 1, starts[row] :] = promptings[row].act(flow[row : row + 1, starts[row] :], own[row])
        return out

    past = full_cache()
    logits, _ = lm.run(batch, {point: [edit]} if acting else {}, past, use_cache=True)
    for row, (one, start) in enumerate(zip(promptings, starts, strict=True)):
        one.logits = logits[row : row + 1]
        for layer, (keys, values) in enumerate(pairs(past)):
            one.past.update(keys[row : row + 1, :, start:], values[row : row + 1, :, start:], layer)
        one.ran(own[row])
