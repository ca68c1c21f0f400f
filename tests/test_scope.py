"""A model with an SAE attached: reading, writing, writing otherwise."""

import warnings

import pytest
import torch
from conftest import FEATURES, HOOK, llama, random_sae

from sparsight import load
from sparsight.edits import Controller, Feature
from sparsight.errors import BadInput
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import Kind
from sparsight.scope.scope import Chunk, Scope

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello, how are you?"}]


def test_reading_gives_each_token_its_features(scope, lm, sae):
    reading = scope.read("Hello, how are you?")
    flow = lm.forward("Hello, how are you?", cache_activations_at=[HOOK])[2][HOOK]
    torch.testing.assert_close(reading.codes.dense(), sae.encode(flow[0]))
    assert "".join(reading.texts) == "<|begin_of_text|>Hello, how are you?"
    strongest = reading.top(3)
    assert strongest == sorted(strongest, key=lambda pair: -pair[1])
    assert max(reading[strongest[0][0]][1:]) == pytest.approx(strongest[0][1])


def test_a_chat_is_read_with_its_roles_and_its_template_left_out_of_the_top(scope):
    reading = scope.read(CHAT)
    words = {kind: "".join(t.text for t in reading.tokens() if t.kind & kind) for kind in (Kind.SYSTEM, Kind.USER)}
    assert words == {Kind.SYSTEM: "Be short.", Kind.USER: "Hello, how are you?"}
    content = {feature for token in reading.tokens(content=True) for feature, _ in token.features}
    assert {feature for feature, _ in reading.top(50)} <= content
    data = reading.to_json(2)
    assert data["tokens"][0]["kind"] == ["bos", "prompt"]
    assert all(len(token["features"]) <= 2 for token in data["tokens"])


def test_what_a_tokenizer_gives_is_read_and_written_on_as_its_texts(scope):
    texts = ["Once upon a time", "Hello"]
    coded = scope.lm.tokenizer(texts, padding=True)
    for given in (coded, scope.lm.tokenizer(texts, padding=True, return_tensors="pt")):
        assert [r.ids for r in scope.read(given)] == [r.ids for r in scope.read(texts)]
        both = scope.complete(given, max_new_tokens=4), scope.complete(texts, max_new_tokens=4)
        assert [r.ids for r in both[0]] == [r.ids for r in both[1]]
    one = scope.read(scope.lm.tokenizer("Hello"))
    assert one.ids == scope.read("Hello").ids


def test_numbers_that_are_none_are_an_error_and_no_features(lm, sae):
    broken = llama()
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    lost = Scope(ObservableLanguageModel(broken, tokenizer=lm.tokenizer), sae)
    with pytest.raises(BadInput, match="no finite numbers"):
        lost.read("Hello")


