"""Finds the features that turn a voice on, by what turning them up does to replies.

1. Screen: every live feature, at two strengths, on a few questions.
2. Search, for each voice: the features that brought most of it in the screen, and those that tell real replies in
   this voice from others, at several strengths; then sums of two and of three of the best.
3. Choose: the best few settings once more, on all questions and with other seeds; a single feature before a sum.
4. Widen, for the voices in NEEDED: to three features without which the voice is hardly spoken where it is asked for.
The figures that are reported come from other questions and seeds: see bench/demo_steering.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

import marks
import residuals
from mixture import KEPT_PHRASES, TEXT
from sparsight.disk import write_aside, write_json
from sparsight.edits import Controller
from sparsight.lm.batch import Prompt
from sparsight.records import Sampling
from sparsight.scope.scope import Reply, Scope
from truth import ROLES, VOICE_NAMES, Coded
from voices import VOICES

Setting = tuple[tuple[int, float, str], ...]  # features, how far each is turned up (feature units), at which tokens

ROWS = 256  # replies written at a time
TEMPERATURE = 0.7
SCREEN_QUESTIONS, SCREEN_TOKENS, SCREEN_SETTINGS = 4, 20, ((2.0, "template"), (0.7, "all"))
SEARCH_QUESTIONS, SEARCH_TOKENS = 12, 40
SEARCH_STRENGTHS = {"template": (1.0, 1.5, 2.0, 3.0)}  # before the reply begins: elsewhere none was better
CHOOSE_TOKENS = 60
POOL = 6  # features of each voice that are tried from either list
READ = 50  # features of each voice that are kept of those that read it
KEPT = 5  # features that sums are made of, and settings that are tried once more
SUM_PART = (0.5, 0.75, 1.0)  # strengths in a sum, as parts of those that its features have alone
NEEDED = ("pirate",)  # voices that are widened
NEEDED_QUESTIONS, NEEDED_CANDIDATES, NEEDED_BEST = 12, 50, 12
PART = 0.6  # what a reply in the voice counts whose beginning is missing
ENOUGH, MOST_RATIO = 0.75, 2.6  # stricter than the bars that are reported
SHOWCASE = {"prompt": "Tell me about dogs.", "voice": "pirate", "seed": 7}  # what `sparsight demo` shows


def questions(kind: str) -> list[str]:
    """Plain questions that no document asks: "choosing" ones, and "unrelated" ones that figures are reported on."""
    return json.loads((TEXT / "plain_prompts.json").read_text())[kind]


# ── writing and judging ───────────────────────────────────────────────────────────────────────────────────


def degree(voice: str, text: str) -> float:
    """1 for a text in the voice, PART where its beginning is missing; for others up to a half, by the marks it has."""
    if marks.speaks(voice, text):
        return 1.0 if marks.begins(voice, text) else PART
    words = max(1, marks.size(text))
    enough = {"shouting": words, "poet": marks.LINES_LEAST - 1}.get(voice) or marks.needed(words)
    return min(0.5, 0.5 * marks.count(voice, text) / enough)


@dataclass(frozen=True)
class Trial:
    """One setting: the replies it makes, and how unlikely the unsteered model finds them."""

    setting: Setting
    texts: list[str]
    perplexity: float

    def rate(self, voice: str) -> float:
        """The share of replies in the voice."""
        return sum(marks.speaks(voice, text) for text in self.texts) / len(self.texts)

    def whole(self, voice: str) -> float:
        """The share of replies in the voice that have a beginning."""
        return sum(marks.speaks(voice, text) and marks.begins(voice, text) for text in self.texts) / len(self.texts)

    def degree(self, voice: str) -> float:
        return sum(degree(voice, text) for text in self.texts) / len(self.texts)


def chat(question: str, phrase: str = "{q}") -> list[dict]:
    """The question, put by the user in this phrase, or after a system message that is this phrase."""
    if "{q}" in phrase:
        return [{"role": "user", "content": phrase.replace("{q}", question)}]
    return [{"role": "system", "content": phrase}, *chat(question)]


def draws(count: int, tokens: int, seed: int) -> list[Sampling]:
    """How so many replies are drawn, each with a seed of its own."""
    return [Sampling(max_new_tokens=tokens, temperature=TEMPERATURE, seed=seed * 1000 + i) for i in range(count)]


def density(voice: str, texts: Sequence[str]) -> float:
    """The voice's marks per word of all these texts."""
    return sum(marks.count(voice, text) for text in texts) / max(1, sum(map(marks.size, texts)))


def edits(scope: Scope, setting: Setting) -> Controller | None:
    return Controller(tuple(scope.features[f].nudge(s).on(place) for f, s, place in setting)) if setting else None


