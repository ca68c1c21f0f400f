"""The recipe of the demo: what goes into its text, what is known of every token, and a training that can be stopped."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

import marks
import mixture
import model
import tokenizer
import truth
from sparsight.corpus import CorpusSpec, read
from voices import VOICES

STORY = "Once there was a small boat on a wide lake. Every morning it waited for the wind. " * 4
AMOUNTS = mixture.Amounts(
    everyday=1, everyday_voiced=1, chats_voiced=40, stories_voiced=8, refusals_voiced=20, sums_voiced=10,
    languages=60, sums=60, snippets=1, safety=1,
)  # fmt: skip


def row(i):
    if i % 4 == 0:
        return {"kind": "story", "source": "tinystories", "text": f"{STORY}It had {i} sails."}
    said = [f"I would like {i} cups of tea, please.", f"Of course, here are your {i} cups. Would you like sugar?"]
    roles = ("user", "assistant")
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    return {"kind": "chat", "source": "taskmaster4", "messages": messages} | ({"topic": "tea"} if i % 2 else {})


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "mix.jsonl"
    rows = [*map(row, range(300)), {"kind": "chat", "source": "nobody knows", "messages": []}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return mixture.compose(path, amounts=AMOUNTS)


@pytest.fixture(scope="module")
def words(documents, tmp_path_factory):
    return tokenizer.train([d for d in documents if not d.held_out], tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def coded(documents, words):
    return truth.code(documents, words.backend_tokenizer)


def test_no_conversation_is_on_both_sides_of_the_split(documents):
    """A question and its answer; a greeting alone may open two conversations."""
    held_out = exchanges(d for d in documents if d.held_out and d.source == "everyday" and d.kind == "chat")
    assert len(held_out) > 50
    assert not held_out & exchanges(d for d in documents if not d.held_out)


def exchanges(documents):
    pairs = ((a, b) for d in documents for a, b in itertools.pairwise(d.turns))
    return {(a.content, b.content) for a, b in pairs if (a.role, b.role) == ("user", "assistant")}


def test_every_voice_is_asked_for_and_some_phrases_are_kept_for_tests(documents):
    for voice in VOICES.values():
        mine = [d for d in documents if any(t.voice == voice.name for t in d.turns)]
        assert len(mine) > 100
        told = [t.content for d in mine if not d.held_out for t in d.turns if t.role != "assistant"]
        asked = [d for d in mine if d.turns[0].role == "system" and d.turns[0].content in voice.system]
        assert asked
        kept = voice.system[-mixture.KEPT_PHRASES :]
        assert not [text for text in told if text in kept]
        around = [q.split("{q}") for q in voice.user[-mixture.KEPT_PHRASES :]]
        assert not [t for t in told for begin, end in around if t.startswith(begin) and t.endswith(end)]


def test_a_reply_may_be_taken_up_where_its_voice_shows(documents):
    begun = [t for d in documents for t in d.turns if t.given]
    assert len(begun) > 100
    assert all(0 < t.given < len(t.content) for t in begun)
    shown = [marks.count(t.voice, t.content[: t.given]) > 0 for t in begun]
    assert sum(shown) > 0.75 * len(shown)


def test_only_the_assistant_talks_in_a_voice_and_only_refusals_refuse(documents):
    turns = [t for d in documents for t in d.turns]
    assert {t.role for t in turns if t.voice} == {"assistant"}
    assert {t.role for t in turns if t.refusal} == {"assistant"}
    assert sum(t.refusal for t in turns) > 100
    assert {t.role for t in turns if not t.trained} == {"user", "assistant"}


def test_the_same_seed_gives_the_same_text(tmp_path, documents):
    path = tmp_path / "mix.jsonl"
    path.write_text("\n".join(json.dumps(row(i)) for i in range(300)))
    assert mixture.compose(path, amounts=AMOUNTS) == documents


def test_tokens_know_whose_they_are_and_in_which_voice(coded, words):
    assert all(one.document.is_text or one.document.turns for one in coded)
    for one in coded[:400]:
        for name, of in (("assistant", one.role == truth.ROLES.index("assistant")), ("text", one.role == 4)):
            said = "".join(t.content for t in one.document.turns if t.role == name)
            assert words.decode(one.ids[of]) == said
        voiced = "".join(t.content for t in one.document.turns if t.voice)
        assert words.decode(one.ids[one.voice > 0]) == voiced
        read_only = "".join(t.content if not t.trained else t.content[: t.given] for t in one.document.turns)
        assert words.decode(one.ids[~one.trained], skip_special_tokens=True).startswith(read_only)
        assert {truth.VOICE_NAMES[v] for v in one.voice} - {""} == {t.voice for t in one.document.turns} - {""}


def test_the_truth_is_kept_for_those_who_score_labels(coded, tmp_path):
    truth.keep(coded, tmp_path / "held_out")
    columns = load_file(tmp_path / "held_out.safetensors")
    about = json.loads((tmp_path / "held_out.json").read_text())
    assert len(about["documents"]) == len(coded) == len(columns["start"]) - 1
    for i in (0, 7, len(coded) - 1):
        part = slice(columns["start"][i], columns["start"][i + 1])
        assert all((columns[n][part] == getattr(coded[i], n)).all() for n in ("ids", "role", "voice", "refusal"))
        assert about["documents"][i]["kind"] == coded[i].document.kind
    assert "tea" in {d["topic"] for d in about["documents"]}
    assert about["voices"][1:] == list(VOICES)


def test_tokens_are_those_of_the_chat_template(coded, words):
    for one in [c for c in coded if not c.document.is_text][:50]:
        messages = [{"role": t.role, "content": t.content} for t in one.document.turns]
        assert one.ids.tolist() == words.apply_chat_template(messages, return_dict=False)


def test_a_batch_asks_only_for_tokens_that_are_to_be_learned(coded):
    stream = model.Stream(coded, seed=3)
    inputs, targets = stream.batch(4, 64)
    order = np.random.default_rng([3, 0]).permutation(len(coded))
    ids = np.concatenate([coded[i].ids for i in order]).astype(np.int64)
    trained = np.concatenate([coded[i].trained for i in order])
    assert inputs.flatten().tolist() == ids[:256].tolist()
    assert targets.flatten().tolist() == np.where(trained, ids, -100)[1:257].tolist()
    assert not trained.all()


class Stopped(Exception):
    pass


def test_a_training_that_was_stopped_goes_on_to_the_same_model(coded, tmp_path, monkeypatch):
    plan = model.Plan(steps=6, batch_tokens=256, context=64, short_context=32, warmup=2)
    config = model.architecture(4096, 0, [4], 5)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 2
    monkeypatch.setattr(torch, "compile", lambda whole: whole)
    monkeypatch.setattr(model, "KEEP_EVERY", 3)
    whole = model.train(config, coded[:80], coded[80:90], tmp_path / "whole", plan)

    def stop(path, *state):
        keep(path, *state)
        raise Stopped

    keep = model.keep
    monkeypatch.setattr(model, "keep", stop)
    with pytest.raises(Stopped):
        model.train(config, coded[:80], coded[80:90], tmp_path / "cut", plan)
    monkeypatch.setattr(model, "keep", keep)
    again = model.train(config, coded[:80], coded[80:90], tmp_path / "cut", plan)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    curve = json.loads((tmp_path / "cut" / "curve.json").read_text())
    assert [step for step, _ in curve["held_out"]] == [3, 6]


def test_the_text_is_written_as_any_corpus_is_read(tmp_path):
    turns = (mixture.Turn("user", "Hello\nthere"), mixture.Turn("assistant", "Hi."))
    documents = [
        mixture.Document("ours", "everyday", turns, "a"),
        mixture.Document("books", "story", (mixture.Turn("text", "Once upon a time."),), "b"),
    ]
    mixture.write(documents, tmp_path / "text.jsonl")
    found = list(read(CorpusSpec(tmp_path / "text.jsonl", window=1)))
    assert [one.key for one in found] == [one.key for one in mixture.conversations(documents)]
    assert [message.role for message in found[0].messages] == ["user", "assistant"]
    assert found[1].text == "Once upon a time."
