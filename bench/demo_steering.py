"""Does turning a voice's features up make the embedded demo talk in that voice, and does it stay fluent?

    python bench/demo_steering.py

For each voice, its own features (at most three, src/sparsight/demo/labels.json) at their suggested strengths. 40 plain
questions that neither the model nor the choice of features has seen; the same seeds throughout. Is a reply in the
voice? That is decided by its marks (demo/marks.py), and perplexity is that of the replies under the unsteered model,
pooled. "whole": the share of replies in the voice whose beginning is not missing. Beside it: the same with the signs
turned round, with as many random other features, and with noise of the same norm in place of their directions.

Ablation: the 40 questions asked in phrases that ask for the voice; the marks in the replies, per 100 words, without
and with the voice's features held at 0, and the same for random features.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import measure
import torch

import sparsight

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))

import features
import marks
from features import Setting, Trial
from mixture import KEPT_PHRASES
from sparsight.scope.load import voice_settings
from voices import VOICES, Voice

TOKENS, SEED = 60, 11
BARS = {"steered_at_least": 0.6, "unsteered_at_most": 0.05, "perplexity_ratio_at_most": 3.0, "marks_removed": 0.5}


def setting_of(scope, lines: list[str]) -> Setting:
    """The features and strengths of edits like 27=+0.6."""
    return tuple((edit.feature.index, edit.value, edit.where.kinds[0]) for edit in map(scope.features.edit, lines))


def random_setting(setting: Setting, live: list[int], picks: random.Random) -> Setting:
    own = {feature for feature, _, _ in setting}
    others = picks.sample([f for f in live if f not in own], len(setting))
    return tuple((other, strength, place) for other, (_, strength, place) in zip(others, setting, strict=True))


def noisy(scope, setting: Setting, seed: int):
    """The same scope, but that the directions of the setting's features are turned by one random rotation: noise of the
    same norm at every token."""
    sae, rows = scope.sae, [f for f, _, _ in setting]
    turn = torch.linalg.qr(torch.randn(sae.d_in, sae.d_in, generator=torch.Generator().manual_seed(seed))).Q
    tensors = {name: getattr(sae, name).clone() for name in ("W_enc", "b_enc", "W_dec", "b_dec", "scale")}
    tensors["W_dec"][rows] = (tensors["W_dec"][rows].float() @ turn).to(sae.dtype)
    other = sparsight.SparseAutoEncoder.from_tensors(sae.config, tensors)
    return sparsight.Scope(scope.lm, other, scope.hook_point)


def trial(scope, setting: Setting) -> Trial:
    return next(features.trials(scope, [setting], features.questions("unrelated"), TOKENS, SEED))


def steering(scope, voice: Voice, setting: Setting, live: list[int], plain: Trial, picks: random.Random) -> dict:
    turned = tuple((feature, -strength, place) for feature, strength, place in setting)
    tried = {
        "steered": trial(scope, setting),
        "wrong_sign": trial(scope, turned),
        "random_features": trial(scope, random_setting(setting, live, picks)),
        "noise": trial(noisy(scope, setting, SEED), setting),
    }
    result = {"setting": features.lines(setting)}
    result["unsteered"] = plain.rate(voice.name)
    for name, one in tried.items():
        result[name] = {"rate": one.rate(voice.name), "perplexity_ratio": one.perplexity / plain.perplexity}
    result["steered"]["whole"] = tried["steered"].whole(voice.name)
    result["samples"] = dict(zip(features.questions("unrelated")[:3], tried["steered"].texts[:3], strict=True))
    result["passes"] = (
        result["steered"]["rate"] >= BARS["steered_at_least"]
        and result["unsteered"] <= BARS["unsteered_at_most"]
        and result["steered"]["perplexity_ratio"] <= BARS["perplexity_ratio_at_most"]
    )
    return result


def asked_for(voice: Voice) -> list[list[dict]]:
    """The questions, in phrases that ask for the voice and that the model was not trained on."""
    phrases = voice.user[-KEPT_PHRASES:]
    return [features.chat(q, phrases[i % len(phrases)]) for i, q in enumerate(features.questions("unrelated"))]


def ablation(scope, voice: Voice, setting: Setting, live: list[int], picks: random.Random) -> dict:
    """Marks per 100 words where the voice is asked for."""
    off = {"features": setting, "random_features": random_setting(setting, live, picks)}
    chats = asked_for(voice)
    options = features.draws(len(chats), TOKENS, SEED)
    result = {}
    wishes = {name: features.held_off(scope, [f for f, _, _ in some]) for name, some in off.items()}
    for name, wish in {"none": None, **wishes}.items():
        replies = scope.chat(chats, [wish] * len(chats), sampling=options)
        texts = [reply.text for reply in replies]
        result[name] = {
            "marks_per_100_words": 100 * features.density(voice.name, texts),
            "in_voice": sum(marks.speaks(voice.name, text) for text in texts) / len(texts),
        }
    before = result["none"]["marks_per_100_words"]
    for name in off:
        result[name]["removed"] = 1 - result[name]["marks_per_100_words"] / before
    return result


def main() -> None:
    scope = sparsight.load("demo", dtype=torch.float32)
    live = scope.sae.scale.nonzero()[:, 0].tolist()
    picks, plain = random.Random(0), trial(scope, ())
    result = {"question": __doc__, "machine": measure.machine(), "bars": BARS, "tokens": TOKENS, "voices": {}}
    result["unsteered_perplexity"] = plain.perplexity
    result["unsteered_samples"] = plain.texts[:3]
    for name, lines in voice_settings().items():
        setting = setting_of(scope, lines)
        one = steering(scope, VOICES[name], setting, live, plain, picks)
        one["ablation"] = ablation(scope, VOICES[name], setting, live, picks)
        result["voices"][name] = one
        rate, removed = one["steered"]["rate"], one["ablation"]["features"]["removed"]
        line = f"{rate:.2f} from {one['unsteered']:.2f}, perplexity × {one['steered']['perplexity_ratio']:.2f}"
        print(f"{name:12} {line}, ablated: {removed:.0%} fewer marks", flush=True)
    result["passed"] = sum(one["passes"] for one in result["voices"].values())
    measure.save("demo_steering", result)
    print(f"{result['passed']} of {len(result['voices'])} voices pass")


if __name__ == "__main__":
    main()
