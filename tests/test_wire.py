"""Controllers as strangers send them: whatever it is, it becomes a Controller that can be used, or BadInput."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_edits import any_controller, attempt

from sparsight.edits import Controller
from sparsight.errors import BadInput
from sparsight.wire import fingerprint, from_json, to_ember, to_json

WORDS = ["AND", ">", "nudge", "mul", "all", "raw", "parts", "schema", "interventions", "\ud800", "a\nb", "9" * 30]
NUMBERS = [0, -1, 1, 2**31, 2**63, 10**400, -0.0, 1e308, float("nan"), float("inf"), True, False]
hostile = st.recursive(
    st.none() | st.sampled_from(NUMBERS) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["index", "op", *WORDS]), inner, max_size=3)
    ),
    max_leaves=4,
)


@given(any_controller, st.data())
@settings(max_examples=120)
def test_a_controller_with_anything_put_anywhere_in_it_is_one_or_is_refused(controller, data):
    form = in_a_form(controller, data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(1, 3))):
        form = changed(form, data)
    read = attempt(lambda: from_json(form), "")
    if read is not None:
        check_usable(read)


def in_a_form(controller, embers):
    """In Ember's, where that has words for it."""
    if embers:
        try:
            return to_ember(controller)
        except BadInput:
            pass
    return to_json(controller)


def changed(form, data):
    """The same with one of its values replaced, taken away, told twice, or given another name."""
    places = list(nodes(form))
    where = data.draw(st.sampled_from(places))
    if not where:
        return data.draw(hostile)
    *path, last = where
    form = json.loads(json.dumps(form))
    inside = form
    for step in path:
        inside = inside[step]
    how = data.draw(st.sampled_from(["replace", "drop", "wrap", "rename", "swap"]))
    if how == "drop":
        del inside[last]
    elif how == "wrap":
        inside[last] = [inside[last]] if data.draw(st.booleans()) else {"parts": inside[last]}
    elif how == "rename" and isinstance(inside, dict):
        inside[data.draw(st.sampled_from(WORDS))] = inside.pop(last)
    elif how == "swap":
        inside[last] = part_of(form, data.draw(st.sampled_from(places)))
    else:
        inside[last] = data.draw(hostile)
    return form


def nodes(form, path=()):
    """The place of every value."""
    yield path
    pairs = form.items() if isinstance(form, dict) else enumerate(form) if isinstance(form, list) else ()
    for step, value in pairs:
        yield from nodes(value, (*path, step))


def part_of(form, path):
    """A copy of what is there; nothing, where that is gone."""
    for step in path:
        try:
            form = form[step]
        except (KeyError, IndexError, TypeError):
            return None
    return json.loads(json.dumps(form))


def check_usable(controller):
    """All that is done with a controller before it acts can be done with this one."""
    assert isinstance(controller, Controller)
    there = json.loads(json.dumps(to_json(controller)))
    assert from_json(there) == controller
    assert fingerprint(from_json(there)) == fingerprint(controller)
    assert hash(controller) == hash(from_json(there))
    assert str(controller)
    assert controller.explain(lambda index: 1.0)
    assert controller.touches_prompt in (True, False)


def nested(depth, how):
    """A controller that many levels deep."""
    comparison = {"left": [{"index": 1}], "op": ">", "right": 0.5}
    if how == "groups":
        for level in range(depth):
            comparison = {"op": ("AND", "OR")[level % 2], "parts": [comparison]}
        return {"schema": 1, "edits": [{"op": "ablate", "feature": {"index": 1}, "condition": comparison}]}
    if how == "scopes":
        inner = {"interventions": [], "scopes": []}
        test = {"left_hand": {"features": [{"index_in_sae": 1}]}, "right_hand": 0.5, "operator": ">"}
        for _ in range(depth):
            group = {"conditionals": [test], "operator": "AND"}
            inner = {"interventions": [], "scopes": [{"conditionals": group, "controller": inner}]}
        return inner
    inner = {"edits": []}
    for _ in range(depth):
        inner = {"whens": [{"condition": comparison, "controller": inner, "event": "e"}]}
    return {"schema": 1, **inner}


@pytest.mark.parametrize("how", ["groups", "whens", "scopes"])
@pytest.mark.parametrize("depth", [1, 60, 65, 70, 98, 99, 100, 1000, 3000])
def test_a_nest_of_any_depth_is_a_controller_that_can_be_used_or_is_refused(how, depth):
    form = nested(depth, how)
    read = attempt(lambda: from_json(form), "nested too deep")
    assert read is not None or depth > 60
    if read is not None:
        check_usable(read)
