"""Two sets of chats: which features tell them apart, and whether that holds on chats that took no part."""

import json

import numpy as np
import pytest
import torch
from conftest import random_sae
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsight.cli import main
from sparsight.errors import BadInput, NoChatTemplate, TooLong
from sparsight.records import Kind
from sparsight.scope.contrast import apart, contrast, kept_out
from sparsight.scope.pooled import as_prompts, marked, pooled
from sparsight.scope.scope import Scope
from sparsight.scope.separation import auc, deviation

WORDS = [
    "the dog",
    "a pirate",
    "the day",
    "a time",
    "the answer",
    "a question",
    "the system",
    "little dog",
    "user",
    "so",
]


def chat(answer, question="Hello, how are you?"):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


ARR = [chat(f"arr {word} arr arr") for word in WORDS]
PLAIN = [chat(f"{word} is fine today") for word in WORDS]


def test_the_pooled_activation_is_the_mean_and_the_peak_of_the_reading(scope):
    chats = [ARR[0], PLAIN[1], chat("Once upon a time there was a little dog")]
    prompts = as_prompts(scope.lm, chats, "with")
    mark, told = marked(prompts, None)
    assert told == "assistant tokens"
    found = pooled(scope, prompts, mark)
    every = torch.arange(scope.sae.d_hidden)
    for number, reading in enumerate(scope.read(chats)):
        own = reading.codes.dense()[[bool(kind & Kind.ASSISTANT) for kind in reading.kinds]]
        torch.testing.assert_close(found.dense(every)[number], own.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.dense(every, "peak")[number], own.max(0).values, rtol=1e-4, atol=1e-5)
    some = torch.tensor([3, 17, 18, 90])
    torch.testing.assert_close(found.dense(some), found.dense(every)[:, some])


def test_what_is_ranked_is_the_moderated_difference_and_its_figures_are_those_of_scipy(scope):
    found = contrast(scope, ARR, PLAIN, 12, held_out=0.0, alike=1.0)
    unit = scope.sae.scale
    a, b = (
        torch.stack(
            [r.codes.dense()[[bool(k & Kind.ASSISTANT) for k in r.kinds]].mean(0) / unit for r in scope.read(side)]
        )
        for side in (ARR, PLAIN)
    )
    fire = ((a > 0) | (b > 0)).any(0)
    s = ((a.var(0) + b.var(0)) / 2).sqrt()
    score = (a.mean(0) - b.mean(0)) / (s + s[s > 0].median())
    assert found.fire == int(fire.sum())
    assert [one.feature for one in found.with_] == score.argsort(descending=True)[:12].tolist()
    assert [one.feature for one in found.without] == score.argsort()[:12].tolist()
    p = stats.mannwhitneyu(a[:, fire].double().numpy(), b[:, fire].double().numpy(), axis=0).pvalue
    q = dict(zip(fire.nonzero()[:, 0].tolist(), stats.false_discovery_control(p), strict=True))
    for one in (*found.with_, *found.without):
        u = stats.mannwhitneyu(a[:, one.feature].double(), b[:, one.feature].double())
        area = u.statistic / (len(a) * len(b))
        assert one.score == pytest.approx(abs(float(score[one.feature])), rel=1e-3)
        assert one.auc == pytest.approx(area if one in found.with_ else 1 - area, abs=1e-6)
        assert one.p == pytest.approx(u.pvalue, rel=1e-4)
        assert one.q == pytest.approx(q[one.feature], rel=1e-4)
        assert one.d == pytest.approx(abs(float((a.mean(0) - b.mean(0))[one.feature] / s[one.feature])), rel=1e-3)
    assert found.with_[0].label is None or isinstance(found.with_[0].label, str)


