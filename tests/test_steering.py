"""Edits do what they say: against the plain formula (encode, edit, decode, add the error back), in float64."""

import math
import time

import pytest
import torch
from conftest import FEATURES, HOOK, LAYERS, D, llama, random_sae
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.edits import Comparison, Controller, Edit, Feature, Group, When
from sparsight.errors import BadInput, Mismatch, NoFeature
from sparsight.lm.batch import Place
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import SPECIAL, Kind
from sparsight.sae.activation import ACTIVATIONS
from sparsight.scope.program import compile_controller
from sparsight.scope.scope import Scope
from sparsight.scope.steering import Steering
from sparsight.where import Where

FEW = [3, 9, 27, 64, 111]  # features that controllers are drawn over, so that they meet
SAES = {
    (a, n, b): random_sae(a, torch.float64, normalization=n, apply_b_dec_to_input=b)
    for a in ACTIVATIONS
    for n in ("none", "layer_norm", "constant_norm")
    for b in (False, True)
}

features = st.builds(Feature, st.sampled_from(FEW), st.sampled_from(["scale", "raw"]))
numbers = st.sampled_from([-2.0, -0.5, 0.0, 0.3, 1.0, 2.5])
comparisons = st.builds(
    Comparison,
    st.lists(features, min_size=1, max_size=2).map(tuple),
    st.sampled_from([">", ">=", "<", "<=", "==", "!="]),
    numbers | st.lists(features, min_size=1, max_size=2).map(tuple),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.builds(Group, st.sampled_from(["AND", "OR"]), st.lists(inner, max_size=3).map(tuple)),
    max_leaves=4,
)
wheres = st.builds(
    Where,
    st.lists(st.sampled_from(["all", "prompt", "generated", "user", "system", "template", "bos"]), max_size=2).map(
        tuple
    ),
    st.lists(st.integers(-3, 9), max_size=2).map(tuple),
)
edits = st.builds(
    Edit, st.sampled_from(["nudge", "pin", "scale", "ablate"]), features, numbers, wheres, st.none() | conditions
)
thresholds = st.sampled_from([None, 0.2, 0.8])


def controllers(inner):
    whens = st.builds(When, conditions, inner, st.sampled_from([None, "ahoy", "boo"]))
    return st.builds(
        Controller,
        st.lists(edits, max_size=4).map(tuple),
        st.lists(whens, max_size=2).map(tuple),
        nonzero_strength_threshold=thresholds,
        min_nudge_entropy=st.sampled_from([None, 0.5, 1.5]),
        max_nudge_entropy=st.sampled_from([None, 1.0, 2.0]),
    )


any_controller = controllers(st.recursive(st.just(Controller()), controllers, max_leaves=2))
KINDS = [
    Kind.PROMPT | Kind.BOS,
    Kind.PROMPT | Kind.TEMPLATE,
    Kind.PROMPT | Kind.SYSTEM,
    Kind.PROMPT | Kind.USER,
    Kind.PROMPT | Kind.TEXT,
    Kind.GENERATED | Kind.ASSISTANT,
]


