"""Writing: the words transformers would write, each row by itself, told as they come and never by halves."""

import contextlib
import math
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import CONTEXT, HOOK, VOCABULARY, llama
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from torch._dynamo.exc import TorchDynamoException
from torch.testing import assert_close
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.generation import logits_process

from sparsight.errors import BadInput, NoHookPoint, NotReached, TooLong
from sparsight.lm import compiled as compiled_room
from sparsight.lm.generate import generate, stream
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.lm.sample import Sampler
from sparsight.lm.text import TextStream, pieces
from sparsight.records import Kind, Sampling

STORIES = Path(__file__).parents[1].parent / "shared" / "data" / "models" / "stories260K"
PROMPTS = [[0, 17, 42], [0, 300, 12, 8, 77, 31, 5], [9]]
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 24, "vocab_size": 100, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def endless() -> ObservableLanguageModel:
    """A model that never ends its turn, in float64: batching it changes no choice."""
    return ObservableLanguageModel(llama(torch.float64, eos_token_id=None))


def other_model(name: str) -> ObservableLanguageModel:
    torch.manual_seed(0)
    if name == "gpt2":
        made = GPT2LMHeadModel(GPT2Config(**GPT2, bos_token_id=0, eos_token_id=None))
    elif name == "gpt-neo":  # every other layer looks back a few tokens only, and says so to nobody
        shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4, "max_position_embeddings": 64}
        shape |= {"attention_types": [[["global", "local"], 1]], "vocab_size": 100, "initializer_range": 0.2}
        made = GPTNeoForCausalLM(GPTNeoConfig(**shape, bos_token_id=0, eos_token_id=None))
    else:
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        shape |= {"intermediate_size": 64, "vocab_size": 100, "sliding_window": 4, "initializer_range": 0.2}
        made = MistralForCausalLM(MistralConfig(**shape, bos_token_id=0, eos_token_id=None))
    return ObservableLanguageModel(made.to(torch.float64))


class Script:
    """At the unembedding, makes the model say these ids, row by row; what it would have said is lost."""

    def __init__(self, *rows, after: int = 1):
        self.rows, self.after = rows, after

    def edit(self, logits, place):
        out = torch.zeros_like(logits)
        for row, ids in enumerate(self.rows):
            at = int(place.positions[row, -1]) + 1 - self.after
            out[row, -1, ids[min(at, len(ids) - 1)]] = 1
        return out


def says(lm, ids, **options):
    """The completion of a model that says these ids."""
    options.setdefault("max_new_tokens", len(ids))
    return generate(lm, [0], interventions={"lm_head": Script(ids)}, **options)


def texts_of(pieces_, rows: int) -> list[str]:
    return ["".join(p.text for p in pieces_ if p.row == row) for row in range(rows)]


# ── greedy ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama", "gpt2", "sliding"])
def test_greedy_words_are_those_of_transformers(endless, name):
    lm = endless if name == "llama" else other_model(name)
    prompts = [[t % 100 for t in row] for row in PROMPTS]
    batched = generate(lm, prompts, max_new_tokens=12)
    for prompt, completion in zip(prompts, batched, strict=True):
        ids = torch.tensor([prompt])
        theirs = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert list(completion.ids) == theirs[0, len(prompt) :].tolist()
        assert completion.finish == "length"
        assert generate(lm, prompt, max_new_tokens=12).ids == completion.ids


def test_one_prompt_gives_one_completion_and_a_list_a_list(lm):
    one = lm.generate("Hello", max_new_tokens=3)
    assert [one] == lm.generate(["Hello"], max_new_tokens=3)
    chat = [{"role": "user", "content": "Hello"}]
    assert [lm.generate(chat, max_new_tokens=3)] == lm.generate([chat], max_new_tokens=3)
    assert lm.generate(chat, max_new_tokens=3).prompt == lm.prompt(chat)


def test_a_row_ends_at_its_own_stop_token_or_length_whatever_the_others_do(endless):
    free = generate(endless, PROMPTS, max_new_tokens=10)
    stop = free[1].ids[4]
    first = free[1].ids.index(stop)
    wishes = [
        Sampling(max_new_tokens=7),
        Sampling(max_new_tokens=10, stop_tokens=(stop,)),
        Sampling(max_new_tokens=1),
    ]
    short = generate(endless, PROMPTS, wishes)
    assert [c.finish for c in short] == ["length", "stop", "length"]
    assert [c.ids for c in short] == [free[0].ids[:7], free[1].ids[: first + 1], free[2].ids[:1]]


