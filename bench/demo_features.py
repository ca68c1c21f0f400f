"""Does turning one feature of the embedded demo up put its topic into the text, and is the text still fluent?

For each labelled feature: 20 openings that no feature was chosen on, written on without an edit, with the
feature at its suggested strength, with the strength's sign turned round, and with a random other feature at
the same strength. Same seeds throughout. A topic counts as present by its word list in demo/topics.py;
perplexity is that of the written tokens under the unsteered model, pooled over the texts.

    python bench/demo_features.py            writes bench/results/demo_features.json
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import torch

import sparsight

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))

from figures import circumstances  # noqa: E402
from topics import REPORTING, TOPICS, Topic  # noqa: E402

TOKENS, TEMPERATURE, FIRST_SEED = 60, 0.8, 1000
BARS = {"steered_at_least": 0.6, "unsteered_at_most": 0.2, "perplexity_ratio_at_most": 3.0}


def write(scope, edits=None) -> list:
    """One reply for each opening, each with a seed of its own."""
    options = [
        sparsight.Sampling(max_new_tokens=TOKENS, temperature=TEMPERATURE, seed=FIRST_SEED + i)
        for i in range(len(REPORTING))
    ]
    return scope.complete(list(REPORTING), edits, sampling=options)


@torch.no_grad()
def perplexity(scope, replies: list) -> float:
    """Of what was written, under the unsteered model."""
    nats = count = 0.0
    for opening, reply in zip(REPORTING, replies, strict=True):
        prompt = list(scope.lm.prompt(opening).ids)
        ids = torch.tensor([prompt + list(reply.ids)], device=scope.lm.device)
        logits, _, _ = scope.lm.forward(ids, use_cache=False, all_logits=True)
        chances = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        nats -= float(chances.gather(1, ids[0, len(prompt) :, None]).sum())
        count += len(reply.ids)
    return math.exp(nats / count)


def rate(topic: Topic, replies: list) -> float:
    return sum(topic.in_text(reply.text) for reply in replies) / len(replies)


def measure(scope, topic: Topic, feature: int, strength: float, plain: list, other: int) -> dict:
    """One labelled feature against its controls."""
    usual = perplexity(scope, plain)
    result = {"feature": feature, "strength": strength, "unsteered": rate(topic, plain)}
    edits = {
        "steered": scope.features[feature].nudge(strength),
        "wrong_sign": scope.features[feature].nudge(-strength),
        "random_feature": scope.features[other].nudge(strength),
    }
    for name, edit in edits.items():
        replies = write(scope, edit)
        result[name] = rate(topic, replies)
        result[f"{name}_perplexity_ratio"] = round(perplexity(scope, replies) / usual, 3)
        if name == "steered":
            result["samples"] = [o + r.text for o, r in zip(REPORTING[:3], replies[:3], strict=True)]
    result["random_feature_index"] = other
    result["passes"] = (
        result["steered"] >= BARS["steered_at_least"]
        and result["unsteered"] <= BARS["unsteered_at_most"]
        and result["steered_perplexity_ratio"] <= BARS["perplexity_ratio_at_most"]
    )
    return result


def main() -> None:
    scope = sparsight.load("demo")
    described = json.loads((Path(sparsight.__file__).parent / "demo" / "labels.json").read_text())
    topics = {topic.name: topic for topic in TOPICS}
    live = scope.sae.scale.nonzero()[:, 0].tolist()
    picks = random.Random(0)
    plain = write(scope)
    results = {}
    for index, entry in described["labels"].items():
        topic, feature = topics[entry["topic"]], int(index)
        other = picks.choice([f for f in live if f != feature])
        results[topic.name] = measure(scope, topic, feature, entry["suggested"], plain, other)
        shown = {k: v for k, v in results[topic.name].items() if k != "samples"}
        print(topic.name, json.dumps(shown), flush=True)
    report = circumstances() | {
        "question": "does one feature, turned up, put its topic into the text",
        "texts": len(REPORTING),
        "tokens": TOKENS,
        "temperature": TEMPERATURE,
        "bars": BARS,
        "passed": sum(r["passes"] for r in results.values()),
        "measured": len(results),
        "unsteered_perplexity": round(perplexity(scope, plain), 3),
        "unsteered_samples": [o + r.text for o, r in zip(REPORTING[:3], plain[:3], strict=True)],
        "topics": results,
    }
    (HERE / "results" / "demo_features.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['passed']} of {report['measured']} pass")


if __name__ == "__main__":
    main()
