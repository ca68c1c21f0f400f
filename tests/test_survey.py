"""A survey counts what every feature fires on, in one pass and fixed memory, however often it is killed."""

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FEATURES, HOOK, D, llama, random_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.entries import POSITIONS, Label, Statistics, is_held_out
from sparsight.atlas.histogram import BINS, ERROR, QUANTILES, edge, quantiles
from sparsight.atlas.log import NAME as LOG
from sparsight.atlas.log import ActivationLog, open_log, together, write_log
from sparsight.cli import main
from sparsight.corpus import CorpusSpec, read
from sparsight.errors import BadFile, BadInput, Mismatch, NoChatTemplate, NoFeature
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import Kind
from sparsight.sae.codes import Codes
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.scope.load import load
from sparsight.scope.scope import Scope
from sparsight.survey import company
from sparsight.survey.directions import directions
from sparsight.survey.flags import flags
from sparsight.survey.keep import LAST, Kept, Windows
from sparsight.survey.spec import SurveySpec
from sparsight.survey.state import KINDS, OFFSETS, Seen, State, bins, bucket
from sparsight.survey.survey import survey
from sparsight.survey.tokens import TopTokens

WORDS = [
    "Once",
    "upon",
    "a",
    "time",
    "there",
    "was",
    "a",
    "little",
    "dog",
    ".",
    "Hello",
    "how",
    "are",
    "you",
    "?",
    "I",
    "am",
    "fine",
    "said",
    "the",
    "pirate",
]
SMALL = {"pass_tokens": 300, "pool": 8, "checkpoint": 0.0}


def chats(n):
    """Rows of a corpus: chats of one to three turns in three languages, and every fifth a plain text."""
    rows, at = [], 0
    for i in range(n):
        said = []
        for _ in range(2 + 2 * (i % 3)):
            at += 1
            said.append(f"{i} " + " ".join(WORDS[(at * 7 + j * (at % 5 + 1)) % len(WORDS)] for j in range(3 + at % 17)))
        roles = [{"role": ("user", "assistant")[j % 2], "content": words} for j, words in enumerate(said)]
        more = {"id": f"chat {i}", "language": ("English", "German", None)[i % 3]}
        rows.append({**more, **({"text": " ".join(said)} if i % 5 == 4 else {"messages": roles})})
    return rows


def written(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return CorpusSpec(str(path))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return written(tmp_path_factory.mktemp("text") / "chats.jsonl", chats(40))


@pytest.fixture(scope="module")
def scope64(lm64):
    """In float64, where no packing shows in an activation's float32."""
    return Scope(lm64, random_sae(dtype=torch.float64).altered())


@pytest.fixture(scope="module")
def made(scope64, corpus, tmp_path_factory):
    """An atlas, with every document in its log."""
    return survey(scope64, corpus, SurveySpec(**SMALL, log_tokens=None), tmp_path_factory.mktemp("made") / "atlas")


@dataclasses.dataclass
class Document:
    """One document, read by itself."""

    prompt: object
    conversation: object
    dense: torch.Tensor

    @property
    def counted(self):
        return [i for i, kind in enumerate(self.prompt.kinds) if not kind & Kind.BOS]


@pytest.fixture(scope="module")
def alone(scope64, corpus):
    """Every document read by itself, in the order of the corpus, [token, feature] float32."""
    out = []
    for c in sorted(read(corpus), key=lambda c: c.position):
        prompt = scope64.lm.prompt(c.text) if c.text else scope64.lm.prompt(c.messages, add_generation_prompt=False)
        x = scope64.lm.activations(prompt, [HOOK])[HOOK][0]
        dense = scope64.sae.encode(x).float()
        dense[[i for i, kind in enumerate(prompt.kinds) if kind & Kind.BOS]] = 0
        out.append(Document(prompt, c, dense))
    return out


def tables(folder):
    """All that an atlas consists of, but for when it was made."""
    with sqlite3.connect(folder / "atlas.db") as db:
        said = {
            name: db.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
            for name in ("about", "document", "feature", "example")
        }
    said["about"] = [row for row in said["about"] if row[0] != "created"]
    log = ActivationLog(folder / LOG)
    columns = [log.inside(feature) for feature in range(log.features)]
    logged = [log.documents.tolist(), [(a.tolist(), b.tolist()) for a, b in columns]]
    return said | {"tokens": (folder / "tokens.bin").read_bytes(), "log": logged}


# ── what is counted ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_documents_stand_in_the_order_of_the_corpus_with_their_roles(made, alone):
    assert made.tokens.tolist() == [i for one in alone for i in one.prompt.ids]
    for document, one in zip(made.documents(), alone, strict=True):
        assert (document.id, document.language) == (one.conversation.id, one.conversation.language)
        assert [kind for n, kind in document.roles for _ in range(n)] == [int(kind) for kind in one.prompt.kinds]


def test_every_count_is_that_of_the_documents_read_one_by_one(made, alone):
    tokens = sum(len(one.counted) for one in alone)
    for feature in range(0, FEATURES, 4):
        told, pairs = made.statistics(feature), []
        for one in alone:
            values = one.dense[:, feature]
            pairs += [(one, i, float(values[i])) for i in values.nonzero().flatten().tolist()]
        values = np.array([value for *_, value in pairs])
        assert (told.fires, told.tokens) == (len(pairs), tokens)
        assert told.documents == len({id(one) for one, *_ in pairs})
        assert sum(told.histogram.values()) == len(pairs)
        for mine, theirs in ((told.mean, values.mean()), (told.deviation, values.std()), (told.max, values.max())):
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)
        buckets = Counter(bucket(torch.tensor([i for _, i, _ in pairs])).tolist())
        assert told.positions == tuple(buckets[b] for b in range(POSITIONS))
        assert told.roles == Counter(next(k for k in KINDS if Kind[k.upper()] & o.prompt.kinds[i]) for o, i, _ in pairs)
        assert told.languages == Counter(o.conversation.language for o, *_ in pairs if o.conversation.language)
        for share, value in told.quantiles.items():
            true = np.quantile(values, share, method="lower")
            assert value == pytest.approx(true, rel=ERROR + 1e-5)
        ids = Counter(o.prompt.ids[i] for o, i, _ in pairs)
        for token, count in told.top_tokens:
            assert ids[token] - len(pairs) / 33 <= count <= ids[token]


