"""What the OpenAPI page says is what the server does: every route, asked with what fits and what does not."""

import asyncio

import pytest
import schemathesis
from engines import Threads
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from sparsight.serve.app import create_app, start, stop
from sparsight.serve.catalog import Catalog
from sparsight.serve.embedded import EmbeddedEngine

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
PAGE = create_app(Catalog({"tiny": Threads(None)})).openapi()  # type: ignore[arg-type]
LONG = ("auto-edits", "auto-conditional", "generate-contrastive-dataset")  # many answers are written for one of these
ROUTES = [(method.upper(), path) for path, found in PAGE["paths"].items() for method in found]


@pytest.fixture(scope="module")
def page(scope):
    """The page of a server that answers."""
    app = create_app(Catalog({"tiny": EmbeddedEngine(scope, rows=4, queue=64)}))

    async def running(scope, receive, send):
        """The app, which is not ended after each test."""
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    asyncio.run(start(app.state.service))
    yield schemathesis.openapi.from_asgi("/openapi.json", running)
    asyncio.run(stop(app.state.service))


@pytest.mark.parametrize(("method", "path"), ROUTES)
@settings(max_examples=4)
@given(data=st.data())
def test_every_route_answers_as_its_page_says(page, method, path, data):
    operation = page[path][method]
    fits = not path.endswith(LONG) and data.draw(st.booleans())
    mode = GenerationMode.POSITIVE if fits else GenerationMode.NEGATIVE
    case = data.draw(operation.as_strategy(generation_mode=mode))
    if fits:
        about_the_model(case)
    case.call_and_validate(checks=CHECKS, timeout=120)


def about_the_model(case):
    """Of a model that there is, and not for long, so that more than refusals is seen."""
    for part in (case.body, case.query):
        if isinstance(part, dict) and "model" in part:
            part["model"] = "tiny"
    if isinstance(case.body, dict) and {"messages", "prompt"} & set(case.body) and case.path.endswith("completions"):
        case.body["max_tokens"] = 3
        case.body.pop("max_completion_tokens", None)
