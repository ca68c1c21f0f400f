"""One pass of the model: it reads what transformers computes, changes what was asked, and leaves no trace."""

import inspect
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import CONTEXT, HOOK, VOCABULARY, llama
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaForCausalLM,
    Mamba2Config,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from sparsight.errors import BadFile, BadInput, NoHookPoint, NotReached, TooLong
from sparsight.lm.cache import CACHE_WORDS
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import Kind

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 99,
    "pad_token_id": 0,
}
LINEAR = {f"linear_{what}": 8 for what in ("key_head_dim", "value_head_dim")}
LINEAR |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 0, "head_dim": 8}
FAMILIES = {  # config, hook point
    "grouped-query": (None, "model.layers.1"),
    "tied": (None, "model.layers.1"),
    "sliding": (MistralConfig(**SMALL, sliding_window=5), "model.layers.1"),
    "half-sliding": (
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1),
        "model.layers.1",
    ),
    "soft-capped": (Gemma2Config(**SMALL, sliding_window=5, head_dim=8), "model.layers.1"),
    "learned-positions": (GPT2Config(**SMALL), "transformer.h.1"),
    "offset-positions": (OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32), "model.decoder.layers.1"),
    "parallel": (GPTNeoXConfig(**SMALL), "gpt_neox.layers.1"),
    "recurrent": (Qwen3NextConfig(**{**SMALL, "num_hidden_layers": 4}, **LINEAR), "model.layers.1"),
    "states alone": (Mamba2Config(**SMALL, num_heads=4, head_dim=16, state_size=8, n_groups=1), "backbone.layers.1"),
}


@pytest.fixture(scope="module")
def families():
    """Models of many makes, built when first asked for."""
    built = {}

    def get(name: str) -> tuple[ObservableLanguageModel, str]:
        config, hook = FAMILIES[name]
        if name not in built:
            torch.manual_seed(0)
            if config is None:
                made = llama(torch.float64, tie_word_embeddings=name == "tied", **SMALL)
            else:
                wide = name not in (
                    "soft-capped",
                    "recurrent",
                    "states alone",
                )  # transformers computes those in float32
                made = AutoModelForCausalLM.from_config(config).to(torch.float64 if wide else torch.float32)
            built[name] = ObservableLanguageModel(made)
        return built[name], hook

    return get


