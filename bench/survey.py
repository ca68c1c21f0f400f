"""What does a survey cost beside a bare harvest of the same tokens, and beside the dashboards' dense way?

    python bench/survey.py

The embedded demo reads chats up to the output of its fourth layer. `harvest` runs the model and writes its rows to a
store; `survey` runs the model and the SAE, and writes an atlas of all features. Both read the same files, from the
first row to the last. The survey's time is told twice: of the pass over the text (what grows with it), and of all,
with the atlas written (what grows with the SAE). Ratios are to the harvest of the same round. `the SAE's product`: as
many tokens times the encoder and nothing else, which a survey does and a harvest does not; beside four layers of so
small a model it is much, beside twenty of Llama 3.1 8B it is a sixteenth.

The dense way is that of SAEDashboard and sae_vis, written down here after their published method: tokens stand in
memory in blocks; for a batch of features the model runs over all of them again, the dense activations of those features
on all tokens are kept, and from them the strongest windows, windows of each interval of activations, a histogram, the
density, and the logit lens are taken feature by feature. It makes no positions, roles, languages, top tokens,
documents, neighbours or log. Features per second of both, for all features of the SAE: the dense way's from a part of
them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import measure
import torch
from harvest import PASS, POINT, conversations, to_disk

import sparsight
from sparsight.corpus import CorpusSpec, read
from sparsight.harvest.harvest import expected
from sparsight.harvest.spec import KINDS, HarvestSpec
from sparsight.scope.scope import Scope
from sparsight.survey import survey as room
from sparsight.survey.spec import SurveySpec

BLOCK, BATCH, SHOWN = 128, 64, 256  # tokens of a block; features of a batch; features that the dense way is timed on
TOP, BANDS, EACH, AROUND = 20, 5, 5, 24


def surveyed(scope: Scope, corpus: CorpusSpec, log: int, times: list[float]) -> int:
    """Tokens that were counted. times: told when the pass over the text was done."""
    began = time.perf_counter()
    real = room._assemble

    def timed(*args: Any) -> None:
        times.append(time.perf_counter() - began)
        real(*args)

    room._assemble = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            atlas = room.survey(scope, corpus, SurveySpec(pass_tokens=PASS, log_tokens=log), Path(folder) / "atlas")
            assert atlas is not None
            return atlas.statistics(0).tokens
    finally:
        room._assemble = real


def dense(scope: Scope, corpus: CorpusSpec, features: int) -> Callable[[], int]:
    """The dense way, for the first so many features."""
    lm, sae = scope.lm, scope.sae
    ids = [i for chat in read(corpus) for i in lm.prompt(chat.messages, add_generation_prompt=False).ids]
    blocks = torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)

    @torch.no_grad()
    def work() -> int:
        unembedding = lm.model.get_output_embeddings().weight
        for start in range(0, features, BATCH):
            wanted = torch.arange(start, min(start + BATCH, features))
            acts = []
            for some in blocks.split(PASS // BLOCK):
                x = lm.activations(some, [POINT])[POINT]
                acts.append(sae.encode_features(x, wanted))
            whole = torch.cat(acts)  # [block, token, feature], dense
            for column, feature in enumerate(wanted.tolist()):
                _dashboard(whole[..., column].flatten(), blocks.flatten())
                (sae.W_dec[feature] @ unembedding.T).topk(10)
        return features

    return work


def _dashboard(act: torch.Tensor, ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What one feature's page is made of."""
    top = act.topk(min(TOP, len(act))).indices
    edges = torch.linspace(0, float(act.max()) or 1.0, BANDS + 1)
    chosen = [top]
    for low, high in pairwise(edges.tolist()):
        inside = ((act > low) & (act <= high)).nonzero().squeeze(1)
        chosen.append(inside[torch.randperm(len(inside))[:EACH]])
    act[act > 0].histc(50)
    float((act > 0).float().mean())
    at = torch.cat(chosen).unsqueeze(1) + torch.arange(-AROUND, AROUND + 1)
    at = at.clamp(0, len(act) - 1)
    return [(ids[row], act[row]) for row in at]


def main(rounds: str = "5", chats: str = "500", shown: str = str(SHOWN)) -> None:
    warnings.simplefilter("ignore")
    scope = sparsight.load("demo")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        said = conversations(int(chats))
        path.write_text("\n".join(json.dumps({"messages": chat}) for chat in said))
        corpus = CorpusSpec(str(path), drop_duplicates=False)
        most = expected(scope.lm, corpus, HarvestSpec((POINT,), keep=KINDS, pass_tokens=PASS))
        passes: list[float] = []
        log: list[float] = []
        x = torch.randn(PASS, scope.sae.d_in)
        work = {
            "the SAE's product": lambda: sum(len(x @ scope.sae.W_enc.T) for _ in range(most // PASS)),
            "harvest": lambda: to_disk(scope.lm, corpus, most),
            "survey": lambda: surveyed(scope, corpus, 0, passes),
            "survey, with a log": lambda: surveyed(scope, corpus, 200_000, log),
            "dense way": dense(scope, corpus, int(shown)),
        }
        readings, tokens = measure.in_rounds({name: measure.once(each) for name, each in work.items()}, int(rounds))
    measure.tell(readings, "harvest")
    harvests = [reading["ms"] / 1e3 for reading in readings["harvest"]]
    ratio = {
        name: measure.spread([mine / theirs for mine, theirs in zip(times[-len(harvests) :], harvests, strict=True)])
        for name, times in (("survey", passes), ("survey, with a log", log))
    }
    features = len(scope.features)
    speed = {"survey": features, "survey, with a log": features, "dense way": int(shown)}
    per_second = {
        name: measure.spread([count / (reading["ms"] / 1e3) for reading in readings[name]])
        for name, count in speed.items()
    }
    for name, (middle, low, high) in ratio.items():
        print(f"{name}: the pass over the text takes {middle:.2f} ({low:.2f}-{high:.2f}) of a harvest's time")
    for name, (middle, low, high) in per_second.items():
        print(f"{name}: {middle:,.0f} ({low:,.0f}-{high:,.0f}) features/s on {tokens['survey']:,} tokens")
    result = {"question": __doc__, "machine": measure.machine(), "hook_point": POINT, "base": "harvest"}
    result |= {"tokens": tokens, "readings": readings, "pass_ratio": ratio, "features_per_second": per_second}
    measure.save("survey", result | {"pass_tokens": PASS, "load_after": os.getloadavg()[0]})


if __name__ == "__main__":
    main(*sys.argv[1:])
