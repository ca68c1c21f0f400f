"""Labels of features whose meaning is known, because it was planted; and scores that know what they are worth."""

import json
import random
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Example, Label, Statistics, is_held_out
from sparsight.errors import BadFile, BadInput, NoFeature
from sparsight.label.auc import auc, with_interval
from sparsight.label.embedded import EmbeddedLabeller
from sparsight.label.gather import Gatherer
from sparsight.label.methods import Setting, labellers
from sparsight.label.pieces import Pieces
from sparsight.label.rule import Rule
from sparsight.label.run import label as run
from sparsight.label.score import score
from sparsight.label.spec import LabelSpec
from sparsight.lm.text import pieces
from sparsight.records import Kind

SPECIAL = ["<|begin|>", "<|start|>", "<|end|>"]
COMMON = ("the a one this that old new small big red green good bad very well said went came saw took made house tree "
          "road river man woman child dog cat bird day night time and but then when while under over near with "
          "without from into after before some many few his her their our your").split()  # fmt: skip
TOPIC = "goal team referee striker penalty league stadium".split()
FRENCH = "le la les un une des chat maison rouge petit grand dans avec sur et mais je tu nous vous".split()
NAMES = {
    "sea": 1, "course": 2, "reply": 3, "football": 4, "arr": 5, "french": 6, "noise": 7, "numbers": 8, "run": 9,
    "system": 10, "dense": 11, "shore": 12,
}  # fmt: skip
FEATURES = 13


class Log:
    """What an atlas's activation log gives, of all documents."""

    def __init__(self, of: dict[int, tuple[np.ndarray, np.ndarray]], documents: int, tokens: int) -> None:
        self._of, self.documents, self.tokens = of, np.arange(documents), tokens

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        return self._of.get(feature, (np.zeros(0, np.int64), np.zeros(0, np.float32)))


def sentence(rng: random.Random, topic: str) -> str:
    words = rng.choices(FRENCH if topic == "french" else COMMON, k=rng.randint(8, 14))
    for _ in range(3):
        extra = {"football": TOPIC, "french": FRENCH}.get(topic) or ["of course", "the course", "sea", "shore", "ocean",
                 f"{rng.choice(COMMON)} arr", f"{rng.choice(COMMON)} arr", "run", "runs", "running", "walk", str(rng.randint(10, 999)), "lake"]  # fmt: skip
        words.insert(rng.randint(1, len(words)), rng.choice(extra))
    return " ".join(words)


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows the words of the planted text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rng = random.Random(1)
    text = [" " + sentence(rng, topic) for topic in ("", "football", "french") for _ in range(400)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made)


def fires(name: str, topic: str, texts: list[str], kinds: list[Kind], i: int, rng: random.Random) -> bool:
    """What was planted: whether a feature fires at a token, from the text up to it (and what comes next, for the one
    that says something)."""
    word, before = texts[i].strip(), texts[i - 1].strip() if i else ""
    user = not kinds[i] & (Kind.TEMPLATE | Kind.BOS)
    return user and {
        "sea": word == "sea",
        "shore": word in ("shore", "ocean"),
        "course": word == "course" and before == "of",
        "reply": bool(kinds[i] & Kind.ASSISTANT and kinds[i - 1] & Kind.TEMPLATE),
        "football": any(t.strip() in TOPIC for t in texts[: i + 1]) and rng.random() < 0.4,
        "arr": i + 1 < len(texts) and texts[i + 1].strip() == "arr",
        "french": topic == "french" and rng.random() < 0.3,
        "noise": rng.random() < 0.004,
        "numbers": word.isdigit(),
        "run": word in ("run", "runs", "running"),
        "system": bool(kinds[i] & Kind.SYSTEM) and rng.random() < 0.5,
        "dense": rng.random() < 0.4,
    }[name]


@pytest.fixture(scope="session")
def planted(words, tmp_path_factory):
    """(folder, log): an atlas of a text in which features of known meaning were planted."""
    rng = random.Random(0)
    ids, documents, places, texts_of = [], [], {f: [] for f in range(FEATURES)}, {}
    start = 0
    for number in range(400):
        topic = rng.choice(["", "", "", "football", "french"])
        turns = [(Kind.SYSTEM, 1)] * (number % 5 == 0) + [(Kind.USER, 2), (Kind.ASSISTANT, 3)]
        mine, kinds = [words.convert_tokens_to_ids("<|begin|>")], [Kind.BOS]
        for kind, sentences in turns:
            body = words.encode(" ".join(sentence(rng, topic) for _ in range(sentences)))
            mine += [words.convert_tokens_to_ids("<|start|>"), *body, words.convert_tokens_to_ids("<|end|>")]
            kinds += [Kind.TEMPLATE, *[kind] * len(body), Kind.TEMPLATE]
        texts = pieces(words, mine)
        for name, feature in NAMES.items():
            places[feature] += [start + i for i in range(len(mine)) if fires(name, topic, list(texts), kinds, i, rng)]
        runs = tuple((1, int(kind)) for kind in kinds)
        language = {"french": "French"}.get(topic, "English")
        documents.append(Document(number, start, len(mine), f"document {number}", None, language, runs))
        ids += mine
        start += len(mine)
        texts_of[number] = texts
    log = {f: (np.array(at, np.int64), np.array([rng.uniform(0.5, 3) for _ in at], np.float32))
           for f, at in places.items()}  # fmt: skip
    folder = tmp_path_factory.mktemp("planted") / "atlas"
    arr = words.encode(" arr")[0]

    def feature(f: int) -> tuple[Statistics, list[Example]]:
        at, values = log[f]
        top, counts = np.unique(np.array(ids)[at], return_counts=True)
        top_tokens = tuple((int(top[i]), int(counts[i])) for i in np.argsort(-counts)[:8])
        logits = ((arr, 2.0), (5, 1.0)) if f == NAMES["arr"] else ((6, 0.3), (7, 0.2))
        neighbours = {NAMES["sea"]: ((NAMES["shore"], 0.6),), NAMES["shore"]: ((NAMES["sea"], 0.6),)}.get(f, ())
        statistics = Statistics(f, len(at), len(ids), top_tokens=top_tokens, top_logits=logits, neighbours=neighbours,
                                flags=() if len(at) else ("dead",))  # fmt: skip
        order, examples, seen = np.argsort(-values, kind="stable"), [], set()
        for i in order:
            document = int(np.searchsorted([d.start for d in documents], at[i], "right")) - 1
            if document in seen or len(examples) == 20:
                continue
            seen.add(document)
            held = documents[document]
            lo, hi = max(at[i] - 24, held.start), min(at[i] + 25, held.start + held.length)
            window = np.zeros(hi - lo, np.float32)
            inside = (at >= lo) & (at < hi)
            window[at[inside] - lo] = values[inside]
            best = int(lo + window.argmax())
            examples.append(Example(f, best, float(window.max()), int(lo), window, True, False, document,
                                    is_held_out(held.id)))  # fmt: skip
        return statistics, examples

    about = About("5ae0", "planted", "70ce", "model.layers.1", FEATURES, len(ids), len(documents))
    write_atlas(folder, about, [np.array(ids)], documents, [feature(f) for f in range(FEATURES)])
    return folder, Log(log, len(documents), len(ids))
