"""The demo inside the package: it loads anywhere, writes English, and its labelled features steer it."""

import json
import math
import re

import pytest
import torch

import sparsight
from sparsight.cli import main
from sparsight.scope.load import demo_folder, showcase

ENGLISH = "Once upon a time there was a little girl. She was very happy and she liked to play with her dog in the park."
SHUFFLED = "happy a little. was liked park She dog girl upon in the play very to with time she and Once her there a was"


@pytest.fixture(scope="module")
def demo():
    return sparsight.load("demo")


def perplexity(lm, text):
    ids = torch.tensor([lm.prompt(text).ids])
    logits = lm.forward(ids, all_logits=True)[0][0, :-1]
    return math.exp(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())


def test_it_is_small_and_of_one_piece(demo):
    files = [p for p in demo_folder().rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files) < 4_100_000
    labels = json.loads((demo_folder() / "labels.json").read_text())
    assert labels["sae"] == demo.sae.fingerprint
    assert all(int(index) in demo.features.labels for index in labels["labels"])
    assert demo.lm.model.config.model_type == "llama"
    assert demo.lm.tokenizer.chat_template


def test_it_prefers_english_to_the_same_words_shuffled(demo):
    assert perplexity(demo.lm, ENGLISH) < 25
    assert perplexity(demo.lm, SHUFFLED) > 5 * perplexity(demo.lm, ENGLISH)


def test_it_writes_words_and_answers_in_chat(demo):
    story = demo.complete("Once upon a time", max_new_tokens=60, temperature=0.7, seed=1).text
    assert len(re.findall(r"\b(the|a|and|to|was|he|she|it|they)\b", story.lower())) > 8
    reply = demo.chat([{"role": "user", "content": "Hello, how are you?"}], max_new_tokens=60)
    assert len(reply.text.split()) > 2


def test_its_sae_explains_most_of_the_residual_with_few_features(demo):
    reading = demo.read(ENGLISH)
    flow = demo.lm.activations(ENGLISH, [demo.hook_point])[demo.hook_point][0, 1:]
    x_hat, features = demo.sae(flow)
    unexplained = ((flow - x_hat) ** 2).sum() / ((flow - flow.mean(0)) ** 2).sum()
    assert unexplained < 0.4
    assert 3 < float((features > 0).sum(-1).float().mean()) < 80
    assert len(reading.top(5)) == 5


def test_the_showcase_changes_the_text_and_unsteered_it_is_the_same_text(demo):
    story = showcase()
    edit = demo.features.edit(story["edit"])
    out = demo.compare(story["prompt"], edit, max_new_tokens=60, temperature=0.7, top_p=0.95, seed=story["seed"])
    assert out.plain.text != out.steered.text
    assert out.steered.receipt.touched > 20


def test_the_command_tells_its_story(capsys):
    assert main(["demo", "--max-new-tokens", "40"]) == 0
    out = capsys.readouterr().out
    story = showcase()
    assert out.count(story["prompt"].splitlines()[0]) >= 2
    assert "changed" in out
    assert "sparsight chat --edit" in out
    assert main(["demo", "--max-new-tokens", "8", "--json", "--edit", "3=+2"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["plain"]["receipt"] is None
    assert data["steered"]["receipt"]["touched"] > 0
    assert len(data["plain"]["features"]) == len(data["plain"]["ids"])


def test_it_runs_in_its_own_dtype_and_where_accelerate_puts_it(demo):
    there = sparsight.load("demo", device="auto")
    assert there.lm.dtype is torch.bfloat16
    assert there.sae.dtype is torch.bfloat16
    assert there.sae.fingerprint == demo.sae.fingerprint
    edit = demo.features["animals"].nudge(0.6)
    plain, steered = there.complete(["Once upon a time"] * 2, [None, edit], max_new_tokens=20)
    assert plain.text != steered.text
    assert steered.receipt.change == pytest.approx(
        demo.complete("Once upon a time", edit, max_new_tokens=20).receipt.change, rel=0.3
    )