@pytest.mark.parametrize("end", ["configuration", "tokenizer"])
def test_the_models_own_end_of_turn_is_kept_in_the_ids_and_not_in_the_text(tokenizer, end):
    model = llama(eos_token_id=[7, 9] if end == "configuration" else None)
    lm = ObservableLanguageModel(model, tokenizer=tokenizer)
    last = 9 if end == "configuration" else tokenizer.eos_token_id
    hello = tokenizer("Hello", add_special_tokens=False)["input_ids"]
    out = says(lm, [*hello, last, *hello])
    assert (out.text, out.ids, out.finish) == ("Hello", (*hello, last), "stop")


def test_writing_ends_where_the_context_does(endless):
    out = generate(endless, [[1] * (CONTEXT - 3), [1, 2]], max_new_tokens=9, read_at=[HOOK])
    assert [len(c.ids) for c in out] == [3, 9]
    assert out[0].finish == "length"
    assert out[0].activations[HOOK].shape[0] == 3
    with pytest.raises(TooLong, match="256 tokens; this model's context of 256 leaves no room"):
        generate(endless, [1] * CONTEXT)


def test_a_row_at_its_contexts_end_does_not_hold_up_a_shorter_one():
    lm = other_model("gpt2")  # it has a table of positions, and no row in it past the context
    long, short = [1] * (lm.context - 2), [3, 4]
    both = generate(lm, [long, short], max_new_tokens=10)
    assert [c.ids for c in both] == [generate(lm, p, max_new_tokens=10).ids for p in (long, short)]
    assert [len(c.ids) for c in both] == [2, 10]


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────


def warped(logits: torch.Tensor, wish: Sampling) -> torch.Tensor:
    """Transformers' own probabilities."""
    scores = logits_process.TemperatureLogitsWarper(float(wish.temperature))(None, logits)
    if wish.top_k:
        scores = logits_process.TopKLogitsWarper(wish.top_k)(None, scores)
    if wish.top_p < 1:
        scores = logits_process.TopPLogitsWarper(wish.top_p)(None, scores)
    if wish.min_p > 0:
        scores = logits_process.MinPLogitsWarper(wish.min_p)(None, scores)
    return scores.softmax(-1)


WISHES = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 60),
    top_p=st.floats(0, 1),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
)


@settings(max_examples=150)
@given(wishes=st.lists(WISHES, min_size=1, max_size=3), seed=st.integers(0, 1000), spread=st.floats(0.1, 10))
def test_what_may_be_drawn_is_what_transformers_would_leave(wishes, seed, spread):
    logits = torch.randn(len(wishes), 50, generator=torch.Generator().manual_seed(seed)) * spread
    kept, tokens = Sampler(wishes, torch.device("cpu")).filtered(logits)
    ours = torch.zeros_like(logits).scatter(-1, tokens, kept / kept.sum(-1, keepdim=True))
    for row, wish in enumerate(wishes):
        theirs = warped(logits[row : row + 1], wish)[0]
        assert_close(ours[row], theirs, rtol=1e-4, atol=1e-6)
        assert torch.equal(ours[row] > 1e-6, theirs > 1e-6)


def test_equal_likelihoods_at_the_edge_of_top_k_are_all_kept():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    kept, tokens = Sampler([Sampling(temperature=1, top_k=2)], torch.device("cpu")).filtered(logits)
    assert set(tokens[kept > 0].tolist()) == set(
        warped(logits, Sampling(temperature=1, top_k=2))[0].nonzero()[:, 0].tolist()
    )


def test_without_filters_the_rarest_token_stays_possible():
    logits = torch.linspace(0, -14, 40_000).unsqueeze(0)
    kept, _ = Sampler([Sampling(temperature=1)], torch.device("cpu")).filtered(logits)
    assert bool((kept > 0).all())


def distance(drawn: list[int], wanted: torch.Tensor) -> float:
    seen = torch.bincount(torch.tensor(drawn), minlength=len(wanted)) / len(drawn)
    return float((seen - wanted).abs().sum() / 2)


@pytest.mark.parametrize("wish", [{}, {"top_p": 0.8}, {"top_k": 3, "temperature": 2.0}, {"min_p": 0.2}])
def test_draws_follow_the_distribution_within_a_seed_and_across_seeds(wish):
    wish = {"temperature": 1.0, **wish}
    logits = torch.tensor([[0.0, 1.5, -1.0, 0.7, 2.0, -3.0, 0.1, 1.0]])
    wanted = warped(logits, Sampling(**wish))[0]
    sampler = Sampler([Sampling(**wish, seed=5)], torch.device("cpu"))
    within = [int(sampler(logits)) for _ in range(4000)]
    across = Sampler([Sampling(**wish, seed=s) for s in range(4000)], torch.device("cpu"))(logits.repeat(4000, 1))
    for drawn in (within, across.tolist()):
        assert distance(drawn, wanted) < 0.03
        assert not set(drawn) - set(wanted.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature):
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)) * 50
    drawn = Sampler([Sampling(temperature=temperature, seed=s) for s in range(4)], torch.device("cpu"))(logits)
    assert torch.equal(drawn, logits.argmax(-1))


