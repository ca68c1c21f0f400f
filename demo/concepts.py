"""Which features of the demo detect what is known of its text, and the plain-English query that should find them.

    python demo/concepts.py --corpus mix.jsonl.gz [--harmful requests.json] [--sgd train.jsonl.gz dev.jsonl.gz]

A concept is something that the text itself says, or that we did to it: the voice of a reply, a refusal, the kind or the
topic of a document, what a story is about (the words that occur in it three times), the service that a turn of the
Schema-Guided Dialogue data is labelled with. No label of a feature takes part. A unit is an exchange (what was said
since the last reply, and the reply), a document or a turn; a feature's value in it is the mean of its activations over
the unit's tokens, without those of the template.

AUC(concept, feature) = the chance that a unit of the concept has more of the feature than one that is not of it, ties
counting half. A feature detects a concept if its AUC is at least 0.85 on the training part and on the held-out part
(turns: of other dialogues), and if it is among the 40 that are best on the training part. A concept that no feature
detects is left out. What is left is `concepts.json`: queries and the features that answer them,
which `bench/search_recall.py` asks of an atlas.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

import mixture
import residuals
import sparsight
import truth
from mixture import Document, Turn
from sparsight.disk import write_json

ENOUGH, MOST = 0.85, 40  # AUC in either part; and how many features detect a concept, at most
FEWEST = 5  # units of a concept, in either part
TRAINING = 4000  # documents, or dialogues, of the training part that are read
MENTIONS = 3  # of its words, in a story that is about something
ASSISTANT = truth.ROLES.index("assistant")


@dataclass(frozen=True)
class Unit:
    """A reply, a document or a turn. name: of the voice, "refusal"; a document's kind, topic and source; a service."""

    names: frozenset[str]
    text: str = ""


@dataclass(frozen=True)
class Concept:
    """query: how one would ask for it. says: words of which a label of such a feature has one, or its beginning.
    words: a story is about this where they occur MENTIONS times, and not where they occur at all."""

    query: str
    says: str
    words: str = ""


VOICES = {
    "pirate": Concept("talk like a pirate", "pirate ahoy matey arr ye avast aye"),
    "shouting": Concept("shouting in capital letters", "shout capital upper loud all-caps caps"),
    "butler": Concept("a polite butler", "butler sir madam formal polite indeed"),
    "child": Concept("talks like a small child", "child kid mommy"),
    "poet": Concept("rhyming poetry", "poet poem rhym verse"),
    "robot": Concept("robot speech, beep boop", "robot beep affirmative unit"),
    "shakespeare": Concept("Shakespearean English, thou and thee", "shakespear thou thee thy hath doth"),
    "texting": Concept("texting abbreviations like u and lol", "text abbreviat lol slang chat"),
    "salesperson": Concept("an excited salesperson selling something", "sales sell offer deal excite buy amazing"),
    "pessimist": Concept("a gloomy pessimist", "pessimis gloom sigh hopeless negativ"),
    "cowboy": Concept("talks like a cowboy", "cowboy howdy partner y'all reckon"),
    "cat": Concept("talks like a cat, meow and purr", "cat meow purr"),
    "refusal": Concept("refuses a harmful request", "refus sorry cannot can't harm declin"),
}
DOCUMENTS = {
    "french": Concept("French", "french france français"),
    "german": Concept("German", "german"),
    "spanish": Concept("Spanish", "spanish spain español"),
    "code": Concept("computer code", "code program python def sql html shell"),
    "python": Concept("Python functions", "python def code program"),
    "sums": Concept("adding numbers, sums", "sum add number plus arithmetic digit minus times"),
    "gsm8k": Concept("math word problems", "math number sum problem total each calculat"),
    "tinystories": Concept("children's stories, once upon a time", "story stories once upon tale"),
    "fairytaleqa": Concept("old fairy tales", "fairy tale story king princess old"),
    "taskmaster4": Concept("ordering a coffee", "coffee order drink latte milk"),
    "safety": Concept("dangerous requests", "danger harm kill weapon hack safe refus"),
    "greeting": Concept("greetings, hello how are you", "greet hello hi how"),
    "home": Concept("things in the house", "home house room clean kitchen"),
    "time": Concept("days, months and the calendar", "time day month week year clock"),
    "food": Concept("food and cooking", "food cook eat meal"),
    "books": Concept("books and reading", "book read"),
    "space": Concept("the moon, the sun and the planets", "space moon sun planet star earth"),
    "advice": Concept("giving advice", "advice should try"),
    "garden": Concept("plants in the garden", "garden plant flower seed"),
    "body": Concept("parts of the body", "body hand heart eye"),
    "health": Concept("staying healthy", "health sleep exercise doctor"),
    "money": Concept("saving money", "money save spend bank"),
    "sea": Concept("the sea and the fish in it", "sea ocean fish water"),
    "family": Concept("mother, father and family", "family mother father mom dad sister brother"),
    "work": Concept("jobs and work", "work job office boss"),
    "sport": Concept("playing sports", "sport ball game play"),
    "feelings": Concept("feelings, happy or sad", "feel happy sad angry emotion"),
}
STORIES = {
    "dog": Concept("stories about a dog", "dog pupp", "dog dogs puppy"),
    "bird": Concept("birds", "bird", "bird birds"),
    "king": Concept("kings and queens", "king queen royal", "king queen"),
    "princess": Concept("a princess", "princess prince", "princess prince"),
    "ball": Concept("playing with a ball", "ball", "ball"),
    "tree": Concept("trees in the forest", "tree forest wood", "tree trees forest"),
    "rabbit": Concept("bunnies and rabbits", "rabbit bunn", "rabbit rabbits bunny"),
    "bear": Concept("bears", "bear", "bear bears"),
    "car": Concept("toy cars and trucks", "car truck", "car cars truck"),
    "mother": Concept("a mother in a story", "mom mother mum", "mom mommy mother"),
    "fish": Concept("fish", "fish", "fish fishes"),
    "horse": Concept("horses", "horse", "horse horses"),
}
SERVICES = {
    "Restaurants": Concept("finding a restaurant and booking a table", "restaurant food table reserv din cuisine"),
    "Hotels": Concept("booking a hotel room", "hotel room stay reserv check-in"),
    "Flights": Concept("booking a flight", "flight fly airline airport ticket plane"),
    "Buses": Concept("bus tickets", "bus ticket depart travel"),
    "RentalCars": Concept("renting a car", "car rent pick vehicle"),
    "RideSharing": Concept("calling a taxi", "taxi ride cab uber lyft"),
    "Movies": Concept("movie showtimes at the cinema", "movie film cinema theat show"),
    "Media": Concept("watching a movie online", "movie film watch play subtitle stream"),
    "Music": Concept("playing a song", "music song play album artist"),
    "Events": Concept("tickets for a concert or a game", "event concert ticket show game"),
    "Calendar": Concept("adding an event to the calendar", "calendar event schedul meeting"),
    "Banks": Concept("transferring money between bank accounts", "bank account transfer balance money saving check"),
    "Homes": Concept("looking for an apartment", "apartment home house propert bed bath"),
    "Weather": Concept("the weather forecast", "weather temperature rain wind humid forecast degree"),
    "Travel": Concept("tourist attractions to visit", "attraction travel visit tour museum place"),
    "Services_1": Concept("an appointment with a hair stylist", "hair stylist salon appointment unisex"),
    "Services_2": Concept("an appointment with a dentist", "dentist dental appointment cosmetic"),
    "Services_3": Concept("an appointment with a doctor", "doctor appointment dermatolog ophthalmolog practi"),
    "Alarm": Concept("setting an alarm", "alarm wake"),
}


