"""A model with an SAE attached: reading, writing, writing otherwise."""

import pytest
import torch

from sparsight.errors import BadInput


def test_reading_gives_each_token_its_features(scope, lm, sae):
    reading = scope.read("Hello, how are you?")
    flow = lm.forward("Hello, how are you?", cache_activations_at=[scope.hook_point])[2][scope.hook_point]
    dense = sae.encode(flow[0])
    torch.testing.assert_close(reading.codes.dense(), dense)
    assert "".join(reading.texts) == "<|begin_of_text|>Hello, how are you?"


def test_edits_change_the_text_and_the_receipt_says_so(scope):
    out = scope.compare("Hello", scope.features[3].nudge(20).on("generated"), max_new_tokens=12)
    assert out.plain.ids != out.steered.ids
    assert out.plain.receipt is None
    assert out.steered.receipt.touched == 11  # the last token is not fed back


def test_labels_name_features(scope):
    assert scope.features["pirate"].index == 3
    with pytest.raises(BadInput, match="Several features are labelled 'small': 7 .*9"):
        scope.features["small"]
