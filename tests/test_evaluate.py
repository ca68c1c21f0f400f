"""What an evaluation says is true: of formulas in float64, of SAEs whose figures are known, of the demo."""

import copy
import json
import subprocess
import sys
import warnings
from dataclasses import dataclass, fields

import pytest
import torch
import torch.nn.functional as F
from conftest import HOOK, D, random_sae
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsight
from sparsight.corpus import Conversation, CorpusSpec
from sparsight.errors import BadInput, Mismatch
from sparsight.evaluate import EvaluateSpec
from sparsight.evaluate.evaluate import evaluate
from sparsight.evaluate.loss import Targets, most_tokens
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import SPECIAL, Kind
from sparsight.sae.codes import Codes
from sparsight.sae.quality import Quality, measured, pairing, reconstruct
from sparsight.sae.sae import SaeConfig, SparseAutoEncoder
from sparsight.scope.load import load
from sparsight.scope.pairing import check_pairing, is_cheap

QUICK = {"check": False, "batch_tokens": 256}
CHATS = [
    Conversation(({"role": "user", "content": ask}, {"role": "assistant", "content": say}))
    for ask, say in [
        ("Hello, how are you?", "I am fine, said the pirate."),
        ("Once upon a time?", "There was a little dog. The dog was fine."),
        ("Who are you today?", "A pirate."),
        ("Answer the question of the day: how are you?", "Hello! I am a little dog, once a pirate, and I am fine."),
    ]
]
STORIES = [
    "Once upon a time there was a little girl who liked to play in the park with her dog. One day the dog ran away. "
    "She looked for him under the trees and behind the big house, and she was very sad.",
    "Tom had a red ball. He gave it to his friend Anna, and they were happy. They played until it was dark. Then "
    "Tom's mom called, and they went home to eat some soup.",
    "The old king lived in a castle by the sea. He had three sons, and the youngest was kind to everyone. One morning "
    "a bird came to his window and said that it knew where the golden apple was.",
]
ASKED = [
    ("I want to book a table for two.", "Sure, what time would you like the table for, and in which city?"),
    ("Can you tell me a story about a cat?", "Once there was a cat named Lily. She loved to sleep in the sun."),
    ("What do you like to do on the weekend?", "I like to read books and go for a walk with my dog. And you?"),
]


def identity(d, hook_point):
    """relu of x and of -x: it loses nothing."""
    both = torch.cat([torch.eye(d), -torch.eye(d)]).double()
    return made(d, hook_point, W_enc=both, W_dec=both.clone())


def constant(value, hook_point):
    """No feature ever fires; it says the same of every token."""
    return made(len(value), hook_point, b_dec=value)


def made(d, hook_point, **tensors):
    sae = SparseAutoEncoder(d, 2 * d, dtype=torch.float64, hook_point=hook_point)
    return SparseAutoEncoder.from_tensors(sae.config, dict(sae.named_parameters()) | tensors)


def x_of(lm, prompts, left_out=0, hook_point=HOOK):
    """What flows at the hook point, row by row without padding, at the tokens that are of no kind left out."""
    rows = []
    for prompt in prompts:
        flow = lm.activations(torch.tensor([prompt.ids]), [hook_point])[hook_point][0]
        rows.append(flow[torch.tensor([not kind & left_out for kind in prompt.kinds])])
    return torch.cat(rows)


def prompts_of(lm, conversations=CHATS):
    return [lm.prompt(list(one.messages), add_generation_prompt=False) for one in conversations]


