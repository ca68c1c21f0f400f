"""Controllers as JSON, both ways: our own form, and the Ember form that existing clients send.

Ours holds everything. Ember's holds nudge, pin and mul in feature units on all tokens, nested scopes and thresholds;
what it cannot say is refused on the way out, never dropped.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from sparsight.edits import Comparison, Condition, Controller, Edit, Edits, Feature, Group, When
from sparsight.errors import BadInput, SparsightError
from sparsight.ids import feature_id
from sparsight.where import Where

SCHEMA = 1
THRESHOLDS = ("nonzero_strength_threshold", "min_nudge_entropy", "max_nudge_entropy")
DEEPEST = 200  # levels of JSON: some 65 whens or scopes within each other. What is deeper breaks whoever walks it.
TOO_DEEP = f"The controller is nested too deep: JSON of at most {DEEPEST} levels is read"
EMBER_MODES = {"nudge": "nudge", "pin": "pin", "mul": "scale"}


def fingerprint(wish: Edits) -> str:
    """16 hex digits that two controllers share if and only if they are equal: labels and names take no part."""
    form = _controller(Controller.of(wish), bare=True)
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:16]


def to_json(wish: Edits) -> dict[str, Any]:
    """Our form, of a controller or of an edit alone: plain dicts, lists, strings and numbers."""
    return {"schema": SCHEMA, **_controller(Controller.of(wish))}


def from_json(form: Mapping[str, Any] | str) -> Controller:
    """A controller from our form or from Ember's (told apart by their keys). Raises BadInput with the reason."""
    try:
        form = json.loads(form) if isinstance(form, str) else form
        if not isinstance(form, Mapping):
            raise BadInput(f"A controller is a JSON object, not {type(form).__name__}.")
        _refuse_deep(form)
        if "interventions" in form or "scopes" in form:
            return _from_ember(form)
        if type(form.get("schema")) is not int or form["schema"] != SCHEMA:
            raise BadInput(f"A controller of schema {form.get('schema')!r}: this sparsight reads schema {SCHEMA}.")
        return _read_controller({k: v for k, v in form.items() if k != "schema"})
    except SparsightError:
        raise
    except RecursionError:  # of json
        raise BadInput(f"{TOO_DEEP}.") from None
    except KeyError as error:
        raise BadInput(f"Not a controller: something in it lacks {error}.") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadInput(f"Not a controller: {type(error).__name__}: {error}") from error


