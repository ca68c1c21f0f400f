"""Finding features: the query language, words and meaning together, filters, neighbours, names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.atlas.query import FILTERS, NAMES, NUMBERS, Filter, Query
from sparsight.errors import BadInput

# ── what one types ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_query_is_words_tokens_indices_and_filters_in_any_order():
    query = Query.of('density:<0.1% talk "arr" like #12 a pirate role:assistant logit:"a \\"b" not:dense score:>=.8')
    assert query.text == "talk like a pirate"
    assert (query.exact, query.features) == (("arr",), (12,))
    assert query.filters == (
        Filter("density", 0.001, "<"), Filter("role", "assistant"), Filter("logit", 'a "b'),
        Filter("not", "dense"), Filter("score", 0.8, ">="),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("densty:<1", "No filter 'densty'. Did you mean 'density'?"),
        ("density:low", "density: takes a number, as in density:<0.001"),
        ("max:>1e999", "max: takes a number"),
        ("role:asistant", "No role 'asistant'. Did you mean 'assistant'?"),
        ("not:dens", "No flag 'dens'. Did you mean 'dense'?"),
        ("method:hand", "No method 'hand'"),
        ('language:""', "language: takes a word"),
    ],
)
def test_a_filter_that_there_is_not_names_its_neighbour(words, says):
    with pytest.raises(BadInput, match=says):
        Query.of(words)


def test_what_only_looks_like_a_filter_is_words():
    assert Query.of('at 12:30 https://x.org note: this #pirates "unclosed').text == (
        "at 12:30 https://x.org note: this #pirates unclosed"
    )


PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from([*(f"{name}:" for name in FILTERS), '"', "\\", '"arr"', "#7", "<0.1", "dense", " ", " ", "\0"]),
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_text_is_a_query_or_a_clear_error_and_prints_back_to_itself(words):
    try:
        query = Query.of(words)
    except BadInput as error:
        assert str(error)
        return
    assert Query.of(str(query)) == query


NUMBER = st.builds(Filter, st.sampled_from(NUMBERS), st.floats(allow_nan=False, allow_infinity=False),
                   st.sampled_from(["<", "<=", ">", ">=", "="]))  # fmt: skip
NAMED = st.sampled_from([Filter(name, value) for name, values in NAMES.items() for value in values])
SAID = st.builds(Filter, st.sampled_from(["language", "type", "logit", "fires"]),
                 st.text(min_size=1).filter(str.strip))  # fmt: skip


@given(st.lists(st.text(min_size=1), unique=True), st.lists(st.integers(0, 10**9), unique=True),
       st.lists(NUMBER | NAMED | SAID, unique=True))  # fmt: skip
def test_whatever_a_query_says_its_words_say_too(exact, features, filters):
    query = Query("pirates and ships", tuple(exact), tuple(features), tuple(filters))
    assert Query.of(str(query)) == query