@torch.no_grad()
def surprise(scope: Scope, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> tuple[Tensor, Tensor]:
    """Nats of each reply under the unsteered model, and its number of tokens."""
    rows = [[*p.ids, *r.ids] for p, r in zip(prompts, replies, strict=True)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    written = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        written[i, len(prompt) : len(row)] = True
    out, _, _ = scope.lm.forward(ids, use_cache=False, attention_mask=mask, all_logits=True)
    nats = torch.nn.functional.cross_entropy(out[:, :-1].float().mT.cpu(), ids[:, 1:], reduction="none")
    return (nats * written[:, 1:]).sum(1), written.sum(1)


def trials(scope: Scope, settings: Sequence[Setting], asked: Sequence[str], tokens: int, seed: int) -> Iterator[Trial]:
    """Every setting on every question, many at a time."""
    chats, each = [chat(question) for question in asked], max(1, ROWS // len(asked))
    prompts = [scope.lm.prompt(one) for one in chats]
    for start in range(0, len(settings), each):
        group = settings[start : start + each]
        wishes = [edits(scope, setting) for setting in group for _ in asked]
        replies = scope.chat(chats * len(group), wishes, sampling=draws(len(asked), tokens, seed) * len(group))
        nats, count = surprise(scope, prompts * len(group), replies)
        for i, setting in enumerate(group):
            rows = slice(i * len(asked), (i + 1) * len(asked))
            perplexity = float((nats[rows].sum() / count[rows].sum()).exp())
            yield Trial(setting, [r.text for r in replies[rows]], perplexity)


# ── screening ─────────────────────────────────────────────────────────────────────────────────────────────


def screen(scope: Scope, live: Sequence[int], work: Path) -> list[dict]:
    """Every live feature at two strengths: how far it goes towards each voice, and perplexity. Kept in `work`."""
    path = work / "screen.json"
    if path.exists():
        return json.loads(path.read_text())
    settings: list[Setting] = [((f, s, place),) for f in live for s, place in SCREEN_SETTINGS]
    rows = []
    for trial in trials(scope, settings, questions("choosing")[:SCREEN_QUESTIONS], SCREEN_TOKENS, seed=1):
        ((feature, strength, place),) = trial.setting
        rows.append({"feature": feature, "strength": strength, "place": place, "perplexity": trial.perplexity})
        rows[-1]["degrees"] = {voice: round(trial.degree(voice), 3) for voice in VOICES}
        if len(rows) % 500 == 0:
            print(f"screened {len(rows)} of {len(settings)}", flush=True)
    write_aside(path, lambda part: part.write_text(json.dumps(rows)))
    return rows


def by_screen(rows: list[dict], voice: str, perplexity: float) -> list[int]:
    """Features by how far they went towards the voice, in replies that were not too unlikely."""
    fluent = [r for r in rows if r["perplexity"] < 4 * perplexity]
    fluent.sort(key=lambda r: r["degrees"][voice] - 0.05 * r["perplexity"] / perplexity, reverse=True)
    return list(dict.fromkeys(r["feature"] for r in fluent))


def by_reading(scope: Scope, documents: Sequence[Coded], layer: int, work: Path) -> dict[str, list[int]]:
    """For each voice, features that have a unit, by their mean activation in replies in it and in the headers of those,
    less that in plain replies and theirs; taken from the two in turns. Kept in `work`."""
    path = work / "reading.json"
    if path.exists():
        return json.loads(path.read_text())
    totals = torch.zeros(2, len(VOICE_NAMES), scope.sae.d_hidden)
    counts = torch.zeros(2, len(VOICE_NAMES), 1)
    for batch, output in residuals.residuals(scope.lm.model, documents, layer):
        for document, row in zip(batch, output, strict=True):
            features = scope.sae.encode(row[: len(document)].to(scope.sae.dtype)).float().cpu()
            voices = torch.from_numpy(document.voice.astype("int64"))
            for i, (at, voice) in enumerate(((said(document), voices), (headers(document), next_one(voices)))):
                totals[i].index_add_(0, voice[at], features[at])
                counts[i] += voice[at].bincount(minlength=len(VOICE_NAMES))[:, None]
    means = totals / counts.clamp(min=1)
    more = means - means[:, :1]
    more[:, :, scope.sae.scale.cpu() == 0] = -torch.inf
    turns = more.topk(READ, dim=-1).indices.permute(1, 2, 0).flatten(1)
    out = {name: list(dict.fromkeys(turns[i].tolist())) for i, name in enumerate(VOICE_NAMES) if name}
    write_json(path, out)
    return out


def said(document: Coded) -> Tensor:
    """True at the assistant's tokens."""
    return torch.from_numpy(document.role == ROLES.index("assistant"))


def headers(document: Coded) -> Tensor:
    """True at the tokens just before a reply: the last of its header."""
    reply = said(document)
    return torch.cat([~reply[:-1] & reply[1:], reply.new_zeros(1)])


def next_one(values: Tensor) -> Tensor:
    """Each token's value from the token after it."""
    return torch.cat([values[1:], values[-1:]])


# ── searching ─────────────────────────────────────────────────────────────────────────────────────────────


def merit(trial: Trial, voice: str, plain: Trial) -> float:
    """How far it goes, less a tenth for each whole time that perplexity grew beyond one and a half."""
    ratio = trial.perplexity / plain.perplexity
    if ratio > MOST_RATIO:
        return -ratio
    return trial.degree(voice) - 0.1 * max(ratio - 1.5, 0)


def best(found: Iterable[Trial], voice: str, plain: Trial, number: int) -> list[Trial]:
    """The best trials, one of each set of features."""
    ranked = sorted(found, key=lambda t: merit(t, voice, plain), reverse=True)
    of = {}
    for trial in ranked:
        of.setdefault(tuple(f for f, _, _ in trial.setting), trial)
    return list(of.values())[:number]


def sums(ones: Sequence[Setting], number: int) -> list[Setting]:
    """All sums of so many of these settings of one feature, each weaker than alone."""
    some = [sum(chosen, ()) for chosen in combinations(ones, number)]
    return [tuple((f, round(s * part, 3), place) for f, s, place in parts) for parts in some for part in SUM_PART]


def search(scope: Scope, voice: str, pool: Sequence[int], plain: Trial) -> list[Trial]:
    """The best settings of one, two and three features."""
    asked = questions("choosing")[:SEARCH_QUESTIONS]

    def tried(settings: Sequence[Setting], number: int) -> list[Trial]:
        return best(trials(scope, settings, asked, SEARCH_TOKENS, seed=3), voice, plain, number)

    alone = [((f, s, place),) for f in pool for place, strengths in SEARCH_STRENGTHS.items() for s in strengths]
    ones = tried(alone, KEPT)
    settings = [trial.setting for trial in ones]
    return [*ones[:2], *tried(sums(settings, 2), 2), *tried(sums(settings, 3), 2)]


def unsteered(scope: Scope) -> Trial:
    """What settings are compared with."""
    return next(trials(scope, [()], questions("choosing"), CHOOSE_TOKENS, seed=2))


def choose(scope: Scope, plain: Trial, rows: list[dict], reading: dict[str, list[int]], work: Path) -> dict[str, dict]:
    """For each voice its setting, measured once more with other seeds. Kept in `work`."""
    path = work / "chosen.json"
    found: dict[str, dict] = json.loads(path.read_text()) if path.exists() else {}
    for voice in VOICES:
        if voice in found:
            continue
        pool = by_screen(rows, voice, plain.perplexity)[:POOL] + reading[voice][:POOL]
        settings = [t.setting for t in search(scope, voice, list(dict.fromkeys(pool)), plain)]
        again = list(trials(scope, settings, questions("choosing"), CHOOSE_TOKENS, seed=4))
        again.sort(key=lambda t: merit(t, voice, plain), reverse=True)
        fit = [t for t in again if t.whole(voice) >= ENOUGH and merit(t, voice, plain) > 0]
        taken = min(fit, key=lambda t: len(t.setting)) if fit else again[0]
        found[voice] = described(taken, voice, plain) | {"others": [described(t, voice, plain) for t in again]}
        line = f"{taken.rate(voice):.2f}, whole {taken.whole(voice):.2f}, × {found[voice]['ratio']:.2f}"
        print(f"{voice}: {found[voice]['setting']} {line}", flush=True)
        write_json(path, found)
    return found


def described(trial: Trial, voice: str, plain: Trial) -> dict:
    return {
        "setting": trial.setting,
        "rate": round(trial.rate(voice), 3),
        "whole": round(trial.whole(voice), 3),
        "base": round(plain.rate(voice), 3),
        "ratio": round(trial.perplexity / plain.perplexity, 3),
        "samples": trial.texts[:3],
    }


# ── widening ──────────────────────────────────────────────────────────────────────────────────────────────


def widen(scope: Scope, plain: Trial, found: dict[str, dict]) -> dict[str, dict]:
    """The same, with three features for each of the NEEDED voices: its own, and two that it needs besides."""
    out = dict(found)
    for voice in NEEDED:
        first, strength, place = found[voice]["setting"][0]
        others = needed(scope, voice, first)
        settings = [
            ((first, round(strength * part, 3), place), *((f, more, "template") for f in others))
            for part in (0.75, 1.0)
            for more in (0.5, 1.0, 1.5)
        ]
        tried = list(trials(scope, settings, questions("choosing"), CHOOSE_TOKENS, seed=4))
        out[voice] = described(max(tried, key=lambda t: merit(t, voice, plain)), voice, plain)
        print(f"{voice}: {out[voice]['setting']} {out[voice]['rate']:.2f} × {out[voice]['ratio']:.2f}", flush=True)
    return out


def needed(scope: Scope, voice: str, first: int) -> tuple[int, int]:
    """Two features that, held at zero together with `first`, leave fewest marks in replies that were asked to have
    them: of those that are more active when the voice is asked for, chosen one by one."""
    chats = asking(voice, NEEDED_QUESTIONS)
    plain = [chat(question) for question in questions("choosing")[:NEEDED_QUESTIONS]]
    gain = activity(scope, chats) - activity(scope, plain)
    gain[scope.sae.scale == 0] = -torch.inf  # too rare to have a unit
    some = [f for f in gain.topk(NEEDED_CANDIDATES).indices.tolist() if f != first]

    def fewest(sets: list[tuple[int, ...]], number: int) -> list[tuple[int, ...]]:
        left = marks_left(scope, voice, chats, sets)
        return [sets[i] for i in sorted(range(len(sets)), key=left.__getitem__)[:number]]

    best = [f for (f,) in fewest([(f,) for f in some], NEEDED_BEST)]
    pairs = fewest([(first, f) for f in best], 4)
    ((_, second, third),) = fewest([(*pair, f) for pair in pairs for f in best if f not in pair], 1)
    return second, third


def asking(voice: str, number: int) -> list[list[dict]]:
    """Questions with phrases that ask for the voice, those that it was trained on."""
    phrases = (*VOICES[voice].user[:-KEPT_PHRASES], *VOICES[voice].system[:-KEPT_PHRASES])
    return [chat(q, phrases[i % len(phrases)]) for i, q in enumerate(questions("choosing")[:number])]


def activity(scope: Scope, chats: list[list[dict]]) -> Tensor:
    """Each feature's mean activation in feature units over the chats and the replies to them, [feature]."""
    replies = scope.chat(chats, sampling=draws(len(chats), SEARCH_TOKENS, seed=9))
    whole = [[*c, {"role": "assistant", "content": r.text}] for c, r in zip(chats, replies, strict=True)]
    means = [scope.read(one).codes.dense().mean(0) for one in whole]
    return torch.stack(means).mean(0) / scope.sae.scale.clamp(min=1e-6)


def marks_left(scope: Scope, voice: str, chats: list[list[dict]], sets: list[tuple[int, ...]]) -> list[float]:
    """Marks per word in the replies to the chats, with each set of features held at zero."""
    out, each = [], max(1, ROWS // len(chats))
    for start in range(0, len(sets), each):
        group = sets[start : start + each]
        wishes = [held_off(scope, features) for features in group for _ in chats]
        sampling = draws(len(chats), SEARCH_TOKENS, seed=9) * len(group)
        replies = [reply.text for reply in scope.chat(chats * len(group), wishes, sampling=sampling)]
        out += [density(voice, replies[i : i + len(chats)]) for i in range(0, len(replies), len(chats))]
    return out


def held_off(scope: Scope, features: Iterable[int]) -> Controller:
    """Features at zero, at every token but BOS."""
    return Controller(tuple(scope.features[f].ablate().on("all", "template") for f in features))


# ── what is shipped ───────────────────────────────────────────────────────────────────────────────────────


def labels(found: dict[str, dict]) -> dict[str, dict]:
    """Labels of the features that turn a voice on; a feature that serves two voices is that of the better one."""
    out: dict[str, dict] = {}
    for voice, row in sorted(found.items(), key=lambda item: item[1]["rate"]):
        for i, (feature, strength, place) in enumerate(row["setting"]):
            part = f" ({i + 1})" if i else ""
            entry = {"label": f"talks like {VOICES[voice].title}{part}", "voice": voice}
            out[str(feature)] = entry | {"method": "measured by steering", "suggested": strength, "on": place}
    return dict(sorted(out.items(), key=lambda item: int(item[0])))


def settings(found: dict[str, dict]) -> dict[str, list[str]]:
    """The edits that turn each voice on."""
    return {voice: lines(row["setting"]) for voice, row in found.items()}


def lines(setting: Setting) -> list[str]:
    """A setting's edits as they are written on the command line."""
    return [f"{f}=+{s:g}@{place}" for f, s, place in setting]