class Plain:
    """The meaning of a controller at one token, written as a person would: no slots, no clauses, no tensors."""

    def __init__(self, sae, kind, position, entropy, prompt_length):
        self.sae, self.kind, self.position, self.entropy, self.length = sae, kind, position, entropy, prompt_length
        self.events: set[str] = set()

    def run(self, controller, a, f, inherited=(None, None, None)):
        own = (controller.nonzero_strength_threshold, controller.min_nudge_entropy, controller.max_nudge_entropy)
        threshold, low, high = (
            mine if mine is not None else theirs for mine, theirs in zip(own, inherited, strict=True)
        )
        for edit in controller.edits:
            if edit.condition is not None and not self.holds(edit.condition, a, threshold):
                continue
            if edit.op == "nudge" and not (low or -math.inf) <= self.entropy <= (
                high if high is not None else math.inf
            ):
                continue
            if self.meant(edit.where):
                i, value = edit.feature.index, edit.value
                if edit.feature.unit == "scale" and edit.op != "scale":
                    value *= float(self.sae.scale[i])
                f[i] = {"nudge": f[i] + value, "pin": value, "scale": f[i] * value, "ablate": 0.0}[edit.op]
        for when in controller.whens:
            if self.holds(when.condition, a, threshold):
                if when.event is not None and not self.kind & SPECIAL:
                    self.events.add(when.event)
                self.run(when.controller, a, f, (threshold, low, high))

    def meant(self, where):
        named = any(self.position == (p if p >= 0 else self.length + p) for p in where.positions)
        kind = bool(self.kind & where.mask) and not (self.kind & SPECIAL & ~where.mask)
        return named or kind

    def holds(self, condition, a, threshold):
        if isinstance(condition, Group):
            joined = all if condition.op == "AND" else any
            return joined(self.holds(part, a, threshold) for part in condition.parts)
        return any(
            {
                ">": left > right,
                ">=": left >= right,
                "<": left < right,
                "<=": left <= right,
                "==": left == right,
                "!=": left != right,
            }[condition.op]
            for left in self.sides(condition.left, a, threshold)
            for right in self.sides(condition.right, a, threshold)
        )

    def sides(self, side, a, threshold):
        if not isinstance(side, tuple):
            return [side]
        out = []
        for feature in side:
            value, scale = float(a[feature.index]), float(self.sae.scale[feature.index])
            value = 0.0 if threshold is not None and value < threshold * scale else value
            out.append(value if feature.unit == "raw" else value * (1.0 / scale))
        return out


def by_the_formula(sae, controller, x, kinds, positions, entropy, prompt_length):
    """x' = decode(f') + (x − decode(f)), token by token; and the events that came true."""
    out, events = x.clone(), set()
    for t in range(len(x)):
        x_hat, f = sae(x[t : t + 1])
        plain = Plain(sae, Kind(int(kinds[t])), int(positions[t]), float(entropy[t]), prompt_length)
        edited = f[0].clone()
        plain.run(controller, f[0], edited)
        _, mean, size = sae.normalize(x[t : t + 1])
        x_hat_edited = sae.decode(edited.unsqueeze(0))
        x_hat_edited = x_hat_edited if size is None else x_hat_edited * size + mean
        out[t] = (x_hat_edited + (x[t] - x_hat))[0]
        events |= plain.events
    return out, events


@settings(max_examples=250)
@given(st.sampled_from(sorted(SAES)), st.lists(any_controller, min_size=1, max_size=3), st.integers(0, 2**16))
def test_any_controller_on_any_sae_equals_the_plain_formula(which, wishes, seed):
    sae = SAES[which]
    g = torch.Generator().manual_seed(seed)
    rows, tokens = len(wishes), 6
    x = torch.randn(rows, tokens, D, generator=g, dtype=torch.float64) * 2
    kinds = torch.tensor([[int(KINDS[i]) for i in torch.randperm(6, generator=g)] for _ in wishes])
    positions = torch.arange(tokens).expand(rows, -1)
    entropy = torch.rand(rows, tokens, generator=g, dtype=torch.float64) * 2.5
    steering = Steering(sae, wishes, [5] * rows, HOOK)
    got = steering.edit(x, Place(kinds, positions, True, entropy))
    for row, wish in enumerate(wishes):
        expected, events = by_the_formula(sae, wish, x[row], kinds[row], positions[row], entropy[row], 5)
        if not steering.touches_prompt:
            continue
        torch.testing.assert_close(got[row], expected, rtol=1e-9, atol=1e-9)
        assert set(steering.new_events(row)) == events
        assert steering.new_events(row) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_empty_controller_changes_nothing_to_the_bit(dtype, activation):
    sae = random_sae(activation, dtype)
    x = torch.randn(2, 5, D).to(dtype)
    x[0, 0, :4] = torch.tensor([0.0, -0.0, math.inf, -math.inf])
    x[1, 1, 0] = math.nan
    place = Place(torch.full((2, 5), int(Kind.PROMPT | Kind.TEXT)), torch.arange(5).expand(2, -1), True)
    assert Steering(sae, [Controller()] * 2, [5, 5]).edit(x, place) is x
    beside = Steering(sae, [Controller(), Feature(3).nudge(1) + Feature(9).pin(0.5)], [5, 5]).edit(x, place)
    assert torch.equal(beside[0].view(torch.uint8), x[0].view(torch.uint8))
    assert not torch.equal(beside[1], x[1])