def test_a_seed_gives_the_same_words_alone_and_in_any_company(endless):
    wishes = [
        Sampling(max_new_tokens=10, temperature=1.3, seed=11, top_p=0.9),
        Sampling(max_new_tokens=10),
        Sampling(max_new_tokens=4, temperature=0.8, seed=11),
    ]
    together = generate(endless, PROMPTS, wishes)
    for prompt, wish, completion in zip(PROMPTS, wishes, together, strict=True):
        assert generate(endless, prompt, wish).ids == completion.ids
    again = generate(endless, PROMPTS[::-1], wishes[::-1])
    assert [c.ids for c in again[::-1]] == [c.ids for c in together]
    seeds = {generate(endless, PROMPTS[0], temperature=1.3, seed=s, max_new_tokens=10).ids for s in range(5)}
    assert len(seeds) == 5


@pytest.mark.parametrize("seed", range(3))
def test_biases_and_penalties_are_added_to_the_logits_as_openai_says(endless, seed):
    turns = random.Random(seed)
    wish = Sampling(
        max_new_tokens=12,
        logit_bias={turns.randrange(400): turns.uniform(-4, 4) for _ in range(60)},
        presence_penalty=turns.uniform(-2, 2),
        frequency_penalty=turns.uniform(-2, 2),
    )
    said: list[int] = []
    for _ in range(12):
        logits = endless.forward([*PROMPTS[0], *said])[0][0]
        for token, bias in wish.logit_bias:
            logits[token] += bias
        for token in set(said):
            logits[token] -= wish.presence_penalty + wish.frequency_penalty * said.count(token)
        said.append(int(logits.argmax()))
    beside = Sampling(max_new_tokens=12, temperature=1.0, frequency_penalty=2)
    both = generate(endless, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], [wish, beside, Sampling(max_new_tokens=12)])
    assert list(both[0].ids) == said
    assert both[1].ids == generate(endless, PROMPTS[1], beside).ids
    assert both[2].ids == generate(endless, PROMPTS[0], max_new_tokens=12).ids != both[0].ids


def test_a_token_may_be_forbidden_and_forced(endless):
    free = generate(endless, PROMPTS[0], max_new_tokens=8).ids
    assert free[0] not in generate(endless, PROMPTS[0], max_new_tokens=8, logit_bias={free[0]: -100}).ids
    forced = generate(endless, PROMPTS[0], max_new_tokens=8, logit_bias=[(42, 100)], temperature=1.0).ids
    assert forced == (42,) * 8


def test_whoever_asks_for_no_bias_pays_for_none():
    logits = torch.randn(2, 50)
    assert Sampler([Sampling(), Sampling(temperature=1)], torch.device("cpu")).weigh(logits) is logits
    assert Sampling(logit_bias={9: 1, 3: 0, 4: -2}).logit_bias == ((4, -2.0), (9, 1.0))
    assert hash(Sampling(logit_bias={9: 1, 4: -2})) == hash(Sampling(logit_bias=[(4, -2), (9, 1.0)]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"logit_bias": {-1: 1}}, "whole numbers from 0 up"),
        ({"logit_bias": {"7": 1}}, "whole numbers from 0 up"),
        ({"logit_bias": {7: 101}}, "from -100 to 100"),
        ({"logit_bias": {7: math.nan}}, "finite number"),
        ({"logit_bias": {7: True}}, "finite number"),
        ({"logit_bias": [(7, 1), (7, 2)]}, "names token 7 twice"),
        ({"logit_bias": 7}, "maps token ids to numbers"),
        ({"logit_bias": {VOCABULARY: 1}}, "names token 400, which lies outside"),
        ({"presence_penalty": 2.1}, "presence_penalty must be a number from -2 to 2"),
        ({"frequency_penalty": math.nan}, "frequency_penalty must be"),
    ],
)
def test_a_bias_or_penalty_that_is_none_is_refused(endless, wrong, words):
    with pytest.raises(BadInput, match=words):
        generate(endless, [1], **wrong)


