"""Rows that stand side by side, come and go: each sees its own tokens and nobody else's, and is steered by itself."""

import copy
import random

import pytest
import torch
from conftest import HOOK, D, llama, random_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from test_steering import KINDS, any_controller
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, MistralConfig, Qwen2Config

from sparsight.edits import Controller, Feature
from sparsight.errors import BadInput, TooLong
from sparsight.lm.batch import Place
from sparsight.lm.cache import full_cache, own_cache
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.lm.slot_step import SlotSteps
from sparsight.lm.slots import SMALLEST, Slots, why_no_slots, windows
from sparsight.scope.layout import Shape
from sparsight.scope.program import compile_controller
from sparsight.scope.steering import Steering
from sparsight.scope.table import MOST, SteeringTable, checked


@pytest.fixture(scope="module")
def endless() -> ObservableLanguageModel:
    return ObservableLanguageModel(llama(torch.float64, eos_token_id=None, max_position_embeddings=512))


SMALL = {
    "hidden_size": D,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "vocab_size": 400,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "sliding_window": 16,
}
MIXED = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]}
WINDOWED = {  # configs whose layers see a window
    "mistral": MistralConfig(**SMALL),
    "gemma2": Gemma2Config(**SMALL, **MIXED),
    "gemma3": Gemma3TextConfig(**SMALL, **MIXED),
    "qwen2": Qwen2Config(**SMALL, use_sliding_window=True, max_window_layers=2),
}


def windowed(name, **more) -> ObservableLanguageModel:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(copy.deepcopy(WINDOWED[name]), **more)
    return ObservableLanguageModel(made.to(torch.float64).eval())


def prefilled(lm, ids):
    past = full_cache()
    lm.run(lm.batch(lm.prompts([ids])), {}, past, use_cache=True)
    return past


class Packed:
    """Rows of ids in slots, as an engine keeps them."""

    def __init__(self, lm, rows=4, limit=300):
        self.lm, self.slots = lm, Slots(lm, rows, limit)
        self.steps = SlotSteps(lm, self.slots, HOOK, None)
        self.texts: list[list[int]] = []

    def join(self, ids):
        self.slots.put(len(self.texts), prefilled(self.lm, ids), len(ids) + 50)
        self.texts.append(list(ids))

    def leave(self, row):
        last = len(self.texts) - 1
        self.slots.fill(row, len(self.texts[row]), last, len(self.texts[last]))
        self.texts[row] = self.texts[last]
        self.texts.pop()

    def step(self, tokens):
        positions = [len(text) for text in self.texts]
        kinds = torch.ones(len(tokens), dtype=torch.int64)
        args = torch.tensor(tokens), torch.tensor(positions), kinds, max(positions) + 1
        logits, read = self.steps(*args, read=True)
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        return logits, read

    def check(self, logits, read):
        rounding = {}
        if self.lm.model.config._attn_implementation == "eager":  # whose softmax is in float32
            rounding = {"rtol": 1e-4, "atol": 1e-4}
        for row, text in enumerate(self.texts):
            theirs, _, flow = self.lm.forward(text, [HOOK])
            assert_close(logits[row], theirs[0], **rounding)
            assert_close(read[row], flow[HOOK][0, -1], **rounding)


@pytest.mark.parametrize("seed", range(3))
def test_each_row_sees_its_own_tokens_whoever_comes_and_goes(endless, seed):
    come_and_go(endless, seed)


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, "sdpa") for name in WINDOWED if name != "gemma2"] + [("gemma2", "eager"), ("qwen2", "eager")],
)
def test_a_layer_with_a_window_sees_the_tokens_in_it(name, how):
    lm = windowed(name, attn_implementation=how)
    assert why_no_slots(lm) is None
    assert 16 in windows(lm)
    come_and_go(lm, 0)


def test_a_window_takes_its_own_tokens_of_memory():
    packed = Packed(windowed("gemma3"))
    packed.join(list(range(10, 200)))
    assert [keys.shape[2] for keys in packed.slots.keys] == [16, 16, 256, 16]


