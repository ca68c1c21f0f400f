"""From a wish in words to edits and conditions: chosen by what they do, and no further than replies hold together."""

import json
import math

import pytest
import torch
from conftest import llama, random_sae

from sparsight.edits import Controller
from sparsight.errors import BadInput, NoAnswer, NoChatTemplate
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import Kind
from sparsight.scope.auto import Point, auto_edits, joined, turning_point
from sparsight.scope.auto_condition import accuracy, auto_condition, greedy, holds
from sparsight.scope.candidates import labelled, last_header
from sparsight.scope.contrast import contrast
from sparsight.scope.contrastive import Contrastive, chat, contrastive, draws, told, wish_of
from sparsight.scope.scope import Scope
from sparsight.scope.trial import Gauge, alignment, controller, repetition, surprise, trials

WORDS = ["the dog", "a pirate", "the day", "a time", "the answer", "a question", "the system", "little dog"]
ARR = Contrastive(
    tuple(chat("Hello?", f"{word} is fine today") for word in WORDS),
    tuple(chat("Hello?", f"arr {word} arr arr") for word in WORDS),
    "writer",
    "say arr",
)


# ── chats that differ in one thing ───────────────────────────────────────────────────────────────────────────────────


def test_the_model_itself_answers_told_and_not_told_and_the_message_is_left_out(scope):
    made = contrastive(scope, "talk like a pirate", n=3, max_new_tokens=8)
    without, with_ = made
    assert (made.made_by, len(without), len(with_)) == ("model", 3, 3)
    assert [c[0] for c in without] == [c[0] for c in with_]
    assert all([m["role"] for m in c] == ["user", "assistant"] for c in [*without, *with_])
    told = scope.chat([{"role": "system", "content": "Talk like a pirate."}, with_[1][0]], sampling=draws(3, 8, 0)[1])
    assert told.text == with_[1][1]["content"]
    assert made == contrastive(scope, "talk like a pirate", n=3, max_new_tokens=8)


def test_a_model_that_knows_no_system_message_is_told_by_the_user(lm):
    import copy

    tokenizer = copy.deepcopy(lm.tokenizer)
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refuses + tokenizer.chat_template
    strict = ObservableLanguageModel(lm.model, tokenizer=tokenizer)
    assert told(strict, "Hello?", "talk like a cat") == chat("Talk like a cat. Hello?")
    assert told(lm, "Hello?", "talk like a cat")[0] == {"role": "system", "content": "Talk like a cat."}


def test_a_writer_elsewhere_is_asked_once_and_read_strictly(scope):
    asked = []

    def writer(question):
        asked.append(question)
        return "Sure: " + json.dumps([{"user": "Hi", "without": "Hello.", "with": "Arr."}] * 2)

    made = contrastive(scope, 'talk like a "pirate"', writer, n=2)
    assert made.made_by == "writer"
    assert made.with_[0] == chat("Hi", "Arr.")
    assert json.dumps('talk like a "pirate"') in asked[0]
    for answer in (
        "no",
        "[]",
        '[{"user": "a"}]',
        '[{"user": 1, "without": "b", "with": "c"}]',
        "[1]",
        '[{"user": "", "without": "b", "with": "c"}]',
        None,
    ):
        with pytest.raises(NoAnswer):
            contrastive(scope, "x", lambda _, answer=answer: answer, n=2)


def test_where_nobody_writes_the_chats_say_that_they_are_put_together(scope, sae):
    made = contrastive(scope, "talk like a pirate", "template", n=30)
    assert (made.made_by, len(made)) == ("template", 30)
    assert "pirate" in made.with_[0][1]["content"]
    assert "pirate" not in made.without[0][1]["content"]
    import copy

    tokenizer = copy.deepcopy(scope.lm.tokenizer)
    tokenizer.chat_template = None
    base = Scope(ObservableLanguageModel(scope.lm.model, tokenizer=tokenizer), sae)
    texts = contrastive(base, "talk like a pirate", n=2)
    assert texts.made_by == "template"
    assert all(isinstance(text, str) for text in [*texts.without, *texts.with_])
    assert contrast(base, texts.with_, texts.without, 2).with_
    with pytest.raises(NoChatTemplate):
        auto_edits(base, "talk like a pirate")


@pytest.mark.parametrize("bad", ["", "  ", "x" * 3000, 7, "\ud800"])
def test_wishes_that_cannot_be_asked_are_refused(scope, bad):
    with pytest.raises(BadInput):
        wish_of(bad)
    with pytest.raises(BadInput):
        contrastive(scope, "x", n=0)
    with pytest.raises(BadInput):
        contrastive(scope, "x", "nobody")