# ── in turns ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
def test_two_interleaved_conversations_do_not_touch(endless, seed):
    v = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    calls = [
        {"prompts": PROMPTS[:1], "interventions": {HOOK: lambda x: x + v}, "max_new_tokens": 8},
        {"prompts": PROMPTS, "temperature": 1.0, "seed": 3, "max_new_tokens": 6, "read_at": [HOOK]},
        {"prompts": PROMPTS[1:], "interventions": {"model.layers.1": lambda x: x * 0.5}, "max_new_tokens": 7},
    ]
    alone = [[(p.row, p.id) for p in stream(endless, **call)] for call in calls]
    waiting = {i: stream(endless, **call) for i, call in enumerate(calls)}
    together: list[list] = [[] for _ in calls]
    turns = random.Random(seed)
    while waiting:
        which = turns.choice(list(waiting))
        piece = next(waiting[which], None)
        if piece is None:
            del waiting[which]
        else:
            together[which].append((piece.row, piece.id))
    assert together == alone
    assert alone[0] != [(p.row, p.id) for p in stream(endless, PROMPTS[:1], max_new_tokens=8)]


def test_a_stream_left_in_the_middle_leaves_nothing_behind(endless):
    words = stream(endless, PROMPTS, interventions={HOOK: lambda x: x + 1}, max_new_tokens=8)
    next(words)
    assert not any(m._forward_hooks for m in endless.model.modules())
    words.close()
    assert len(generate(endless, PROMPTS[0], max_new_tokens=3).ids) == 3


# ── read and changed while writing ───────────────────────────────────────────────────────────────────────────────


def test_reading_while_writing_is_reading_afterwards(endless):
    points = [HOOK, "model.layers.0.mlp"]
    for completion in generate(endless, PROMPTS, max_new_tokens=6, read_at=points, temperature=0.7):
        ids = [*completion.prompt.ids, *completion.ids]
        _, _, cache = endless.forward(ids, points)
        for point in points:
            assert_close(completion.activations[point], cache[point][0, -6:])


def test_what_is_read_is_what_came_before_the_edit_there_and_after_those_below(endless):
    v = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    edits = {HOOK: lambda x: x + v}
    out = generate(endless, PROMPTS[0], interventions=edits, max_new_tokens=5, read_at=[HOOK, "model.layers.3"])
    ids = [*out.prompt.ids, *out.ids]
    cache = endless.forward(ids, [HOOK, "model.layers.3"], edits)[2]
    assert_close(out.activations[HOOK], cache[HOOK][0, -5:] - v)
    assert_close(out.activations["model.layers.3"], cache["model.layers.3"][0, -5:])


@pytest.mark.parametrize("cleanup", [None, "model.layers.3"])
def test_an_edit_while_writing_is_the_same_edit_in_pass_after_pass(endless, cleanup):
    lm = ObservableLanguageModel(endless.model, cleanup_intervention_layer=cleanup)
    v = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    edits = {"model.layers.1": lambda x: x + v * x.std(-1, keepdim=True), HOOK: None}
    out = generate(lm, PROMPTS, interventions=edits, max_new_tokens=6)
    for completion in out:
        ids, past, said = list(completion.prompt.ids), None, []
        for _ in range(6):
            logits, past, _ = lm.forward(ids, None, edits, past_key_values=past)
            ids = [int(logits.argmax())]
            said += ids
        assert list(completion.ids) == said
    without = generate(ObservableLanguageModel(endless.model), PROMPTS, interventions=edits, max_new_tokens=6)
    assert ([c.ids for c in out] == [c.ids for c in without]) == (cleanup is None)


class Noting:
    """Changes nothing, and notes where it was."""

    def __init__(self):
        self.places = []

    def edit(self, activations, place):
        self.places.append(place)
        return activations


@pytest.mark.parametrize("reading", [False, True])
def test_an_intervention_sees_each_token_once_and_no_token_after_a_rows_end(endless, reading):
    note = Noting()
    wishes = [Sampling(max_new_tokens=n) for n in (2, 6, 4)]
    at = [HOOK] if reading else []
    out = generate(endless, PROMPTS, wishes, {HOOK: note}, read_at=at)
    kinds = torch.cat([p.kinds for p in note.places], 1)
    for row, completion in enumerate(out):
        real = kinds[row][kinds[row] != 0]
        n = len(completion.prompt)
        assert real.tolist()[:n] == [int(Kind.PROMPT | Kind.TEXT)] * n
        fed = len(completion.ids) - 1  # the last token is at most read: nothing follows it that an edit could change
        assert real.tolist()[n:] == [int(Kind.GENERATED | Kind.ASSISTANT)] * fed
        seen = torch.cat([p.positions for p in note.places], 1)[row][kinds[row] != 0]
        assert seen.tolist() == list(range(n + fed))
    assert [p.prompt for p in note.places] == [True] + [False] * (len(note.places) - 1)


