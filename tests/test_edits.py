"""Edits as a person holds them: values that read as sentences, and travel as JSON."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.edits import Comparison, Condition, Controller, Edit, Feature, Group, When, compare
from sparsight.errors import BadInput
from sparsight.ids import feature_id
from sparsight.where import Where
from sparsight.wire import fingerprint, from_json, to_ember, to_json

f = [Feature(i) for i in range(200)]
pirate = Feature(12, label="pirate speech")

numbers = st.floats(-100, 100, allow_nan=False)
features = st.builds(
    Feature,
    st.integers(0, 99),
    st.sampled_from(["scale", "raw"]),
    st.sampled_from([None, "abc"]),
    st.sampled_from([None, "x"]),
)
comparisons = st.builds(
    Comparison,
    st.lists(features, min_size=1, max_size=3).map(tuple),
    st.sampled_from([">", ">=", "<", "<=", "==", "!="]),
    numbers | st.lists(features, min_size=1, max_size=2).map(tuple),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.builds(Group, st.sampled_from(["AND", "OR"]), st.lists(inner, max_size=3).map(tuple)),
    max_leaves=5,
)
places = st.lists(
    st.sampled_from(["all", "generated", "prompt", "user", "template", "bos"]) | st.integers(-9, 99),
    min_size=1,
    max_size=3,
)
edits = st.builds(
    Edit,
    st.sampled_from(["nudge", "pin", "scale", "ablate"]),
    features,
    numbers,
    places.map(Where.of),
    st.none() | conditions,
)
thresholds = st.none() | numbers


def controllers(inner):
    whens = st.builds(When, conditions, inner, st.none() | st.text(max_size=5))
    return st.builds(
        Controller,
        st.lists(edits, max_size=3).map(tuple),
        st.lists(whens, max_size=2).map(tuple),
        st.none() | st.text(min_size=1, max_size=5),
        thresholds,
        thresholds,
        thresholds,
    )


any_controller = controllers(st.recursive(st.just(Controller()), controllers, max_leaves=3))


def test_edits_read_as_a_sentence():
    wish = pirate.nudge(0.6) + f[27].pin(8).on("generated") + f[112].ablate().when(f[33] > 0.75)
    assert str(wish) == (
        "nudge feature 12 (pirate speech) by +0.6 × its scale; pin feature 27 at 8 × its scale on generated tokens; "
        "ablate feature 112 when feature 33 > 0.75"
    )


def test_explain_gives_the_exact_change_with_the_scale_worked_out():
    said = (f[27].pin(8) + f[3].raw.nudge(-2).when((f[1] > 1) & (f[2] < 2))).explain(lambda index: 0.5)
    assert "feature 27: a = its activation; a' = 8 × scale[27] (= 4); x' = x + (a' − a) · W_dec[27]" in said
    assert "a' = a + -2" in said
    assert "when feature 1 > 1 and feature 2 < 2" in said
    assert "to the bit" in Controller().explain()


def test_equal_edits_are_equal_and_labels_take_no_part():
    assert pirate.nudge(0.6) == Feature(12).nudge(0.6)
    assert hash(pirate.nudge(0.6).on("user", 3)) == hash(Feature(12, label="x").nudge(0.6).on(3, "user"))
    assert pirate.nudge(0.6) != pirate.nudge(0.7)
    assert pirate.raw.nudge(0.6) != pirate.nudge(0.6)
    assert len({pirate.nudge(0.6), Feature(12).nudge(0.6), pirate.pin(0.6)}) == 2
    assert (f[1] > 2) == (f[1] > 2)
    assert f[1] == f[1]
    assert f[1] != f[2]


def test_a_feature_compared_with_a_number_is_a_condition_and_has_no_truth_of_its_own():
    for condition in (f[1] > 1, f[1] >= 1, f[1] < 1, f[1] <= 1, f[1] == 1, f[1] != 1, f[1] > f[2]):
        assert isinstance(condition, Condition)
    with pytest.raises(BadInput, match="Join conditions with & and |"):
        bool(f[1] > 1)
    with pytest.raises(BadInput, match="Join conditions"):
        assert 0 < f[1] < 2


def test_adding_keeps_order_and_thresholds_stay_with_their_own():
    strict = Controller((f[1].nudge(1),), min_nudge_entropy=2.0)
    joined = strict + f[2].nudge(1)
    assert [when.controller for when in joined.whens] == [strict, Controller((f[2].nudge(1),))]
    assert joined.min_nudge_entropy is None
    later = f[1].pin(1).when(f[2] > 0) + f[1].nudge(1)
    assert later.edits == (f[1].pin(1).when(f[2] > 0), f[1].nudge(1))
    held = Controller.of(f[1].pin(1)).when(f[2] > 0) + f[1].nudge(1)
    assert str(held) == ("when feature 2 > 0: pin feature 1 at 1 × its scale; then nudge feature 1 by +1 × its scale")
    assert sum([f[1].nudge(1), f[2].pin(1)]) == f[1].nudge(1) + f[2].pin(1)


def test_what_is_no_condition_is_refused_when_it_is_given():
    for wrong in (f[2] == f[3], True, 0, {}, "x", None):
        with pytest.raises(BadInput, match="A condition is made by comparing"):
            f[1].nudge(1).when(wrong)
    for wrong in ({}, 0, "", [], False):
        form = {"op": "nudge", "feature": {"index": 1}, "value": 1, "condition": wrong}
        with pytest.raises(BadInput):
            from_json({"schema": 1, "edits": [form]})
    with pytest.raises(BadInput, match="event's name is text"):
        When(f[1] > 1, Controller(), 5)
    with pytest.raises(BadInput, match="name is text"):
        Controller(name=[5])


def test_explain_says_which_tokens_are_spared_and_what_a_condition_is_in_raw_numbers():
    said = f[3].nudge(1).when((f[1] > 0.75) & (f[2].raw < 3)).explain(lambda index: 2.0)
    assert "at all tokens, BOS and template spared" in said
    assert "(0.75 × scale[1] = 1.5)" in said
    assert "scale[2]" not in said
    assert "spared" not in f[3].nudge(1).on("template").explain()


def test_an_edit_explains_itself_and_bounds_are_part_of_it():
    assert f[1].nudge(1).explain() == Controller((f[1].nudge(1),)).explain()
    bounded = Controller((f[1].nudge(1),), min_nudge_entropy=1.0, nonzero_strength_threshold=0.3)
    for said in (bounded.explain(), str(bounded)):
        assert "entropy is from 1 to any nats" in said
        assert "under 0.3 × scale read as 0" in said
    twice = (f[1].pin(2) + f[1].nudge(1)).explain()
    assert "a = its activation" in twice
    assert "a = what the edits above left" in twice


def test_numbers_of_numpy_are_numbers_and_there_is_one_zero():
    import numpy as np

    assert f[1].nudge(np.float32(0.5)) == f[1].nudge(0.5)
    assert Feature(np.int64(3)) == Feature(3)
    assert (f[1] == np.float32(0.5)) == (f[1] == 0.5)
    assert fingerprint(f[1].nudge(-0.0)) == fingerprint(f[1].nudge(0.0))


def test_embers_form_refuses_an_order_that_it_has_not():
    with pytest.raises(BadInput, match="cannot say"):
        to_ember(f[1].pin(1).when(f[2] > 0) + f[1].nudge(1))
    assert to_ember(f[1].pin(1).when(f[2] > 0) + f[3].nudge(1))["interventions"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "1", None, True])
@pytest.mark.parametrize("op", ["nudge", "pin", "scale"])
def test_a_strength_must_be_a_finite_number(bad, op):
    with pytest.raises(BadInput, match="must be a finite number"):
        getattr(f[1], op)(bad)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: f[1].nudge(1).on("somewhere"), "No tokens 'somewhere'. There are: all, prompt"),
        (lambda: f[1].nudge(1).on(), "takes names"),
        (lambda: f[1].nudge(1).on(1.5), "takes names"),
        (lambda: Feature(-1), "index from 0 up"),
        (lambda: Feature(True), "index from 0 up"),
        (lambda: Feature(1, unit="volts"), "There are: scale, raw"),
        (lambda: Comparison((f[1],), "=>", 1.0), "No comparison '=>'"),
        (lambda: Comparison((), ">", 1.0), "at least one feature"),
        (lambda: f[1] > math.nan, "finite number"),
        (lambda: Edit("boost", f[1], 1.0), "No edit 'boost'"),
        (lambda: Group("XOR", ()), "No operator 'XOR'"),
        (lambda: Controller.of("loud"), "made from features"),
        (lambda: f[1].nudge(10**400), "finite number"),
        (lambda: Feature(10**30), "index from 0 up"),
        (lambda: f[1].nudge(1).on(10**30), "takes names"),
        (lambda: Controller(min_nudge_entropy=math.nan), "min_nudge_entropy must be a finite"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, says):
    with pytest.raises(BadInput, match=says):
        make()


def test_prompt_touching_is_known():
    assert not f[1].nudge(1).on("generated").where.touches_prompt
    assert f[1].nudge(1).where.touches_prompt
    assert f[1].nudge(1).on("generated", -1).where.touches_prompt
    assert not (f[1].nudge(1) + f[2].pin(1)).on("generated").touches_prompt


@given(any_controller)
def test_our_json_round_trips(controller):
    there = json.loads(json.dumps(to_json(controller)))
    assert all(to_json(edit) == to_json(Controller((edit,))) for edit in controller.edits)
    back = from_json(there)
    assert back == controller
    assert back.name == controller.name
    assert fingerprint(back) == fingerprint(controller)


@given(any_controller, any_controller)
def test_fingerprints_are_equal_exactly_when_controllers_are(a, b):
    assert (fingerprint(a) == fingerprint(b)) == (a == b)


@given(any_controller)
def test_embers_json_says_all_of_it_or_refuses_with_a_reason(controller):
    there = attempt(lambda: to_ember(controller), "cannot say")
    if there is not None:
        back = from_json(json.loads(json.dumps(there)))
        assert to_ember(back) == from_ablations(there)


def test_what_an_ember_client_sends_is_understood():
    feature = {"uuid": "00" * 16, "label": "pirate", "index_in_sae": 12, "max_activation_strength": 1}
    other = feature | {"index_in_sae": 33}
    inner = {
        "interventions": [{"mode": "mul", "features": {"features": [feature]}, "value": 0.5}],
        "scopes": [],
        "name": "",
    }
    sent = {
        "interventions": [{"mode": "nudge", "features": {"features": [feature, other]}, "value": 0.6}],
        "scopes": [
            {
                "conditionals": {
                    "conditionals": [
                        {"left_hand": {"features": [feature, other]}, "right_hand": 0.75, "operator": ">"},
                        {"left_hand": {"features": [feature]}, "right_hand": {"features": [other]}, "operator": "<="},
                    ],
                    "operator": "AND",
                },
                "controller": inner,
                "is_active": False,
                "event_name": "ahoy",
            }
        ],
        "name": "my variant",
        "nonzero_strength_threshold": 0.1,
        "min_nudge_entropy": None,
        "max_nudge_entropy": 3.0,
    }
    got = from_json(sent)
    assert got.edits == (f[12].nudge(0.6), f[33].nudge(0.6))
    condition = Comparison((f[12], f[33]), ">", 0.75) & Comparison((f[12],), "<=", (f[33],))
    assert got.whens == (When(condition, Controller((f[12].scale(0.5),)), "ahoy"),)
    assert (got.name, got.nonzero_strength_threshold, got.max_nudge_entropy) == ("my variant", 0.1, 3.0)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("{", "Not a controller"),
        ("[]", "a JSON object, not list"),
        ("{}", "schema None"),
        ({"schema": 2}, "reads schema 1"),
        ({"schema": True}, "reads schema 1"),
        ({"schema": 1, "edits": "abc"}, "'edits' of a controller is a list"),
        ({"schema": 1, "whens": {}}, "'whens' of a controller is a list"),
        ({"schema": 1, "edits": [{"op": "ablate", "feature": {"index": 1, "sae": 5}}]}, "fingerprint, a text"),
        ({"schema": 1, "edit": []}, "No 'edit' in a controller"),
        ({"schema": 1, "edits": [{"op": "nudge", "value": 1}]}, "'feature'"),
        ({"schema": 1, "edits": [{"op": "nudge", "feature": {"index": "1"}, "value": 1}]}, "index from 0 up"),
        ({"schema": 1, "edits": [{"op": "nudge", "feature": {"index": 1}, "value": "nan"}]}, "finite number"),
        ({"interventions": [{"mode": "boost", "features": {"features": []}, "value": 1}]}, "No mode 'boost'"),
        ({"interventions": [{"mode": "nudge"}]}, "Not a controller"),
        ({"interventions": 3}, "Not a controller"),
        ({"schema": 1, "edits": [], "nonzero_strength_threshold": "x"}, "finite number"),
    ],
)
def test_hostile_json_is_refused_in_one_line(form, says):
    with pytest.raises(BadInput, match=says) as caught:
        from_json(form)
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "schema",
                        "edits",
                        "whens",
                        "op",
                        "feature",
                        "index",
                        "interventions",
                        "scopes",
                        "mode",
                        "features",
                        "condition",
                        "controller",
                        "left",
                        "right",
                        "parts",
                    ]
                ),
                x,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_at_all_is_a_controller_or_bad_input(form):
    text = json.dumps(form)
    attempt(lambda: from_json(text), "")


def attempt(make, refusal):
    """What make gives; None where it was refused in one line with these words in it."""
    try:
        return make()
    except BadInput as error:
        said = str(error)
    assert refusal in said
    assert "\n" not in said
    return None


def from_ablations(there):
    """Ember's form without what it does not carry: labels that are no words, the ids of SAEs it does not know."""
    return to_ember(from_json(there))


def test_feature_ids_never_change():
    assert feature_id("abc", 12) == feature_id("abc", 12) != feature_id("abd", 12)
    assert feature_id("0123456789abcdef", 7) == "4130af441a195ab79258e01e87d80711"


def test_compare_makes_a_condition_between_features_that_are_the_same_or_not():
    assert compare(f[1], "==", f[2]) == Comparison((f[1],), "==", (f[2],))