# ── what edits do ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_gauge_reads_0_in_plain_chats_and_1_in_wished_ones(scope):
    found = contrast(scope, ARR.with_, ARR.without, 8, 0, held_out=0.0)
    gauge = Gauge.of(found.with_)
    plain, wished = (float(gauge.shares(scope, side).mean()) for side in (ARR.without, ARR.with_))
    assert plain < 0.3 < 0.5 < wished
    set_ = gauge.between(plain, wished)
    assert set_.effect(plain) == 0.0
    assert set_.effect(wished) == pytest.approx(1.0)
    loud = gauge.shares(scope, [chat("Hello?", "arr " * 60)])
    assert float(loud) <= 1.0  # one feature that is far too loud does not count for several


def test_perplexity_is_that_of_the_unedited_model_on_the_reply_alone(scope):
    chats = [chat("Hello?"), chat("Once upon a time there was a dog?")]
    prompts = [scope.lm.prompt(one) for one in chats]
    replies = scope.chat(chats, scope.features[3].nudge(2), max_new_tokens=9, temperature=1.0)
    for prompt, reply, cost in zip(prompts, replies, surprise(scope, prompts, replies), strict=True):
        logits = scope.lm.forward([[*prompt.ids, *reply.ids]], all_logits=True)[0][0]
        own = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        wanted = -own[torch.arange(len(reply.ids)), list(reply.ids)]
        torch.testing.assert_close(cost, wanted, rtol=1e-3, atol=1e-3)


def test_many_settings_in_one_batch_are_what_each_is_alone(scope):
    gauge = Gauge.of(contrast(scope, ARR.with_, ARR.without, 4, 0, held_out=0.0).with_)
    settings = [((3, 1.0, "template"),), ((7, 0.5, "all"), (9, 0.5, "reply")), ()]
    sampling = draws(2, 6, 1)
    together = trials(scope, gauge, settings, ["Hello?", "A dog?"], sampling, 3.0)
    alone = [trials(scope, gauge, [one], ["Hello?", "A dog?"], sampling, 3.0)[0] for one in settings]
    assert [t.texts for t in together] == [t.texts for t in alone]
    assert [t.perplexity for t in together] == pytest.approx([t.perplexity for t in alone], rel=1e-3)
    plain = scope.chat([chat("Hello?"), chat("A dog?")], sampling=sampling)
    assert together[2].texts == tuple(reply.text for reply in plain)


def test_a_change_counts_as_far_as_it_goes_where_it_was_wished(scope):
    gauge = Gauge.of(contrast(scope, ARR.with_, ARR.without, 4, 0, held_out=0.0).with_)
    settings = [(), ((3, 3.0, "all"),), ((9, 3.0, "all"),)]
    plain, one, other = trials(scope, gauge, settings, ["Hello?", "A dog?"], draws(2, 6, 1), 3.0)
    assert alignment(one, plain, one) == pytest.approx(1.0)
    assert 0 <= alignment(other, plain, one) < 1
    assert alignment(plain, plain, one) == 0.0
    reading = scope.read([chat(q, text) for q, text in zip(["Hello?", "A dog?"], one.texts, strict=True)])
    has = [r.codes.dense()[[bool(k & Kind.ASSISTANT) for k in r.kinds]].mean(0) / scope.sae.scale for r in reading]
    torch.testing.assert_close(one.has, torch.stack(has).mean(0), rtol=1e-3, atol=1e-4)


def test_settings_are_edits_in_feature_units_or_raw_where_there_are_none(scope, lm, sae):
    wish = controller(scope, ((3, 1.5, "template"), (7, 0.5, "reply")))
    f = scope.features
    assert wish == f[3].nudge(1.5).on("template") + f[7].nudge(0.5).on("assistant", "generated", -1)
    raw = Scope(lm, sae.from_tensors(sae.config, dict(sae.named_parameters())))
    assert controller(raw, ((3, 1.5, "all"),)).edits[0].feature.unit == "raw"


def test_repetition_counts_runs_that_were_there_before():
    assert repetition([1, 2, 3, 4, 5]) == (0, 3)
    assert repetition([1, 2, 3, 1, 2, 3]) == (1, 4)
    assert repetition([7] * 10) == (7, 8)
    assert repetition([1]) == (0, 0)


def point(strength, effect, coherent=True):
    return Point(strength, effect, 1.0, 0.0, coherent)


