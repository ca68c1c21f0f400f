"""Codes, the sparse form of features, against the dense matrix and plain Python."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsight.errors import BadInput, NoFeature
from sparsight.sae.codes import Codes

VALUES = st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 3.25, 1e-30, 1e30])
shapes = st.tuples(st.integers(0, 6), st.integers(1, 9))
dense = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=VALUES)).map(torch.from_numpy)


def pairs(row: torch.Tensor) -> list[tuple[int, float]]:
    """A dense row's active (feature, value) pairs, strongest first, ties to the lower index."""
    found = [(i, v) for i, v in enumerate(row.tolist()) if v > 0]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def whole(codes: Codes) -> bool:
    """Compressed rows as promised: offsets from 0, ascending features, one value each."""
    rows = [codes.features[a:b].tolist() for a, b in pairwise(codes.offsets)]
    return (
        codes.offsets.dtype == torch.int64
        and codes.features.dtype == torch.int32
        and int(codes.offsets[0]) == 0
        and int(codes.offsets[-1]) == len(codes.features) == len(codes.values)
        and all(row == sorted(set(row)) for row in rows)
    )


@given(dense)
def test_codes_and_the_dense_matrix_say_the_same(matrix):
    codes = Codes.from_dense(matrix)
    assert whole(codes)
    assert torch.equal(codes.dense(), matrix)
    assert len(codes) == len(matrix)
    assert codes.l0 == pytest.approx((matrix > 0).sum().item() / max(len(matrix), 1))
    assert torch.equal(codes.tokens, matrix.nonzero()[:, 0])
    assert f"{len(matrix)} tokens, {len(codes.values)} active" in repr(codes)


@given(dense, st.randoms(use_true_random=False), st.sampled_from([torch.int64, torch.int32]))
def test_pairs_may_come_in_any_order(matrix, random, dtype):
    token, feature = matrix.nonzero(as_tuple=True)
    order = list(range(len(token)))
    random.shuffle(order)
    order = torch.tensor(order, dtype=torch.int64)
    columns = token[order].to(dtype), feature[order].to(dtype), matrix[token, feature][order]
    assert Codes.from_pairs(*columns, *matrix.shape) == Codes.from_dense(matrix)


def test_pairs_of_many_tokens_keep_their_places():
    """int32 columns once overflowed: token 40,000 of 65,536 features is beyond 2^31."""
    token, feature = torch.tensor([40_000, 3], dtype=torch.int32), torch.tensor([5, 65_535], dtype=torch.int32)
    codes = Codes.from_pairs(token, feature, torch.tensor([1.0, 2.0]), 40_001, 65_536)
    assert codes.at(3) == [(65_535, 2.0)]
    assert codes.at(-1) == [(5, 1.0)]


@pytest.mark.parametrize(
    ("token", "feature", "error", "said"),
    [
        ([0, 3], [0, 0], BadInput, r"No token 3: there are 3 \(0 to 2\)"),
        ([0, -1], [0, 0], BadInput, "No token -1"),
        ([0, 1], [4, 0], NoFeature, r"No feature 4: this SAE has 4 \(0 to 3\)"),
        ([0, 1], [0, -2], NoFeature, "No feature -2"),
        ([2, 0, 2], [1, 1, 1], BadInput, "Feature 1 of token 2 is given twice"),
    ],
)
def test_pairs_that_cannot_be_are_refused(token, feature, error, said):
    with pytest.raises(error, match=said):
        Codes.from_pairs(torch.tensor(token), torch.tensor(feature), torch.ones(len(token)), 3, 4)


@given(dense)
def test_each_token_lists_its_features_strongest_first(matrix):
    codes = Codes.from_dense(matrix)
    rows = [pairs(row) for row in matrix]
    assert list(codes) == rows
    assert [codes.at(token) for token in range(len(rows))] == rows
    assert [codes.at(token - len(rows)) for token in range(len(rows))] == rows


@given(dense, st.integers(-9, 9))
def test_one_token_is_its_row_and_outside_there_is_none(matrix, token):
    codes = Codes.from_dense(matrix)
    if -len(matrix) <= token < len(matrix):
        assert torch.equal(codes[token].dense(), matrix[token][None])
        assert whole(codes[token])
    else:
        for ask in (codes.at, codes.__getitem__):
            with pytest.raises(BadInput, match=f"No token {token}: (there are {len(matrix)}|none here)"):
                ask(token)