def test_a_window_that_is_in_the_configuration_alone_is_refused():
    """Its own cache would forget what its attention looks at."""
    lm = ObservableLanguageModel(llama(torch.float64, sliding_window=16))
    assert windows(lm) == [16] * 4
    assert "its attention has none" in str(why_no_slots(lm))


@pytest.mark.parametrize(("change", "why"), [
    ({"layer_types": ["chunked_attention"] * 4, "attention_chunk_size": 16}, "it attends in chunks"),
    ({"_attn_implementation": "flash_attention_2"}, "flash attention takes a sliding window's tokens in order"),
])  # fmt: skip
def test_windows_that_no_ring_can_be_are_refused(change, why):
    lm = windowed("gemma2")
    past = own_cache(lm)
    for key, value in change.items():
        setattr(lm.model.config, key, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsight.lm.slots.own_cache", lambda _: past)
        assert why in str(why_no_slots(lm))


def come_and_go(lm, seed):
    turns, packed = random.Random(seed), Packed(lm)

    def some(n):
        return [turns.randrange(6, 400) for _ in range(n)]

    packed.join(some(5))
    for _ in range(14):
        if len(packed.texts) < 4 and turns.random() < 0.6:
            packed.join(some(turns.choice([1, 9, 40, 140])))
        if len(packed.texts) > 1 and turns.random() < 0.4:
            packed.leave(turns.randrange(len(packed.texts)))
        packed.check(*packed.step(some(len(packed.texts))))


def test_memory_is_taken_for_the_longest_row_by_doubling_and_up_to_a_limit(endless):
    packed = Packed(endless)
    packed.join([7, 8])
    assert packed.slots.capacity == SMALLEST
    before = packed.slots.bytes
    packed.join([9] * 100)
    assert (packed.slots.capacity, packed.slots.bytes) == (2 * SMALLEST, 2 * before)
    packed.join([9] * 230)
    assert packed.slots.capacity == 300
    packed.check(*packed.step([1, 2, 3]))
    with pytest.raises(TooLong, match="A row holds 300 tokens, prompt and answer together; this one wants 301"):
        packed.slots.put(3, prefilled(endless, [1]), 301)


def test_where_there_is_no_memory_for_the_rows_it_is_said_how_much_they_need(endless):
    slots = Slots(endless, 2**30, 2**20, whole=True)
    with pytest.raises(BadInput, match=r"No memory for 1,073,741,824 rows of 1,048,576 tokens \([0-9,.]+ GiB"):
        slots.put(0, prefilled(endless, [1, 2]), 5)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_where_there_is_no_memory_to_grow_everything_stays_as_it_was(endless, name, monkeypatch):
    packed = Packed(endless if name == "llama" else windowed(name), limit=400)
    packed.join(list(range(10, 60)))
    made, zeros = [], Slots._zeros

    def failing(self, *given):
        made.append(given)
        if len(made) == 2:
            raise BadInput("No memory")
        return zeros(self, *given)

    monkeypatch.setattr(Slots, "_zeros", failing)
    before = [tensor.shape for tensor in (*packed.slots.keys, *packed.slots.values)]
    with pytest.raises(BadInput, match="No memory"):
        packed.join(list(range(10, 250)))
    assert [tensor.shape for tensor in (*packed.slots.keys, *packed.slots.values)] == before
    packed.join(list(range(10, 250)))
    packed.check(*packed.step([7, 8]))


def test_a_row_that_left_leaves_nothing_behind(endless):
    packed = Packed(endless)
    for n in (3, 50, 8):
        packed.join(list(range(10, 10 + n)))
    packed.step([1, 2, 3])
    for _ in range(3):
        packed.leave(0)
    assert not any(t.any() for t in (*packed.slots.keys, *packed.slots.values))


def test_numbers_that_are_none_do_not_outlive_their_row(endless):
    packed = Packed(endless)
    packed.join(list(range(10, 60)))
    packed.slots.values[0][0, :, 20] = torch.inf
    packed.leave(0)
    packed.join([5, 6])
    packed.check(*packed.step([7]))


# ── the steering table ───────────────────────────────────────────────────────────────────────────────────────────

SAE = random_sae("jumprelu", torch.float64)


class Alone:
    """One row's steering by itself, and where its events stand."""

    def __init__(self, controller, length):
        self.steering, self.reference = (Steering(SAE, [controller], [length], HOOK) for _ in range(2))
        self.length = length


@settings(max_examples=15)
@given(st.lists(st.tuples(any_controller, st.integers(0, 3)), min_size=1, max_size=6), st.integers(0, 2**16))
def test_a_table_does_to_each_row_what_its_steering_does_alone(wishes, seed):
    g = torch.Generator().manual_seed(seed)
    turns = random.Random(seed)
    table, rows = SteeringTable(SAE, 4, HOOK), []
    for controller, action in wishes:
        if len(rows) == 4 or (rows and action == 0):  # one leaves, the last takes its place
            at, last = turns.randrange(len(rows)), len(rows) - 1
            table.move(last, at) if at != last else table.clear(at)
            rows[at] = rows[last]
            rows.pop()
        alone = Alone(controller, 5)
        x = torch.randn(1, 5, D, generator=g, dtype=torch.float64) * 2
        kinds = torch.tensor([[int(KINDS[i]) for i in torch.randperm(6, generator=g)[:5]]])
        place = Place(kinds, torch.arange(5).unsqueeze(0), True, torch.rand(1, 5, generator=g) * 2.5)
        alone.steering.edit(x, place)  # a prompt first: its tally comes along
        alone.reference.edit(x, place)
        assert alone.steering.new_events(0) == alone.reference.new_events(0)
        table.put(len(rows), alone.steering)
        rows.append(alone)
        check_step(table, rows, g)


def check_step(table, rows, g):
    """One token for every row."""
    n = len(rows)
    x, nats = torch.randn(n, 1, D, generator=g, dtype=torch.float64) * 2, torch.rand(n, 1, generator=g) * 2.5
    kinds = torch.tensor([[int(KINDS[i])] for i in torch.randint(6, (n,), generator=g)])
    positions = torch.randint(12, (n, 1), generator=g)
    table.part(n)
    out = table.apply(x, kinds, positions, nats)
    events = table.new_events(range(n))
    for row, alone in enumerate(rows):
        reference = alone.reference
        theirs = reference.apply(x[row : row + 1], *(t[row : row + 1] for t in (kinds, positions, nats)))
        assert_close(out[row], theirs[0])
        mine, same = table.receipt(row), reference.receipt(0)
        assert (mine.controller, mine.touched, mine.seen) == (same.controller, same.touched, same.seen)
        assert mine.change == pytest.approx(same.change)
        assert list(events.get(row, ())) == reference.new_events(0)


def test_a_table_goes_back_to_its_first_buffers_when_all_rows_fit_them(sae):
    table = SteeringTable(sae, 3, HOOK, Shape(slots=2, depth=1))
    first = table.b
    small, large = (Controller(tuple(Feature(i).nudge(i + 1.0) for i in range(n))) for n in (2, 9))
    table.put(0, Steering(sae, [small], [4], HOOK))
    assert table.b is first
    table.put(1, Steering(sae, [large], [4], HOOK))
    assert not table.is_first
    x = torch.randn(2, 1, D)
    place = torch.full((2, 1), int(KINDS[-1])), torch.zeros(2, 1, dtype=torch.int64)
    table.part(2)
    wide = table.apply(x, *place)
    table.clear(1)
    table.fit()
    assert table.b is first
    table.part(1)
    assert_close(table.apply(x[:1], *(p[:1] for p in place)), wide[:1])
    assert table.receipt(0).touched == 2
    assert table.edited_features([0, 1]) == {0: frozenset({0, 1})}


def test_what_is_too_large_for_a_row_beside_others_is_refused(sae):
    for wish, words in [
        (tuple(Feature(i).nudge(1) for i in range(100)), None),
        (tuple(Feature(i % 2).scale(1.0 + i).on(i) for i in range(2 * MOST.depth + 2)), "16 edits of one feature"),
    ]:
        program = compile_controller(Controller(wish), sae)
        if words is None:
            assert checked(program) is program
        else:
            with pytest.raises(BadInput, match=f"too large for a row beside others: it may have at most {words}"):
                checked(program)