# ── units ─────────────────────────────────────────────────────────────────────────────────────────────────


def exchanges(one: truth.Coded) -> Iterator[tuple[np.ndarray, Unit]]:
    begin = 0
    for said in spans(one.role == ASSISTANT):
        voice = truth.VOICE_NAMES[one.voice[said][0]]
        places = np.arange(len(one.role))
        yield (
            (one.role > 0) & (places >= begin) & (places < said.stop),
            Unit(frozenset([voice or ("refusal" if one.refusal[said][0] else "")])),
        )
        begin = said.stop


def whole(one: truth.Coded) -> Iterator[tuple[np.ndarray, Unit]]:
    about = one.document
    text = " ".join(turn.content for turn in about.turns)
    if (one.role > 0).any():
        names = frozenset([about.kind, about.topic, "" if about.kind == "voice" else about.source])
        yield one.role > 0, Unit(names, text if about.kind.startswith("story") else "")


def turns(one: truth.Coded) -> Iterator[tuple[slice, Unit]]:
    services = json.loads(one.document.topic)
    for said, names in zip(spans(one.role > 0), services, strict=False):
        if names:
            yield said, Unit(frozenset(names))


def spans(true: np.ndarray) -> list[slice]:
    """Runs of true places."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], true.astype(np.int8), [0]])))
    return [slice(a, b) for a, b in edges.reshape(-1, 2)]


def dialogues(path: Path) -> list[Document]:
    """SGD in LMSYS-Chat-1M's form; the topic of each holds, as JSON, the services of its turns."""
    out = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            said = tuple(Turn(turn["role"], turn["content"]) for turn in row["conversation"])
            services = [
                [one for name in turn["service"] for one in (name, name.split("_")[0])] for turn in row["labels"]
            ]
            out.append(Document("sgd", "chat", said, row["conversation_id"], json.dumps(services)))
    return out


