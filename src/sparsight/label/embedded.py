"""The labeller that asks nobody: deterministic, offline. It finds the rule that best tells where a feature fires on
what it is shown, and says that rule in a short sentence; where none tells, it says that it is unclear.

The decision list of what a feature can be is the one that language models are given to label by (Neuronpedia's
np_max-act-logits: same token, what follows, what is made likelier, context), made executable.
"""

from __future__ import annotations

import hashlib
import json

from sparsight.atlas.entries import Label
from sparsight.label import candidates, parts
from sparsight.label.candidates import Candidate
from sparsight.label.evidence import Background, Evidence
from sparsight.label.rule import Rule
from sparsight.label.saying import is_mute, is_named, says, topic
from sparsight.label.sentence import COMING, listed, named_share, on_tokens, sentence, snippet
from sparsight.label.sheet import Sheet
from sparsight.label.typing import Profile, profile

DENSE = 0.1  # of all tokens
LEAST = 3  # windows where it fires, to make a rule of
OUTPUT = 0.04  # AUC that a rule of what follows may lack of the best one's, where its direction says the same
THEME = 0.06  # of the AUC that is yet to gain: what a rule may lack that names what texts are about, as people ask that
MUTE = 0.03  # AUC that a rule which names no words may have over one that does, where its tokens say nothing of it
UNNAMED = 0.15  # AUC that a sentence may lack which names all that it fires on, of one that names nothing
NEARLY = 0.2  # AUC below the best, within which what can be said is preferred
VERSION = 2  # of the way it labels: another number is another labeller
LONGEST = 120  # characters of a label


class EmbeddedLabeller:
    """background: what is said in the text at large. unclear_below: the AUC, on what it is shown with each document
    left out, below which it names no meaning."""

    method, model = "embedded", ""

    def __init__(self, background: Background, unclear_below: float = 0.6) -> None:
        self.background, self.unclear_below = background, unclear_below
        settings = [VERSION, unclear_below, candidates.CHOICES, candidates.PART, parts.SHRINK, parts.PRIOR]
        self.prompt = hashlib.blake2b(json.dumps(settings).encode(), digest_size=4).hexdigest()

    def label(self, evidence: Evidence) -> Label | None:
        """A label with its rule, where it found one."""
        if not evidence.firing:
            return self._silent(evidence)
        facts = profile(evidence)
        enough = len(evidence.firing) >= LEAST and evidence.silent
        found = candidates.candidates(Sheet([*evidence.firing, *evidence.silent]), self.background) if enough else []
        if evidence.statistics.density > DENSE:
            return self._dense(evidence, facts, found[0].fitted.rule if found else None)
        for one in self._ranked(found, evidence, facts):
            if one.fitted.detection < self.unclear_below:
                continue
            text, kind = sentence(evidence, facts, one, self.background)
            if text:
                return self._label(evidence, text, kind, one.fitted.rule, one.fitted.detection)
        return self._unclear(evidence, found[0] if found else None)

    def _ranked(self, found: list[Candidate], evidence: Evidence, facts: Profile) -> list[Candidate]:
        """The best first, and those nearly as good. A sentence that leaves out much of what it fires on counts for
        less, so does one that names no words where the tokens say nothing; what follows counts for more where the
        feature's own direction makes that likelier."""

        mute = is_mute(facts, evidence.covers, self.background.words)

        def worth(one: Candidate) -> float:
            says_it = bool(COMING.intersection(one.parts) and says(one, facts))
            agrees = OUTPUT * ((one.parts == ("next",) and facts.agrees) or says_it)
            phrase = "ngrams" in one.parts and on_tokens(facts, True)[1] == "phrase"
            theme = is_named(topic(one, facts, self.background.words))
            named = THEME * (1 - one.detection) * theme - MUTE * (mute and not phrase and not theme)
            left_out = UNNAMED * (1 - named_share(one, evidence, facts, self.background))
            return one.worth + agrees + named - left_out

        ranked = sorted(((worth(one), one) for one in found), key=lambda pair: -pair[0])
        return [one for value, one in ranked if value >= ranked[0][0] - NEARLY]

    def _silent(self, evidence: Evidence) -> Label:
        """It fires nowhere that a labeller may look."""
        likelier = f"; would make {listed([t for t, _ in evidence.above[:3]])} likelier" if evidence.above else ""
        fires = evidence.statistics.fires
        if fires == 0:
            return self._label(evidence, f"never fires in this text{likelier}", "dead", None, 0.0)
        return self._label(evidence, f"fires {fires} times in this text{likelier}", "unclear", None, 0.0)

    def _dense(self, evidence: Evidence, facts: Profile, rule: Rule | None) -> Label:
        most = listed([one.word for one in facts.tokens[:3]])
        text = f"fires on {evidence.statistics.density:.0%} of all tokens, most on {most}"
        return self._label(evidence, text, "dense", rule, 0.0)

    def _unclear(self, evidence: Evidence, best: Candidate | None) -> Label:
        text = f"unclear: e.g. “{snippet(evidence.firing[0])}”"
        return self._label(
            evidence, text, "unclear", best.fitted.rule if best else None, best.fitted.detection if best else 0.5
        )

    def _label(self, evidence: Evidence, text: str, kind: str, rule: Rule | None, detection: float) -> Label:
        text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"
        confidence = round(min(max(2 * detection - 1, 0.0), 1.0), 3)
        return Label(evidence.feature, text, self.method, self.model, self.prompt, kind,
                     rule.to_json() if rule else None, confidence)  # fmt: skip
