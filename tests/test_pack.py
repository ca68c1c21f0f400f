"""Prompts become passes: every prompt once, no row mixed with another, little padding."""

import pytest
import torch
from conftest import CONTEXT, HOOK
from hypothesis import given
from hypothesis import strategies as st

from sparsight.errors import BadInput
from sparsight.lm.batch import Prompt
from sparsight.lm.pack import PASS, packed, plan
from sparsight.records import Kind

LENGTHS = st.lists(st.integers(1, 80), max_size=12)


def prompts(lengths):
    """Prompts whose tokens tell whose they are, and where."""
    kinds = Kind.PROMPT | Kind.TEXT
    return [(i, Prompt(tuple((31 * i + p) % 390 for p in range(n)), (kinds,) * n)) for i, n in enumerate(lengths)]


def all_plans(n):
    """Every way to cut n sorted prompts into runs."""
    if n == 0:
        yield []
    for first in range(1, n + 1):
        for rest in all_plans(n - first):
            yield [first, *rest]


@given(lengths=LENGTHS, tokens=st.integers(1, 300), pool=st.integers(1, 15))
def test_every_prompt_is_in_one_pass_with_its_own_tokens(lm, lengths, tokens, pool):
    given = dict(prompts(lengths))
    seen = []
    for tags, batch in packed(given.items(), lm, tokens, pool):
        seen += tags
        assert batch.ids.numel() <= tokens or len(tags) == 1
        for tag, ids, mask, kinds in zip(tags, batch.ids, batch.mask, batch.kinds, strict=True):
            assert tuple(ids[mask].tolist()) == given[tag].ids
            assert tuple(kinds[mask].tolist()) == given[tag].kinds
            assert mask.tolist() == sorted(mask.tolist())  # padding is on the left
            assert not kinds[~mask].any()
    assert sorted(seen) == list(range(len(lengths)))


@given(lengths=st.lists(st.integers(1, 900), max_size=9), tokens=st.integers(1, 3000))
def test_no_other_passes_would_cost_less(lengths, tokens):
    ordered, costs = sorted(lengths), []
    for runs in all_plans(len(lengths)):
        ends = [sum(runs[: i + 1]) for i in range(len(runs))]
        if all(n == 1 or n * ordered[end - 1] <= tokens for n, end in zip(runs, ends, strict=True)):
            costs.append(sum(n * ordered[end - 1] + PASS for n, end in zip(runs, ends, strict=True)))
    ours = sum(len(rows) * max(lengths[i] for i in rows) + PASS for rows in plan(lengths, tokens))
    assert ours == min(costs)


def test_little_is_padding_where_lengths_vary_a_lot():
    lengths = [int(20 * 1.005**i) for i in range(1024)]  # 20 to 3,300 tokens
    padded = sum(len(rows) * max(lengths[i] for i in rows) for rows in plan(lengths, 16_384))
    assert sum(lengths) <= padded < 1.05 * sum(lengths)


def test_what_is_read_in_a_pass_is_what_the_prompt_gives_alone(lm):
    given = dict(prompts([3, 17, 60, 61, 5, 40]))
    for tags, batch in packed(given.items(), lm, tokens=200):
        read = lm.activations(batch, [HOOK])[HOOK]
        for tag, row, mask in zip(tags, read, batch.mask, strict=True):
            torch.testing.assert_close(row[mask], lm.activations(given[tag], [HOOK])[HOOK][0], atol=1e-4, rtol=1e-4)


def test_a_prompt_that_is_too_long_loses_its_end_and_is_told(lm):
    told = []
    given = prompts([CONTEXT + 50, 30, 10])
    lengths = {}
    for tags, batch in packed(given, lm, on_cut=lambda *cut: told.append(cut)):
        lengths |= dict(zip(tags, batch.mask.sum(-1).tolist(), strict=True))
    assert lengths == {0: CONTEXT, 1: 30, 2: 10}
    assert told == [(0, 50)]
    told.clear()
    widths = [batch.mask.sum(-1).max() for _, batch in packed(given, lm, length=20, on_cut=lambda *c: told.append(c))]
    assert max(widths) == 20
    assert told == [(0, CONTEXT + 30), (1, 10)]


def test_passes_are_the_same_each_time_and_come_in_a_mixed_order(lm):
    def made():
        return [tags for tags, _ in packed(prompts(range(1, 61)), lm, tokens=256)]

    assert made() == made()
    longest = [max(tags) for tags in made()]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"pool": -1}, {"length": 0}])
def test_a_size_that_cannot_be_is_refused_by_name(lm, wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        next(packed(prompts([3]), lm, **wrong))


def test_an_empty_prompt_and_a_token_that_the_model_lacks_are_refused(lm):
    with pytest.raises(BadInput, match="empty"):
        next(packed([(0, Prompt((), ()))], lm))
    with pytest.raises(BadInput, match="vocabulary"):
        next(packed([(0, Prompt((400,), (Kind.TEXT,)))], lm))