def tokens(*shape: int, seed: int = 0, high: int = 99) -> torch.Tensor:
    return torch.randint(1, high, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [1, n] as one batch, with its attention mask."""
    width = max(row.shape[1] for row in rows)
    ids, mask = torch.full((len(rows), width), 7), torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        n = row.shape[1]
        here = slice(width - n, None) if side == "left" else slice(n)
        ids[i, here], mask[i, here] = row[0], 1
    return ids, mask


def same(actual, expected):
    """Equal but for rounding, in whatever precision the model runs."""
    loose = expected.dtype == torch.float32
    assert_close(actual, expected, rtol=1e-4 if loose else 1e-10, atol=3e-5 if loose else 1e-10)


# ── what is read ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_gives_what_transformers_gives(families, name):
    lm, hook = families(name)
    ids = tokens(2, 12)
    with torch.no_grad():
        theirs = lm.model(ids, output_hidden_states=True)
    logits, _, cache = lm.forward(ids, [hook])
    same(logits, theirs.logits[:, -1])
    after = 1 if name == "states alone" else 2  # elsewhere hidden_states[0] is what goes into layer 0
    same(cache[hook], theirs.hidden_states[after])
    same(lm.forward(ids, all_logits=True)[0], theirs.logits)
    assert not torch.allclose(cache[hook], theirs.hidden_states[after - 1])


def test_one_pass_reads_many_places_in_any_order(lm64):
    ids, points = tokens(1, 9), ["lm_head", "model.layers.3", "model.layers.0", "model.norm", "model.embed_tokens"]
    model = lm64.model
    hidden = model(ids, output_hidden_states=True).hidden_states
    _, _, cache = lm64.forward(ids, points)
    assert set(cache) == set(points)
    assert_close(cache["model.embed_tokens"], hidden[0])
    assert_close(cache["model.layers.0"], hidden[1])
    assert_close(cache["model.norm"], hidden[-1])
    assert_close(cache["model.norm"], model.model.norm(cache["model.layers.3"]))
    assert_close(cache["lm_head"], model(ids).logits)


def test_a_module_has_an_input_an_output_and_parts(lm64):
    ids, layer = tokens(1, 9), lm64.model.model.layers[2]
    points = [f"model.layers.2.{part}" for part in ("input", "output", "self_attn", "mlp", "mlp.input")]
    _, _, cache = lm64.forward(ids, [*points, "model.layers.1", "model.layers.2"])
    before, after, attention, mlp, mlp_input = (cache[point] for point in points)
    assert_close(before, cache["model.layers.1"])
    assert_close(after, cache["model.layers.2"])
    assert_close(after, before + attention + mlp)  # self_attn gives a tuple; its first tensor is meant
    assert_close(mlp_input, layer.post_attention_layernorm(before + attention))


def test_a_text_a_list_a_chat_an_encoding_and_a_tensor_are_read_alike(lm, tokenizer):
    text, chat = "Once upon a time", [{"role": "user", "content": "Hello"}]
    ids = tokenizer(text, return_tensors="pt").input_ids
    wanted, _, cache = lm.forward(ids, [HOOK])
    lists = tokenizer([text])
    forms = [text, [text], lists, tokenizer(text), ids[0], ids[0].tolist(), [ids[0].tolist()], lm.prompt(text)]
    for form in [*forms, ids.int(), tokenizer(text, return_tensors="pt")]:
        logits, _, read = lm.forward(form, [HOOK])
        assert torch.equal(logits, wanted)
        assert torch.equal(read[HOOK], cache[HOOK])
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert torch.equal(lm.forward(chat)[0], lm.forward(rendered)[0])
    assert_close(lm.forward([chat, chat])[0], lm.forward(rendered)[0].repeat(2, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_a_tokenizer_adds_as_plain_lists_is_not_read(lm, tokenizer, side):
    texts = ["Once upon a time there was", "Hello"]
    encoded = tokenizer(texts, padding=True, padding_side=side)
    assert isinstance(encoded["input_ids"], list)
    assert_close(lm.forward(encoded)[0][1:], lm.forward(texts[1])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_row_of_a_padded_batch_is_as_it_is_alone(families, name, side):
    lm, hook = families(name)
    rows = [tokens(1, n, seed=n) for n in (17, 9, 3)]
    ids, mask = padded(rows, side)

    def by_position(flow):  # an intervention that would notice a shift
        at = mask.cumsum(-1).unsqueeze(-1) if flow.shape[0] == 3 else torch.arange(1, flow.shape[1] + 1)[None, :, None]
        return flow + 0.05 * at.to(flow.dtype) * flow.roll(1, -1)

    for interventions in ({}, {hook: by_position}):
        logits, _, cache = lm.forward(ids, [hook], interventions, attention_mask=mask)
        assert cache[hook].shape[:2] == ids.shape
        for i, row in enumerate(rows):
            alone, _, read = lm.forward(row, [hook], interventions)
            same(logits[i], alone[0])
            same(cache[hook][i][mask[i] == 1], read[hook][0])


def test_all_logits_and_the_unembedding_keep_the_callers_layout(lm64):
    rows = [tokens(1, 7), tokens(1, 4)]
    ids, mask = padded(rows, "right")
    logits, _, cache = lm64.forward(ids, ["lm_head"], attention_mask=mask, all_logits=True)
    last, _, read = lm64.forward(ids, ["lm_head"], attention_mask=mask)
    for i, row in enumerate(rows):
        alone = lm64.model(row).logits[0]
        for full in (logits, cache["lm_head"], read["lm_head"]):
            assert_close(full[i, : row.shape[1]], alone)
        assert_close(last[i], alone[-1])


def test_a_pad_token_that_the_model_does_not_have_is_only_padding(lm):
    ids = torch.tensor([[VOCABULARY + 3, 5, 6], [7, 8, 9]])
    logits = lm.forward(ids, attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))[0]
    assert_close(logits[:1], lm.forward(ids[:1, 1:])[0], rtol=1e-4, atol=1e-5)


def test_reading_stops_where_nothing_more_is_needed(lm64):
    ran: list[str] = []
    modules = {name: m for name, m in lm64.model.named_modules() if name.startswith(("model.layers.", "lm_head"))}
    handles = [m.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, m in modules.items()]
    try:
        read = lm64.activations(tokens(1, 5), ["model.layers.1.mlp", "model.layers.0"])
    finally:
        for handle in handles:
            handle.remove()
    assert set(read) == {"model.layers.1.mlp", "model.layers.0"}
    assert "model.layers.1.self_attn" in ran
    assert not [name for name in ran if name == "lm_head" or name.startswith(("model.layers.2", "model.layers.3"))]
    full = lm64.forward(tokens(1, 5), list(read))[2]
    assert all(torch.equal(read[point], full[point]) for point in read)


def test_the_width_of_a_place_is_what_flows_there(lm):
    assert [lm.width(p) for p in (HOOK, "model.layers.0.mlp.up_proj", "lm_head")] == [lm.d_model, 64, VOCABULARY]


# ── passes in a row ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefill_and_steps_are_one_pass_and_a_cache_can_be_continued_twice(families, name):
    lm, hook = families(name)
    rows = [tokens(1, n, seed=n) for n in (14, 8)]
    ids, mask = padded(rows, "right")
    _, past, _ = lm.forward(ids, attention_mask=mask)
    for seed in (1, 2, 1):  # from the same past, other words, and the first again
        more, kv, flow = tokens(2, 4, seed=seed), past, []
        for step in more.split([1, 2, 1], 1):
            logits, kv, cache = lm.forward(step, [hook], past_key_values=kv)
            flow.append(cache[hook])
        for i, row in enumerate(rows):
            alone, _, read = lm.forward(torch.cat([row, more[i : i + 1]], 1), [hook])
            same(logits[i], alone[0])
            same(torch.cat(flow, 1)[i], read[hook][0, -4:])


def test_a_continued_cache_knows_its_padding_better_than_the_callers_mask(lm64):
    ids, mask = padded([tokens(1, 6), tokens(1, 3)], "right")
    _, past, _ = lm64.forward(ids, attention_mask=mask)
    step, new = tokens(2, 2, seed=5), torch.tensor([[1, 1], [1, 0]])
    wanted = lm64.forward(step, past_key_values=past, attention_mask=new)[0]
    whole = torch.cat([mask, new], 1)  # the caller's layout, in which the padding is on the right
    assert torch.equal(lm64.forward(step, past_key_values=past, attention_mask=whole)[0], wanted)
    assert_close(wanted[1:], lm64.forward(torch.cat([ids[1:, :3], step[1:, :1]], 1))[0])
    full = lm64.forward(step, past_key_values=past)[0]
    assert torch.equal(lm64.forward(step.tolist(), past_key_values=past)[0], full)


def test_a_cache_from_transformers_itself_can_be_continued(lm64):
    ids = tokens(2, 8)
    past = getattr(lm64.model(ids[:, :5], use_cache=True), lm64.cache_word)
    logits, grown, _ = lm64.forward(ids[:, 5:], past_key_values=past)
    assert_close(logits, lm64.model(ids).logits[:, -1])
    assert (past.get_seq_length(), grown.get_seq_length()) == (5, 8)
    assert lm64.forward(ids, use_cache=False)[1] is None


def test_kinds_and_positions_reach_an_intervention_that_asks(lm64):
    class Noting:
        def __init__(self):
            self.places = []

        def edit(self, activations, place):
            self.places.append(place)
            return activations

    note = Noting()
    ids, mask = padded([tokens(1, 4), tokens(1, 2)], "right")
    kinds = torch.full_like(ids, int(Kind.PROMPT | Kind.USER))
    _, past, _ = lm64.forward(ids, None, {HOOK: note}, attention_mask=mask, kinds=kinds)
    lm64.forward(tokens(2, 1), None, {HOOK: note}, past_key_values=past)
    first, second = note.places
    user = int(Kind.PROMPT | Kind.USER)
    assert first.kinds.tolist() == [[user] * 4, [0, 0, user, user]]  # as it is run: padded on the left
    assert first.positions.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert second.positions.tolist() == [[4], [2]]
    assert (first.prompt, second.prompt) == (True, False)


# ── what is changed ──────────────────────────────────────────────────────────────────────────────────────────────


def shift(seed: int = 3) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_rest_of_the_model_sees_the_change_and_so_does_the_reader(lm64):
    ids, v, model = tokens(2, 6), shift(), lm64.model
    plain = lm64.forward(ids, [HOOK])[2][HOOK]
    logits, _, cache = lm64.forward(ids, [HOOK, "model.layers.3"], {HOOK: lambda x: x + v})
    assert_close(cache[HOOK], plain + v)
    assert_close(logits, model.lm_head(model.model.norm(cache["model.layers.3"]))[:, -1])
    assert not torch.allclose(logits, lm64.forward(ids)[0])


@pytest.mark.parametrize(
    "point",
    ["model.layers.1", "model.layers.2.input", "model.layers.1.self_attn", "model.layers.1.mlp", "model.embed_tokens"],
)
def test_an_intervention_acts_on_outputs_inputs_and_tuples(lm64, point):
    """Adding v to anything that is added to the residual is adding v to the residual after it."""
    ids, v = tokens(1, 6), shift()
    after = "model.layers.0" if point == "model.embed_tokens" else "model.layers.1"
    last = lm64.forward(ids, [after], {point: lambda x: x + v})[2][after]
    if point in ("model.layers.1", "model.layers.1.mlp"):
        assert_close(last, lm64.forward(ids, [after])[2][after] + v)
    through = {"model.layers.2.input": "model.layers.1"}.get(point)
    logits = lm64.forward(ids, None, {point: lambda x: x + v})[0]
    assert not torch.allclose(logits, lm64.forward(ids)[0])
    if through:
        assert_close(logits, lm64.forward(ids, None, {through: lambda x: x + v})[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_intervention_may_write_into_what_it_is_given(lm64, side):
    ids, mask = padded([tokens(1, 6), tokens(1, 3)], side)
    v = shift()

    def in_place(flow):
        flow[:, :2] += v
        return flow

    def pure(flow):
        return torch.cat([flow[:, :2] + v, flow[:, 2:]], 1)

    wrote = lm64.forward(ids, ["model.layers.3"], {HOOK: in_place}, attention_mask=mask)
    added = lm64.forward(ids, ["model.layers.3"], {HOOK: pure}, attention_mask=mask)
    assert_close(wrote[0], added[0])
    assert_close(wrote[2], added[2])


def test_an_intervention_that_changes_nothing_changes_not_a_bit(lm):
    ids = tokens(2, 6)
    plain = lm.forward(ids)[0]
    assert torch.equal(plain, lm.forward(ids, None, {HOOK: lambda x: x})[0])
    assert torch.equal(plain, lm.forward(ids, None, {HOOK: None})[0])


@settings(max_examples=15)
@given(order=st.permutations(["model.layers.0", "model.layers.2", "model.layers.1.mlp", "model.layers.3.input"]))
def test_interventions_act_together_whatever_order_they_are_named_in(lm64, order):
    ids, v = tokens(1, 5), shift()
    wanted = lm64.forward(ids, None, {point: lambda x: x.roll(1, -1) + v for point in sorted(order)})[0]
    assert_close(lm64.forward(ids, order, {point: lambda x: x.roll(1, -1) + v for point in order})[0], wanted)


def by_hand(model: nn.Module, ids: torch.Tensor, change, direct) -> torch.Tensor:
    """Logits with `change` at the output of layer 1, `direct` of it taken off at the output of layer 3."""
    inner = model.model
    x = inner.embed_tokens(ids)
    angles = inner.rotary_emb(x, torch.arange(ids.shape[1])[None])
    n = ids.shape[1]
    mask = torch.full((n, n), -1e30, dtype=x.dtype).triu(1)[None, None]
    for i, layer in enumerate(inner.layers):
        x = layer(x, attention_mask=mask, position_embeddings=angles)
        if i == 1:
            x, effect = change(x), direct(x)
        if i == 3:
            x = x - effect
    return model.lm_head(inner.norm(x))[:, -1]


def test_at_the_cleanup_layer_the_direct_effect_is_taken_off_and_the_rest_stays(lm64):
    lm = ObservableLanguageModel(lm64.model, cleanup_intervention_layer="model.layers.3")
    ids, v, point = tokens(2, 7), shift(), "model.layers.1"

    def patch(x):
        return x + v * x.mean(-1, keepdim=True)

    def logits(intervention):
        return lm.forward(ids, None, {point: intervention})[0]

    with torch.no_grad():
        cleaned = by_hand(lm.model, ids, patch, lambda x: patch(x) - x)
        half = by_hand(lm.model, ids, patch, lambda x: (patch(x) - x) / 2)
        whole = by_hand(lm.model, ids, patch, lambda x: torch.zeros_like(x))
    assert_close(logits(patch), cleaned)
    assert_close(logits(lambda x: (patch(x), (patch(x) - x) / 2)), half)
    assert_close(logits(lambda x: (patch(x), None)), whole)
    assert_close(lm64.forward(ids, None, {point: patch})[0], whole)
    assert not torch.allclose(cleaned, whole)


def test_two_interventions_are_both_cleaned_up_in_a_padded_batch_and_a_step(lm64):
    lm = ObservableLanguageModel(lm64.model, cleanup_intervention_layer="model.layers.3")
    rows, v = [tokens(1, 6), tokens(1, 4)], shift()
    ids, mask = padded(rows, "right")
    both = {"model.layers.2": lambda x: x * 1.5, "model.layers.0": lambda x: x + v}
    logits, past, cache = lm.forward(ids, ["model.layers.3"], both, attention_mask=mask)
    logits = lm.forward(tokens(2, 1), None, both, past_key_values=past)[0]
    for i, row in enumerate(rows):
        alone = lm.forward(torch.cat([row, tokens(2, 1)[i : i + 1]], 1), ["model.layers.3"], both)
        assert_close(logits[i], alone[0][0])
        assert_close(cache["model.layers.3"][i, : row.shape[1]], alone[2]["model.layers.3"][0, :-1])


@pytest.mark.parametrize("point", ["model.layers.3", "model.layers.2", "model.layers.2.output"])
def test_a_cleanup_layer_that_does_not_come_after_is_refused(lm64, point):
    lm = ObservableLanguageModel(lm64.model, cleanup_intervention_layer="model.layers.2")
    with pytest.raises(BadInput, match="must come after"):
        lm.forward(tokens(1, 4), None, {point: lambda x: x + 1})


@pytest.mark.parametrize(
    "wrong", [lambda x: x[:, :1], lambda x: None, lambda x: (x, x[0]), lambda x: (x, x, x), lambda x: 0]
)
def test_an_intervention_that_gives_another_shape_is_told_which_was_wanted(lm, wrong):
    with pytest.raises(BadInput, match=rf"'{HOOK}' must return \[1, 4, 32\]"):
        lm.forward(tokens(1, 4), None, {HOOK: wrong})


# ── what may go wrong ────────────────────────────────────────────────────────────────────────────────────────────


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_no_hook_outlives_its_pass_whatever_happens(lm):
    def fails(flow):
        raise RuntimeError("a user's mistake")

    before = hooks(lm.model)
    with pytest.raises(RuntimeError, match="a user's mistake"):
        lm.forward(tokens(1, 4), [HOOK], {"model.layers.1.input": fails})
    with pytest.raises(NoHookPoint):
        lm.forward(tokens(1, 4), [HOOK, "model.layers.9"])
    lm.forward(tokens(1, 4), [HOOK, "model.layers.1.input"], {HOOK: lambda x: x + 1})
    lm.activations(tokens(1, 4), [HOOK])
    assert hooks(lm.model) == before == 0


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ("model.layers.40", "No hook point 'model.layers.40'. 'model.layers' of this model has 0 to 3."),
        ("model.layers.2.mpl", "'model.layers.2' has no 'mpl', it has: self_attn, mlp, .*Close to it: .*layers.2.mlp"),
        ("transformer.h.2", "This model has no 'transformer', it has: model, lm_head"),
        ("model.layers.2.nowhere.input", "has no 'nowhere'"),
        ("input", "No hook point 'input'"),
        ("", "No hook point ''"),
    ],
)
def test_an_unknown_hook_point_names_its_neighbours(lm, point, words):
    with pytest.raises(NoHookPoint, match=words):
        lm.forward(tokens(1, 4), [point])


@pytest.mark.parametrize(
    "attempt",
    [
        lambda lm, ids, spare: lm.forward(ids, [spare, HOOK]),
        lambda lm, ids, spare: lm.forward(ids, None, {spare: lambda x: x + 1}),
        lambda lm, ids, spare: lm.activations(ids, [HOOK, spare]),
    ],
)
def test_a_place_that_nothing_flows_through_is_an_error_not_a_silence(attempt):
    model = llama()
    model.model.spare = nn.Linear(32, 32)
    with pytest.raises(NotReached, match=r"Nothing flowed through 'model.spare'"):
        attempt(ObservableLanguageModel(model), tokens(1, 4), "model.spare")


def test_a_list_of_modules_is_no_place_where_anything_flows(lm):
    with pytest.raises(NotReached, match=r"model\.layers"):
        lm.forward(tokens(1, 4), ["model.layers"])


def test_what_is_no_tensor_cannot_be_read(lm):
    model = llama()
    model.model.norm.register_module("said", Speaking())
    model.model.norm.register_forward_hook(lambda module, args, out: module.said(out) and None)
    with pytest.raises(BadInput, match="'model.norm.said' is no tensor and does not begin with one: str"):
        ObservableLanguageModel(model).forward(tokens(1, 4), ["model.norm.said"])


class Speaking(nn.Module):
    def forward(self, x):
        return "words"


@pytest.mark.parametrize(
    ("inputs", "more", "error", "words"),
    [
        (torch.tensor([[1, VOCABULARY]]), {}, BadInput, "outside this model's vocabulary .0 to 399."),
        ([1, VOCABULARY], {}, BadInput, "outside this model's vocabulary"),
        (torch.tensor([[-1, 2]]), {}, BadInput, "outside this model's vocabulary"),
        (torch.tensor([[1.0, 2.0]]), {}, BadInput, r"integers, \[batch, pos\]; given \[1, 2\] of torch.float32"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), {}, BadInput, r"integers, \[batch, pos\]; given \[1, 2, 3\]"),
        (torch.zeros(1, 0, dtype=torch.int64), {}, BadInput, "prompt is empty"),
        ("", {}, BadInput, "prompt is empty"),
        ([], {}, BadInput, "no prompt"),
        ([[]], {}, BadInput, "no message"),
        (torch.ones(2, 3).long(), {"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, BadInput, "all padding"),
        (torch.ones(2, 3).long(), {"attention_mask": torch.ones(2, 5)}, BadInput, r"must be \[2, 3\]; it is \[2, 5\]"),
        (torch.ones(2, 3).long(), {"attention_mask": torch.ones(3, 2)}, BadInput, r"must be \[2, 3\]; it is \[3, 2\]"),
        ("Hello", {"attention_mask": torch.ones(1, 6)}, BadInput, "go with token ids"),
        ({"role": "user", "content": "Hello"}, {}, BadInput, "a chat is a list of messages"),
        (torch.ones(1, CONTEXT + 1).long(), {}, TooLong, "has 257 tokens; this model's context holds 256"),
        ("dog " * CONTEXT, {}, TooLong, "context holds 256"),
        ("Hello \ud800", {}, BadInput, "not valid UTF-8"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused_in_words(lm, inputs, more, error, words):
    with pytest.raises(error, match=words):
        lm.forward(inputs, **more)


def test_a_prompt_may_fill_the_context_but_a_continuation_may_not_pass_it(lm):
    _, past, _ = lm.forward(torch.ones(1, CONTEXT).long())
    with pytest.raises(TooLong, match="257 tokens"):
        lm.forward(torch.ones(1, 1).long(), past_key_values=past)
    with pytest.raises(BadInput, match="cache holds 1 rows; this batch has 2"):
        lm.forward(torch.ones(2, 1).long(), past_key_values=lm.forward("Hello")[1])


def test_a_model_without_a_tokenizer_reads_ids_and_says_what_it_lacks(lm):
    bare = ObservableLanguageModel(lm.model)
    assert torch.equal(bare.forward([5, 6])[0], lm.forward([5, 6])[0])
    with pytest.raises(BadInput, match="without a tokenizer: give `tokenizer=`"):
        bare.forward("Hello")


def test_a_cache_of_states_made_elsewhere_is_refused(families):
    lm, _ = families("states alone")
    out = lm.model(tokens(1, 6), use_cache=True)
    with pytest.raises(BadInput, match="does not say which tokens it has seen"):
        lm.forward(tokens(1, 1), past_key_values=getattr(out, lm.cache_word))


def renamed(model: LlamaForCausalLM, word: str) -> LlamaForCausalLM:
    """The same model, whose forward has this word for its cache, and no other."""

    def forward(self, *, input_ids, attention_mask=None, use_cache=None, **given):
        state = {theirs: given.pop(word)}
        out = LlamaForCausalLM.forward(self, input_ids, attention_mask, use_cache=use_cache, **state, **given)
        return SimpleNamespace(logits=out.logits, **{word: getattr(out, theirs)})

    theirs = next(w for w in CACHE_WORDS if w in inspect.signature(LlamaForCausalLM.forward).parameters)
    asks = inspect.signature(forward)
    known = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ("position_ids", word)]
    forward.__signature__ = asks.replace(parameters=[*list(asks.parameters.values())[:-1], *known])
    out = type("Renamed", (LlamaForCausalLM,), {"forward": forward})(model.config)
    out.load_state_dict(model.state_dict())
    return out


@pytest.mark.parametrize("word", ["cache", "past_key_values", "cache_params"])
def test_a_model_is_spoken_to_in_its_own_words(lm, word):
    other = ObservableLanguageModel(renamed(lm.model, word))
    assert other.cache_word == word
    rows = [[5, 6, 7], [8, 9]]
    same_ids = [[r.ids for r in one.generate(rows, max_new_tokens=6, stop_tokens=())] for one in (lm, other)]
    assert same_ids[0] == same_ids[1]


def test_a_model_without_a_word_for_its_cache_is_refused_at_once(lm):
    with pytest.raises(BadInput, match="Renamed keeps its state in a way that sparsight cannot follow"):
        ObservableLanguageModel(renamed(lm.model, "memory"))


@pytest.mark.parametrize("holders", [1, 4])
def test_threads_do_not_see_each_others_interventions(lm64, holders):
    """However many hold the one loaded model."""
    ids, wanted, got = tokens(1, 6), {}, {i: [] for i in range(4)}
    held = [lm64] if holders == 1 else [ObservableLanguageModel(lm64.model) for _ in got]
    for i in got:
        wanted[i] = lm64.forward(ids, None, {HOOK: lambda x, i=i: x + i})[0]

    def work(i: int) -> None:
        for _ in range(8):
            got[i].append(held[i % holders].forward(ids, None, {HOOK: lambda x: x + i})[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(logits, wanted[i]) for i in got for logits in got[i])
    assert [len(answers) for answers in got.values()] == [8] * 4


# ── a cache that somebody else changed ───────────────────────────────────────────────────────────────────────────


def grown(lm, past, ids):
    """A cache that transformers itself goes on with, in place."""
    with torch.no_grad():
        lm.model(input_ids=ids, use_cache=True, **{lm.cache_word: past})
    return past


def test_a_cache_that_transformers_grew_is_continued_right(lm64):
    ids = tokens(1, 12)
    _, past, _ = lm64.forward(ids[:, :5])
    same(lm64.forward(ids[:, 9:], past_key_values=grown(lm64, past, ids[:, 5:9]))[0], lm64.forward(ids)[0])


def test_a_cache_that_transformers_padded_is_continued_by_the_mask_given(lm64):
    rows = [tokens(1, 5), tokens(1, 3, seed=1)]
    ids, mask = padded(rows, "left")
    word = lm64.cache_word
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        past = lm64.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)[word]
    after = tokens(2, 1, seed=2)
    whole = torch.cat([mask, torch.ones_like(after)], 1)
    logits = lm64.forward(after, past_key_values=past, attention_mask=whole)[0]
    same(logits[1:], lm64.forward(torch.cat([rows[1], after[1:]], 1))[0])


def test_a_cache_whose_rows_were_moved_needs_a_mask_where_it_has_padding(lm64):
    rows = [tokens(1, 5), tokens(1, 3, seed=1)]
    ids, mask = padded(rows, "left")
    _, past, _ = lm64.forward(ids, attention_mask=mask)
    past.batch_select_indices(torch.tensor([1, 0]))
    after = tokens(2, 1, seed=2)
    with pytest.raises(BadInput, match="has padding and was changed after forward"):
        lm64.forward(after, past_key_values=past)
    whole = torch.cat([mask[[1, 0]], torch.ones_like(after)], 1)
    logits = lm64.forward(after, past_key_values=past, attention_mask=whole)[0]
    same(logits[:1], lm64.forward(torch.cat([rows[1], after[:1]], 1))[0])


def test_rows_of_a_cache_without_padding_may_be_repeated(lm64):
    ids = tokens(1, 8)
    _, past, _ = lm64.forward(ids[:, :5])
    past.batch_repeat_interleave(3)
    same(lm64.forward(ids[:, 5:].repeat(3, 1), past_key_values=past)[0], lm64.forward(ids)[0].repeat(3, 1))


def test_a_text_that_goes_on_has_no_bos_in_its_middle(lm):
    _, past, _ = lm.forward("Once upon a time")
    more = lm.tokenizer(" there was", add_special_tokens=False)["input_ids"]
    assert_close(lm.forward(" there was", past_key_values=past)[0], lm.forward([more], past_key_values=past)[0])


def test_a_pass_in_inference_mode_leaves_nothing_that_only_works_there(lm64):
    ids = tokens(1, 7)
    with torch.inference_mode():
        _, past, _ = lm64.forward(ids[:, :5])
    same(lm64.forward(ids[:, 5:], past_key_values=past)[0], lm64.forward(ids)[0])


@pytest.mark.usefixtures("unchecked")  # a user has no checker of types
@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda lm: ObservableLanguageModel(lm.model, device="bogus"), "No device 'bogus'"),
        (lambda lm: ObservableLanguageModel(lm.model, device="meta"), "holds no numbers"),
        (lambda lm: lm.forward([1, 2], interventions=[HOOK]), "hook point: intervention"),
        (lambda lm: lm.forward([1, 2], interventions={HOOK: 3}), "must be a function, not a int"),
        (lambda lm: lm.forward([1], past_key_values=((1, 2),)), "the cache that forward.. returned, not a tuple"),
        (lambda lm: lm.forward([True, False]), "A prompt is|A message is|integers"),
    ],
)
def test_what_is_no_input_is_refused_in_words(lm64, call, why):
    with pytest.raises(BadInput, match=why):
        call(lm64)


def test_a_cleanup_layer_of_another_width_is_refused(lm64):
    other = ObservableLanguageModel(lm64.model, cleanup_intervention_layer="lm_head")
    with pytest.raises(BadInput, match="own shape"):
        other.forward([1, 2, 3], interventions={HOOK: lambda x: x + 1})


def test_ids_of_any_whole_dtype_are_ids(lm64):
    same(lm64.forward(torch.tensor([[5, 6]], dtype=torch.uint8))[0], lm64.forward([[5, 6]])[0])


# ── from a folder ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_is_loaded_with_its_tokenizer(lm, tokenizer, tmp_path):
    lm.model.save_pretrained(tmp_path)
    loaded = ObservableLanguageModel(str(tmp_path), device="cpu")
    assert not loaded.has_tokenizer
    assert_close(loaded.forward([5, 6, 7])[0], lm.forward([5, 6, 7])[0])
    tokenizer.save_pretrained(tmp_path)
    half = ObservableLanguageModel(tmp_path, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.prompt("Hello").ids == lm.prompt("Hello").ids
    assert "ObservableLanguageModel(" in repr(half)


def test_a_folder_that_is_not_there_or_not_whole_is_named(lm, tmp_path):
    with pytest.raises(BadFile, match="No model at '/nowhere/model': there is no such folder"):
        ObservableLanguageModel("/nowhere/model", device="cpu")
    lm.model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadFile, match="Cannot load the model"):
        ObservableLanguageModel(tmp_path, device="cpu")
    with pytest.raises(BadInput, match="No dtype 'float12'"):
        ObservableLanguageModel(tmp_path, device="cpu", dtype="float12")