def test_the_strongest_place_of_each_document_is_kept_on_both_halves(made, alone):
    for feature in range(0, FEATURES, 3):
        for half in (False, True):
            best = []
            for number, one in enumerate(alone):
                value, at = one.dense[:, feature].max(0)
                if value > 0 and is_held_out(one.conversation.id) == half:
                    best.append((float(value), number, int(at)))
            best = sorted(best, key=lambda row: (-row[0], row[1:]))[:10]
            found = [e for e in made.examples(feature) if e.top and e.held_out == half]
            assert [(e.document, e.at - made.document(e.document).start) for e in found] == [row[1:] for row in best]


def test_an_example_holds_what_the_feature_does_around_it_within_its_document(made, alone):
    seen = 0
    for feature in range(0, FEATURES, 5):
        for e in made.examples(feature):
            document = made.document(e.document)
            at, start = e.at - document.start, e.start - document.start
            values = alone[e.document].dense[:, feature].numpy()
            assert start == max(at - 24, 0)
            assert len(e.values) == min(at + 25, document.length) - start
            wanted = values[start : start + len(e.values)]
            assert np.abs(e.values - wanted).max() <= wanted.max() / 255
            assert ((e.values > 0) == (wanted > 0)).all()
            assert e.value == values[at]
            seen += 1
    assert seen > 500


def test_fair_samples_are_drawn_from_all_places_alike():
    """2,000 features that fire on all of 50 tokens: each token is drawn about as often as any other."""
    features, tokens = 2_000, 50
    state = State(features, SurveySpec(samples=10))
    pairs = torch.arange(tokens).repeat_interleave(features), torch.arange(features).repeat(tokens)
    codes = Codes.from_pairs(*pairs, torch.rand(len(pairs[0])) + 0.1, tokens, features)
    zero = torch.zeros(tokens, dtype=torch.int64)
    one = torch.ones(1, dtype=torch.int64)
    state.add(Seen(zero, torch.arange(tokens), zero, zero, one, one, one, torch.tensor([123456789])), codes)
    offsets = (state.samples.place[1::2] & ((1 << OFFSETS) - 1)).flatten()
    drawn = offsets.bincount(minlength=tokens).double()
    chi = float(((drawn - features * 5 / tokens) ** 2 / (features * 5 / tokens)).sum())
    assert chi < 90  # 49 degrees of freedom, less than one in a thousand; drawing without replacement has fewer still
    together = Counter(map(tuple, state.samples.place[1::2].sort(1).values.tolist()))
    assert max(together.values()) <= 2  # no two features draw the same


def test_bos_counts_only_where_it_is_asked_for(scope64, corpus, tmp_path):
    knobs = SurveySpec(bos=True, tokens=500, **SMALL)
    told = survey(scope64, corpus, knobs, tmp_path / "atlas")
    assert sum(told.statistics(f).roles.get("bos", 0) for f in range(FEATURES)) > 0