def test_the_strength_that_is_taken_is_the_weakest_of_nearly_the_most_effect_before_replies_fall_apart():
    curve = [point(0.5, 0.3), point(1, 0.9), point(1.5, 0.93), point(2, 1.4, False), point(3, 0.99)]
    assert turning_point(curve).strength == 1
    assert turning_point([point(1, 0.5), point(2, 1.5), point(3, 3.0)]).strength == 2
    assert turning_point([point(1, 0.9, False), point(2, 0.9)]) is None
    assert turning_point([point(1, 0.01), point(2, -0.5)]) is None
    assert turning_point([]) is None


# ── the whole way ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wish_becomes_edits_within_bounds_or_none_with_the_reason(scope):
    heard = []
    found = auto_edits(scope, "say arr", chats=ARR, places=("all",), most_tried=2, tell=heard.append, seed=1)
    assert [p.facts["now"] for p in heard] == ["chats", "screen", "join", "sweep"]
    assert found.made_by == "writer"
    assert found.tried
    if found.controller:
        assert found.chosen.coherent
        assert found.chosen.perplexity <= found.most_perplexity <= 1.25 * 2.5
        assert found.controller.name == "say arr"
        assert [e.value for e in found.controller.edits] == [s for _, s, _ in found.edits]
        assert all(point.coherent for point in found.curve if point.strength <= found.chosen.strength)
    else:
        assert found.note
        assert found.chosen is None
    assert found == auto_edits(scope, "say arr", chats=ARR, places=("all",), most_tried=2, seed=1)


def test_a_bound_that_nothing_meets_leaves_the_model_unsteered(scope):
    found = auto_edits(scope, "say arr", chats=ARR, places=("all",), most_tried=2, most_perplexity=1.0)
    assert found.controller == Controller() or found.chosen.perplexity <= found.most_perplexity


@pytest.mark.parametrize(
    "asked", [{"places": ()}, {"places": ("bos",)}, {"most_perplexity": 0.5}, {"most_perplexity": math.nan}]
)
def test_what_cannot_be_tried_is_refused_before_anything_is_written(scope, asked):
    with pytest.raises(BadInput):
        auto_edits(scope, "say arr", **asked)


def test_candidates_are_found_by_the_words_of_labels(scope):
    assert labelled(scope, "talk like a pirate", 5) == [3]
    assert set(labelled(scope, "small", 5)) == {7, 9}
    assert labelled(scope, "small houses", 5)[0] == 9
    assert labelled(scope, "nothing of the sort", 5) == []


def test_what_stands_before_the_reply_is_all_behind_the_last_message(scope):
    prompt = scope.lm.prompt([{"role": "system", "content": "Be short."}, *chat("Hello?")])
    marks = last_header(prompt)
    text = scope.lm.tokenizer.decode([i for i, m in zip(prompt.ids, marks, strict=True) if m])
    assert text == "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert joined((((1, 2.0, "all"),), ((2, 1.0, "all"),)), 0.5) == ((1, 1.0, "all"), (2, 0.5, "all"))


# ── conditions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_condition_holds_in_chats_of_the_wished_sort_and_nowhere_in_others(scope):
    found = auto_condition(scope, "say arr", chats=ARR)
    assert (found.train, found.held_out, found.chats) == (1.0, 1.0, (6, 6))
    said = [*ARR.with_[0], {"role": "user", "content": "so"}]
    assert scope.chat(said, found.condition.event("arr!"), max_new_tokens=1).events == ("arr!",)
    feature, at = found.features[0]
    for side, holds_there in ((ARR.with_, True), (ARR.without, False)):
        for reading in scope.read(list(side)):
            own = [v for v, kind in zip(reading[feature], reading.kinds, strict=True) if kind & Kind.ASSISTANT]
            assert (max(own) / float(scope.sae.scale[feature.index]) > at) == holds_there


def test_thresholds_lie_half_way_where_the_gap_is_widest_and_more_features_join_only_where_they_help():
    one, other = torch.tensor([[4.0, 0.0], [6.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    chosen, train = greedy(one, other, 1)
    assert (chosen, train) == ([(0, 3.0)], pytest.approx(5 / 6))
    chosen, train = greedy(one, other, 5)
    assert (chosen, train) == ([(0, 3.0), (1, 2.0)], pytest.approx(1.0))
    assert accuracy(holds(one, chosen), holds(other, chosen)) == pytest.approx(1.0)


def test_a_random_model_in_bfloat16_goes_the_whole_way(tokenizer):
    small = Scope(
        ObservableLanguageModel(llama(torch.bfloat16), tokenizer=tokenizer), random_sae("topk", torch.bfloat16)
    )
    assert auto_condition(small, "say arr", chats=ARR).train > 0.5