@pytest.mark.parametrize("d_out", [D, D + 8])
def test_a_transcoder_reads_and_does_not_steer(lm, d_out):
    scope = Scope(lm, random_sae(d_out=d_out, hook_point_out="model.layers.2.mlp"))
    assert scope.read("Hello").codes
    assert scope.complete("Hello", max_new_tokens=2).text is not None
    with pytest.raises(BadInput, match=r"a transcoder \(it reads 'model.layers.2' and writes 'model.layers.2.mlp'\)"):
        scope.complete("Hello", scope.features[3].nudge(1), max_new_tokens=2)


def test_a_row_that_an_edit_does_not_touch_keeps_its_bits():
    sae = random_sae("relu", torch.bfloat16)
    x = torch.randn(1, 4, D).bfloat16()
    x[0, 2, 0] = -0.0
    place = Place(torch.full((1, 4), int(Kind.PROMPT | Kind.TEXT)), torch.arange(4).unsqueeze(0), True)
    out = Steering(sae, [Controller.of(Feature(3).nudge(1).on(1))], [4]).edit(x, place)
    same = [torch.equal(out[0, t].view(torch.int16), x[0, t].view(torch.int16)) for t in range(4)]
    assert same == [True, False, True, True]


def test_the_receipt_counts_what_was_touched_and_how_much():
    sae = random_sae("relu", torch.float64)
    x = torch.randn(2, 4, D, dtype=torch.float64)
    kinds = torch.full((2, 4), int(Kind.PROMPT | Kind.TEXT))
    kinds[0, 0] = 0  # padding
    steering = Steering(sae, [Controller.of(Feature(3).raw.nudge(2.0)), Controller()], [3, 4])
    out = steering.edit(x, Place(kinds, torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]]), True))
    receipt = steering.receipt(0)
    change = (out - x)[0].norm(dim=-1) / x[0].norm(dim=-1)
    assert (receipt.seen, receipt.touched) == (3, 3)
    assert receipt.change == pytest.approx(float(change[1:].mean()))
    assert (steering.receipt(1).touched, steering.receipt(1).seen, steering.receipt(1).change) == (0, 4, 0.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_inside_the_model_an_edit_equals_the_card_formula(activation, tokenizer):
    """The whole way: prefill and decode, two rows of different length, against the formula as an intervention."""
    lm = ObservableLanguageModel(llama(torch.float64), tokenizer=tokenizer)
    scope = Scope(lm, random_sae(activation, torch.float64))
    edit = scope.features[3].nudge(4) + scope.features[9].pin(2) + scope.features[27].scale(-1.5)
    replies = scope.complete(["Hello, how are you?", "Once"], [edit, None], max_new_tokens=8)

    def card(x):
        x_hat, f = scope.sae(x)
        g = f.clone()
        g[..., 3] += 4 * scope.sae.scale[3]
        g[..., 9] = 2 * scope.sae.scale[9]
        g[..., 27] *= -1.5
        out = scope.sae.decode(g) + (x - x_hat)
        out[:, :1] = x[:, :1] if card.prefill else out[:, :1]  # BOS is left alone
        card.prefill = False
        return out

    card.prefill = True
    logits, past, _ = lm.forward("Hello, how are you?", interventions={HOOK: card})
    ids = []
    for _ in range(8):
        ids.append(int(logits.argmax()))
        logits, past, _ = lm.forward(torch.tensor([[ids[-1]]]), interventions={HOOK: card}, past_key_values=past)
    assert list(replies[0].ids) == ids[: len(replies[0].ids)]
    assert len(replies[0].ids) > 1
    assert replies[1].ids == scope.complete("Once", max_new_tokens=8).ids


def test_entropy_bounds_hold_nudges_where_the_unedited_model_is_unsure(lm64):
    scope = Scope(lm64, random_sae("relu", torch.float64))
    nudge = Controller((scope.features[3].nudge(8).on("all", "bos"),))
    prompt = "Hello, how are you?"
    logits, _, _ = lm64.forward(prompt, all_logits=True)
    log_p = logits[0].log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    middle = float(entropy.sort().values[len(entropy) // 2 - 1 : len(entropy) // 2 + 1].mean())
    bounded = Controller(nudge.edits, min_nudge_entropy=middle)
    reply = scope.complete(prompt, bounded, max_new_tokens=1)
    assert reply.receipt.touched == int((entropy >= middle).sum())
    assert 0 < reply.receipt.touched < reply.receipt.seen
    places = [t for t in range(len(entropy)) if entropy[t] >= middle]
    by_hand = scope.complete(prompt, nudge.edits[0].on(*places), max_new_tokens=1)
    assert by_hand.ids == reply.ids
    assert by_hand.receipt.touched == reply.receipt.touched


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda s: Feature(FEATURES).nudge(1), NoFeature, "No feature 128: this SAE has 128 (0 to 127)"),
        (lambda s: Feature(1, sae="0" * 16).nudge(1), Mismatch, "its features mean other things"),
        (lambda s: Feature(5).nudge(1), BadInput, "Feature 5 never fired where the scales were measured"),
        (lambda s: Feature(1).nudge(1).on(-30), BadInput, "No token -30: the prompt has 3"),
        (lambda s: Feature(1).nudge(1).when(deep(9)), BadInput, "too deep"),
    ],
)
def test_an_edit_that_cannot_be_made_says_why_before_anything_runs(make, error, says, sae):
    scale = sae.scale.clone()
    scale[5] = 0
    with pytest.raises(error) as caught:
        Steering(sae.altered(scale=scale), [Controller.of(make(sae))], [3])
    assert says in str(caught.value)


