"""Errors as answers: in OpenAI's shape, and in FastAPI's under Ember's prefix, whose client looks for its words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sparsight.errors import BadFile, BadInput, Busy, Mismatch, NoAnswer, SparsightError, Stopped, TooLong
from sparsight.serve.catalog import NoModel
from sparsight.serve.limits import OverLimit
from sparsight.serve.logs import tell
from sparsight.serve.store import NotYours

OPENAI, EMBER = "/v1", "/api/inference/v1"
INVALID = "invalid_request_error"
BRANCH = re.compile(
    r"(str|int|float|bool)$|(list|dict|constrained|function)\b."
)  # pydantic's names for parts of a union


class NoKey(SparsightError):
    """A caller without a key, or with a wrong one."""


class TooLarge(SparsightError):
    """A body beyond what this server reads."""


class TooSlow(SparsightError):
    """A request that took longer than this server's requests may. status: 408 for a body, 504 for an answer."""

    def __init__(self, message: str, status: int = 504) -> None:
        super().__init__(message)
        self.status = status


class Draining(SparsightError):
    """A server that takes in nothing new."""


class NotThere(SparsightError):
    """Something that was asked for by name, and is not there."""


class BadField(BadInput):
    """A field of a request that cannot be used. param: which, as OpenAI writes it: messages[0].content."""

    def __init__(self, param: str, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class ErrorFacts(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An error, in OpenAI's shape."""

    error: ErrorFacts


class Json(Response):
    """JSON, of any text: what is no Unicode is escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encoded(content)


def encoded(content: Any) -> bytes:
    """As JSON in UTF-8. Lone surrogates, which UTF-8 cannot hold, become JSON's own escapes."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Refusal:
    """An error as HTTP tells it."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None


def refusal_of(error: Exception) -> Refusal:
    """What an error is called in HTTP. Those that nobody foresaw are not told in their words."""
    message = str(error)
    match error:
        case Busy():
            code = "rate_limit_exceeded" if isinstance(error, OverLimit) else "server_busy"
            return Refusal(429, message, "rate_limit_error", code=code, retry_after=error.retry_after)
        case NoKey():
            return Refusal(401, message, INVALID, code="invalid_api_key")
        case NotYours():
            return Refusal(403, message, "permission_error", code="not_yours")
        case NoModel():
            return Refusal(404, message, param="model", code="model_not_found")
        case NotThere():
            return Refusal(404, message, code="not_found")
        case TooLarge():
            return Refusal(413, message, code="request_too_large")
        case TooSlow():
            return Refusal(error.status, message, "timeout", code="timeout")
        case Stopped() | Draining():
            return Refusal(503, message, "server_error", code="stopping", retry_after=5.0)
        case TooLong():
            return Refusal(400, message, code="context_length_exceeded")
        case BadInput() | Mismatch():
            return Refusal(400, message, param=getattr(error, "param", None), code=getattr(error, "code", None))
        case BadFile():  # which file it is, the log says
            said = "This server cannot use a file that it needs now; its log says which. Try again later."
            return Refusal(503, said, "server_error", code="storage", retry_after=5.0)
        case NoAnswer():  # of a model elsewhere
            return Refusal(502, message, "server_error", code="no_answer")
        case SparsightError():
            return Refusal(500, message, "server_error")
        case HTTPException():
            return Refusal(error.status_code, str(error.detail))
        case RequestValidationError():
            return _invalid(error.errors())
    return Refusal(500, "This server met an error that nobody foresaw; its log has more.", "server_error")


def _invalid(errors: Sequence[Any]) -> Refusal:
    """Fields that cannot be read."""
    params = [param_of(one["loc"]) for one in errors]
    said = [f"{param}: {one['msg']}" if param else _of_the_body(one) for param, one in zip(params, errors, strict=True)]
    return Refusal(400, "; ".join(dict.fromkeys(said[:8])), param=params[0] if params else None)


def _of_the_body(error: Any) -> str:
    """What is wrong with a body as a whole."""
    if error["type"] == "json_invalid":
        return (
            f"The body is not JSON: {error.get('ctx', {}).get('error', error['msg'])} (character {error['loc'][-1]})."
        )
    if error["type"] == "missing":
        return "The body is empty: send a JSON object."
    return str(error["msg"])


def param_of(loc: Sequence[Any]) -> str | None:
    """A place in a body as OpenAI writes it."""
    path = [part for part in loc if part not in ("body", "query", "path") and not BRANCH.match(str(part))]
    if not path or isinstance(path[0], int):  # a place in the text of JSON
        return None
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def refused(path: str, error: Exception, id: str | None = None) -> Response:
    """The answer to a request at this path. id: of the request, for the log."""
    told = refusal_of(error)
    if isinstance(error, BadFile):
        tell("storage", error=error, id=id)
    headers = {} if told.retry_after is None else {"retry-after": str(max(1, math.ceil(told.retry_after)))}
    if told.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, HTTPException) and error.headers:
        headers |= dict(error.headers)
    if isinstance(error, HTTPException) and told.status in (404, 405) and not error.headers:
        told = replace(told, message=f"There is nothing at {path[:200]}: /openapi.json lists what this server has.")
    if is_embers(path):
        status, body = _as_embers(told, error)
        return Json(body, status, headers)
    return Json(body_of(told), told.status, headers)


def body_of(told: Refusal) -> dict[str, Any]:
    """In OpenAI's shape."""
    return {"error": {"message": told.message, "type": told.type, "param": told.param, "code": told.code}}


def is_embers(path: str) -> bool:
    """Whether a path is under Ember's prefix."""
    return path == EMBER or path.startswith(EMBER + "/")


def _as_embers(told: Refusal, error: Exception) -> tuple[int, dict[str, Any]]:
    """In FastAPI's shape: values that cannot be used are 422, with pydantic's own words."""
    if isinstance(error, RequestValidationError):
        return 422, {"detail": [{name: one[name] for name in ("type", "loc", "msg")} for one in error.errors()]}
    if isinstance(error, BadInput | Mismatch):
        loc = ["body", told.param] if told.param else ["body"]
        return 422, {"detail": [{"type": "value_error", "loc": loc, "msg": told.message}]}
    return told.status, {"detail": told.message}