# ── the order does not matter ────────────────────────────────────────────────────────────────────────────────────────


def passes(seed, documents=24, features=12, tokens=9):
    """Made-up passes of three documents each: (Seen, Codes)."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for first in range(0, documents, 3):
        n = 3 * tokens
        values = torch.rand(n, features, generator=g).sub(0.6).mul(8).round()  # with many ties
        at = torch.arange(first, first + 3)
        ids = torch.randint(0, 6, (n,), generator=g)
        kinds = torch.randint(1, len(KINDS), (n,), generator=g)
        seen = Seen(
            torch.arange(3).repeat_interleave(tokens), torch.arange(tokens).repeat(3), ids, kinds,
            at + 1, at % 2, at % 3, (at * 2_654_435_761) % (2**31))  # fmt: skip
        out.append((seen, Codes.from_dense(values.clamp(min=0))))
    return out


def counted(each, features=12):
    state = State(features, SurveySpec(top=4, samples=6, window=3, counted=6))
    for seen, codes in each:
        state.add(seen, codes)
    state.top_tokens.settle()
    return state


def same(one, other):
    for name, tensor in one.tensors().items():
        theirs = other.tensors()[name]
        if name in ("sum", "squares"):
            assert_close(tensor, theirs, rtol=1e-12, atol=0)
        elif name.startswith("top_tokens"):
            continue
        else:
            assert torch.equal(tensor, theirs), name


@settings(max_examples=12)
@given(st.integers(0, 1000), st.randoms(use_true_random=False), st.integers(0, 8))
def test_whatever_comes_when_and_whoever_sees_it_the_sum_is_the_same(seed, shuffled, cut):
    whole = passes(seed)
    one, mixed = counted(whole), whole[:]
    shuffled.shuffle(mixed)
    same(one, counted(mixed))
    a, b = counted(mixed[:cut]), counted(mixed[cut:])
    a.merge(b)
    same(one, a)
    for mine, theirs in zip(
        (one.top_tokens.id, one.top_tokens.count), (a.top_tokens.id, a.top_tokens.count), strict=True
    ):
        assert torch.equal(mine, theirs)  # six counters for six tokens: exact


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 12), max_size=80), min_size=1, max_size=5), st.integers(1, 6))
def test_no_token_is_counted_too_often_nor_missed_by_more_than_its_bound(parts, counters):
    merged = TopTokens(1, counters)
    for part in parts:
        one = TopTokens(1, counters)
        for run in (part[::2], part[1::2]):
            ids = torch.tensor(run, dtype=torch.int64)
            one.add(torch.zeros_like(ids), ids)
            one.settle()
        merged.merge(one)
    true = Counter(i for part in parts for i in part)
    told = {int(i): int(n) for i, n in zip(merged.id[0], merged.count[0], strict=True) if n}
    for token, count in true.items():
        assert count - true.total() / (counters + 1) <= told.get(token, 0) <= count
    assert told.keys() <= true.keys()


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 10**6)), max_size=60, unique_by=lambda r: r[2]
    )
)
def test_of_every_slot_the_lowest_keys_are_kept_and_of_ties_the_earlier_place(rows):
    kept = Kept(3, 4, 1)
    for some in (rows[::3], rows[1::3], rows[2::3]):
        slot, key, place = (torch.tensor([row[i] for row in some], dtype=torch.int64) for i in range(3))

        def windows(chosen, place=place):
            value = place[chosen].float()
            return Windows(value, value, torch.zeros(len(chosen), 1, dtype=torch.uint8))

        kept.offer(slot, key, place, windows)
    for slot in range(3):
        wanted = sorted((key, place) for s, key, place in rows if s == slot)[:4]
        there = kept.key[slot] < LAST
        assert list(zip(kept.key[slot][there].tolist(), kept.place[slot][there].tolist(), strict=True)) == wanted
        assert kept.value[slot][there].tolist() == [float(np.float32(place)) for _, place in wanted]


def test_65536_features_take_less_than_a_gigabyte_whatever_the_length_of_the_text():
    assert State.bytes_of(65_536, SurveySpec()) < 0.5e9
    spec, features = SurveySpec(top=4, samples=6, window=3, counted=6), 12
    state = counted(passes(0))
    held = sum(t.numel() * t.element_size() for name, t in state.tensors().items() if not name.startswith("of_"))
    assert held + 8 * state.top_tokens.most == State.bytes_of(features, spec)
    longer = counted(passes(0) + passes(1))
    for name, tensor in state.tensors().items():
        assert tensor.shape == longer.tensors()[name].shape


PEAK = """
import resource, torch
from sparsight.survey.spec import SurveySpec
from sparsight.survey.state import Seen, State
from sparsight.sae.codes import Codes