def test_many_features_are_told_apart_in_blocks_as_one_by_one(scope, sae):
    features = torch.randperm(sae.d_hidden, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    kept = []
    for place, feature in enumerate(features.tolist()):
        if all(float(rows[feature] @ rows[features[other]]) <= 0.2 for other in kept):
            kept.append(place)
    for block in (1, 7, 256):
        assert apart(sae, features, 999, 0.2, block).tolist() == kept
    assert apart(sae, features, 5, 0.2, 7).tolist() == kept[:5]
    assert scope.contrast(ARR, PLAIN, 2) == contrast(scope, ARR, PLAIN, 2)


def test_turning_the_sides_round_turns_the_answer_round(scope):
    one, other = contrast(scope, ARR, PLAIN, 6, 9), contrast(scope, PLAIN, ARR, 9, 6)
    assert [f.feature for f in one.with_] == [f.feature for f in other.without]
    assert [f.feature for f in one.without] == [f.feature for f in other.with_]
    assert len(one.without) == 9
    assert one == contrast(scope, ARR, PLAIN, 6, 9)


def test_what_is_judged_on_chats_that_took_no_part_did_not_see_them(scope):
    held = kept_out(10, 0.25)
    assert int(held.sum()) == 2
    found = contrast(scope, ARR, PLAIN, 5)
    assert (found.chats, found.held_out) == ((8, 8), (2, 2))
    inside = [[c for c, out in zip(side, held.tolist(), strict=True) if not out] for side in (ARR, PLAIN)]
    alone = contrast(scope, *inside, 5, held_out=0.0)
    assert [f.feature for f in alone.with_] == [f.feature for f in found.with_]
    assert all(0 <= f.held_out <= 1 for f in found.with_)
    assert found.with_[0].held_out > 0.9
    few = contrast(scope, ARR[:7], PLAIN, 5)
    assert few.held_out == (0, 0)
    assert "none was held out" in few.note
    assert few.with_[0].held_out is None


def test_nothing_is_found_where_nothing_differs(scope):
    """Chats cut in two at random: q is not small, and the held-out AUC of the best is near one half on average."""
    rng = np.random.default_rng(0)
    texts = [chat(" ".join(rng.choice(WORDS, 4))) for _ in range(64)]
    found = contrast(scope, texts[::2], texts[1::2], 8)
    assert min(one.q for one in found.with_) > 0.05
    assert np.mean([one.held_out for one in (*found.with_, *found.without)]) < 0.7


def test_one_chat_a_side_gives_differences_and_says_so(scope):
    found = contrast(scope, ARR[:1], PLAIN[:1], 5)
    assert "no statistics" in found.note
    assert all(one.p is None and one.q is None and one.d is None and one.held_out is None for one in found.with_)
    assert [one.score for one in found.with_] == sorted((one.score for one in found.with_), reverse=True)
    assert found.with_[0].score == pytest.approx(found.with_[0].mean - found.with_[0].other)


def test_pairs_are_compared_with_each_other(scope):
    found = contrast(scope, ARR, PLAIN, 3, paired=True, held_out=0.0)
    assert found.with_[0].p < 0.05
    with pytest.raises(BadInput, match="as many on either side"):
        contrast(scope, ARR, PLAIN[:4], 3, paired=True)
    one, other = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.0], [2.0], [4.0]])
    assert float(auc(one, other, paired=True)) == pytest.approx(0.5)
    assert float(deviation(one, other, paired=True)) == pytest.approx(1.0)


def test_of_features_that_point_the_same_way_the_best_alone_is_told(lm):
    sae = random_sae()
    sae.W_dec[64:] = sae.W_dec[:64]
    twins = Scope(lm, sae)
    found = contrast(twins, ARR, PLAIN, 40)
    places = [one.feature % 64 for one in found.with_]
    assert len(set(places)) == len(places)
    rows = torch.nn.functional.normalize(sae.W_dec[[one.feature for one in found.with_]], dim=-1)
    assert float((rows @ rows.T - 2 * torch.eye(len(rows))).max()) <= 0.9
    assert len(contrast(twins, ARR, PLAIN, 40, alike=1.0).with_) >= len(found.with_)


