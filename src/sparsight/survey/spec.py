"""How text is surveyed: every knob with its unit. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sparsight.config import check, knob
from sparsight.corpus.spec import check_whole
from sparsight.records import finite


@dataclass(frozen=True)
class SurveySpec:
    """Which tokens are read, what is kept of each feature, and how it is run."""

    tokens: int | None = knob(None, "stop after so many tokens, of all processes; None: the whole corpus")
    length: int | None = knob(2048, "tokens of a conversation that are read; None: the model's context")
    bos: bool = knob(False, "count what fires on BOS, too: its activations are far off all others' scale")
    top: int = knob(20, "strongest examples of a feature, one of a document; half of them of held-out documents")
    samples: int = knob(40, "examples of a feature that are a fair sample of all places where it fires; half likewise")
    window: int = knob(24, "tokens of an example on each side of its peak")
    counted: int = knob(32, "tokens that a feature fires on, which are counted at the same time")
    languages: int = knob(64, "languages that are counted apart; those that come later are 'other'")
    log_tokens: int | None = knob(
        200_000, "tokens of documents, a fair sample, whose every activation is kept; 0: none; None: of all"
    )
    neighbours: int = knob(16, "neighbours of a feature: by decoder direction, and by firing together")
    logits: int = knob(20, "tokens that a feature makes likelier, and as many that it makes less likely")
    pass_tokens: int = knob(16_384, "tokens of one pass of the model, padding included")
    pool: int = knob(1024, "conversations that are sorted by length among each other")
    ahead: int = knob(2, "passes that a thread reads and tokenises ahead; 0: no thread")
    checkpoint: float = knob(300.0, "seconds between two checkpoints, from which a killed run goes on")

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("length", 1), ("log_tokens", 0)):
            if getattr(self, name) is not None:
                check_whole(getattr(self, name), name, least)
        for name in ("top", "samples"):
            check_whole(getattr(self, name), name, 2)
            check(getattr(self, name), name, getattr(self, name) % 2 == 0, "an even number")
        check_whole(self.window, "window", 0, below=128)
        for name, least in (("counted", 1), ("languages", 1), ("neighbours", 1), ("logits", 1)):
            check_whole(getattr(self, name), name, least)
        for name, least in (("pass_tokens", 1), ("pool", 1), ("ahead", 0)):
            check_whole(getattr(self, name), name, least)
        check(self.bos, "bos", isinstance(self.bos, bool), "True or False")
        check(self.checkpoint, "checkpoint", finite(self.checkpoint, "checkpoint") >= 0, "seconds, from 0 up")

    @property
    def span(self) -> int:
        """Tokens of a window."""
        return 2 * self.window + 1

    @classmethod
    def knobs(cls) -> dict[str, str]:
        """What each knob means."""
        return {f.name: f.metadata["says"] for f in fields(cls)}