def deep(n):
    """An OR of n ANDs of two: 2^n clauses when flat."""
    return Group("OR", tuple(Group("AND", (Feature(2 * i + 10) > 1, Feature(2 * i + 11) > 1)) for i in range(n)))


def test_thousands_of_edits_are_read_in_the_time_of_their_number(sae):
    edits = tuple(Feature(i % 100).raw.nudge(1.0).on(i) for i in range(6000))
    began = time.monotonic()
    program = compile_controller(Controller(edits), sae)
    assert time.monotonic() - began < 5  # 25 s where each looks through all that came before
    assert [change.slot for change in program.changes] == [i % 100 for i in range(6000)]
    everything = tuple(Feature(i).raw for i in range(128)) * 3
    with pytest.raises(BadInput, match="more than 65,536 pairs"):
        compile_controller(Controller.of(Feature(1).nudge(1).when(Comparison(everything, ">", everything))), sae)


def test_feature_units_need_scales_and_raw_does_not(lm):
    bare = random_sae()
    bare.scale = None
    scope = Scope(lm, bare)
    with pytest.raises(BadInput, match=r"no feature scales.*features\[3\].raw"):
        scope.complete("Hello", scope.features[3].nudge(1))
    assert scope.complete("Hello", scope.features[3].raw.nudge(1), max_new_tokens=3).receipt.touched > 0


def test_an_sae_of_another_width_is_refused_by_name(lm):
    with pytest.raises(Mismatch, match=r"reads 48 numbers; 'model.layers.2' of this model gives 32"):
        Scope(lm, random_sae(d_in=48))
    with pytest.raises(BadInput, match="which hook point"):
        Scope(lm, random_sae(hook_point=None))
    with pytest.raises(BadInput, match=f"'model.layers' of this model has 0 to {LAYERS - 1}"):
        Scope(lm, random_sae(hook_point="model.layers.40"))
