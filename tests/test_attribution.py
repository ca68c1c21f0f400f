"""Which features made the model say it: gradient times activation, against the definition and against ablation."""

import pytest
import torch
from conftest import HOOK, VOCABULARY, llama, random_sae

from sparsight.errors import BadInput
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.scope.attribution import attribute, before, check
from sparsight.scope.next_logits import next_logits
from sparsight.scope.scope import Scope

TEXT = "Once upon a time there was a little dog."
CHAT = [
    {"role": "user", "content": "Hello, how are you?"},
    {"role": "assistant", "content": "I am fine, said the dog."},
]


@pytest.fixture(scope="module", params=["relu", "jumprelu", "topk", "gated"])
def scope64(request, lm64):
    return Scope(lm64, random_sae(request.param, torch.float64, normalization="none"), labels={3: "pirate speech"})


def by_the_definition(scope, ids, start, end, centred):
    """∂L/∂a · a with the whole SAE in the pass: x = decode(a) + error, the error held, a the leaf."""
    model, sae = scope.lm.model, scope.sae
    residual = {}
    handle = model.get_submodule(HOOK).register_forward_hook(lambda m, i, o: residual.update(x=o.detach()))
    model(torch.tensor([ids]))
    handle.remove()
    x = residual["x"]
    a = sae.encode(x).detach().requires_grad_(True)
    error = x - sae.decode(a).detach()
    handle = model.get_submodule(HOOK).register_forward_hook(lambda m, i, o: sae.decode(a) + error)
    logits = model(torch.tensor([ids])).logits[0]
    handle.remove()
    picked = logits[torch.arange(start, end) - 1]
    loss = picked[torch.arange(end - start), torch.tensor(ids[start:end])].sum()
    loss = loss - picked.mean(-1).sum() if centred else loss
    (slope,) = torch.autograd.grad(loss, a)
    return (slope * a)[0].detach(), float(loss.detach())


@pytest.mark.parametrize(("start", "end", "centred"), [(5, 6, True), (3, 9, True), (4, 7, False)])
def test_values_are_the_gradient_of_the_whole_path_through_the_sae_times_the_activation(scope64, start, end, centred):
    found = attribute(scope64, TEXT, start, end, centred=centred)
    wanted, loss = by_the_definition(scope64, list(found.prompt.ids), start, end, centred)
    assert not wanted[end - 1 :].any()
    got, wanted = torch.zeros_like(wanted[: end - 1]), wanted[: end - 1]
    got[found.codes.tokens, found.codes.features.long()] = found.values
    torch.testing.assert_close(got, wanted)
    assert sum(found.logits) == pytest.approx(loss)


@pytest.mark.parametrize("kind", ["constant_norm", "layer_norm"])
def test_an_sae_that_normalises_its_input_counts_in_residual_units(lm64, kind):
    scope = Scope(lm64, random_sae("relu", torch.float64, normalization=kind))
    found = attribute(scope, TEXT, 6)
    tiny = 2**-10  # exact in float32, as strengths are kept
    feature = found.top(1)[0]
    edit = scope.features[feature.feature].scale(1 - tiny).on("all", "template")
    rows = _pair(scope, found, edit)
    assert (rows[0] - rows[1]) / tiny == pytest.approx(feature.value, rel=0.01)


def _pair(scope, found, edit):
    """The target's logit without and with an edit."""
    prompt = before(found.prompt, found.end)
    out = []
    for wish in (None, edit):
        logits = {one.id: one for one in next_logits(scope, prompt, VOCABULARY, edits=wish)}
        mean = sum(one.logit for one in logits.values()) / len(logits)
        target = logits[found.prompt.ids[found.start]]
        out.append(target.logit - mean)
    return out