def test_an_intervention_is_told_how_unsure_the_unedited_model_is(endless):
    note = Noting()
    v = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    edits = {HOOK: note, "model.layers.1": lambda x: x + v}
    ids = [p.id for p in stream(endless, PROMPTS[0], None, edits, max_new_tokens=4, entropy=True)]
    logits, _, _ = endless.forward([*PROMPTS[0], *ids], all_logits=True)
    wanted = torch.distributions.Categorical(logits=logits[0, :-1]).entropy()
    told = torch.cat([p.entropy for p in note.places], 1)[0]
    assert_close(told, wanted.to(told.dtype), rtol=1e-4, atol=1e-5)
    assert ids != [p.id for p in stream(endless, PROMPTS[0], max_new_tokens=4)]


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompts", "options", "error", "words"),
    [
        ([], {}, BadInput, "no prompt"),
        ("", {}, BadInput, "empty"),
        ([1, VOCABULARY], {}, BadInput, "outside this model's vocabulary"),
        ([[1], [2, -3]], {}, BadInput, "outside this model's vocabulary"),
        ("Hello", {"max_new_tokens": 0}, BadInput, "max_new_tokens must be"),
        ("Hello", {"temprature": 1}, BadInput, "No sampling option 'temprature'. There are: max_new_tokens, temp"),
        ("Hello", {"sampling": Sampling(), "seed": 1}, BadInput, "not both"),
        ("Hello", {"sampling": [Sampling()] * 2}, BadInput, "2 samplings for 1 prompts"),
        ("Hello", {"read_at": ["model.layers.7"]}, NoHookPoint, "has 0 to 3"),
        ("Hello", {"interventions": {"model.layers": lambda x: x}}, NotReached, "Nothing flowed"),
    ],
)
def test_what_cannot_be_written_is_refused_in_words(lm, prompts, options, error, words):
    with pytest.raises(error, match=words):
        generate(lm, prompts, **options)


def test_stop_strings_need_a_tokenizer(endless):
    assert generate(endless, [1, 2], max_new_tokens=3).text == ""
    with pytest.raises(BadInput, match="Stop strings need a tokenizer"):
        generate(endless, [1, 2], stop="x")


# ── text as it comes ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's: words begin with ▁, the first space is dropped, unknown characters are bytes."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁aehlopst,.", "▁a", "he", "▁the", "▁▁"]
    made = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def decoded(tokenizer, ids, skip: bool) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


def shown(tokenizer, ids, stop=()) -> list[str]:
    text = TextStream(tokenizer, stop)
    out = [text.push(token) for token in ids]
    return [*out, text.finish()]


ANY_IDS = st.lists(st.integers(0, 347), max_size=30)