# ── reconstruction ──────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 1),
    st.integers(0, 2**31),
    st.floats(0, 1e4),
    st.booleans(),
)
def test_figures_are_those_of_the_formulas_however_the_tokens_come(sizes, seed, offset, sparse):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 5, generator=g, dtype=torch.float64) + offset
    x_hat = x + torch.randn(x.shape, generator=g, dtype=torch.float64)
    features = torch.relu(torch.randn(len(x), 7, generator=g))
    blocks = list(zip(*(t.split(sizes) for t in (x, x_hat, features)), strict=True))
    parts = [Quality(5, 7, dense_above=0.5) for _ in range(2)]
    for i, (a, b, f) in enumerate(blocks):
        parts[i % 2].add(a, b, Codes.from_dense(f) if sparse else f)
    q = Quality.merged(parts)
    spread = (x - x.mean(0)).square().sum()
    share = (features > 0).double().mean(0)
    assert q.tokens == len(x)
    assert q.fvu == pytest.approx(float((x - x_hat).square().sum() / spread), rel=1e-9)
    assert q.cosine == pytest.approx(float(F.cosine_similarity(x, x_hat).mean()))
    assert q.l0 == pytest.approx(float(share.sum()))
    assert q.fired.tolist() == (features > 0).sum(0).tolist()
    assert q.dead == pytest.approx(float((share == 0).double().mean()))
    assert q.dense == pytest.approx(float((share > 0.5).double().mean()))
    torch.testing.assert_close(q.mean, x.mean(0))
    assert q.uncentred_of_mean == pytest.approx(float(1 - spread / x.square().sum()), abs=1e-9)


def test_the_mean_explains_nothing_where_an_uncentred_figure_says_that_it_does():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) + 3
    q = Quality(6, 2)
    q.add(x, x.mean(0).expand_as(x), torch.zeros(300, 2))
    assert q.fvu == pytest.approx(1, abs=1e-6)
    assert q.fvu_of_mean == 1
    assert q.uncentred_of_mean > 0.85


def test_a_figure_of_nothing_is_an_error():
    q = Quality(3, 4)
    for name in ("fvu", "l0", "dead", "dense", "cosine", "uncentred_of_mean"):
        with pytest.raises(BadInput, match="no tokens"):
            getattr(q, name)
    q.add(torch.ones(5, 3), torch.zeros(5, 3), torch.ones(5, 4))
    with pytest.raises(BadInput, match="all alike"):
        q.fvu  # noqa: B018
    with pytest.raises(BadInput, match="no finite numbers"):
        q.add(torch.full((5, 3), torch.nan), torch.zeros(5, 3), torch.ones(5, 4))
    with pytest.raises(BadInput, match="it was given x"):
        q.add(torch.ones(5, 3), torch.zeros(5, 3), torch.ones(5, 9))
    with pytest.raises(BadInput, match="one SAE"):
        Quality.merged([q, Quality(3, 5)])


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm"])
@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu", "gated"])
def test_the_sparse_reconstruction_is_what_forward_gives(activation, normalization):
    sae = random_sae(activation, torch.float64, normalization=normalization)
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 1
    x_hat, codes = reconstruct(sae, x)
    wanted, features = sae(x)
    torch.testing.assert_close(x_hat, wanted)
    torch.testing.assert_close(codes.dense(), features)
    variance = (x - x.mean(0)).square().sum()
    assert pairing(sae, x) == pytest.approx(float((x - wanted).square().sum() / variance))


@pytest.mark.parametrize("left_out", [Kind(0), Kind.BOS, SPECIAL])
def test_special_tokens_are_left_out_where_they_should_be(lm64, left_out):
    sae = random_sae(dtype=torch.float64)
    name = {Kind(0): "all", Kind.BOS: "no-bos", SPECIAL: "no-special"}[left_out]
    report = evaluate(lm64, sae, CHATS, EvaluateSpec(loss_tokens=0, **QUICK))
    x = x_of(lm64, prompts_of(lm64), left_out)
    found, wanted = report.reconstruction[name], measured(sae, x)
    assert found.tokens == len(x)
    assert (found.fvu, found.l0) == (pytest.approx(wanted.fvu), pytest.approx(wanted.l0))
    assert (found.cosine, found.dead) == (pytest.approx(wanted.cosine), pytest.approx(wanted.dead))


