"""Does a wish in plain English become edits that work, and do replies hold together?

    python bench/auto_steer.py [VOICE ...]

For each of the demo's voices, its own words ("talk like a pirate") are all that `auto_edits` is given: it asks the
model for examples, chooses features by what they do, and sweeps the strength. Nothing here names a feature: with
another SAE or atlas in the demo, run it again. The curve is auto_edits' own, on questions that nothing was chosen on.

The judge that auto_edits does not know: 24 other questions, with other seeds; the share of replies in the voice by
their marks (demo/marks.py), unsteered, steered, and asked in words, and the perplexity ratio of each. Voices that are
given by name are measured anew; the others stay as they were.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import measure
import torch

import sparsight
from sparsight.scope.auto import auto_edits
from sparsight.scope.contrastive import chat, draws, told
from sparsight.scope.trial import surprise

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))

import features
import marks
from voices import VOICES

QUESTIONS, TOKENS, SEED = 24, 40, 11


def judged(scope, voice: str, wish, words: str | None, plain: float | None) -> dict:
    """Replies to questions that nobody chose on. plain: nats a token of unsteered ones."""
    asked = features.questions("unrelated")[:QUESTIONS]
    replies = scope.chat([told(scope.lm, q, words) for q in asked], wish, sampling=draws(QUESTIONS, TOKENS, SEED))
    nats = float(torch.cat(surprise(scope, [scope.lm.prompt(chat(q)) for q in asked], replies)).mean())
    ratio = float(torch.tensor(nats - (nats if plain is None else plain)).exp())
    rate = sum(marks.speaks(voice, reply.text) for reply in replies) / QUESTIONS
    return {"rate": rate, "perplexity_ratio": ratio, "nats": nats, "samples": [r.text for r in replies[:3]]}


def measured(scope, voice: str) -> dict:
    text, began = VOICES[voice].clauses[0], time.process_time()
    found = auto_edits(scope, text)
    seconds = time.process_time() - began
    plain = judged(scope, voice, None, None, None)
    asked = judged(scope, voice, None, text, plain["nats"])
    steered = judged(scope, voice, found.controller or None, None, plain["nats"])
    curve = [{k: v for k, v in vars(point).items() if k != "texts"} for point in found.curve]
    return {
        "wish": text,
        "edits": [[feature.index, feature.label, strength, place] for feature, strength, place in found.edits],
        "chosen": found.chosen.strength if found.chosen else None,
        "effect": found.chosen.effect if found.chosen else 0.0,
        "curve": curve,
        "asked_effect": found.asked.effect,
        "made_by": found.made_by,
        "note": found.note,
        "cpu_seconds": seconds,
        "unsteered": plain,
        "asked": asked,
        "steered": steered,
    }


def main() -> None:
    torch.set_num_threads(1)
    scope = sparsight.load("demo", dtype=torch.float32)
    result = {"question": __doc__, "machine": measure.machine(), "sae": scope.sae.fingerprint, "voices": {}}
    before = measure.read("auto_steer")
    if before.get("sae") == result["sae"]:
        result["voices"] = before["voices"]
    for name in sys.argv[1:] or VOICES:
        one = result["voices"][name] = measured(scope, name)
        rates = f"{one['unsteered']['rate']:.0%} -> {one['steered']['rate']:.0%} (asked {one['asked']['rate']:.0%})"
        print(f"{name:12} {rates}, × {one['steered']['perplexity_ratio']:.2f}, {one['cpu_seconds']:.0f} s", flush=True)
        measure.save("auto_steer", result)


if __name__ == "__main__":
    main()
