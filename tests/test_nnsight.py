"""nnsight over the same weights: whoever likes its trace writes the same interventions there."""

import pytest
import torch
from conftest import HOOK, llama, random_sae
from torch.testing import assert_close

from sparsight.lm.lm import ObservableLanguageModel


@pytest.fixture
def own(tokenizer):
    """A model of this test's own, since nnsight wraps what it is given."""
    return ObservableLanguageModel(llama(torch.float64), tokenizer=tokenizer)


def test_an_sae_in_nnsights_trace_is_the_same_intervention_as_ours(own):
    sae = random_sae(dtype=torch.float64)
    ids = torch.tensor([[0, 17, 42, 300, 12, 8]])

    def edited(x):
        features = sae.encode(x)
        wanted = features.clone()
        wanted[..., 3] = wanted[..., 3] + 2.0
        return sae.decode(wanted) + (x - sae.decode(features))

    nns = own.nnsight()
    with torch.no_grad(), nns.trace(ids):
        before = nns.model.layers[2].output.save()
        nns.model.layers[2].output = edited(nns.model.layers[2].output)
        logits = nns.lm_head.output.save()
    plain = own.forward(ids, [HOOK])
    ours, _, cache = own.forward(ids, [HOOK, "lm_head"], {HOOK: edited})
    assert_close(before, plain[2][HOOK])
    assert_close(logits, cache["lm_head"])
    assert_close(logits[:, -1], ours)
    assert not torch.allclose(ours, plain[0])


def test_nnsight_reads_the_same_words_and_copies_no_weight(own, tokenizer):
    nns = own.nnsight()
    assert all(a is b for a, b in zip(nns._module.parameters(), own.model.parameters(), strict=True))
    with torch.no_grad(), nns.trace("Once upon a time"):
        logits = nns.lm_head.output[:, -1].save()
    assert_close(logits, own.forward("Once upon a time")[0])


def test_our_pass_is_untouched_by_an_nnsight_beside_it(own):
    ids = [0, 17, 42, 300]
    before = own.forward(ids, [HOOK], {HOOK: lambda x: x + 1})
    nns = own.nnsight()
    with torch.no_grad(), nns.trace(torch.tensor([ids])):
        nns.model.layers[1].output = nns.model.layers[1].output * 0
    after = own.forward(ids, [HOOK], {HOOK: lambda x: x + 1})
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2][HOOK], after[2][HOOK])
    assert own.generate([ids], max_new_tokens=5)[0].ids == own.generate([ids], max_new_tokens=5)[0].ids
