"""Finds features worth shipping: turns each one up, reads what the model then writes, and keeps the clearest.

1. Screen: every live feature, at two strengths, on a few openings.
2. Choose: the most promising of each topic, by the screen and by their direction's effect on the logits, are
   tried on more openings, the best of them at more strengths.
The figures that are reported come from other openings and seeds: see bench/demo_features.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from files import replace
from sparsight.lm.lm import cache_word
from topics import CHOOSING, TOPICS, Topic

TEMPERATURE = 0.8
SCREEN_PROMPTS, SCREEN_TOKENS, SCREEN_STRENGTHS = 8, 40, (0.5, 0.9)
CHOOSE_TOKENS = 60
ROUGH_STRENGTHS, STRENGTHS = (0.5, 0.8), (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
LEAST_RATE, MOST_BASE, MOST_RATIO = 0.7, 0.15, 2.7  # stricter than the bars that are reported
POOL, FINE = 12, 3  # features of each topic that are tried from either list; that are tried closely
SHOWCASE = {"topic": "animals", "strength": 0.6, "prompt": "Once upon a time", "seed": 7}
ROWS = 480  # texts written at a time


@dataclass(frozen=True)
class Trial:
    """One feature at one strength: the texts it makes and how unlikely the unsteered model finds them."""

    feature: int
    strength: float
    texts: list[str]
    perplexity: float

    def signs(self) -> dict[str, float]:
        """How far the texts go towards each topic, with credit for a text that goes half the way."""
        return {t.name: sum(min(t.count(text) / t.least, 1) for text in self.texts) / len(self.texts) for t in TOPICS}

    def rates(self) -> dict[str, float]:
        """In what share of the texts each topic is present."""
        return {t.name: sum(map(t.in_text, self.texts)) / len(self.texts) for t in TOPICS}


class Steered:
    """While it holds, adds to each row of the batch a vector of its own, where `mask` is true."""

    def __init__(self, layer, vectors: Tensor) -> None:
        self.layer, self.vectors, self.mask = layer, vectors, None

    def __enter__(self) -> Steered:
        self.hook = self.layer.register_forward_hook(self.add)
        return self

    def __exit__(self, *_) -> None:
        self.hook.remove()

    def add(self, _module, _inputs, output: Tensor) -> Tensor:
        return output + self.mask[..., None] * self.vectors[:, None]


@torch.no_grad()
def write(model, layer: int, prompts: Tensor, mask: Tensor, vectors: Tensor, length: int, seed: int) -> Tensor:
    """Samples `length` tokens after each left-padded prompt, steered at its text and at what is written."""
    generator = torch.Generator().manual_seed(seed)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    word = cache_word(model)
    ids, cache, written = prompts, {}, []
    attention = mask
    stop = torch.tensor(model.config.eos_token_id)
    done = torch.zeros(len(prompts), dtype=torch.bool)
    with Steered(model.model.layers[layer], vectors) as steered:
        steered.mask = (mask & (prompts != model.config.bos_token_id)).float()
        for _ in range(length):
            out = model(
                input_ids=ids, attention_mask=attention, position_ids=places, **cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            cache = {word: getattr(out, word)}
            chances = (out.logits[:, -1].float() / TEMPERATURE).softmax(-1)
            chosen = torch.multinomial(chances, 1, generator=generator)
            chosen[done] = model.config.pad_token_id
            done |= torch.isin(chosen[:, 0], stop)
            written.append(chosen)
            ids, places = chosen, places[:, -1:] + 1
            attention = torch.cat([attention, attention.new_ones(len(prompts), 1)], 1)
            steered.mask = (~done[:, None]).float()
    return torch.cat(written, 1)


@torch.no_grad()
def surprise(model, prompts: Tensor, mask: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of the written tokens under the unsteered model, and their number, one of each a row."""
    live = written != model.config.pad_token_id
    ids, attention = torch.cat([prompts, written], 1), torch.cat([mask, live], 1)
    places = (attention.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=attention, position_ids=places, use_cache=False)
    logits = out.logits[:, prompts.shape[1] - 1 : -1].float()
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), written, reduction="none")
    return (nats * live).sum(1), live.sum(1)