def test_saelens_says_the_same(lm64):
    evals = pytest.importorskip("sae_lens.evals", exc_type=ImportError)
    sae, x = random_sae(dtype=torch.float64), x_of(lm64, prompts_of(lm64))
    theirs = evals.ExplainedVarianceCalculator()
    for block in x.split(17):
        theirs.add_batch(sae_output=sae(block)[0], hidden_acts=block)
    assert measured(sae, x).fvu == pytest.approx(1 - theirs.compute(), rel=1e-6)
    was, now = torch.randn(2, 1, 9, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    every = Targets(torch.zeros(9, dtype=torch.int64), torch.arange(9), torch.zeros(9, dtype=torch.int64))
    assert every.loss(now, was)[1] == pytest.approx(float(evals._kl(was, now).sum()))


# ── loss ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "left_out"), [("all", Kind(0)), ("no-bos", Kind.BOS), ("no-special", SPECIAL)])
def test_losses_are_those_of_one_row_at_a_time(lm64, name, left_out):
    sae, prompts = random_sae(dtype=torch.float64), prompts_of(lm64)
    report = evaluate(lm64, sae, CHATS, EvaluateSpec(splice=name, **QUICK))
    mean = x_of(lm64, prompts, left_out).mean(0)
    changes = {"clean": lambda x: x, "spliced": lambda x: sae(x)[0], "zero": torch.zeros_like, "mean": mean.expand_as}
    sums, kl, predicted = dict.fromkeys(changes, 0.0), 0.0, 0
    for prompt in prompts:
        ids, chosen = torch.tensor([prompt.ids]), torch.tensor([not kind & left_out for kind in prompt.kinds])
        log_p = {}
        for change in changes:
            swap = {HOOK: lambda x, f=changes[change], at=chosen[:, None]: torch.where(at, f(x), x)}
            log_p[change] = lm64.forward(ids, interventions=swap, all_logits=True)[0][0, :-1].log_softmax(-1)
            wrong = F.nll_loss(log_p[change], ids[0, 1:], reduction="none")
            sums[change] += float(wrong[chosen[1:]].sum())
        apart = log_p["clean"].exp() * (log_p["clean"] - log_p["spliced"])
        kl += float(apart.sum(-1)[chosen[1:]].sum())
        predicted += int(chosen[1:].sum())
    found = report.loss[name]
    assert found.tokens == predicted
    for change in changes:
        assert getattr(found, change) == pytest.approx(sums[change] / predicted), change
    assert found.kl == pytest.approx(kl / predicted)
    recovered = (sums["zero"] - sums["spliced"]) / (sums["zero"] - sums["clean"])
    assert found.recovered is None or found.recovered == pytest.approx(recovered)


def test_a_perfect_sae_costs_nothing(demo):
    sae = identity(demo.lm.d_model, demo.hook_point)
    report = evaluate(demo.lm, sae, texts(), EvaluateSpec(**QUICK))
    for name, found in report.loss.items():
        assert found.recovered == found.recovered_from_mean == 1, name
        assert found.added == 0
        assert found.kl == 0
        assert report.reconstruction[name].fvu == 0


@dataclass(frozen=True)
class Between(SaeConfig):
    """Of an SAE that reads at one hook point and writes at another."""

    hook_point_out: str | None = None


def test_what_is_read_at_one_place_and_written_at_another_is_compared_there(lm64):
    def between(read, put):
        sae = identity(D, read)
        config = Between(D, 2 * D, hook_point=read, hook_point_out=put)
        return SparseAutoEncoder.from_tensors(config, dict(sae.named_parameters()))

    same = evaluate(lm64, between("model.layers.1", "model.layers.2.input"), CHATS, EvaluateSpec(**QUICK))
    assert same.hook_point_out == "model.layers.2.input"
    assert same.reconstruction["all"].fvu == same.loss["no-bos"].kl == 0
    other = evaluate(lm64, between("model.layers.1", "model.layers.2"), CHATS, EvaluateSpec(**QUICK))
    x, y = (x_of(lm64, prompts_of(lm64), 0, point) for point in ("model.layers.1", "model.layers.2"))
    variance = (y - y.mean(0)).square().sum()
    assert other.reconstruction["all"].fvu == pytest.approx(float((y - x).square().sum() / variance))
    assert other.loss["no-bos"].kl > 0
    with pytest.raises(BadInput, match="before anything is read at 'model.layers.2'"):
        evaluate(lm64, between("model.layers.2", "model.layers.1"), CHATS, EvaluateSpec(**QUICK))


def test_an_sae_that_says_nothing_recovers_nothing(demo):
    x = x_of(demo.lm, [demo.lm.prompt(story) for story in STORIES], Kind.BOS, demo.hook_point)
    stories = [Conversation(text=story) for story in STORIES]
    for value, figure in ((torch.zeros_like(x[0]), "recovered"), (x.double().mean(0), "recovered_from_mean")):
        sae = constant(value.double(), demo.hook_point)
        found = evaluate(demo.lm, sae, stories, EvaluateSpec(splice=("no-bos",), **QUICK))
        assert getattr(found.loss["no-bos"], figure) == pytest.approx(0, abs=1e-4)
    assert found.reconstruction["no-bos"].fvu == pytest.approx(1, abs=1e-4)
    assert found.reconstruction["no-bos"].l0 == 0
    assert found.reconstruction["no-bos"].dead == 1


def test_tokens_that_a_model_forbids_do_not_spoil_the_figures():
    was, now = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    was[..., 2] = now[..., 2] = -torch.inf
    every = Targets(torch.zeros(4, dtype=torch.int64), torch.arange(4), torch.zeros(4, dtype=torch.int64))
    kept = [0, 1, 3, 4, 5]
    assert every.loss(now, was) == pytest.approx(every.loss(now[..., kept], was[..., kept]))


def test_the_cut_into_passes_does_not_show(lm64):
    sae = random_sae(dtype=torch.float64)
    one, many = (evaluate(lm64, sae, CHATS, EvaluateSpec(check=False, batch_tokens=n)) for n in (4096, 30))
    for part in ("reconstruction", "loss"):
        for name, figures in getattr(one, part).items():
            for f in fields(figures):
                assert getattr(getattr(many, part)[name], f.name) == pytest.approx(getattr(figures, f.name)), f.name
    assert most_tokens(lm64) == 2**30 // (2 * 400 * 8)


# ── the demo ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def demo():
    return sparsight.load("demo")


def texts():
    chats = [({"role": "user", "content": ask}, {"role": "assistant", "content": say}) for ask, say in ASKED]
    return [*(Conversation(text=story) for story in STORIES), *map(Conversation, chats)]


def test_the_demos_figures_are_near_those_of_its_page(demo):
    report = evaluate(demo.lm, demo.sae, texts(), EvaluateSpec(batch_tokens=256))
    found, loss = report.reconstruction["no-bos"], report.loss["no-bos"]
    assert 13 < found.l0 < 26
    assert 0.08 < found.fvu < 0.25
    assert 0.9 < found.cosine < 1
    assert loss.clean < loss.spliced < loss.mean < loss.zero
    assert 0.9 < loss.recovered_from_mean < 1
    assert loss.recovered_from_mean < loss.recovered < 1
    assert 0 < loss.kl < 1


# ── whether they belong together ────────────────────────────────────────────────────────────────────────────


def test_a_wrong_hook_point_is_spoken_of_and_the_right_one_is_not(demo):
    with pytest.warns(
        UserWarning, match=r"explains nothing of what 'demo' gives at 'model.layers.5': FVU .* tokens .* L0"
    ):
        wrong = load("demo", hook_point="model.layers.5")
    with pytest.warns(UserWarning, match="It was made for 'sparsight demo' at 'model.layers.3': check model"):
        evaluate(demo.lm, demo.sae, texts(), EvaluateSpec(loss_tokens=0), hook_point="model.layers.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = check_pairing(demo.lm, demo.sae)
        load("demo", sae=demo.sae)
        load("demo", hook_point="model.layers.5", check=False)
        evaluate(demo.lm, demo.sae, texts(), EvaluateSpec(loss_tokens=0, check=False), hook_point="model.layers.0")
    assert right.fits
    assert 0.1 < right.fvu < 0.35
    assert 700 < right.tokens <= 1024
    assert not check_quietly(wrong.lm, wrong.sae, "model.layers.5").fits
    assert check_quietly(demo.lm, demo.sae, "model.layers.4").fits  # the next layer is too much alike to be told


def check_quietly(lm, sae, hook_point):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check_pairing(lm, sae, hook_point)


def test_the_check_is_left_out_where_it_would_take_long_or_cannot_be_made(lm, sae):
    assert is_cheap(lm, sae)
    assert not is_cheap(lm, SparseAutoEncoder(8, 4_000_000, device="meta"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(lm.model, sae, check=True)  # without a tokenizer
    broken = ObservableLanguageModel(copy.deepcopy(lm.model), tokenizer=lm.tokenizer)
    with torch.no_grad():
        broken.model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.warns(UserWarning, match="could not be checked"):
        load(broken, sae)


def test_the_check_reads_what_short_contexts_and_base_models_can(lm, sae, tokenizer):
    base = copy.deepcopy(tokenizer)
    base.chat_template = None
    assert check_quietly(ObservableLanguageModel(lm.model, tokenizer=base), sae, HOOK).tokens > 900
    from conftest import llama

    short = ObservableLanguageModel(llama(max_position_embeddings=16), tokenizer=tokenizer)
    assert 100 < check_quietly(short, sae, HOOK).tokens <= 15 * 20


# ── what goes in, what comes out ────────────────────────────────────────────────────────────────────────────


def test_a_report_is_json_and_a_table(lm64, tmp_path):
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in one.messages]} for one in CHATS]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    heard = []
    corpus = CorpusSpec(str(tmp_path / "chats.jsonl"), hub_token="hf_secret")
    report = evaluate(lm64, random_sae(), corpus, EvaluateSpec(**QUICK), heard.append)
    report.save(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert told == json.loads(json.dumps(report.to_json()))
    assert "hf_secret" not in (tmp_path / "report.json").read_text()
    assert told["corpus"]["source"] == str(tmp_path / "chats.jsonl")
    assert told["spec"]["batch_tokens"] == 256
    assert told["sae"] == random_sae().fingerprint
    assert told["loss"]["no-bos"]["added"] == report.loss["no-bos"].spliced - report.loss["no-bos"].clean
    rows = report.rows()
    assert all(len(values) == len(report.columns) == 3 and meaning for _, values, meaning in rows)
    table = {name: values for name, values, _ in rows}
    assert table["FVU"] == tuple(report.reconstruction[name].fvu for name in ("all", "no-bos", "no-special"))
    assert table["KL"] == (None, report.loss["no-bos"].kl, report.loss["no-special"].kl)
    assert all(name in str(report) for name in table)
    assert {one.stage for one in heard} == {"reconstruct", "splice"}
    assert heard[-1].done == heard[-1].total == sum(map(len, prompts_of(lm64)))


def test_no_more_is_read_than_was_asked_for(lm64):
    report = evaluate(lm64, random_sae(), CHATS, EvaluateSpec(tokens=40, loss_tokens=20, **QUICK))
    assert report.reconstruction["all"].tokens == 40
    assert report.loss["no-bos"].tokens == 19
    assert report.conversations < len(CHATS)
    cut = evaluate(lm64, random_sae(), CHATS, EvaluateSpec(length=10, loss_tokens=0, **QUICK))
    assert cut.reconstruction["all"].tokens == 10 * len(CHATS)
    assert not cut.loss


def test_what_the_template_refuses_is_counted_and_nothing_at_all_is_an_error(lm64, tokenizer):
    base = copy.deepcopy(tokenizer)
    base.chat_template = None
    lm = ObservableLanguageModel(lm64.model, tokenizer=base)
    report = evaluate(lm, random_sae(), [*CHATS, Conversation(text="Once upon a time")], EvaluateSpec(**QUICK))
    assert (report.conversations, report.skipped) == (1, len(CHATS))
    with pytest.raises(BadInput, match=r"None can be read: .*no chat template"):
        evaluate(lm, random_sae(), CHATS, EvaluateSpec(**QUICK))
    with pytest.raises(BadInput, match="no conversation"):
        evaluate(lm, random_sae(), [], EvaluateSpec(**QUICK))
    with pytest.raises(Mismatch, match="reads 16 numbers"):
        evaluate(lm, random_sae(d_in=16), CHATS, EvaluateSpec(**QUICK))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "tokens is a whole number from 2 up"),
        ({"loss_tokens": -1}, "loss_tokens is a whole number from 0"),
        ({"selections": ("words",)}, "No tokens 'words' for selections. There are: all, no-bos, no-special"),
        ({"selections": ()}, "selections needs at least one"),
        ({"dense_above": 2}, "dense_above is a share"),
        ({"check": 1}, "check is True or False"),
    ],
)
def test_a_knob_that_cannot_be_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        EvaluateSpec(**changes)


def test_spec_and_report_start_without_torch():
    code = "import sys, sparsight.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_knob_says_what_it_means():
    assert all(EvaluateSpec.knobs().values())
    assert EvaluateSpec(splice=["no-special", "all"]).splice == ("all", "no-special")