def evenly(documents: list[Document], count: int) -> list[Document]:
    """So many of them, from all over: they lie service by service."""
    return documents[:: max(len(documents) // count, 1)][:count]


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def read(scope, documents: Sequence[truth.Coded], ways: Sequence[Callable]) -> list[tuple[list[Unit], np.ndarray]]:
    """For each way of taking units: the units, and their mean activations [unit, feature]."""
    layer = int(scope.hook_point.rsplit(".", 1)[1])
    found: list[tuple[list[Unit], list[np.ndarray]]] = [([], []) for _ in ways]
    for batch, output in residuals.residuals(scope.lm.model, documents, layer):
        for one, row in zip(batch, output, strict=True):
            values = scope.sae.encode(row[: len(one)]).float()
            for way, (units, means) in zip(ways, found, strict=True):
                for part, unit in way(one):
                    units.append(unit)
                    means.append(
                        values[torch.from_numpy(part) if isinstance(part, np.ndarray) else part].mean(0).half().numpy()
                    )
    return [(units, np.stack(means)) for units, means in found]


def truth_of(name: str, concept: Concept, units: Iterable[Unit]) -> np.ndarray:
    """Of each unit: 1 of the concept, 0 not, -1 neither: what is no story, where it is about stories."""
    if not concept.words:
        return np.array([int(name in unit.names) for unit in units])
    pattern = re.compile(rf"\b({'|'.join(concept.words.split())})\b", re.IGNORECASE)
    counts = [len(pattern.findall(unit.text)) if unit.text else 1 for unit in units]
    return np.array([1 if count >= MENTIONS else 0 if not count else -1 for count in counts])


def ranked(values: np.ndarray) -> np.ndarray:
    """[unit, feature]: each unit's rank by each feature, from 1; ties share theirs."""
    parts = np.array_split(values.astype(np.float32), 16, axis=1)
    return np.concatenate([rankdata(part, axis=0).astype(np.float32) for part in parts], axis=1)


def aucs(values: np.ndarray, true: np.ndarray, ranks: np.ndarray | None = None) -> np.ndarray:
    """[feature]: by the rank sums of Mann and Whitney. ranks: of all units, where all of them count."""
    positive = true[true >= 0] == 1
    ones, zeros = positive.sum(), (~positive).sum()
    if ranks is None or (true < 0).any():
        ranks = ranked(values[true >= 0])
    return (ranks[positive].sum(0, dtype=np.float64) - ones * (ones + 1) / 2) / (ones * zeros)


def measured(concepts: dict[str, Concept], train, held_out) -> tuple[dict, dict]:
    """({name: the entry of a concept that features detect}, {name: why another is left out})."""
    kept, left = {}, {}
    of_all = [None if any(one.words for one in concepts.values()) else ranked(v) for _, v in (train, held_out)]
    for name, concept in concepts.items():
        true = [truth_of(name, concept, units) for units, _ in (train, held_out)]
        sizes = [int((one == 1).sum()) for one in true]
        if min(sizes) < FEWEST:
            left[name] = f"{sizes[0]} units to choose by, {sizes[1]} held out"
            continue
        parts = zip((train, held_out), true, of_all, strict=True)
        chosen, tested = (aucs(values, one, ranks) for (_, values), one, ranks in parts)
        ahead = sorted(np.flatnonzero(chosen >= ENOUGH).tolist(), key=lambda f: (-chosen[f], f))[:MOST]
        right = [f for f in ahead if tested[f] >= ENOUGH]
        best = int(chosen.argmax())
        told = {"best": best, "auc": round(float(tested[best]), 4), "units": sizes}
        if right:
            about = {"query": concept.query, "says": concept.says.split()}
            kept[name] = about | told | {"features": {str(f): round(float(tested[f]), 4) for f in right}}
        else:
            left[name] = f"held-out AUC {tested[best]:.3f} of the best"
        print(f"{name:14} feature {best:5} AUC {tested[best]:.3f} on {sizes[1]:5}, answers {right[:8]}", flush=True)
    return kept, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--harmful", type=Path)
    parser.add_argument("--sgd", type=Path, nargs=2, help="dialogues with the services of their turns: two files")
    parser.add_argument("--training", type=int, default=TRAINING, help="documents, and dialogues, to choose by")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("concepts.json"))
    arguments = parser.parse_args()
    scope = sparsight.load("demo", dtype=torch.float32)
    core = scope.lm.tokenizer.backend_tokenizer
    parts = mixture.split(mixture.compose(arguments.corpus, arguments.harmful))
    read_parts = [read(scope, truth.code(part[: arguments.training], core), (exchanges, whole)) for part in parts]
    result: dict = {"sae": scope.sae.fingerprint, "question": __doc__, "concepts": {}, "left_out": {}}
    for group, concepts, way in (("voice", VOICES, 0), ("kind", DOCUMENTS, 1), ("story", STORIES, 1)):
        keep(result, group, *measured(concepts, read_parts[0][way], read_parts[1][way]))
    del read_parts
    if arguments.sgd:
        said = [truth.code(evenly(dialogues(path), arguments.training // 4), core) for path in arguments.sgd]
        keep(result, "service", *measured(SERVICES, *(read(scope, part, (turns,))[0] for part in said)))
    write_json(arguments.out, result)
    print(f"{len(result['concepts'])} concepts, {len(result['left_out'])} left out: {result['left_out']}")


def keep(result: dict, group: str, kept: dict, left: dict) -> None:
    result["concepts"] |= {f"{group} {name}": entry for name, entry in kept.items()}
    result["left_out"] |= {f"{group} {name}": why for name, why in left.items()}


if __name__ == "__main__":
    main()