torch.set_num_threads(1)
tokens, features, active = 4096, 65_536, 91
width = features // active
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
g = torch.Generator().manual_seed(0)
before, state = peak(), State(features, SurveySpec())
feature = torch.randint(0, width, (tokens, active), generator=g) + torch.arange(active) * width
offsets = torch.arange(0, tokens * active + 1, active)
codes = Codes(offsets, feature.flatten().int(), torch.rand(tokens * active, generator=g) + 0.1, features)
document, at = torch.arange(tokens) // 256, torch.arange(16)
state.add(Seen(document, torch.arange(tokens) % 256, document, document % 7, at, at % 2, at % 3, at), codes)
print(peak() - before)
"""


def test_the_model_cards_sae_is_surveyed_in_less_than_a_gigabyte():
    """A pass of 4,096 tokens with 91 of 65,536 features active: what the process grows by while it is
    counted, when nothing is kept yet and so all is a candidate."""
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 1e9


@given(st.lists(st.floats(2.0**-14, 2.0**14, exclude_max=True, width=32), min_size=1, max_size=200))
def test_a_quantile_is_within_the_sketchs_error(values):
    each = torch.tensor(values, dtype=torch.float32)
    counts = bins(each).bincount(minlength=BINS).unsqueeze(0).numpy()
    for told, share in zip(quantiles(counts, each.max(0, keepdim=True).values.numpy())[0], QUANTILES, strict=True):
        true = np.quantile(each.numpy().astype(np.float64), share, method="lower")
        assert told == pytest.approx(true, rel=ERROR + 1e-4)
    assert edge(0) == 2.0**-14
    assert edge(BINS) == 2.0**14


# ── killed, and several ──────────────────────────────────────────────────────────────────────────────────────────────


VICTIMS = """
import json, os, signal, sys
source, tokenizer, here = sys.argv[1:]
sys.path.insert(0, here)
import conftest, torch
from transformers import PreTrainedTokenizerFast
from sparsight.corpus import CorpusSpec
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.scope.scope import Scope
from sparsight.survey import finish
from sparsight.survey.spec import SurveySpec
from sparsight.survey.survey import survey

lm = ObservableLanguageModel(
    conftest.llama(torch.float64), tokenizer=PreTrainedTokenizerFast.from_pretrained(tokenizer)
)
scope = Scope(lm, conftest.random_sae(dtype=torch.float64).altered())

def run(to, spec, rank=0, world=1, messages=None, feature=None):
    heard, real = [], finish.Features._statistics
    def tell(progress):
        heard.append(progress)
        if len(heard) == messages:
            os.kill(os.getpid(), signal.SIGKILL)
    def deadly(self, number, of):
        return os.kill(os.getpid(), signal.SIGKILL) if number == feature else real(self, number, of)
    finish.Features._statistics = deadly
    survey(scope, CorpusSpec(source), SurveySpec(**spec), to, tell, rank=rank, world=world)

for line in sys.stdin:
    children = []
    for one in json.loads(line):
        child = os.fork()
        if not child:
            try:
                run(**one)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


class Victims:
    """A process that runs no other threads, and so may fork: its children survey, and die when they are told to."""

    def __init__(self, corpus, tokenizer, folder):
        tokenizer.save_pretrained(folder)
        words = [corpus.source, folder, Path(__file__).parent]
        env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-c", VICTIMS, *map(str, words)]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, *children):
        """messages: of progress, after which a child dies; feature: before whose statistics it does."""
        told = [child | {"to": str(child["to"])} for child in children]
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()

    def end(self):
        """How the children ended: their exit codes."""
        return json.loads(self.process.stdout.readline())

    def ended(self, **child):
        self.begin(child)
        return self.end()[0]


@pytest.fixture(scope="module")
def victims(corpus, tokenizer, tmp_path_factory):
    made = Victims(corpus, tokenizer, tmp_path_factory.mktemp("victims"))
    with made.process:
        yield made
        made.process.stdin.close()


