"""Toys fire as they say, and a dictionary is scored for what it has found of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsight.errors import BadInput
from sparsight.evaluate.synthetic import KINDS, Toy, score

N = 40_000


def on(toy: Toy, n: int = N) -> torch.Tensor:
    """Which features fire in n samples, [sample, feature]."""
    codes = toy.codes(n, 0)
    fired = torch.zeros(n, toy.features)
    fired[codes.tokens, codes.features.long()] = 1
    return fired


@pytest.mark.parametrize("kind", KINDS)
def test_features_fire_as_often_as_the_toy_says(kind):
    toy = Toy(kind)
    said, seen = toy.frequencies, on(toy).mean(0).double()
    assert float(said.sum()) == pytest.approx(toy.l0)
    assert float(seen.sum()) == pytest.approx(toy.l0, rel=0.02)
    spread = (said * (1 - said) / N) ** 0.5
    assert ((seen - said).abs() < 5 * spread).all()


def test_zipf_falls_by_its_exponent():
    p = Toy("zipf", exponent=0.5).frequencies
    assert float(p[0] / p[99]) == pytest.approx(10)


def test_children_fire_only_with_their_parent():
    toy = Toy("hierarchical")
    groups = on(toy).view(N, -1, toy.group)
    parent, children = groups[..., :1], groups[..., 1:]
    assert (children <= parent).all()
    assert float(children.sum() / (parent.sum() * (toy.group - 1))) == pytest.approx(toy.child, rel=0.05)


def test_features_of_a_group_correlate_as_asked_and_strangers_do_not():
    toy = Toy("correlated", features=64, l0=4.0)
    together = torch.corrcoef(on(toy).T)
    group = torch.arange(64) // toy.group
    same = (group[:, None] == group) & ~torch.eye(64, dtype=torch.bool)
    assert float(together[same].mean()) == pytest.approx(toy.correlation, abs=0.01)
    assert abs(float(together[group[:, None] != group].mean())) < 0.01


def test_independent_features_do_not_correlate():
    together = torch.corrcoef(on(Toy("zipf", features=32, l0=4.0)).T) - torch.eye(32)
    assert together.abs().max() < 6 / N**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_sum_of_its_active_features(kind):
    toy = Toy(kind, d_in=16, features=64, l0=3.0)
    codes, x = toy.codes(50, 7), toy.sample(50, 7)
    for row in range(50):
        parts = [value * toy.directions[feature] for feature, value in codes.at(row)]
        assert torch.allclose(sum(parts, torch.zeros(16)), x[row], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_as_long_as_the_square_root_of_their_width(kind):
    assert float(Toy(kind).sample(N, 0).pow(2).sum(1).mean()) == pytest.approx(128, rel=0.1)


def test_magnitudes_lie_around_their_mean():
    values = Toy().codes(N, 0).values / Toy().magnitude
    assert float(values.min()) >= 0.5
    assert float(values.max()) <= 1.5
    assert float(values.mean()) == pytest.approx(1, abs=0.01)


@given(st.integers(0, 2**63), st.integers(0, 2**40))
def test_a_batch_is_known_by_its_number(seed, number):
    toy = Toy(d_in=8, features=32, l0=2.0, seed=seed)
    again = Toy(d_in=8, features=32, l0=2.0, seed=seed)
    assert torch.equal(toy.sample(64, number), again.sample(64, number))
    assert not torch.equal(toy.sample(64, number), toy.sample(64, number + 1))
    assert not torch.equal(toy.directions, Toy(d_in=8, features=32, l0=2.0, seed=seed + 1).directions)


def test_directions_are_spread_as_evenly_as_can_be():
    directions = Toy(d_in=32, features=80).directions
    assert torch.allclose(directions.norm(dim=1), torch.ones(80), atol=1e-5)
    assert torch.allclose(directions[:32] @ directions[:32].T, torch.eye(32), atol=1e-5)
    assert torch.allclose(directions[64:] @ directions[64:].T, torch.eye(16), atol=1e-5)


@given(st.integers(0, 1000))
def test_the_truth_in_any_order_and_scale_is_a_full_score(seed):
    toy = Toy(d_in=16, features=40, l0=3.0)
    g = torch.Generator().manual_seed(seed)
    scales = torch.rand(40, 1, generator=g) + 0.1
    found = score(toy, (toy.directions * scales)[torch.randperm(40, generator=g)])
    assert (found.mmcs, found.mcc) == pytest.approx((1, 1), abs=1e-5)
    assert (found.recovered, found.dead, found.by_frequency) == (1, 0, (1,) * 10)


def test_a_random_dictionary_scores_low():
    found = score(Toy(), torch.randn(512, 128, generator=torch.Generator().manual_seed(0)))
    assert found.recovered == 0
    assert found.mcc < found.mmcs < 0.4


def test_the_opposite_of_the_truth_is_no_match():
    toy = Toy(d_in=32, features=32)
    assert score(toy, -toy.directions).mmcs < 0.01


def test_two_features_for_one_truth_are_one_match():
    toy = Toy(d_in=32, features=32)
    twice = toy.directions[:16].repeat(2, 1)
    found = score(toy, twice)
    assert found.mmcs == pytest.approx(0.5, abs=1e-5)
    assert found.mcc == pytest.approx(0.5, abs=1e-5)
    assert score(toy, toy.directions[:8]).mcc == pytest.approx(0.25, abs=1e-5)


def test_a_feature_that_never_fires_has_found_nothing():
    toy = Toy("zipf", d_in=32, features=30)
    fired = torch.ones(30, dtype=torch.bool)
    fired[-6:] = False  # the rarest fifth
    found = score(toy, toy.directions, fired)
    assert found.dead == pytest.approx(0.2)
    assert found.recovered == pytest.approx(0.8)
    assert found.by_frequency == (0, 0, *(1,) * 8)
    zeros = toy.directions.clone()
    zeros[-6:] = 0
    assert score(toy, zeros) == found
    assert score(toy, torch.zeros(30, 32)).dead == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "dense"}, "No toy 'dense'"),
        ({"features": 0}, "features"),
        ({"kind": "correlated", "features": 100}, "no whole number of groups"),
        ({"l0": 600.0}, "stays below 512"),
        ({"kind": "zipf", "l0": 100.0}, "too high"),
        ({"kind": "hierarchical", "child": 1.5}, "child"),
        ({"l0": float("nan")}, "l0"),
    ],
)
def test_a_toy_that_cannot_be_says_why(changes, said):
    with pytest.raises(BadInput, match=said):
        Toy(**changes)


def test_a_decoder_of_another_width_is_refused():
    with pytest.raises(BadInput, match="needs \\[any, 128\\]"):
        score(Toy(), torch.ones(4, 64))
