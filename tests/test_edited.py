"""What a controller does to a prompt before anything is written; and which features point the same way."""

import numpy as np
import pytest
import torch

from sparsight.edits import Controller, Feature
from sparsight.errors import BadInput, NoFeature
from sparsight.scope.edited import edited_logits, read_edited
from sparsight.scope.nearest import nearest
from sparsight.scope.scope import Scope

CHAT = [{"role": "user", "content": "Hello, how are you?"}]
f = [Feature(i) for i in range(128)]


@pytest.fixture
def prompt(lm):
    return lm.prompt(CHAT)


def test_without_edits_the_features_are_those_that_are_read(scope, prompt):
    assert read_edited(scope, prompt, Controller()) == list(scope.read(prompt).codes)


def test_only_the_edited_features_change_and_only_where_the_edit_acts(scope, prompt):
    scale = float(scope.sae.scale[5])
    before = [dict(pairs) for pairs in read_edited(scope, prompt, Controller())]
    after = [dict(pairs) for pairs in read_edited(scope, prompt, f[5].nudge(0.5) + f[9].pin(2) + f[11].ablate())]
    for kind, old, new in zip(prompt.kinds, before, after, strict=True):
        if "user" not in str(kind):
            assert new == old
            continue
        assert new[5] == pytest.approx(old.get(5, 0.0) + 0.5 * scale, rel=1e-4)
        assert new[9] == pytest.approx(2 * float(scope.sae.scale[9]), rel=1e-4)
        assert 11 not in new
        assert {i: v for i, v in new.items() if i not in (5, 9)} == {
            i: v for i, v in old.items() if i not in (5, 9, 11)
        }


def test_the_edited_features_decode_to_the_edited_residual(lm64, prompt):
    """The card's formula, decode(f') + (x − decode(f)), gives what the intervention makes of x."""
    from conftest import random_sae

    scope = Scope(lm64, random_sae(dtype=torch.float64))
    controller = f[5].nudge(-3) + f[9].scale(2) + f[11].pin(1).when(f[3] > 0.1)
    x = lm64.activations(prompt, [scope.hook_point])[scope.hook_point][0]
    steering = {scope.hook_point: scope.steering([controller], [prompt])}
    _, _, cache = lm64.forward(prompt, cache_activations_at=[scope.hook_point], interventions=steering)
    dense = torch.zeros(len(prompt), len(scope.features), dtype=torch.float64)
    for token, pairs in enumerate(read_edited(scope, prompt, controller)):
        for feature, value in pairs:
            dense[token, feature] = value
    expected = scope.sae.decode(dense) + (x - scope.sae.decode(scope.sae.encode(x)))
    torch.testing.assert_close(cache[scope.hook_point][0], expected, rtol=1e-9, atol=1e-9)


def test_strongest_come_first_and_those_asked_for_alone(scope, prompt):
    every = read_edited(scope, prompt, f[5].nudge(-4))
    assert all(values == sorted(values, reverse=True) for values in [[v for _, v in pairs] for pairs in every])
    some = read_edited(scope, prompt, f[5].nudge(-4), only=[5, 7, 5])
    assert some == [[pair for pair in pairs if pair[0] in (5, 7)] for pairs in every]
    assert any(v < 0 for pairs in some for _, v in pairs)
    with pytest.raises(NoFeature, match="No feature 128"):
        read_edited(scope, prompt, Controller(), only=[128])


def test_the_next_tokens_logits_are_those_that_chat_writes_by(scope, lm, prompt):
    wish = f[5].nudge(40).on("all", "template")
    for edit in (Controller(), Controller.of(wish)):
        best = int(edited_logits(scope, prompt, edit).argmax())
        assert best == scope.chat(CHAT, edit, max_new_tokens=1).ids[0]
    plain, _, _ = lm.forward(prompt)
    assert torch.equal(edited_logits(scope, prompt, Controller()), plain[0])


def test_entropy_bounds_are_those_of_the_unedited_model(scope, lm, prompt):
    log_p = lm.forward(prompt, all_logits=True)[0][0].log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    user = ["user" in str(kind) for kind in prompt.kinds]
    low = float(entropy[user].median())
    bounded = Controller((f[5].nudge(1),), min_nudge_entropy=low)
    plain, edited = read_edited(scope, prompt, Controller()), read_edited(scope, prompt, bounded)
    moved = [a != b for a, b in zip(plain, edited, strict=True)]
    assert moved == [mine and bool(nats >= low) for mine, nats in zip(user, entropy, strict=True)]
    assert any(moved)
    assert not torch.equal(edited_logits(scope, prompt, bounded), edited_logits(scope, prompt, Controller()))


def test_neighbours_are_the_nearest_to_the_centre_of_directions(sae):
    rows = sae.W_dec.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centre = rows[[3, 7, 9]].mean(0)
    cosines = rows @ centre / np.linalg.norm(centre)
    order = [i for i in np.argsort(-cosines, kind="stable").tolist() if i not in (3, 7, 9)]
    found = nearest(sae, [3, 7, 9, 7], 5)
    assert [index for index, _ in nearest(sae, [3, 7, 9], 5)] == order[:5]
    assert [cosine for _, cosine in nearest(sae, [3, 7, 9], 5)] == pytest.approx(cosines[order[:5]].tolist(), abs=1e-6)
    assert not {3, 7, 9} & {index for index, _ in found}
    assert len(nearest(sae, [3, 3], 8192)) == len(sae.W_dec) - 1
    with pytest.raises(NoFeature):
        nearest(sae, [128])
    with pytest.raises(BadInput, match="Neighbours of which feature"):
        nearest(sae, [])