@settings(max_examples=300)
@given(ids=ANY_IDS)
def test_the_pieces_are_the_whole_whatever_the_model_writes(tokenizer, ids):
    assert "".join(shown(tokenizer, ids)) == decoded(tokenizer, ids, skip=True)
    parts = pieces(tokenizer, ids)
    assert len(parts) == len(ids)
    assert "".join(parts) == decoded(tokenizer, ids, skip=False)


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=15))
def test_no_half_of_a_character_is_ever_shown(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert not any("\ufffd" in piece for piece in [*shown(tokenizer, ids), *pieces(tokenizer, ids)])


def test_an_emoji_comes_whole_at_its_last_token(tokenizer):
    ids = tokenizer("a🏴‍☠️", add_special_tokens=False)["input_ids"]
    assert [piece for piece in pieces(tokenizer, ids) if piece] == list("a🏴‍☠️")
    half = ids[:3]
    assert shown(tokenizer, half) == ["a", "", "", "\ufffd"]  # where the model really ends inside one


WORDS = st.lists(
    st.one_of(st.sampled_from(["a", " a", "the", " the", "  ", "é", "🙂", "早上", "<s>", "."])), max_size=12
)


@settings(max_examples=200)
@given(words=WORDS)
def test_spaces_between_words_survive_a_tokenizer_that_drops_the_first(sentencepiece, words):
    ids = [t for word in words for t in spelled(sentencepiece, word)]
    out = shown(sentencepiece, ids)
    assert "".join(out) == decoded(sentencepiece, ids, skip=True)
    assert not any("\ufffd" in piece for piece in out)
    assert "".join(pieces(sentencepiece, ids)) == decoded(sentencepiece, ids, skip=False)


def spelled(tokenizer, word: str) -> list[int]:
    """The ids of a word in that small vocabulary: itself, or its characters, or their bytes."""
    known, word = tokenizer.get_vocab(), word.replace(" ", "▁")
    if word in known:
        return [known[word]]
    return [i for c in word for i in ([known[c]] if c in known else [known[f"<0x{b:02X}>"] for b in c.encode()])]


@settings(max_examples=300)
@given(
    text=st.text(st.sampled_from("abé🙂 \n"), max_size=14),
    stops=st.lists(st.text(st.sampled_from("abé🙂 \n"), min_size=1, max_size=4), min_size=1, max_size=2),
)
def test_no_part_of_a_stop_string_is_ever_shown(tokenizer, text, stops):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream_ = TextStream(tokenizer, stops)
    so_far = [""]
    for token in ids:
        so_far.append(so_far[-1] + stream_.push(token))
    final = so_far[-1] + stream_.finish()
    wholes = [decoded(tokenizer, ids[:n], skip=True) for n in range(len(ids) + 1)]
    whole = next((w for w in wholes if any(stop in w for stop in stops)), wholes[-1])
    cut = min((at for at in (whole.find(stop) for stop in stops) if at >= 0), default=len(whole))
    assert final == whole[:cut] == stream_.text
    assert all(final.startswith(part) for part in so_far)
    assert stream_.stopped == (cut < len(whole))
    if not stream_.stopped:  # and nothing is held back without need
        possible = max((n for n in range(4) for s in stops if len(s) > n and text.endswith(s[:n])), default=0)
        assert so_far[-1] == text[: len(text) - possible]


def test_a_stop_string_cut_by_tokens_ends_the_row_where_it_is_whole(lm, tokenizer):
    ids = tokenizer("Hello, how are you? I am fine", add_special_tokens=False)["input_ids"]
    out = says(lm, ids, stop=("re you? I", "fine"))
    assert out.text == "Hello, how a"
    assert out.finish == "stop"
    spoken = decoded(tokenizer, out.ids, skip=True)
    assert spoken.endswith("re you? I")  # it stops at once, not some tokens later
    longer = says(lm, ids, stop="fine!")
    assert (longer.text, longer.finish) == ("Hello, how are you? I am fine", "length")


def test_what_is_told_piece_by_piece_is_what_was_written(lm, tokenizer):
    ids = tokenizer("Ahoy 🏴‍☠️, né?", add_special_tokens=False)["input_ids"]
    told = []
    out = says(lm, ids, on_token=told.append)
    assert "".join(p.text for p in told) == out.text == "Ahoy 🏴‍☠️, né?"
    assert [p.id for p in told] == list(out.ids) == ids
    assert [p.index for p in told] == list(range(len(ids)))
    assert [p.finish for p in told] == [None] * (len(ids) - 1) + ["length"]


def test_each_row_stops_at_its_own_words(lm, tokenizer):
    rows = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("Hello, you", "how are you", "fine")]
    n = max(map(len, rows))
    wishes = [Sampling(max_new_tokens=n, stop=","), Sampling(max_new_tokens=n, stop="zz"), Sampling(max_new_tokens=1)]
    told = list(stream(lm, [[0]] * 3, wishes, {"lm_head": Script(*rows)}))
    texts = texts_of(told, 3)
    assert texts[0] == "Hello"
    assert texts[1].startswith("how are you")
    assert texts[2] == tokenizer.decode(rows[2][:1])


def test_a_small_model_tells_the_story_that_its_author_published():
    if not STORIES.exists():
        pytest.skip("the stories260K model is not beside this checkout")
    lm = ObservableLanguageModel(STORIES / "hf", device="cpu")
    published = re.search(r"-t 0\.0\n(.*?)\n```", (STORIES / "stories260K.md").read_text(), re.DOTALL)[1]
    out = generate(lm, [lm.tokenizer.bos_token_id], max_new_tokens=256)
    assert out.text == published


# ── compiled ─────────────────────────────────────────────────────────────────────────────────────────────────────


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module")
def fast() -> ObservableLanguageModel:
    return ObservableLanguageModel(llama(torch.float64, eos_token_id=None, num_hidden_layers=1))


def test_compiled_and_eager_write_and_read_the_same_and_compile_once(fast, unchecked):
    options = {"read_at": ["model.layers.0"], "temperature": 0.9, "seed": 4}
    before = graphs()
    for prompts, more in ((PROMPTS, 12), (PROMPTS[::-1], 9), ([[5], [6, 7], [8] * 60], 5)):
        eager = generate(fast, prompts, max_new_tokens=more, **options)
        compiled = generate(fast, prompts, max_new_tokens=more, compiled=True, **options)
        assert [c.ids for c in eager] == [c.ids for c in compiled]
        for a, b in zip(eager, compiled, strict=True):
            assert_close(a.activations["model.layers.0"], b.activations["model.layers.0"], rtol=1e-4, atol=1e-5)
    assert graphs() == before + 1
    assert not any(m._forward_hooks for m in fast.model.modules())
    left = stream(fast, PROMPTS, compiled=True, max_new_tokens=12, **options)
    first = [next(left) for _ in range(5)]
    left.close()  # a listener who leaves hands the graph back
    again = list(stream(fast, PROMPTS, compiled=True, max_new_tokens=12, **options))
    assert [(p.row, p.id) for p in first] == [(p.row, p.id) for p in again[:5]]
    assert graphs() == before + 1


