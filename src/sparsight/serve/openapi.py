"""The OpenAPI page, as this server truly answers: FastAPI's own takes every error of a form for a 422, and
knows nothing of what the gate says."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from sparsight.serve.openai.answers import REASONS
from sparsight.serve.refusals import EMBER, OPENAI

GATE = (400, 401, 408, 413, 429, 500, 502, 503, 504)  # whatever route is asked for
REFUSED = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refused"}}}}


def true_openapi(app: FastAPI) -> dict[str, Any]:
    """Made once."""
    if app.openapi_schema is None:
        page = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        for path, operations in page["paths"].items():
            for operation in operations.values():
                if path.startswith(OPENAI):
                    operation["responses"].pop("422", None)
                if path.startswith(EMBER):
                    for code in GATE:
                        operation["responses"].setdefault(str(code), {"description": REASONS[code], **REFUSED})
                if path.startswith((OPENAI, "/api")):
                    operation["security"] = [{"key": []}, {}]
        page.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = page
    return app.openapi_schema