def test_which_tokens_count(scope):
    assert contrast(scope, ARR, PLAIN, 1).tokens == "assistant tokens"
    asked = [c[:1] for c in PLAIN]
    assert contrast(scope, ARR, asked, 1).tokens == "all tokens"
    assert contrast(scope, ["arr arr"], ["a dog"], 1).tokens == "all tokens"
    same = contrast(scope, ARR, PLAIN, 5, where="user")  # the users say the same on both sides
    assert not same.with_
    assert not same.without
    with pytest.raises(BadInput, match="no token of those"):
        contrast(scope, ARR, asked, 1, where="assistant")


def test_without_scipy_the_figures_come_without_p_values(scope, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "scipy", None)
    found = contrast(scope, ARR, PLAIN, 3)
    assert "sparsight[evaluate]" in found.note
    assert found.with_[0].p is None
    assert found.with_[0].held_out is not None


def test_an_sae_without_units_is_read_in_raw_activation(lm, sae):
    raw = Scope(lm, sae.from_tensors(sae.config, dict(sae.named_parameters())))
    assert raw.sae.scale is None
    found = contrast(raw, ARR, PLAIN, 3)
    assert found.with_[0].auc > 0.9


@pytest.mark.parametrize(
    "asked",
    [
        {"k": -1}, {"k_without": -2}, {"pool": "median"}, {"held_out": 0.9}, {"alike": 0.0}, {"where": "nowhere"},
        {"with_": []}, {"with_": "a text"}, {"with_": ARR[0]}, {"without": [[]]}, {"where": []},
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(scope, asked):
    with pytest.raises(BadInput):
        contrast(scope, **({"with_": ARR, "without": PLAIN} | asked))


def test_chats_beyond_the_context_are_refused_and_not_cut(scope):
    with pytest.raises(TooLong):
        contrast(scope, [chat("dog " * 400)], PLAIN)


def test_a_base_model_compares_texts(scope, sae):
    import copy

    from sparsight.lm.lm import ObservableLanguageModel

    tokenizer = copy.deepcopy(scope.lm.tokenizer)
    tokenizer.chat_template = None
    base = Scope(ObservableLanguageModel(scope.lm.model, tokenizer=tokenizer), sae)
    assert contrast(base, ["arr arr dog"] * 2, ["a dog"] * 2, 3).with_
    with pytest.raises(NoChatTemplate):
        contrast(base, ARR, PLAIN)


def test_on_the_command_line_files_of_chats_are_compared_and_a_reply_is_explained(tmp_path, capsys):
    for name, chats in (("with", ARR), ("without", PLAIN)):
        lines = [json.dumps({"messages": one}) for one in chats]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = [str(tmp_path / "with.jsonl"), str(tmp_path / "without.jsonl")]
    assert main(["contrast", *files, "-k", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["with_"]) == 3
    assert told["chats"] == [8, 8]
    assert main(["contrast", *files, "-k", "3"]) == 0
    assert "held out" in capsys.readouterr().out
    assert main(["attribute", "How are you?", "--reply", "I am fine.", "--json", "-k", "2", "--check"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "".join(told["tokens"][told["start"] : told["end"]]) == "I am fine."
    assert all(one["value"] > 0 for one in told["raised"])
    assert main(["attribute", "Once upon a time", "-k", "2"]) == 0
    assert "logit of ' time'" in capsys.readouterr().out
    assert main(["attribute", "Once upon a time", "--start", "99"]) == 1


SAMPLES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), min_size=1, max_size=9)


@given(SAMPLES, SAMPLES)
def test_the_auc_is_the_share_of_pairs_that_are_won(one, other):
    wins = np.mean([(a > b) + 0.5 * (a == b) for a in one for b in other])
    found = auc(torch.tensor(one)[:, None], torch.tensor(other)[:, None])
    assert float(found) == pytest.approx(wins)
