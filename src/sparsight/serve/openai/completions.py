"""POST /v1/completions: texts, gone on with. For models without a chat template, and for token ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from sparsight.lm.text import TextStream
from sparsight.serve.engine import Update
from sparsight.serve.openai.answers import CompletionAnswer, answers
from sparsight.serve.openai.chat import events_of
from sparsight.serve.openai.forms import CompletionForm
from sparsight.serve.openai.logprobs import CompletionLogprobs
from sparsight.serve.openai.rows import Rows
from sparsight.serve.openai.sse import answered
from sparsight.serve.openai.telling import Telling
from sparsight.serve.openai.wishes import COMPLETION, controller_of, requests_of, text_prompts
from sparsight.serve.refusals import OPENAI
from sparsight.serve.visit import Visit, Visitor

router = APIRouter(tags=["completions"])


@router.post(f"{OPENAI}/completions", responses=answers(CompletionAnswer, streams=True))
async def completions(form: CompletionForm, visit: Visitor, request: Request) -> Response:
    """Go on with a text or token ids, or with several, steered or not."""
    served = visit.served(form.model)
    rows = Rows(visit, served, await asyncio.to_thread(_asked, form, visit, served), form.n or 1)
    told = Completion(form, rows, Telling(served, "cmpl"))
    if visit.settings.log_prompts:
        visit.note(prompt=form.prompt)
    return await answered(told, rows, request.receive, streams=bool(form.stream))


def _asked(form: CompletionForm, visit: Visit, served: Any) -> Any:
    """The rows that a request asks for."""
    scope = served.engine.scope
    prompts = text_prompts(form, scope, visit.settings.prompts)
    controller = controller_of(form.controller, scope, served.controller)
    limit = form.max_tokens or COMPLETION
    return requests_of(form, scope, prompts, controller, limit, form.logprobs, visit.owner, visit.settings.choices)


class Completion:
    """A completion's rows as OpenAI tells them."""

    def __init__(self, form: CompletionForm, rows: Rows, telling: Telling) -> None:
        self.form, self.rows, self.telling = form, rows, telling
        tokenizer = rows.served.engine.scope.lm.tokenizer
        top = form.logprobs or 0
        self.logprobs = [CompletionLogprobs(tokenizer, top) for _ in rows.requests]
        self.before = [self._echo(row) if form.echo else "" for row in range(len(rows.requests))]

    def _echo(self, row: int) -> str:
        """The prompt, as it was given, or as its token ids read."""
        given: Any = self.form.prompt
        if isinstance(given, list) and isinstance(given[0], str | list):
            given = given[row // self.rows.n]
        if isinstance(given, str):
            return given
        text = TextStream(self.rows.served.engine.scope.lm.tokenizer)
        return "".join(text.push(token) for token in given) + text.finish()

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """One for each token; then, where asked for, one with the usage."""
        head, going = self.telling.head("text_completion"), len(self.rows.requests)
        with_usage = bool(self.form.stream_options and self.form.stream_options.include_usage)
        number = 0
        async for row, update in self.rows.updates():
            going -= update.finish is not None
            chunk = {**head, "choices": [self._choice(row, [update])], "gf_event_names": events_of(update)}
            chunk["choices"][0]["gf_token_index"] = number
            if with_usage:
                chunk["usage"] = None
            if not going and self.rows.receipt:
                chunk["receipt"] = self.rows.receipt
            number += 1
            yield chunk
        if with_usage:
            yield {**head, "choices": [], "gf_event_names": None, "usage": self.rows.usage}

    def _choice(self, row: int, updates: list[Update]) -> dict[str, Any]:
        """Of one token, or of all."""
        text = "".join(update.text for update in updates)
        if updates[0].index == 0:
            text = self.before[row] + text
        choice = {
            "index": row,
            "text": text,
            "logprobs": self._logprobs(row, updates),
            "finish_reason": updates[-1].finish,
        }
        if self.form.features is not None:
            choice["features"] = [entry for update in updates for entry in self.telling.features(update)]
        return choice

    def _logprobs(self, row: int, updates: list[Update]) -> dict[str, Any] | None:
        if self.form.logprobs is None:
            return None
        each = [self.logprobs[row].of(update) for update in updates]
        return {name: [entry for one in each for entry in one[name]] for name in each[0]}

    async def whole(self) -> dict[str, Any]:
        """The answer at once."""
        said: list[list[Update]] = [[] for _ in self.rows.requests]
        events: dict[str, None] = {}
        async for row, update in self.rows.updates():
            said[row].append(update)
            events |= dict.fromkeys(update.events)
        choices = [self._choice(row, updates) for row, updates in enumerate(said)]
        out = {**self.telling.head("text_completion"), "choices": choices, "usage": self.rows.usage}
        out["gf_event_names"] = list(events) or None
        return out | ({"receipt": self.rows.receipt} if self.rows.receipt else {})
