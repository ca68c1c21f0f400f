"""From a wish in plain English to edits: features are chosen by what they do to replies, and turned up only as far as
the replies hold together.

1. Chats: the model answers questions, told of the wish in words and not told (scope/contrastive.py). Features that tell
   the two kinds of answers are the gauge of the effect (scope/trial.py).
2. Screen: candidates (scope/candidates.py), one at a time, at a few strengths and places, on a few questions.
3. Join: sums of two and of three of the best.
4. Sweep: the best sum at rising strengths, on questions that nothing was chosen on. The strength that is taken is the
   weakest that has nearly the most effect, before any at which perplexity or repetition is out of bounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from sparsight.edits import Controller, Feature
from sparsight.errors import BadInput, NoChatTemplate
from sparsight.records import Progress, Sampling, finite, is_whole
from sparsight.scope.candidates import candidates
from sparsight.scope.contrast import contrast
from sparsight.scope.contrastive import QUESTIONS, Contrastive, Writer, contrastive, draws, wish_of
from sparsight.scope.scope import Scope
from sparsight.scope.trial import Gauge, Setting, Trial, alignment, controller, trials

PAIRS = 8  # chats a side
GAUGE = 12  # features of the gauge
STRENGTHS = {"template": (1.0, 2.0, 3.0), "reply": (0.4, 0.8), "all": (0.4, 0.8)}  # of the screen
PARTS = (0.5, 0.75, 1.0)  # of the strengths that features have alone, in a sum
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of the sweep
SCREEN, JOIN, SWEEP = (3, 20), (4, 32), (8, 40)  # questions, and tokens of a reply
BEST = 3  # features that are joined
NEARLY = 0.95  # of the most effect
AGAIN = 0.1  # of repetition beyond what unsteered replies have
EMPTY = 0.15  # of replies
DEAREST = 2.5  # perplexity ratio of replies asked for in words, beyond which they are no measure
LEAST = 0.1  # effect, below which nothing was found


@dataclass(frozen=True)
class Point:
    """One strength, as a factor of the chosen edits' own. effect: 0 as where nobody asked, 1 as where the model was
    asked in words; perplexity: of the replies under the unedited model, as a ratio to its own; repetition: share of
    runs of three tokens that a reply has had before. coherent: all that is within bounds. texts: the replies."""

    strength: float
    effect: float
    perplexity: float
    repetition: float
    coherent: bool
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class AutoEdits:
    """controller: the edits; empty where nothing worked (note says why). edits: the same as (feature, strength, place);
    strengths in feature units, raw where the SAE has none. curve: the sweep; chosen: the point of it that the edits
    are at. asked: the same figures where the model is asked in words. most_perplexity: the bound that was held. tried:
    features that were screened. made_by: who wrote the chats that the effect is gauged by."""

    controller: Controller
    edits: tuple[tuple[Feature, float, str], ...]
    curve: tuple[Point, ...]
    chosen: Point | None
    asked: Point
    most_perplexity: float
    tried: tuple[int, ...]
    made_by: str
    note: str = ""


def auto_edits(
    scope: Scope,
    text: str,
    *,
    chats: Contrastive | None = None,
    writer: Writer | str | None = None,
    places: Sequence[str] = ("template", "reply"),
    most_perplexity: float = 1.25,
    most_tried: int = 16,
    seed: int = 0,
    tell: Callable[[Progress], None] | None = None,
) -> AutoEdits:
    """Edits that make the model do as a text wishes: "talk like a pirate".

    chats: contrastive chats of one's own; else those of contrastive(scope, text, writer). places: where candidates are
    tried: "template" (before the reply begins), "reply" (what is written), "all" (every token of a message).
    most_perplexity: the bound of coherence, in parts of the perplexity of replies that were asked for in words, since
    the manner itself is unlikely where nobody asked. most_tried: candidates that are screened, which is most of the
    work. The same seed gives the same edits. Raises BadInput; NoChatTemplate for a base model; NoAnswer for a writer
    that fails.
    """
    text = wish_of(text)
    if not places or any(place not in STRENGTHS for place in places):
        raise BadInput(f"places are some of: {', '.join(STRENGTHS)}; not {places!r}.")
    if not is_whole(most_tried) or most_tried < 1:
        raise BadInput(f"most_tried is a whole number from 1 up, not {most_tried!r}.")
    if finite(most_perplexity, "most_perplexity") < 1:
        raise BadInput(f"most_perplexity is a ratio to replies asked for in words, from 1 up, not {most_perplexity!r}.")
    if not (scope.lm.has_tokenizer and scope.lm.tokenizer.chat_template):
        raise NoChatTemplate("Automatic edits are tried on chats, and this model's tokenizer has no chat template.")
    run = _Run(scope, text, most_perplexity, seed, tell, time.monotonic())
    run.say("chats")
    chats = chats or contrastive(scope, text, writer, PAIRS, seed=seed)
    told = contrast(scope, chats.with_, chats.without, GAUGE, 0, held_out=0.0, pool="mean")
    if not told.with_:
        raise BadInput(
            f"Chats with and without {text!r} do not differ in any feature: say it otherwise, or give chats."
        )
    gauge = Gauge.of(told.with_)
    wished = float(gauge.shares(scope, chats.with_).mean())
    tried = candidates(scope, text, QUESTIONS[:PAIRS], told, most_tried)
    return run.chosen(gauge, wished, tried, places, chats.made_by)


@dataclass
class _Run:
    """One wish. The questions of screening and joining are those of the chats; those of the sweep are not."""

    scope: Scope
    text: str
    most_perplexity: float
    seed: int
    tell: Callable[[Progress], None] | None
    began: float
    done: int = 0

    def say(self, stage: str) -> None:
        """Tell what begins."""
        if self.tell:
            facts = {"now": stage}
            self.tell(Progress("auto", self.done, 4, "stages", time.monotonic() - self.began, facts))
        self.done += 1

    def chosen(self, gauge: Gauge, wished: float, tried: list[int], places: Sequence[str], made_by: str) -> AutoEdits:
        self.say("screen")
        alone = [((f, s, place),) for f in tried for place in places for s in STRENGTHS[place]]
        ones = self.best(gauge, wished, alone, SCREEN, 1)
        self.say("join")
        sums = [joined(some, part) for n in (2, 3) for some in combinations(ones, n) for part in PARTS]
        best = self.best(gauge, wished, [*ones, *sums], JOIN, 2)[:1]
        self.say("sweep")
        return self.swept(gauge, wished, best[0] if best else (), tried, made_by)

    def asked_at(self, size: tuple[int, int], stage: int) -> tuple[list[str], list[Sampling]]:
        """Questions and samplings of a stage."""
        number, tokens = size
        start = PAIRS if stage == 3 else 0
        return list(QUESTIONS[start : start + number]), draws(number, tokens, 100 * self.seed + stage)

    def best(
        self, gauge: Gauge, wished: float, settings: Sequence[Setting], size: tuple[int, int], stage: int
    ) -> list[Setting]:
        """The best settings that are within bounds and do something, one of each set of features."""
        base = self.base(gauge, wished, size, stage)
        found = base.tried(self.scope, settings)
        ranked = sorted((t for t in found if base.coherent(t)), key=merit, reverse=True)
        of: dict[tuple[int, ...], Setting] = {}
        for trial in ranked:
            if merit(trial) > 0:
                of.setdefault(tuple(feature for feature, _, _ in trial.setting), trial.setting)
        return list(of.values())[:BEST]

    def base(self, gauge: Gauge, wished: float, size: tuple[int, int], stage: int) -> _Base:
        """What trials of a stage are compared with."""
        questions, sampling = self.asked_at(size, stage)
        (plain,) = trials(self.scope, gauge, [()], questions, sampling, None)
        gauge = gauge.between(plain.effect, wished)
        (words,) = trials(self.scope, gauge, [()], questions, sampling, plain.nats, self.text)
        most = self.most_perplexity * min(max(words.perplexity, 1.0), DEAREST)
        return _Base(gauge, questions, sampling, plain, words, most)

    def swept(self, gauge: Gauge, wished: float, setting: Setting, tried: list[int], made_by: str) -> AutoEdits:
        """The sweep, and what comes of it."""
        base = self.base(gauge, wished, SWEEP, 3)
        asked = base.point(base.words, 0.0)
        if not setting:
            note = "No candidate had an effect on replies that held together."
            return AutoEdits(Controller(), (), (), None, asked, base.most, tuple(tried), made_by, note)
        scaled = [joined((setting,), factor) for factor in FACTORS]
        found = base.tried(self.scope, scaled)
        curve = tuple(base.point(trial, factor) for trial, factor in zip(found, FACTORS, strict=True))
        taken = turning_point(curve)
        if taken is None:
            note = "No strength had an effect before replies fell apart."
            return AutoEdits(Controller(), (), curve, None, asked, base.most, tuple(tried), made_by, note)
        final = scaled[curve.index(taken)]
        wish = controller(self.scope, final).called(self.text)
        edits = tuple((self.scope.features[f], s, place) for f, s, place in final)
        note = "" if asked.effect > LEAST else "Asked in words, the model does not do it either, as far as can be told."
        return AutoEdits(wish, edits, curve, taken, asked, base.most, tuple(tried), made_by, note)


@dataclass(frozen=True)
class _Base:
    """Questions, and replies to them with no edit: plain, and asked for in words. most: the perplexity ratio that
    trials may have."""

    gauge: Gauge
    questions: list[str]
    sampling: list[Sampling]
    plain: Trial
    words: Trial
    most: float

    def tried(self, scope: Scope, settings: Sequence[Setting]) -> list[Trial]:
        """Where asking in words does something, what edits do counts as far as it goes the same way: else pirate words
        would do for a butler's, since both are far from plain ones."""
        found = trials(scope, self.gauge, settings, self.questions, self.sampling, self.plain.nats)
        if self.words.effect < LEAST:
            return found
        return [replace(one, effect=one.effect * alignment(one, self.plain, self.words)) for one in found]

    def coherent(self, trial: Trial) -> bool:
        fluent = trial.perplexity <= self.most and trial.empty <= EMPTY
        return fluent and trial.repetition <= self.plain.repetition + AGAIN

    def point(self, trial: Trial, strength: float) -> Point:
        whole = self.coherent(trial)
        return Point(strength, trial.effect, trial.perplexity, trial.repetition, whole, trial.texts)


def merit(trial: Trial) -> float:
    """How far it goes, less a tenth for each whole time that perplexity grew beyond one and a half."""
    return min(trial.effect, 1.0) - 0.1 * max(trial.perplexity - 1.5, 0.0)


def joined(settings: Sequence[Setting], part: float) -> Setting:
    """All of them together, each at a part of its strength."""
    return tuple((feature, round(strength * part, 4), place) for one in settings for feature, strength, place in one)


def turning_point(curve: Sequence[Point]) -> Point | None:
    """The weakest of nearly the most effect, of those before the first that is not coherent."""
    whole = []
    for point in curve:
        if not point.coherent:
            break
        whole.append(point)
    most = max((min(point.effect, 1.0) for point in whole), default=0.0)
    if most < LEAST:
        return None
    return next(point for point in whole if min(point.effect, 1.0) >= NEARLY * most)
