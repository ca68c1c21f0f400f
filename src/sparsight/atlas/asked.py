"""What language models were asked about features, what they answered and what that cost: kept at once, never asked
twice."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sparsight.atlas.atlas import Atlas

LOST = "lost"  # the purpose of what was sent and may cost something, though no answer came


@dataclass(frozen=True)
class Asked:
    """One prompt that was answered. prompt: its hash; answer: as whoever asked writes it down; dollars: its price."""

    purpose: str
    model: str
    prompt: str
    answer: str
    tokens_in: int
    tokens_out: int
    dollars: float
    feature: int | None = None


@dataclass(frozen=True)
class Spent:
    """What answers took, in all. prompts: that were answered; lost: that may have cost something, without an answer."""

    prompts: int
    lost: int
    tokens_in: int
    tokens_out: int
    dollars: float


def answered(atlas: Atlas, purpose: str, model: str, prompt: str) -> str | None:
    """The answer that is kept; None where there is none."""
    query = "SELECT answer FROM asked WHERE purpose = ? AND model = ? AND prompt = ?"
    return next((answer for (answer,) in atlas.rows(query, purpose, model, prompt)), None)


def keep(atlas: Atlas, *asked: Asked) -> None:
    """Write answers down; without any it is a test whether they could be. Raises BadFile where they cannot."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    columns = "feature, purpose, model, prompt, answer, tokens_in, tokens_out, dollars, created"
    put = f"INSERT OR REPLACE INTO asked ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    with atlas._writing() as db:
        for one in asked:
            values = (one.feature, one.purpose, one.model, one.prompt, one.answer)
            db.execute(put, (*values, one.tokens_in, one.tokens_out, one.dollars, now))


def spent(atlas: Atlas) -> Spent:
    """What all answers of this atlas took."""
    sums = "sum(purpose != ?), sum(purpose = ?), sum(tokens_in), sum(tokens_out), sum(dollars)"
    prompts, lost, sent, written, dollars = next(atlas.rows(f"SELECT {sums} FROM asked", LOST, LOST))
    return Spent(prompts or 0, lost or 0, sent or 0, written or 0, dollars or 0.0)