def test_an_sae_for_another_model_of_the_same_width_is_warned_of(lm, sae):
    with pytest.warns(UserWarning, match="made for 'somebody/else-8B', and the model is"):
        load(lm, sae.altered(model="somebody/else-8B"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(lm, sae.altered(model=f"somebody/{lm.name}"), check=False)


def test_the_demos_labels_belong_to_its_own_sae_and_place():
    own = load("demo")
    assert own.features.labels
    assert load("demo", sae=own.sae).features.labels == own.features.labels
    assert not load("demo", hook_point="model.layers.5").features.labels
    other = own.sae.moved("cpu", own.sae.dtype)
    with torch.no_grad():
        other.b_enc += 1
    other._fingerprint = None
    assert not load("demo", sae=other).features.labels


def test_a_batch_reads_as_its_rows_alone(scope):
    texts = ["Hello, how are you?", "Once", "I am fine, said the pirate."]
    for one, many in zip(map(scope.read, texts), scope.read(texts), strict=True):
        assert one.ids == many.ids
        torch.testing.assert_close(one.codes.dense(), many.codes.dense(), atol=1e-4, rtol=1e-4)


def test_edits_change_the_text_and_the_receipt_says_so(scope):
    out = scope.compare("Hello", scope.features[3].nudge(20).on("generated"), max_new_tokens=12)
    assert out.plain.ids != out.steered.ids
    assert out.plain.receipt is None
    assert out.steered.receipt.touched == 11  # the last token is not fed back
    assert out.plain.ids == scope.complete("Hello", max_new_tokens=12).ids


def test_where_picks_the_tokens(scope):
    nudge = scope.features[3].nudge(2)
    prompt = scope.lm.prompt(CHAT)

    def touched(*places):
        edit = nudge.on(*places) if places else nudge
        return scope.chat(CHAT, edit, max_new_tokens=4, stop_tokens=()).receipt

    def count(*kinds):
        return sum(any(k & kind for kind in kinds) for k in prompt.kinds)

    written = touched("generated").touched
    assert written == touched("generated").seen - len(prompt) > 0
    assert touched("user").touched == count(Kind.USER)
    assert touched("system").touched == count(Kind.SYSTEM)
    assert touched("template").touched == count(Kind.TEMPLATE)
    assert touched("bos").touched == 1
    assert touched("prompt").touched == count(Kind.USER, Kind.SYSTEM)
    assert touched(0, -1).touched == 2
    assert touched("prompt", "template", "bos").touched == len(prompt)
    everything = touched()
    assert everything.touched == everything.seen - count(Kind.TEMPLATE, Kind.BOS)


def test_a_batch_of_different_edits_gives_each_row_its_solo_text(scope):
    f = scope.features
    rows = [
        ("Hello, how are you?", None),
        ("Once upon a time", f[3].nudge(5) + f[9].pin(3)),
        ("I am", f[27].ablate().when(f[3] > 0.1)),
        ("the day", f[64].scale(-2).on("generated")),
        ("Once upon a time", f[3].nudge(-5)),
    ]
    options = {"max_new_tokens": 10, "temperature": 0.8, "seed": 7}
    together = scope.complete([text for text, _ in rows], [edit for _, edit in rows], **options)
    for (text, edit), reply in zip(rows, together, strict=True):
        alone = scope.complete(text, edit, **options)
        assert alone.ids == reply.ids
        assert alone.text == reply.text
        if edit:
            assert (alone.receipt.touched, alone.receipt.seen) == (
                reply.receipt.touched,
                len(alone.ids) - 1 + alone.prompt_tokens,
            )


def test_two_conversations_in_turns_do_not_touch(scope):
    f = scope.features
    wishes = [("Hello", f[3].nudge(5)), ("Once upon", f[9].pin(4).on("generated"))]
    alone = [scope.complete(text, edit, max_new_tokens=12).ids for text, edit in wishes]
    streams = [scope.complete(text, edit, max_new_tokens=12, stream=True) for text, edit in wishes]
    turns = [[], []]
    while streams[0] or streams[1]:
        for i, stream in enumerate(streams):
            chunk = next(stream, None) if stream else None
            streams[i] = stream if chunk else None
            turns[i] += [chunk.id] if chunk else []
    assert [tuple(ids) for ids in turns] == alone
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in scope.lm.model.modules())


def test_compiled_and_eager_write_the_same_and_new_edits_compile_nothing(scope, unchecked):
    from torch._dynamo.utils import counters

    f = scope.features
    wishes = [f[3].nudge(5) + f[9].pin(3), f[27].nudge(-2) + f[64].pin(6), f[9].ablate() + f[3].scale(-4)]
    graphs = []
    for wish in wishes:
        eager = scope.compare("Once upon a time", wish, max_new_tokens=12)
        fast = scope.compare("Once upon a time", wish, max_new_tokens=12, compiled=True)
        graphs.append(counters["stats"]["unique_graphs"])
        assert (fast.plain.ids, fast.steered.ids) == (eager.plain.ids, eager.steered.ids)
        assert fast.steered.receipt.touched == eager.steered.receipt.touched
        assert fast.steered.receipt.change == pytest.approx(eager.steered.receipt.change, rel=1e-4)
    assert graphs[0] == graphs[1] == graphs[2]
    assert not counters["graph_break"]


def test_a_compiled_stream_in_turns_with_another_of_its_shape(scope, unchecked):
    f = scope.features
    wishes = [f[3].nudge(5) + f[9].pin(3), f[27].nudge(-2) + f[64].pin(6)]
    wishes = [wish + (f[64] > 0).event("it fired") for wish in wishes]
    eager = [list(scope.complete("Hello", wish, max_new_tokens=8, stream=True)) for wish in wishes]
    streams = [scope.complete("Hello", w, max_new_tokens=8, stream=True, compiled=True) for w in wishes]
    fast = list(zip(*zip(*streams, strict=True), strict=True))
    for row, other in zip(eager, fast, strict=True):
        assert [(c.id, c.text, c.events, c.finish) for c in row] == [(c.id, c.text, c.events, c.finish) for c in other]
        assert row[-1].receipt.touched == other[-1].receipt.touched > 0
        assert row[-1].receipt.change == pytest.approx(other[-1].receipt.change, rel=1e-4)
    assert any(chunk.events for chunk in eager[0] + eager[1])


def test_features_of_each_new_token_come_with_it(scope):
    seen: list[Chunk] = []
    edit = scope.features[3].nudge(4).on("generated")
    reply = scope.complete("Hello", edit, max_new_tokens=6, read=True, on_token=seen.append)
    assert [chunk.id for chunk in seen] == list(reply.ids)
    assert len(reply.codes) == len(reply.ids)
    for chunk, pairs in zip(seen, reply.codes, strict=True):
        assert dict(chunk.features) == pytest.approx(dict(pairs), abs=1e-5)
    assert [chunk.receipt for chunk in seen] == [None] * 5 + [reply.receipt]
    for read in (True, False):  # reading changes nothing that is reported
        streamed = list(scope.complete("Hello", edit, max_new_tokens=6, stream=True, read=read))
        assert streamed[-1].receipt == reply.receipt
    plain = scope.complete("Hello", max_new_tokens=6, read=True)
    whole = scope.read([list(scope.lm.prompt("Hello").ids + plain.ids)])[0]
    torch.testing.assert_close(plain.codes.dense(), whole.codes.dense()[-6:], atol=1e-4, rtol=1e-4)
    assert reply.ids == scope.complete("Hello", edit, max_new_tokens=6).ids


def test_events_are_told_once_when_their_condition_first_holds(scope):
    f = scope.features
    reading = scope.read("Hello, how are you?")
    feature, peak = reading.top(1)[0]
    where = reading[feature].index(max(reading[feature][1:]))
    fires = f[feature].raw > peak * 0.9
    never = f[feature].raw > 1e9
    wish = fires.event("seen") + never.event("not seen") + (fires & (f[3].raw >= 0)).event("seen too")
    reply = scope.complete("Hello, how are you?", wish, max_new_tokens=3)
    assert where > 0
    assert scope.complete("Hello, how are you?", wish, max_new_tokens=3, read=True).events == reply.events
    assert set(reply.events) == {"seen", "seen too"}
    assert len(reply.events) == 2
    assert reply.receipt.touched == 0
    assert reply.ids == scope.complete("Hello, how are you?", max_new_tokens=3).ids


def test_an_edit_of_generated_tokens_leaves_the_prompt_alone(scope):
    """Its KV cache can be shared with unsteered requests: the first token does not depend on it."""
    edit = scope.features[3].nudge(50).on("generated")
    out = scope.compare("Hello, how are you?", edit, max_new_tokens=4)
    assert out.plain.ids[0] == out.steered.ids[0]
    assert out.plain.ids != out.steered.ids


def test_a_base_model_completes_text_and_says_why_it_does_not_chat(tokenizer):
    import copy

    from sparsight.errors import NoChatTemplate

    base = copy.copy(tokenizer)
    base.chat_template = None
    scope = Scope(ObservableLanguageModel(llama(), tokenizer=base), random_sae())
    assert scope.complete("Once", max_new_tokens=3).ids
    with pytest.raises(NoChatTemplate, match=r"complete\(text\)"):
        scope.chat(CHAT)
    with pytest.raises(BadInput, match="for messages there is chat"):
        scope.complete(CHAT)


def test_a_model_without_a_tokenizer_works_on_ids():
    scope = Scope(ObservableLanguageModel(llama()), random_sae())
    assert len(scope.complete([[1, 2, 3], [4]], scope.features[3].nudge(1), max_new_tokens=3)[0].ids) == 3
    reading = scope.read([[1, 2, 3], [4]])
    assert [len(r) for r in reading] == [3, 1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: s.complete(""), "prompt is empty"),
        (lambda s: s.chat([]), "There is no"),
        (lambda s: s.complete([]), "There is no"),
        (lambda s: s.complete("Hi", temperature=-1), "temperature must be a number from 0 to 100"),
        (lambda s: s.complete("Hi", temprature=1), "No sampling option 'temprature'"),
        (lambda s: s.complete("Hi", stop=[""]), "stop string must not be empty"),
        (lambda s: s.complete("Hi", max_new_tokens=0), "max_new_tokens must be"),
        (lambda s: s.complete(["Hi", "Ho"], [None]), "1 edits for 2 prompts"),
        (lambda s: s.complete("word " * 400), r"leaves no room|context holds 256"),
        (lambda s: s.complete("caf\udce9"), r"not valid UTF-8 \(at character 3\)"),
        (lambda s: s.chat([{"role": "wizard", "content": "x"}]), "No role 'wizard'"),
        (lambda s: s.chat([{"content": "x"}]), "A message is"),
        (lambda s: s.chat([{"role": [], "content": "x"}]), "No role"),
        (lambda s: s.read(None), "A prompt is a text"),
        (lambda s: s.read(5), "A prompt is a text"),
        (lambda s: s.read(b"Once"), "A prompt is a text"),
        (lambda s: s.complete("Hi", stop=5), "stop takes strings"),
        (lambda s: s.complete("Hi", stop_tokens=["a"]), "stop_tokens takes token ids"),
        (lambda s: s.compare("Hi", None, stream=True), "To stream"),
        (lambda s: s.sae.encode_features(torch.zeros(1, 32), [10**30]), "whole numbers"),
        (lambda s: load(s.lm, sae=s.sae, device="cpu"), "loaded already"),
        (lambda s: s.features[FEATURES], "No feature 128: this SAE has 128"),
        (lambda s: s.features["dragons"], "No feature is labelled 'dragons'. Labels there are: pirate speech"),
        (lambda s: s.features["small"], "Several features are labelled 'small': 7 .*, 9 "),
        (lambda s: s.features.edit("12"), "Cannot read the edit '12'"),
        (lambda s: s.features.edit("12=+nan"), "finite number"),
        (lambda s: s.features.edit("12=+1@mars"), "No tokens 'mars'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(scope, call, says):
    with pytest.raises(BadInput, match=says) as caught:
        call(scope)
    assert "\n" not in str(caught.value)


def test_edits_are_read_from_short_lines(scope):
    f = scope.features
    assert f.edit("12=+0.6") == f[12].nudge(0.6)
    assert f.edit("12=-0.6@generated") == f[12].nudge(-0.6).on("generated")
    assert f.edit("pirate=8") == f[3].pin(8)
    assert f.edit("pirate speech=+3raw@-1") == f[3].raw.nudge(3).on(-1)
    assert f.edit("12=*-2") == f[12].scale(-2)
    assert f.edit("12=*2@user") == f[12].scale(2).on("user")
    assert f.edit("12=off") == f[12].ablate()


def test_features_carry_their_sae_and_labels(scope, sae):
    assert scope.features["pirate speech"] == Feature(3, sae=sae.fingerprint)
    assert scope.features[3].label == "pirate speech"
    assert len(scope.features) == FEATURES


def test_load_takes_what_a_person_has(lm, sae, tmp_path):
    from sparsight import save_sae

    folder = save_sae(sae, tmp_path / "sae")
    scope = load(lm, sae=folder)
    assert scope.hook_point == HOOK
    assert load(lm.model, sae=sae, tokenizer=lm.tokenizer, hook_point="model.layers.1").hook_point == "model.layers.1"
    with pytest.raises(BadInput, match="Which SAE"):
        load(lm)


def test_nothing_warns(scope):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scope.compare("Hello", Controller.of(scope.features[3].nudge(1)), max_new_tokens=3, read=True)


def test_a_stream_that_cannot_be_is_refused_before_it_is_read(scope):
    """So that a server can answer with an error instead of breaking off."""
    for wrong in ({"edits": Feature(FEATURES).nudge(1)}, {"temperature": -1}, {"max_new_tokens": 1.5}):
        with pytest.raises(BadInput):
            scope.complete("Hello", stream=True, **wrong)
    with pytest.raises(BadInput):
        scope.complete("word " * 400, stream=True)


def test_a_strength_that_no_model_can_hold_is_refused_and_numbers_that_broke_are_said(scope, tokenizer):
    with pytest.raises(BadInput, match="beyond what a residual stream holds"):
        scope.complete("Hello", scope.features[3].nudge(1e39))
    half = Scope(ObservableLanguageModel(llama(torch.float16), tokenizer=tokenizer), random_sae(dtype=torch.float16))
    with pytest.raises(BadInput, match="overflowed torch.float16 in row 1"):
        half.complete(["Hello", "Hello"], [None, half.features[3].nudge(1e9)], max_new_tokens=3)


def test_a_receipt_counts_what_changed_after_rounding(tokenizer):
    scope = Scope(ObservableLanguageModel(llama(torch.bfloat16), tokenizer=tokenizer), random_sae(dtype=torch.bfloat16))
    tiny, big = scope.features[3].raw.nudge(1e-7), scope.features[3].raw.nudge(1.0)
    assert scope.complete("Once upon", tiny, max_new_tokens=4).receipt.touched == 0
    assert scope.complete("Once upon", big, max_new_tokens=4).receipt.touched > 3


def test_steering_goes_into_a_pass_by_hand(scope):
    f, lm = scope.features, scope.lm
    prompt = lm.prompt("Hello, how are you?")
    steering = scope.steering([Controller.of(f[3].nudge(9).on("generated"))], [prompt])
    logits, past, _ = lm.forward([prompt], interventions={HOOK: steering})
    assert steering.receipt(0).touched == 0
    lm.forward(logits.argmax(-1, keepdim=True), interventions={HOOK: steering}, past_key_values=past)
    assert steering.receipt(0).touched == 1
    bounded = scope.steering([Controller((f[3].nudge(9),), min_nudge_entropy=1.0)], [prompt])
    with pytest.raises(BadInput, match=r"use scope.chat or scope.complete"):
        lm.forward([prompt], interventions={HOOK: bounded})


def test_many_edits_of_one_feature_are_one_change_and_too_many_are_refused(scope):
    f = scope.features
    often = sum(f[3].raw.nudge(0.01) for _ in range(300))
    once = scope.complete("Hello", f[3].raw.nudge(3.0), max_new_tokens=6)
    assert scope.complete("Hello", often, max_new_tokens=6).ids == once.ids
    many = sum(f[i].nudge(0.1).when(f[j] > j) for i in range(100) for j in range(60))
    with pytest.raises(BadInput, match="Too many edits"):
        scope.complete("Hello", many)


def test_ids_as_the_tokenizer_gives_them_are_prompts(scope, tokenizer):
    texts = ["Hello, how are you?", "Once"]
    given = tokenizer(texts, return_tensors="pt", padding=True)
    alone = [scope.complete(text, max_new_tokens=4).ids for text in texts]
    assert [c.ids for c in scope.lm.generate(given, max_new_tokens=4)] == alone
    assert scope.lm.generate(given["input_ids"][:1], max_new_tokens=4)[0].ids == alone[0]
    assert scope.lm.generate(given["input_ids"][0], max_new_tokens=4).ids == alone[0]