def test_killed_again_and_again_it_ends_with_the_same_atlas(victims, scope64, corpus, made, tmp_path):
    knobs = SMALL | {"log_tokens": None}
    spec = SurveySpec(**knobs)
    for count in (3, 1, 6, 9):
        assert victims.ended(to=tmp_path / "atlas", spec=knobs, messages=count) == -signal.SIGKILL
        with pytest.raises(BadFile, match="is missing; its survey is not done: the same command goes on"):
            Atlas(tmp_path / "atlas")
    with (tmp_path / "atlas" / "part-0000" / "tokens.bin").open("ab") as file:
        file.write(b"what was written after the last checkpoint")
    survey(scope64, corpus, spec, tmp_path / "atlas")
    assert tables(tmp_path / "atlas") == tables(made.folder)
    left = {path.name for path in (tmp_path / "atlas").iterdir()}
    assert left - {"atlas.db-wal", "atlas.db-shm"} == {
        "atlas.db",
        "tokens.bin",
        LOG,
    }


def test_killed_while_the_atlas_is_written_it_writes_it_again(victims, scope64, corpus, made, tmp_path):
    knobs = SMALL | {"log_tokens": None}
    assert victims.ended(to=tmp_path / "atlas", spec=knobs, feature=100) == -signal.SIGKILL
    survey(scope64, corpus, SurveySpec(**knobs), tmp_path / "atlas")
    assert tables(tmp_path / "atlas") == tables(made.folder)


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_the_atlas_of_one(victims, scope64, corpus, made, tmp_path, world):
    knobs = SMALL | {"log_tokens": None}
    others = [{"to": tmp_path / "atlas", "spec": knobs, "rank": rank, "world": world} for rank in range(1, world)]
    victims.begin(*others)
    survey(scope64, corpus, SurveySpec(**knobs), tmp_path / "atlas", rank=0, world=world)
    assert victims.end() == [0] * len(others)
    one, other = tables(tmp_path / "atlas"), tables(made.folder)
    del one["feature"], other["feature"]  # whose top tokens are within their bound, but need not be the same
    assert dict(one.pop("about")) | {"settings": ""} == dict(other.pop("about")) | {"settings": ""}
    assert one == other
    joined = Atlas(tmp_path / "atlas")
    for feature in range(FEATURES):
        a, b = joined.statistics(feature), made.statistics(feature)
        assert dataclasses.replace(a, top_tokens=(), flags=()) == dataclasses.replace(b, top_tokens=(), flags=())


def test_a_folder_of_another_survey_is_refused(victims, scope64, lm64, corpus, made, tmp_path):
    small = SMALL | {"log_tokens": None}
    knobs = SurveySpec(**small)
    again = survey(scope64, corpus, dataclasses.replace(knobs, checkpoint=5.0, ahead=0), made.folder)
    assert again.about == made.about
    with pytest.raises(Mismatch, match="of a survey with top 20, not 10: write into another folder"):
        survey(scope64, corpus, dataclasses.replace(knobs, top=10), made.folder)
    other = Scope(lm64, random_sae(dtype=torch.float64, seed=3))
    with pytest.raises(Mismatch, match="of a survey with sae"):
        survey(other, corpus, knobs, made.folder)
    assert victims.ended(to=tmp_path / "atlas", spec=small, messages=3) == -signal.SIGKILL
    with pytest.raises(Mismatch, match="part-0000' is of a survey with window 24, not 5"):
        survey(scope64, corpus, dataclasses.replace(knobs, window=5), tmp_path / "atlas")
    (tmp_path / "atlas" / "part-0000" / "state.safetensors").write_bytes(b"junk")
    with pytest.raises(BadFile, match="remove '.*part-0000', and survey again"):
        survey(scope64, corpus, knobs, tmp_path / "atlas")


def test_text_that_gives_no_token_and_knobs_that_cannot_be_are_errors(scope64, sae, tmp_path, corpus):
    with pytest.raises(BadInput, match="Nothing to survey"):
        survey(scope64, dataclasses.replace(corpus, languages=("Klingon",)), SurveySpec(), tmp_path / "a")
    assert not list((tmp_path / "a").glob("part-*"))  # nothing is in the way of the next try
    bare = ObservableLanguageModel(llama(), tokenizer=scope64.lm.tokenizer)
    template, bare.tokenizer.chat_template = bare.tokenizer.chat_template, None
    try:
        with pytest.raises(NoChatTemplate):
            survey(Scope(bare, sae), corpus, SurveySpec(), tmp_path / "b")
    finally:
        bare.tokenizer.chat_template = template
    for knob, value, why in (("top", 3, "an even number"), ("window", 200, "to 127"), ("tokens", 0, "from 1 to"),
                             ("bos", 1, "True or False"), ("checkpoint", -1, "from 0 up")):  # fmt: skip
        with pytest.raises(BadInput, match=f"{knob} is .*{why}"):
            SurveySpec(**{knob: value})


# ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_log_has_every_activation_of_its_documents_in_under_six_bytes(made, alone):
    log = open_log(made)
    assert log.documents.tolist() == list(range(len(alone)))
    assert log.tokens == made.about.tokens
    dense = torch.cat([one.dense for one in alone]).numpy()
    for feature in range(FEATURES):
        places, values = log.of(feature)
        assert places.tolist() == dense[:, feature].nonzero()[0].tolist()
        assert values == pytest.approx(dense[places, feature], rel=2**-11, abs=float(dense[:, feature].max()) * 2**-24)
    assert len(log) == (dense > 0).sum()
    assert log.path.stat().st_size < 6 * len(log)
    with pytest.raises(NoFeature, match="No feature 128: this SAE has 128"):
        log.of(FEATURES)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**33), st.floats(2**-20, 2**20, width=32)), max_size=60,
             unique_by=lambda row: row[:2]), st.integers(0, 3))  # fmt: skip
def test_what_is_logged_is_read_again(tmp_path_factory, rows, cut):
    rows = sorted(rows)
    columns = [np.array([row[i] for row in rows], kind) for i, kind in enumerate((np.uint32, np.int64, np.float32))]
    at = int(np.searchsorted(columns[0], cut))
    pieces = [tuple(c[part] for c in columns) for part in (slice(0, at), slice(at, None)) if len(columns[0][part])]
    path = tmp_path_factory.mktemp("log") / LOG
    none = np.array([0])
    write_log(path, "now", none, none, np.array([2**33 + 1]), 6, pieces)
    log = ActivationLog(path)
    for feature in range(6):
        places, values = log.of(feature)
        mine = [(place, value) for f, place, value in rows if f == feature]
        assert places.tolist() == [place for place, _ in mine]
        peak = max((value for _, value in mine), default=0)
        assert values.tolist() == pytest.approx([value for _, value in mine], rel=2**-11, abs=peak * 2**-23)
        assert (values > 0).all()


def test_rare_features_take_under_six_bytes_too(tmp_path):
    """65,536 features, 91 active at each of 2,000 tokens: the model card's numbers."""
    g = np.random.default_rng(0)
    feature = np.concatenate([g.choice(65_536, 91, replace=False) for _ in range(2_000)]).astype(np.uint32)
    place, value = np.arange(2_000).repeat(91), g.gamma(1.0, size=182_000).astype(np.float32)
    order = np.lexsort((place, feature))
    none = np.array([0])
    write_log(tmp_path / LOG, "", none, none, np.array([2_000]), 65_536, [(feature[order], place[order], value[order])])
    columns = 65_536 * (8 + 8 + 4)  # a fixed part, for each feature, whatever is logged
    assert (tmp_path / LOG).stat().st_size - columns < 6 * 182_000


def test_a_log_is_a_fair_sample_of_documents_that_have_so_many_tokens(scope64, corpus, made, tmp_path):
    told = survey(scope64, corpus, SurveySpec(**SMALL, log_tokens=1_000), tmp_path / "atlas")
    log, whole = open_log(told), open_log(made)
    assert 800 < log.tokens <= 1_000
    assert log.tokens == sum(told.document(int(n)).length for n in log.documents)
    kept = np.concatenate([np.arange(d.start, d.start + d.length) for d in map(told.document, log.documents.tolist())])
    for feature in range(0, FEATURES, 7):
        places, values = whole.of(feature)
        mine = np.isin(places, kept)
        assert log.of(feature)[0].tolist() == places[mine].tolist()
        assert log.of(feature)[1] == pytest.approx(values[mine], rel=2**-10, abs=1e-4)
    none = survey(scope64, corpus, SurveySpec(**SMALL, log_tokens=0), tmp_path / "none")
    assert open_log(none) is None
    assert not none.statistics(3).coactive
    with pytest.raises(BadFile, match="has no activation log: survey with --log-tokens"):
        together(none, [1])


def test_documents_where_features_fire_together_are_found_without_the_model(made, alone):
    for features in ((3,), (3, 9), (3, 9, 40), (1, 2, 3, 4, 5, 6)):
        for role in ((), ("assistant",), ("user", "text")):
            bits = sum(Kind[r.upper()] for r in role) if role else ~0
            wanted = []
            for number, one in enumerate(alone):
                here = torch.tensor([bool(kind & bits) for kind in one.prompt.kinds])
                if all((one.dense[here][:, f] > 0).any() for f in features):
                    wanted.append(number)
            assert together(made, features, role) == wanted


