"""What is said of a feature in one word: entries.FLAGS."""

from __future__ import annotations

from dataclasses import replace

from sparsight.atlas.entries import Statistics
from sparsight.survey.state import State

DENSE = 0.1  # share of tokens on which a feature fires, above which it is dense
MOST = 0.75  # share of its fires that is on one token, on template tokens, in one bucket of positions
RARE = 0.25  # share of all tokens in a bucket, above which it says nothing that a feature fires there
ENOUGH = 10  # fires from which on anything but "dead" and "dense" is said


def flags(one: Statistics, state: State) -> Statistics:
    """The same with its flags, in the order of entries.FLAGS."""
    said = [] if one.fires else ["dead"]
    said += ["dense"] if one.density > DENSE else []
    if one.fires >= ENOUGH:
        said += ["single-token"] if one.top_tokens and one.top_tokens[0][1] >= MOST * one.fires else []
        special = one.roles.get("template", 0) + one.roles.get("bos", 0)
        said += ["special-token"] if special >= MOST * one.fires else []
        most = max(range(len(one.positions)), key=lambda bucket: one.positions[bucket])
        usual = int(state.of_positions[most]) / max(state.tokens, 1)
        said += ["position"] if one.positions[most] >= MOST * one.fires and usual < RARE else []
    said += ["duplicate"] if one.duplicate_of is not None else []
    return replace(one, flags=tuple(said))