@pytest.fixture
def uncompiled(monkeypatch):
    """The step with its static cache and buffers, but without the compiler, which takes its time."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    monkeypatch.setattr(compiled_room, "cpp_compiler", lambda: "none is needed")


def test_a_compiled_row_may_end_with_its_context_beside_a_longer_one(uncompiled):
    lm = other_model("gpt2")
    prompts = [[1] * (lm.context - 2), [3, 4]]
    eager, compiled = (generate(lm, prompts, max_new_tokens=10, compiled=c) for c in (False, True))
    assert [c.ids for c in eager] == [c.ids for c in compiled]
    assert [c.finish for c in compiled] == ["length", "length"]


class Push:
    """Adds to every real token more the later it comes, and counts the tokens that it saw in each row."""

    acts = True

    def __init__(self, rows: int, strength: float):
        self.b = {"strength": torch.tensor(strength, dtype=torch.float64), "seen": torch.zeros(rows, dtype=torch.int64)}
        self.signature = rows

    def edit(self, activations, place):
        return self.apply(activations, place.kinds, place.positions)

    def apply(self, flow, kinds, positions):
        self.b["seen"] += (kinds != 0).sum(-1)
        return flow + (self.b["strength"] * positions * (kinds != 0)).unsqueeze(-1) * flow.roll(1, -1)

    def twin(self):
        return Push(self.signature, 0.0)

    def load(self, other):
        for name, tensor in self.b.items():
            tensor.copy_(other.b[name])

    def hand_back(self, other):
        other.b["seen"].copy_(self.b["seen"])


@pytest.mark.parametrize("at", [[], [HOOK, "model.layers.3"]])
def test_an_intervention_in_a_compiled_step_sees_and_does_the_same(endless, uncompiled, at):
    wishes = [Sampling(max_new_tokens=n, temperature=1.0, seed=n) for n in (2, 9, 5)]

    def written(strength, compiled):
        push = Push(3, strength)
        out = generate(endless, PROMPTS, wishes, {HOOK: push}, read_at=at, compiled=compiled)
        return out, push.b["seen"].tolist()

    for strength in (0.05, 0.2, 0.05):  # the same step, loaded with other numbers
        (eager, seen), (compiled, counted) = written(strength, False), written(strength, True)
        assert [c.ids for c in eager] == [c.ids for c in compiled]
        fed = [len(c.prompt) + len(c.ids) - 1 for c in eager]
        assert seen == counted == fed
        for a, b in zip(eager, compiled, strict=True):
            assert_close(a.activations, b.activations, rtol=1e-4, atol=1e-5)
    assert [c.ids for c in written(0.05, True)[0]] != [c.ids for c in written(0.2, True)[0]]


def test_two_compiled_streams_in_turns_write_what_each_writes_alone(endless, uncompiled):
    alone = [generate(endless, [prompt], max_new_tokens=8, compiled=True)[0].ids for prompt in PROMPTS[:2]]
    streams = [stream(endless, [prompt], max_new_tokens=8, compiled=True) for prompt in PROMPTS[:2]]
    turns = list(zip(*streams, strict=True))
    assert [tuple(piece.id for piece in column) for column in zip(*turns, strict=True)] == alone


def test_a_compiled_step_that_nothing_flows_through_is_an_error(endless, uncompiled, monkeypatch):
    monkeypatch.setattr(compiled_room.CompiledStep, "_tap", lambda self, point, flow: flow)
    with pytest.raises(NotReached, match=f"ran past its hook points .{HOOK}"):
        generate(endless, PROMPTS, compiled=True, read_at=[HOOK], max_new_tokens=5)


def test_few_idle_steps_are_kept(endless, uncompiled):
    for rows in range(1, 8):
        generate(endless, [[1, 2]] * rows, max_new_tokens=3, compiled=True)
    assert len(endless.compiled_steps) == compiled_room.KEPT


def without_compiler(monkeypatch, lm):
    monkeypatch.setattr(compiled_room, "cpp_compiler", lambda: None)
    return lm, {}


def cleaned(lm):
    return ObservableLanguageModel(lm.model, cleanup_intervention_layer="model.layers.3")


@pytest.mark.parametrize(
    ("arrange", "why"),
    [
        (without_compiler, r"no C\+\+ compiler was found"),
        (lambda _, lm: (other_model("sliding"), {}), "sliding window"),
        (lambda _, lm: (other_model("gpt-neo"), {}), "transformers says that this model cannot be compiled"),
        (lambda _, lm: (lm, {"interventions": {HOOK: lambda x: x * 1.1}}), "a plain function"),
        (lambda _, lm: (lm, {"interventions": {HOOK: Noting()}}), "a plain function"),
        (lambda _, lm: (cleaned(lm), {"interventions": {HOOK: Push(1, 0.1)}}), "a cleanup layer"),
    ],
)
def test_what_cannot_be_compiled_is_said_and_written_all_the_same(endless, uncompiled, monkeypatch, arrange, why):
    lm, options = arrange(monkeypatch, endless)
    with pytest.warns(UserWarning, match=why):
        out = generate(lm, [[1, 2, 3]], max_new_tokens=5, compiled=True, **options)
    assert out == generate(lm, [[1, 2, 3]], max_new_tokens=5, **options)


def broken_compiler(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(compiled_room.CompiledStep, "__call__", fail)


@pytest.mark.parametrize("error", [TorchDynamoException("no such compiler"), PermissionError("read-only")])
def test_where_compiling_fails_it_is_said_and_written_all_the_same(endless, uncompiled, monkeypatch, error):
    broken_compiler(monkeypatch, error)
    with pytest.warns(UserWarning, match="could not be compiled"):
        out = generate(endless, PROMPTS, max_new_tokens=5, compiled=True)
    assert out == generate(endless, PROMPTS, max_new_tokens=5)


def test_a_compiler_that_does_not_work_is_none():
    asked = "from sparsight.lm.compiled import cpp_compiler; print(cpp_compiler())"
    said = subprocess.run(
        [sys.executable, "-c", asked], env=os.environ | {"CXX": "/bin/false"}, capture_output=True, text=True
    )
    assert said.stdout == "None\n"


def test_a_graph_is_known_by_what_it_takes_for_granted_of_the_model():
    model = llama()
    seen = [compiled_room.modules_now(model)]

    def another():
        seen.append(compiled_room.modules_now(model))
        assert len(set(seen)) == len(seen)

    assert compiled_room.modules_now(model) == seen[0]
    model.model.norm.variance_epsilon = 0.5
    another()
    model.model.layers[1].self_attn.scaling *= 2
    another()
    hook = model.model.layers[1].register_forward_hook(lambda *_: None)
    another()
    hook.remove()
    model.model.layers[1].register_forward_hook(lambda *_: None)
    another()


def test_what_compiling_changes_in_transformers_is_put_back_by_every_thread():
    before = compiled_room.sdpa_attention.is_torchdynamo_compiling
    inside = threading.Barrier(2, timeout=0.2)  # two at once never meet there

    def work():
        with compiled_room.grouped_heads(), contextlib.suppress(threading.BrokenBarrierError):
            inside.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled_room.sdpa_attention.is_torchdynamo_compiling is before


def test_a_compiled_step_made_in_inference_mode_serves_outside(endless, uncompiled):
    with torch.inference_mode():
        inside = generate(endless, PROMPTS, max_new_tokens=5, compiled=True)
        left = stream(endless, PROMPTS, max_new_tokens=5)
        first = next(left)
    assert generate(endless, PROMPTS, max_new_tokens=5, compiled=True) == inside
    assert [(p.row, p.id) for p in (first, *left)] == [
        (p.row, p.id) for p in stream(endless, PROMPTS, max_new_tokens=5)
    ]


class TooMuch:
    """Makes row 0's numbers overflow from a token on."""

    def __init__(self, after: int):
        self.after = after

    def edit(self, activations, place):
        late = (place.positions[:1] >= self.after).unsqueeze(-1)
        return torch.cat([activations[:1].masked_fill(late, math.inf), activations[1:]])


def test_a_row_that_has_ended_may_overflow_and_one_that_is_written_may_not(endless):
    short, long = Sampling(max_new_tokens=2), Sampling(max_new_tokens=8)
    done = generate(endless, [[1, 2, 3], [4, 5, 6]], [short, long], {HOOK: TooMuch(4)})
    assert done[1].ids == generate(endless, [4, 5, 6], long).ids
    with pytest.raises(BadInput, match="overflowed .* in row 0"):
        generate(endless, [[1, 2, 3], [4, 5, 6]], long, {HOOK: TooMuch(4)})


@pytest.mark.usefixtures("unchecked")
def test_sampling_is_a_sampling(endless):
    with pytest.raises(BadInput, match="its fields are keywords"):
        generate(endless, [1], sampling={"temperature": 1})


def test_a_seed_is_any_whole_number():
    for seed in (-1, 2**70):
        sampler = Sampler([Sampling(temperature=1, seed=seed)] * 2, torch.device("cpu"))
        assert len(set(sampler(torch.zeros(2, 50)).tolist())) == 1