def test_a_damaged_log_or_one_of_another_survey_says_so(scope64, corpus, tmp_path):
    told = survey(scope64, corpus, SurveySpec(tokens=300, **SMALL), tmp_path / "atlas")
    whole = (told.folder / LOG).read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        (told.folder / LOG).write_bytes(whole[:cut])
        with pytest.raises(BadFile, match="no activation log, or damaged.*sparsight survey"):
            open_log(told)
    (told.folder / LOG).write_bytes(
        whole.replace(told.about.created.encode(), b"2000" + told.about.created[4:].encode())
    )
    with pytest.raises(BadFile, match="is of another survey than"):
        open_log(told)


# ── the weights ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_logit_lens_goes_through_the_final_norm(lm64, scope64):
    told = directions(lm64, scope64.sae, 7, 5)
    rows = torch.nn.functional.normalize(scope64.sae.W_dec, dim=1)
    norm = lm64.model.model.norm.weight
    logits = (rows * norm) @ lm64.model.lm_head.weight[: len(lm64.tokenizer)].T
    for (index, value), sign in ((told.above, 1), (told.below, -1)):
        wanted = (sign * logits).topk(7).indices
        assert torch.equal(index, wanted)
        assert_close(value, logits.gather(1, wanted).float(), rtol=1e-5, atol=1e-6)
    cosines = (rows @ rows.T).fill_diagonal_(-2)
    assert torch.equal(told.near[0], cosines.topk(5).indices)
    assert_close(told.decoder_norm, scope64.sae.W_dec.norm(dim=1).float())
    assert_close(told.encoder_norm, scope64.sae.W_enc.norm(dim=1).float())


