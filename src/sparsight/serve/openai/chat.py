"""POST /v1/chat/completions, and the same under Ember's prefix."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from sparsight.serve.engine import Update
from sparsight.serve.openai.answers import ChatAnswer, answers
from sparsight.serve.openai.forms import ChatForm, EmberChatForm
from sparsight.serve.openai.logprobs import chat_entry
from sparsight.serve.openai.rows import Rows
from sparsight.serve.openai.sse import answered
from sparsight.serve.openai.telling import Telling
from sparsight.serve.openai.wishes import chat_prompt, controller_of, requests_of
from sparsight.serve.refusals import EMBER, OPENAI
from sparsight.serve.visit import Visit, Visitor

router = APIRouter(tags=["chat"])


@router.post(f"{OPENAI}/chat/completions", responses=answers(ChatAnswer, streams=True))
async def chat_completions(form: ChatForm, visit: Visitor, request: Request) -> Response:
    """Answer a conversation, steered or not."""
    return await respond(form, visit, request)


@router.post(f"{EMBER}/chat/completions", responses=answers(ChatAnswer, streams=True, embers=True), tags=["ember"])
async def ember_chat_completions(form: EmberChatForm, visit: Visitor, request: Request) -> Response:
    """Answer a conversation, as Ember's clients ask for it."""
    return await respond(form, visit, request, embers=True)


async def respond(form: ChatForm, visit: Visit, request: Request, embers: bool = False) -> Response:
    """embers: each chunk tells its role, which OpenAI's clients would string together."""
    served = visit.served(form.model)
    rows = Rows(visit, served, await asyncio.to_thread(_asked, form, visit, served), form.n or 1)
    told = Chat(form, rows, Telling(served, "chatcmpl"), embers)
    if visit.settings.log_prompts:
        visit.note(messages=[message.model_dump(exclude_none=True) for message in form.messages])
    return await answered(told, rows, request.receive, streams=bool(form.stream))


def _asked(form: ChatForm, visit: Visit, served: Any) -> Any:
    """The rows that a request asks for; off the event loop, since a long conversation takes its time."""
    scope = served.engine.scope
    prompt = chat_prompt(form, scope)
    controller = controller_of(form.controller, scope, served.controller)
    return requests_of(
        form, scope, [prompt], controller, form.most_tokens, form.alternatives, visit.owner, visit.settings.choices
    )


class Chat:
    """A chat's rows as OpenAI tells them."""

    def __init__(self, form: ChatForm, rows: Rows, telling: Telling, embers: bool) -> None:
        self.form, self.rows, self.telling, self.embers = form, rows, telling, embers
        self.tokenizer = rows.served.engine.scope.lm.tokenizer

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """One for each token; then, where asked for, one with the usage."""
        head, number, going = self.telling.head("chat.completion.chunk"), 0, len(self.rows.requests)
        with_usage = bool(self.form.stream_options and self.form.stream_options.include_usage)
        async for row, update in self.rows.updates():
            going -= update.finish is not None
            chunk = {**head, "choices": [self._choice(row, update, number)], "gf_event_names": events_of(update)}
            if with_usage:
                chunk["usage"] = None
            if not going and self.rows.receipt:
                chunk["receipt"] = self.rows.receipt
            number += 1
            yield chunk
        if with_usage:
            yield {**head, "choices": [], "gf_event_names": None, "usage": self.rows.usage}

    def _choice(self, row: int, update: Update, number: int) -> dict[str, Any]:
        """number: of the chunk in the stream."""
        role = {"role": "assistant"} if self.embers or update.index == 0 else {}
        choice = {
            "index": row,
            "delta": {**role, "content": update.text},
            "logprobs": self._logprobs([update]),
            "finish_reason": update.finish,
            "gf_token_index": number,
        }
        if self.form.features is not None:
            choice["features"] = self.telling.features(update)
        return choice

    async def whole(self) -> dict[str, Any]:
        """The answer at once."""
        said: list[list[Update]] = [[] for _ in self.rows.requests]
        events: dict[str, None] = {}
        async for row, update in self.rows.updates():
            said[row].append(update)
            events |= dict.fromkeys(update.events)
        choices = [self._whole_choice(row, updates) for row, updates in enumerate(said)]
        out = {**self.telling.head("chat.completion"), "choices": choices, "usage": self.rows.usage}
        out["gf_event_names"] = list(events) or None
        return out | ({"receipt": self.rows.receipt} if self.rows.receipt else {})

    def _whole_choice(self, row: int, updates: list[Update]) -> dict[str, Any]:
        text = "".join(update.text for update in updates)
        choice = {
            "index": row,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(updates),
            "finish_reason": updates[-1].finish,
        }
        if self.form.features is not None:
            choice["features"] = [entry for update in updates for entry in self.telling.features(update)]
        return choice

    def _logprobs(self, updates: list[Update]) -> dict[str, Any] | None:
        if not self.form.logprobs:
            return None
        top = self.form.top_logprobs or 0
        return {"content": [chat_entry(self.tokenizer, update, top) for update in updates], "refusal": None}


def events_of(update: Update) -> list[str] | None:
    """Names that came true at a token."""
    return list(update.events) or None