class Bench:
    """Writes and measures texts for many (feature, strength) pairs, a few hundred texts at a time."""

    def __init__(self, model, words, layer: int, directions: Tensor) -> None:
        self.model, self.words, self.layer = model.float().eval(), words, layer
        self.directions = directions  # unit × decoder row, [feature, d]

    def trials(self, pairs: Sequence[tuple[int, float]], prompts: Sequence[str], length: int, seed: int):
        coded = self.words(list(prompts), padding=True, padding_side="left", return_tensors="pt")
        each, per_batch = len(prompts), max(1, ROWS // len(prompts))
        for start in range(0, len(pairs), per_batch):
            group = pairs[start : start + per_batch]
            ids = coded["input_ids"].repeat(len(group), 1)
            mask = coded["attention_mask"].bool().repeat(len(group), 1)
            vectors = torch.stack([self.directions[f] * s for f, s in group]).repeat_interleave(each, 0)
            written = write(self.model, self.layer, ids, mask, vectors, length, seed)
            nats, count = surprise(self.model, ids, mask, written)
            texts = self.words.batch_decode(written, skip_special_tokens=True)
            for i, (feature, strength) in enumerate(group):
                rows = slice(i * each, (i + 1) * each)
                perplexity = float((nats[rows].sum() / count[rows].sum()).exp())
                yield Trial(feature, strength, texts[rows], perplexity)


def screen(bench: Bench, live: list[int], work: Path) -> list[dict]:
    """Every live feature at two strengths: signs of each topic and perplexity. Kept in `work`."""
    path = work / "screen.json"
    if path.exists():
        return json.loads(path.read_text())
    pairs = [(f, s) for f in live for s in SCREEN_STRENGTHS]
    rows = []
    for trial in bench.trials(pairs, CHOOSING[:SCREEN_PROMPTS], SCREEN_TOKENS, seed=1):
        rows.append({"feature": trial.feature, "strength": trial.strength, "perplexity": trial.perplexity})
        rows[-1]["signs"] = trial.signs()
        if len(rows) % 600 == 0:
            print(f"screened {len(rows)} of {len(pairs)}", flush=True)
    with replace(path) as unfinished:
        unfinished.write_text(json.dumps(rows))
    return rows


def by_signs(rows: list[dict], topic: Topic, perplexity: float) -> list[int]:
    """Features by the signs of the topic that they brought, in texts that were not too unlikely."""
    fluent = [r for r in rows if r["perplexity"] < 4 * perplexity]
    fluent.sort(key=lambda r: r["signs"][topic.name] - 0.05 * r["perplexity"] / perplexity, reverse=True)
    return list(dict.fromkeys(r["feature"] for r in fluent))


def by_logits(bench: Bench, topic: Topic) -> list[int]:
    """Features by what their direction alone would add to the logits of the topic's words."""
    vocabulary = bench.words.batch_decode([[i] for i in range(len(bench.words))])
    ours = [i for i, text in enumerate(vocabulary) if topic.pattern.fullmatch(text.strip())]
    readout = bench.model.lm_head.weight * bench.model.model.norm.weight
    logits = bench.directions @ readout.T
    spread = (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True)
    return spread[:, ours].mean(1).argsort(descending=True).tolist()


def merit(trial: dict) -> float:
    """Its rate, less a tenth for each whole time that perplexity grew beyond one and a half."""
    return trial["rate"] - 0.1 * max(trial["ratio"] - 1.5, 0)


def search(bench: Bench, topic: Topic, pool: list[int], plain: Trial) -> tuple[int, float] | None:
    """The best feature and strength: a rough round for the whole pool, a finer one for the best few."""
    for strengths, length, kept in ((ROUGH_STRENGTHS, SCREEN_TOKENS, FINE), (STRENGTHS, CHOOSE_TOKENS, 1)):
        pairs = [(f, s) for f in pool for s in strengths]
        trials = [describe(t, topic, plain) for t in bench.trials(pairs, CHOOSING, length, seed=3)]
        trials = sorted((t for t in trials if t["ratio"] <= MOST_RATIO), key=merit, reverse=True)
        pool = list(dict.fromkeys(t["feature"] for t in trials))[:kept]
    return (pool[0], trials[0]["strength"]) if pool else None


def choose(bench: Bench, rows: list[dict], work: Path) -> list[dict]:
    """For each topic its best feature and strength, measured once more with other seeds. Kept in `work`."""
    path = work / "chosen.json"
    if path.exists():
        return json.loads(path.read_text())
    plain = next(bench.trials([(0, 0.0)], CHOOSING * 5, CHOOSE_TOKENS, seed=2))
    base, found = plain.rates(), []
    for topic in TOPICS:
        pool = by_signs(rows, topic, plain.perplexity)[:POOL] + by_logits(bench, topic)[:POOL]
        best = search(bench, topic, list(dict.fromkeys(pool)), plain)
        if best is None:
            continue
        again = next(bench.trials([best], CHOOSING * 2, CHOOSE_TOKENS, seed=4))
        row = describe(again, topic, plain) | {"base": base[topic.name], "words": usual_words(again, topic)}
        enough, rare = row["rate"] >= LEAST_RATE, row["base"] <= MOST_BASE
        row["passes"] = enough and rare and row["ratio"] <= MOST_RATIO
        found.append(row)
        line = f"{row['rate']:.2f} from {row['base']:.2f}, perplexity × {row['ratio']:.2f}"
        print(f"{topic.name}: feature {best[0]} at {best[1]}: {line}", flush=True)
    with replace(path) as unfinished:
        unfinished.write_text(json.dumps(found, indent=1))
    return found


def describe(trial: Trial, topic: Topic, plain: Trial) -> dict:
    return {
        "topic": topic.name,
        "feature": trial.feature,
        "strength": trial.strength,
        "rate": trial.rates()[topic.name],
        "ratio": trial.perplexity / plain.perplexity,
        "samples": trial.texts[:4],
    }


def usual_words(trial: Trial, topic: Topic, most: int = 3) -> list[str]:
    """The topic's words that the texts used most."""
    if topic.signs:
        return []
    said = Counter(word.lower() for text in trial.texts for word in topic.pattern.findall(text))
    return [word for word, _ in said.most_common(most) if word.isalpha()]


def showcase(labelled: dict[str, dict]) -> dict:
    """What `sparsight demo` shows, if its feature was found."""
    for index, entry in labelled.items():
        if entry["topic"] == SHOWCASE["topic"]:
            edit = f"{index}=+{SHOWCASE['strength']}"
            return {"prompt": SHOWCASE["prompt"], "edit": edit, "seed": SHOWCASE["seed"]}
    raise SystemExit(f"No feature for {SHOWCASE['topic']!r} passed: choose another SHOWCASE in features.py.")


def labels(found: list[dict]) -> dict[str, dict]:
    """Labels of the features that passed; if two topics share one, the one it brings more often."""
    best: dict[str, dict] = {}
    for row in sorted((r for r in found if r["passes"]), key=lambda r: r["rate"]):
        words = f": {', '.join(row['words'])}" if row["words"] else ""
        entry = {"label": row["topic"] + words, "topic": row["topic"]}
        entry |= {"method": "measured by steering", "suggested": row["strength"]}
        best[str(row["feature"])] = entry
    return dict(sorted(best.items(), key=lambda item: int(item[0])))
