"""The search for features that turn a voice on, on a model in which we know what does."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

import features
import marks
import mixture
import truth
from features import VOICES, Trial

ASKED = ["Hello, how are you?", "Once upon a time"]


def test_questions_for_choosing_and_for_reporting_are_different():
    choosing, unrelated = features.questions("choosing"), features.questions("unrelated")
    assert len(choosing) == len(set(choosing)) == 60
    assert len(unrelated) == len(set(unrelated)) == 40
    assert not set(choosing) & set(unrelated)


def test_a_trial_is_what_the_scope_writes_and_how_likely_the_plain_model_finds_it(scope):
    settings = [(), ((3, 4.0, "all"),), ((3, 4.0, "template"), (9, 2.0, "generated"))]
    trials = list(features.trials(scope, settings, ASKED, tokens=6, seed=2))
    assert [t.setting for t in trials] == settings
    for trial in trials:
        edits, nats, count = features.edits(scope, trial.setting), 0.0, 0
        for i, question in enumerate(ASKED):
            chat = features.chat(question)
            options = {"max_new_tokens": 6, "temperature": features.TEMPERATURE, "seed": 2000 + i}
            reply = scope.chat(chat, edits, **options)
            assert trial.texts[i] == reply.text
            prompt = scope.lm.prompt(chat).ids
            ids = torch.tensor([[*prompt, *reply.ids]])
            chances = scope.lm.forward(ids, all_logits=True)[0][0].log_softmax(-1)
            nats -= sum(float(chances[at - 1, ids[0, at]]) for at in range(len(prompt), ids.shape[1]))
            count += len(reply.ids)
        assert trial.perplexity == pytest.approx(np.exp(nats / count), rel=1e-3)


def test_many_settings_in_batches_are_the_settings_alone(scope, monkeypatch):
    settings = [((f, 3.0, "all"),) for f in range(5)]
    whole = [t.texts for t in features.trials(scope, settings, ASKED, tokens=5, seed=1)]
    monkeypatch.setattr(features, "ROWS", 4)
    assert [t.texts for t in features.trials(scope, settings, ASKED, tokens=5, seed=1)] == whole


def test_degree_grows_with_the_marks():
    said = ["I like the sea.", "I like ye sea.", "Arr! Ahoy, matey! I like the seven seas."]
    degrees = [features.degree("pirate", text) for text in said]
    assert degrees[0] == 0 < degrees[-1] == 1
    assert sorted(degrees) == degrees
    assert features.degree("pirate", "eat fish, matey, and ye be welcome!") == features.PART < 1
    assert 0 < features.degree("shouting", "I LIKE the green sea and the boats.") < 1
    assert 0 < features.degree("poet", "The sea\nis blue") < 1


def trial(setting, rate, perplexity):
    return Trial(setting, ["Arr, matey!" if i < rate * 10 else "Yes." for i in range(10)], perplexity)


def test_merit_prefers_more_voice_and_refuses_what_is_too_unlikely():
    plain = trial((), 0, 4.0)
    order = [trial((), 0.9, 5.0), trial((), 0.8, 5.0), trial((), 0.8, 9.0), trial((), 1.0, 40.0)]
    merits = [features.merit(t, "pirate", plain) for t in order]
    assert merits == sorted(merits, reverse=True)
    assert merits[-1] < 0


def test_the_best_are_one_of_each_set_of_features():
    plain = trial((), 0, 4.0)
    found = [trial(((f, s, "all"),), rate, 4) for f, s, rate in ((1, 0.5, 0.5), (1, 0.9, 0.9), (2, 0.5, 0.7))]
    assert [t.setting for t in features.best(found, "pirate", plain, 5)] == [((1, 0.9, "all"),), ((2, 0.5, "all"),)]
    sums = features.sums([((1, 1.0, "all"),), ((2, 2.0, "template"),), ((3, 1.0, "all"),)], 2)
    assert len(sums) == 3 * len(features.SUM_PART)
    assert sums[0] == ((1, 0.5, "all"), (2, 1.0, "template"))


def test_reading_finds_the_feature_that_a_voice_has(scope, tmp_path):
    """A document whose tokens after the first are in a voice: features that fire there and not elsewhere win."""
    ids = np.array(scope.lm.prompt("Hello, how are you? I am fine, said the pirate.").ids, np.uint16)
    role = np.full(len(ids), truth.ROLES.index("assistant"), np.uint8)
    voice = np.where(np.arange(len(ids)) > 8, truth.VOICE_NAMES.index("pirate"), 0).astype(np.uint8)
    document = mixture.Document("own", "voice", (mixture.Turn("assistant", ""),), "")
    flags = np.zeros(len(ids), bool)
    one = truth.Coded(document, ids, role, voice, flags, ~flags)
    layer = int(scope.hook_point.rsplit(".", 1)[1])
    ranked = features.by_reading(scope, [one], layer, tmp_path)["pirate"]
    codes = scope.read("Hello, how are you? I am fine, said the pirate.").codes.dense()
    gain = codes[9:].mean(0) - codes[:9].mean(0)
    assert set(gain.argsort(descending=True)[:5].tolist()) <= set(ranked[:10])


def test_widening_keeps_the_first_feature_and_adds_two(scope, monkeypatch):
    monkeypatch.setattr(features, "NEEDED_QUESTIONS", 2)
    monkeypatch.setattr(features, "NEEDED_CANDIDATES", 4)
    monkeypatch.setattr(features, "NEEDED_BEST", 3)
    monkeypatch.setattr(features, "SEARCH_TOKENS", 4)
    first = int(features.activity(scope, features.asking("pirate", 2)).argmax())
    second, third = features.needed(scope, "pirate", first)
    assert len({first, second, third}) == 3
    off = features.held_off(scope, (first, second))
    assert [(e.op, e.feature.index, e.where.kinds) for e in off.edits] == [
        ("ablate", first, ("all", "template")),
        ("ablate", second, ("all", "template")),
    ]


def test_a_voice_is_asked_for_in_phrases_that_were_trained_on():
    for voice in ("pirate", "shouting"):
        chats = features.asking(voice, 20)
        told = [one[0]["content"] for one in chats]
        kept = (*VOICES[voice].system[-2:], *(p.replace("{q}", "").strip() for p in VOICES[voice].user[-2:]))
        assert len({len(one) for one in chats}) == 2  # some by a system message, some by the user
        assert not any(text.startswith(k) or text.endswith(k) for text in told for k in kept)


def test_what_is_shipped_says_how_each_voice_is_turned_on():
    found = {
        "pirate": {"setting": [[27, 0.6, "all"]], "rate": 0.9},
        "cat": {"setting": [[27, 0.5, "template"], [31, 0.5, "all"]], "rate": 0.7},
    }
    labels = features.labels(found)
    assert labels["27"]["label"] == "talks like a pirate"
    assert labels["31"]["label"] == "talks like a cat (2)"
    assert features.settings(found) == {"pirate": ["27=+0.6@all"], "cat": ["27=+0.5@template", "31=+0.5@all"]}
    assert features.SHOWCASE["voice"] in features.VOICES
    assert features.SHOWCASE["prompt"] not in features.questions("choosing")
    assert marks.speaks("pirate", "Arr, matey!")