def test_where_the_rest_of_the_model_is_linear_the_value_is_what_ablating_takes_away(tokenizer):
    """The last layers do nothing and the final norm is no norm: logits are then linear in the residual."""
    model = llama(torch.float64)
    for layer in model.model.layers[3:]:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.model.norm = torch.nn.Identity()
    scope = Scope(ObservableLanguageModel(model, tokenizer=tokenizer), random_sae("relu", torch.float64))
    for centred in (True, False):
        told = check(scope, attribute(scope, TEXT, 4, 8, centred=centred), 40)
        assert len(told.features) == 40
        assert told.measured == pytest.approx(told.predicted)
        assert told.rank == pytest.approx(1.0)


def test_on_a_real_model_large_values_go_with_large_effects(scope64):
    told = check(scope64, attribute(scope64, CHAT, -6, -1), 30)
    assert told.rank > 0.5


def test_the_top_raises_and_the_bottom_lowers_and_bos_is_left_out(scope):
    found = attribute(scope, TEXT, 6)
    top, bottom = found.top(10), found.bottom(10)
    assert [one.value for one in top] == sorted((one.value for one in top), reverse=True)
    assert all(one.value > 0 for one in top)
    assert all(one.value < 0 for one in bottom)
    assert all(at.token > 0 for one in top for at in one.tokens)
    assert any(at.token == 0 for one in found.top(200, bos=True) for at in one.tokens)
    assert all(one.value == pytest.approx(sum(at.value for at in one.tokens)) for one in top)
    assert all(
        found.codes[at.token].of(one.feature)[0] == pytest.approx(at.activation) for one in top for at in one.tokens
    )
    everything = sum(one.value for one in [*found.top(999, bos=True), *found.bottom(999, bos=True)])
    assert everything == pytest.approx(float(found.values.sum()), rel=0.01)


def test_in_bfloat16_the_same_features_come_out(tokenizer):
    ranks = []
    for dtype in (torch.float64, torch.bfloat16):
        scope = Scope(ObservableLanguageModel(llama(dtype), tokenizer=tokenizer), random_sae("relu", dtype))
        found = attribute(scope, TEXT, 6)
        assert found.values.dtype in (torch.float32, torch.float64)
        ranks.append({one.feature for one in found.top(10)})
    assert len(ranks[0] & ranks[1]) >= 7


@pytest.mark.parametrize(("start", "end"), [(0, None), (5, 5), (5, 4), (99, None), (3, 99), (True, None)])
def test_tokens_that_are_not_there_are_refused(scope, start, end):
    with pytest.raises(BadInput, match="can be asked about"):
        attribute(scope, TEXT, start, end)


def test_gradients_leave_no_trace_and_work_within_no_grad_and_inference_mode(scope):
    before = attribute(scope, TEXT, 6).values
    with torch.no_grad():
        torch.testing.assert_close(attribute(scope, TEXT, 6).values, before)
    with torch.inference_mode():
        torch.testing.assert_close(attribute(scope, TEXT, 6).values, before)
    assert all(parameter.grad is None for parameter in scope.lm.model.parameters())


def test_next_logits_are_the_models_own_and_edits_move_them(scope):
    told = next_logits(scope, CHAT[:1], 5)
    logits = scope.lm.forward(CHAT[:1])[0][0]
    assert [one.id for one in told] == logits.topk(5).indices.tolist()
    assert [one.logit for one in told] == pytest.approx(logits.topk(5).values.tolist())
    assert told[0].probability == pytest.approx(float(logits.softmax(-1).max()))
    edited = next_logits(scope, CHAT[:1], 5, edits=scope.features[3].nudge(5).on("all", "template"))
    assert [one.logit for one in edited] != [one.logit for one in told]


def test_next_logits_of_some_words(scope):
    told = next_logits(scope, CHAT[:1], 10, vocabulary=["dog", "time"])
    assert {one.text for one in told} == {"dog", "time"}
    with pytest.raises(BadInput, match="no single token"):
        next_logits(scope, CHAT[:1], vocabulary=["dog", "incomprehensibilities"])
    for bad in ([], [""]):
        with pytest.raises(BadInput):
            next_logits(scope, CHAT[:1], vocabulary=bad)