bound = st.none() | st.integers(-9, 9)


@given(dense, bound, bound)
def test_a_run_of_tokens_is_cut_as_a_list_is(matrix, start, stop):
    part = Codes.from_dense(matrix)[start:stop]
    assert whole(part)
    assert torch.equal(part.dense(), matrix[start:stop])


def test_only_runs_are_cut():
    with pytest.raises(BadInput, match="step must be 1"):
        Codes.from_dense(torch.ones(3, 2))[::2]


@given(dense, st.integers(1, 10))
def test_the_top_of_each_token(matrix, k):
    top = Codes.from_dense(matrix).top(k)
    assert whole(top)
    assert list(top) == [pairs(row)[:k] for row in matrix]


@given(dense, st.integers(1, 10))
def test_the_strongest_anywhere(matrix, k):
    peaks = matrix.amax(0) if len(matrix) else torch.zeros(matrix.shape[1])
    assert Codes.from_dense(matrix).strongest(k) == pairs(peaks)[:k]


@given(dense, st.integers(-2, 10))
def test_one_feature_at_every_token(matrix, feature):
    codes = Codes.from_dense(matrix)
    if 0 <= feature < matrix.shape[1]:
        assert torch.equal(codes.of(feature), matrix[:, feature])
    else:
        with pytest.raises(NoFeature, match=f"No feature {feature}: this SAE has {matrix.shape[1]}"):
            codes.of(feature)


@given(dense, st.lists(st.integers(0, 6), max_size=4))
def test_parts_joined_are_the_whole(matrix, cuts):
    codes = Codes.from_dense(matrix)
    edges = [0, *sorted(min(cut, len(matrix)) for cut in cuts), len(matrix)]
    parts = [codes[a:b] for a, b in pairwise(edges)]
    assert Codes.joined(parts) == codes


def test_codes_of_different_saes_are_not_joined():
    with pytest.raises(BadInput, match="one SAE"):
        Codes.joined([Codes.from_dense(torch.ones(1, 2)), Codes.from_dense(torch.ones(1, 3))])
    with pytest.raises(BadInput, match="one SAE"):
        Codes.joined([])


@given(dense, dense)
def test_codes_are_equal_where_the_matrices_are(one, other):
    assert (Codes.from_dense(one) == Codes.from_dense(other)) == torch.equal(one, other)
    assert Codes.from_dense(one) == Codes.from_dense(one.clone()).to("cpu")


def test_codes_are_not_what_is_no_codes():
    codes = Codes.from_dense(torch.ones(1, 2))
    assert codes != "codes"
    with pytest.raises(TypeError, match="unhashable"):
        hash(codes)


@pytest.mark.parametrize("k", [0, -1])
def test_the_top_none_is_refused(k):
    codes = Codes.from_dense(torch.ones(2, 3))
    for ask in (codes.top, codes.strongest):
        with pytest.raises(BadInput, match=f"takes 1 or more, not {k}"):
            ask(k)


def test_codes_keep_the_dtype_of_their_values():
    codes = Codes.from_dense(torch.tensor([[0.0, 1.5], [2.0, 0.0]], dtype=torch.bfloat16))
    assert codes.dense().dtype == codes.of(0).dtype == torch.bfloat16
    assert codes.strongest(5) == [(0, 2.0), (1, 1.5)]


def test_an_active_feature_is_above_zero():
    one = torch.tensor([0])
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(BadInput, match="above zero"):
            Codes.from_pairs(one, one, torch.tensor([value]), 1, 4)


@pytest.mark.usefixtures("unchecked")
def test_whole_numbers_of_any_kind_are_indices_and_others_are_not():
    codes = Codes.from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    assert codes.of(np.int64(1)).tolist() == [2, 0]
    assert codes[np.int64(0)] == codes[0]
    for wrong in (1.5, True, "1"):
        with pytest.raises(BadInput, match="a whole number"):
            codes.of(wrong)