def neox(**more):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = {"vocab_size": 60, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = GPTNeoXForCausalLM(GPTNeoXConfig(**config, intermediate_size=32, **more)).double()
    return made, made.gpt_neox.final_layer_norm, made.get_output_embeddings()


def gemma(**more):
    from transformers import GemmaConfig, GemmaForCausalLM

    config = {"vocab_size": 60, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    made = GemmaForCausalLM(GemmaConfig(**config, num_key_value_heads=1, intermediate_size=32, **more)).double()
    return made, made.model.norm, made.lm_head


@pytest.mark.parametrize("family", [neox, gemma])
def test_a_layer_norm_takes_the_mean_off_directions_and_gemmas_norm_has_its_one(family):
    torch.manual_seed(0)
    model, norm, head = family()
    norm.weight.data.normal_()
    if family is neox:
        norm.bias.data.normal_()
    lm, sae = ObservableLanguageModel(model), random_sae(dtype=torch.float64)
    told = directions(lm, sae, 5, 3)
    rows = torch.nn.functional.normalize(sae.W_dec, dim=1)
    centred = (rows - rows.mean(1, keepdim=True)) * norm.weight
    image = centred if family is neox else rows * (1 + norm.weight)
    assert torch.equal(told.above[0], (image @ head.weight.T).topk(5).indices)
    assert_close(told.above[1], (image @ head.weight.T).topk(5).values.float(), rtol=1e-4, atol=1e-5)


def test_what_fires_together_is_counted_from_the_log(made, alone, monkeypatch):
    log = open_log(made)
    fires = (torch.cat([one.dense for one in alone]) > 0).double()
    joint, each = fires.T @ fires, fires.sum(0)
    pmi = (joint * len(fires) / (each[:, None] * each)).log2()
    pmi[(joint < 5) | (joint < 0.05 * each[:, None])] = -torch.inf
    pmi.fill_diagonal_(-torch.inf)
    for entries in (company.ENTRIES, 2_000):
        monkeypatch.setattr(company, "ENTRIES", entries)
        for feature, pairs in enumerate(company.coactive(log, 6)):
            wanted = pmi[feature].topk(6).values
            assert [bits for _, bits in pairs] == pytest.approx(wanted[wanted > -torch.inf].tolist())
            assert all(float(pmi[feature, other]) == pytest.approx(bits) for other, bits in pairs)


# ── features that are known ──────────────────────────────────────────────────────────────────────────────────────────

DEAD, DENSE, SINGLE, TWIN, TEMPLATE = range(5)


@pytest.fixture(scope="module")
def known(tokenizer, tmp_path_factory):
    """An atlas of an SAE on the embeddings, whose features are known: one never fires, one always, one on " dog", one
    that does the same, and one on template tokens."""
    lm = ObservableLanguageModel(llama(), tokenizer=tokenizer)
    embed = lm.model.model.embed_tokens.weight.data
    sae = SparseAutoEncoder(D, 6, dtype=torch.float32, activation="relu", hook_point="model.embed_tokens")
    sae.W_dec[:] = torch.randn(6, D, generator=torch.Generator().manual_seed(1))
    (dog,) = tokenizer(" dog", add_special_tokens=False)["input_ids"]
    header = tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    for feature, token in ((SINGLE, dog), (TWIN, dog), (TEMPLATE, header)):
        sae.W_enc[feature] = embed[token] / embed[token].norm() ** 2
        sae.b_enc[feature] = -0.9
    sae.b_enc[DEAD], sae.b_enc[DENSE] = -1.0, 2.0
    sae.W_dec[TWIN] = 2 * sae.W_dec[SINGLE] + 0.01
    to = tmp_path_factory.mktemp("known")
    corpus = written(to / "chats.jsonl", chats(40))
    scope = Scope(lm, sae)
    return scope, survey(scope, corpus, SurveySpec(**SMALL), to / "atlas"), dog


def test_each_flag_is_on_the_feature_that_deserves_it(known):
    _, atlas, dog = known
    told = [atlas.statistics(feature) for feature in range(6)]
    assert [one.flags for one in told[:5]] == [
        ("dead",), ("dense",), ("single-token",), ("single-token", "duplicate"), ("single-token", "special-token")
    ]  # fmt: skip
    assert told[SINGLE].top_tokens[0] == (dog, told[SINGLE].fires)
    assert told[TWIN].duplicate_of == SINGLE
    assert told[SINGLE].neighbours[0][0] == TWIN
    assert told[DENSE].density == 1.0
    assert (told[DEAD].fires, told[DEAD].quantiles, told[DEAD].scale, atlas.examples(DEAD)) == (0, {}, 0.0, [])
    assert told[SINGLE].scale == pytest.approx(0.1, rel=0.03)
    assert {int(atlas.tokens[e.at]) for e in atlas.examples(SINGLE)} == {dog}


def test_a_feature_of_the_first_words_is_one_of_a_position():
    state = State(1, SurveySpec())
    state.tokens = 1_000
    state.of_positions[:] = torch.tensor([20, 20, 40, 80, 160, 320, 360, 0, 0, 0, 0, 0])
    early = Statistics(0, 100, 1_000, positions=(0, 80, 20, *[0] * 9))
    late = Statistics(0, 100, 1_000, positions=(0, 0, 0, 0, 0, 10, 90, *[0] * 5))
    assert flags(early, state).flags == ("position",)
    assert flags(late, state).flags == ()


def test_a_scope_takes_labels_and_units_from_an_atlas(known, tmp_path):
    scope, atlas, _ = known
    atlas.add([Label(SINGLE, "dogs", "human"), Label(DENSE, "everything", "human")])
    told = load(scope.lm, scope.sae, atlas=atlas.folder, check=False)
    assert told.features["dogs"].index == SINGLE
    assert told.features.labels == {DENSE: "everything", SINGLE: "dogs"}
    assert told.sae.scale.tolist() == pytest.approx(atlas.column("scale").tolist())
    assert told.sae.fingerprint == scope.sae.fingerprint
    mine = Scope(scope.lm, scope.sae.altered(scale=torch.ones(6)), labels={DENSE: "all"}, atlas=atlas)
    assert mine.sae.scale.tolist() == [1.0] * 6
    assert mine.features.labels == {DENSE: "all", SINGLE: "dogs"}
    other = SparseAutoEncoder(D, 6, dtype=torch.float32, hook_point="model.embed_tokens")
    with pytest.raises(Mismatch, match="is of SAE"):
        Scope(scope.lm, other, atlas=atlas.folder)


def test_the_command_writes_an_atlas_and_says_what_is_in_it(capsys, tmp_path):
    written(tmp_path / "chats.jsonl", chats(12))
    args = ["survey", "--corpus", str(tmp_path / "chats.jsonl"), "--to", str(tmp_path / "atlas"), "--json"]
    for _ in range(2):  # the second time it is there
        assert main([*args, "--log-tokens", "none", "--samples", "10"]) == 0
        told = json.loads(capsys.readouterr().out)
        atlas = Atlas(tmp_path / "atlas")
        assert told["tokens"] == atlas.about.tokens
        assert told["documents in the log"] == told["documents"] == 12
        assert told["dead"] == (atlas.column("fires") == 0).sum()
        assert atlas.about.settings["samples"] == 10
        assert (tmp_path / "atlas" / "recipe.toml").is_file()
    assert main([*args, "--samples", "20"]) == 1
    assert "of a survey with samples 10, not 20" in capsys.readouterr().err