def computed_ids(form: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """(index, id) of the features in an Ember form that `from_json` reads, whose ids were computed for an SAE; those
    that Ember itself gave say nothing of ours."""
    left: list[Any] = [form]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            if "index_in_sae" in one and (id := _computed(one.get("uuid"))) is not None:
                yield one["index_in_sae"], id
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one


def _computed(id: Any) -> str | None:
    """32 hex digits of an id that was computed from a name (version 5, as ours), None of any other."""
    try:
        read = uuid.UUID(id)
    except (ValueError, AttributeError, TypeError):
        return None
    return read.hex if read.version == 5 else None


def _refuse_deep(form: Mapping[str, Any]) -> None:
    """Without recursion, which is what deep forms break."""
    level: list[Any] = [form]
    for _ in range(DEEPEST):
        inner = (value.values() if isinstance(value, Mapping) else value for value in level)
        level = [value for values in inner for value in values if isinstance(value, Mapping | list | tuple)]
        if not level:
            return
    raise BadInput(f"{TOO_DEEP}.")


# ── ours ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _controller(controller: Controller, bare: bool = False) -> dict[str, Any]:
    out: dict[str, Any] = {"edits": [_edit(e, bare) for e in controller.edits]}
    if controller.whens:
        out["whens"] = [
            {"condition": _condition(w.condition, bare), "controller": _controller(w.controller, bare)}
            | ({"event": w.event} if w.event is not None else {})
            for w in controller.whens
        ]
    out |= {name: value for name in THRESHOLDS if (value := getattr(controller, name)) is not None}
    return out if bare or controller.name is None else out | {"name": controller.name}


def _edit(edit: Edit, bare: bool) -> dict[str, Any]:
    places: list[str | int] = [*edit.where.kinds, *edit.where.positions]
    out = {"op": edit.op, "feature": _feature(edit.feature, bare), "value": edit.value, "where": places}
    return out if edit.condition is None else out | {"condition": _condition(edit.condition, bare)}


def _feature(feature: Feature, bare: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"index": feature.index, "unit": feature.unit}
    if feature.sae is not None:
        out["sae"] = feature.sae
    return out if bare or feature.label is None else out | {"label": feature.label}


def _condition(condition: Condition, bare: bool) -> dict[str, Any]:
    if isinstance(condition, Group):
        return {"op": condition.op, "parts": [_condition(p, bare) for p in condition.parts]}
    assert isinstance(condition, Comparison)
    right = condition.right
    right = [_feature(f, bare) for f in right] if isinstance(right, tuple) else right
    return {"left": [_feature(f, bare) for f in condition.left], "op": condition.op, "right": right}


def _read_controller(form: Mapping[str, Any]) -> Controller:
    _refuse_unknown(form, {"edits", "whens", "name", *THRESHOLDS}, "a controller")
    return Controller(
        tuple(_read_edit(e) for e in _list(form, "edits")),
        tuple(_read_when(w) for w in _list(form, "whens")),
        name=form.get("name"),
        **{name: form.get(name) for name in THRESHOLDS},
    )


def _list(form: Mapping[str, Any], key: str) -> list[Any]:
    given = form.get(key, [])
    if not isinstance(given, list):
        raise BadInput(f"{key!r} of a controller is a list, not {type(given).__name__}.")
    return given


def _read_edit(form: Mapping[str, Any]) -> Edit:
    _refuse_unknown(form, {"op", "feature", "value", "where", "condition"}, "an edit")
    condition = None if form.get("condition") is None else _read_condition(form["condition"])
    where = Where.of(form["where"]) if "where" in form else Where()
    value = form.get("value", 0.0) if form["op"] == "ablate" else form["value"]
    return Edit(form["op"], _read_feature(form["feature"]), value, where, condition)


def _read_when(form: Mapping[str, Any]) -> When:
    _refuse_unknown(form, {"condition", "controller", "event"}, "a when")
    return When(_read_condition(form["condition"]), _read_controller(form["controller"]), form.get("event"))


def _read_feature(form: Mapping[str, Any]) -> Feature:
    _refuse_unknown(form, {"index", "unit", "sae", "label"}, "a feature")
    return Feature(form["index"], form.get("unit", "scale"), form.get("sae"), form.get("label"))


def _read_condition(form: Mapping[str, Any]) -> Condition:
    if "parts" in form:
        _refuse_unknown(form, {"op", "parts"}, "a group of conditions")
        return Group(form["op"], tuple(_read_condition(p) for p in form["parts"]))
    _refuse_unknown(form, {"left", "op", "right"}, "a condition")
    right = form["right"]
    right = tuple(_read_feature(f) for f in right) if isinstance(right, list) else right
    return Comparison(tuple(_read_feature(f) for f in form["left"]), form["op"], right)


def _refuse_unknown(form: Mapping[str, Any], known: set[str], what: str) -> None:
    for key in form.keys() - known:
        raise BadInput(f"No {key!r} in {what}: there are {', '.join(sorted(known))}.")


# ── Ember's ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_ember(wish: Edits) -> dict[str, Any]:
    """Ember's form. Raises BadInput for what it has no words for: raw units, tokens other than all, an edit that acts
    on what a conditional edit of the same feature left. It names features by index: the SAE is not kept."""
    controller = Controller.of(wish)
    interventions, scopes = [], []
    conditional: set[int] = set()
    for edit in controller.edits:
        if edit.where != Where():
            raise BadInput(f"Ember's form edits all tokens; it cannot say: {edit}.")
        mode = {"nudge": "nudge", "pin": "pin", "scale": "mul", "ablate": "pin"}[edit.op]
        group = {"features": [_ember_feature(edit.feature)]}
        intervention = {"mode": mode, "features": group, "value": edit.value}
        if edit.condition is None:
            if edit.feature.index in conditional:  # Ember's scopes act after its interventions
                raise BadInput(
                    f"Ember's form has no order between conditional edits and others; it cannot say: {edit}."
                )
            interventions.append(intervention)
        else:
            conditional.add(edit.feature.index)
            inner = _ember([intervention], [], Controller())
            scopes.append(_ember_scope(edit.condition, inner, None))
    scopes += [_ember_scope(w.condition, to_ember(w.controller), w.event) for w in controller.whens]
    return _ember(interventions, scopes, controller)


def _ember(interventions: list[Any], scopes: list[Any], of: Controller) -> dict[str, Any]:
    thresholds = {name: getattr(of, name) for name in THRESHOLDS}
    return {"interventions": interventions, "scopes": scopes, "name": of.name or "", **thresholds}


def _ember_scope(condition: Condition, controller: dict[str, Any], event: str | None) -> dict[str, Any]:
    """Ember's groups are flat: a group within a group becomes a scope within a scope, where AND allows it."""
    parts = condition.parts if isinstance(condition, Group) else (condition,)
    op = condition.op if isinstance(condition, Group) else "AND"
    flat = [p for p in parts if isinstance(p, Comparison)]
    for group in (p for p in parts if isinstance(p, Group)):
        if op == "OR":
            raise BadInput(f"Ember's form has no groups within an OR; it cannot say: {condition}.")
        controller, event = _ember([], [_ember_scope(group, controller, event)], Controller()), None
    form = {"conditionals": [_ember_comparison(p) for p in flat], "operator": op}
    return {"conditionals": form, "controller": controller, "is_active": True, "event_name": event}


def _ember_comparison(comparison: Comparison) -> dict[str, Any]:
    right = comparison.right
    right = {"features": [_ember_feature(f) for f in right]} if isinstance(right, tuple) else right
    left = {"features": [_ember_feature(f) for f in comparison.left]}
    return {"left_hand": left, "right_hand": right, "operator": comparison.op}


def _ember_feature(feature: Feature) -> dict[str, Any]:
    if feature.unit != "scale":
        raise BadInput(f"Ember's form counts in feature units; it cannot say: {feature}.")
    key = feature_id(feature.sae, feature.index)
    return {"uuid": key, "label": feature.label or "", "index_in_sae": feature.index, "max_activation_strength": 1}


def _from_ember(form: Mapping[str, Any]) -> Controller:
    edits = []
    for intervention in form.get("interventions") or ():
        if intervention["mode"] not in EMBER_MODES:
            raise BadInput(f"No mode {intervention['mode']!r}. There are: {', '.join(EMBER_MODES)}.")
        for feature in intervention["features"]["features"]:
            op = EMBER_MODES[intervention["mode"]]
            edits.append(Edit(op, _from_ember_feature(feature), intervention["value"]))
    whens = tuple(_from_ember_scope(scope) for scope in form.get("scopes") or ())
    return Controller(tuple(edits), whens, form.get("name") or None, **{name: form.get(name) for name in THRESHOLDS})


def _from_ember_scope(scope: Mapping[str, Any]) -> When:
    group = scope["conditionals"]
    parts = tuple(_from_ember_comparison(c) for c in group["conditionals"])
    condition = parts[0] if len(parts) == 1 else Group(group["operator"], parts)
    return When(condition, _from_ember(scope["controller"]), scope.get("event_name"))


def _from_ember_comparison(form: Mapping[str, Any]) -> Comparison:
    right = form["right_hand"]
    if isinstance(right, Mapping):
        right = tuple(_from_ember_feature(f) for f in right.get("features", [right]))  # its clients send one bare
    return Comparison(tuple(_from_ember_feature(f) for f in form["left_hand"]["features"]), form["operator"], right)


def _from_ember_feature(form: Mapping[str, Any]) -> Feature:
    return Feature(form["index_in_sae"], label=form.get("label") or None)
