"""OpenAI's own client, unmodified, against a live server: with a base_url, it finds everything where it expects it."""

import asyncio

import openai
import pytest
from engines import Threads, live
from openai import OpenAI

from sparsight.edits import Controller
from sparsight.errors import Busy
from sparsight.records import Sampling
from sparsight.serve.app import create_app
from sparsight.serve.catalog import Catalog
from sparsight.serve.spec import ServeSpec
from sparsight.serve.store import Store
from sparsight.wire import fingerprint, to_json

ASKED = [{"role": "user", "content": "Hello, how are you?"}]
WRITE = {"model": "org/tiny", "messages": ASKED, "max_tokens": 6, "seed": 7}


@pytest.fixture(scope="module")
def engine(scope):
    return Threads(scope)


@pytest.fixture(scope="module")
def url(engine):
    with live(create_app(Catalog({"org/tiny": engine}))) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with OpenAI(base_url=f"{url}/v1", api_key="none is needed", max_retries=0) as client:
        yield client


def written(scope, edits=None, **more):
    return scope.chat(ASKED, edits, sampling=Sampling(**{"max_new_tokens": 6, "temperature": 1.0, "seed": 7} | more))


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["org/tiny"]
    assert client.models.retrieve("org/tiny").id == "org/tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_an_answer_with_usage(client, scope):
    out = client.chat.completions.create(**WRITE)
    reply = written(scope)
    assert out.choices[0].message.content == reply.text
    assert out.choices[0].finish_reason == "length"
    assert (out.usage.prompt_tokens, out.usage.completion_tokens) == (reply.prompt_tokens, 6)
    assert out.usage.prompt_tokens_details.cached_tokens == 3
    assert out.system_fingerprint.startswith("fp_")


def test_a_stream_with_usage(client, scope):
    chunks = list(client.chat.completions.create(**WRITE, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks[:-1]) == written(scope).text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == 6
    assert chunks[-1].choices == []


def test_the_clients_own_stringing_together_of_a_stream(client, scope):
    stop = written(scope).text[-1]  # the client takes an answer that is cut off for an error
    reply = written(scope, stop=(stop,))
    with client.chat.completions.stream(**WRITE, logprobs=True, stop=stop) as stream:
        for _ in stream:
            pass
        out = stream.get_final_completion()
    assert out.choices[0].message.role == "assistant"
    assert (out.choices[0].message.content or "") == reply.text
    assert out.choices[0].finish_reason == "stop"
    assert len(out.choices[0].logprobs.content) == len(reply.ids)


def test_an_async_client(url, scope):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
            stream = await client.chat.completions.create(**WRITE, stream=True)
            return "".join([chunk.choices[0].delta.content async for chunk in stream])

    assert asyncio.run(run()) == written(scope).text


def test_every_parameter_is_taken(client, engine):
    out = client.chat.completions.create(
        model="org/tiny",
        messages=[{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, *ASKED],
        max_completion_tokens=5,
        n=2,
        logprobs=True,
        top_logprobs=3,
        logit_bias={"17": -100},
        presence_penalty=0.1,
        frequency_penalty=0.2,
        stop=["zz", "qq"],
        seed=3,
        temperature=0.9,
        top_p=0.8,
        response_format={"type": "text"},
        tool_choice="none",
        user="somebody",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=False,
        reasoning_effort="low",
    )
    assert len(out.choices) == 2
    assert len(out.choices[0].logprobs.content[0].top_logprobs) == 3
    sampling = engine.asked[-2].sampling
    assert sampling == Sampling(
        5, temperature=0.9, top_p=0.8, seed=3, stop=("zz", "qq"), logit_bias=((17, -100.0),), presence_penalty=0.1,
        frequency_penalty=0.2,
    )  # fmt: skip
    client.chat.completions.create(**WRITE, stop="a text")
    assert engine.asked[-1].sampling.stop == ("a text",)


def test_steering_features_and_receipts_travel_as_extra_fields(client, scope):
    edits = scope.features[3].nudge(2.0) + scope.features[7].pin(1.0)
    extra = {"controller": to_json(edits), "features": {"top_k": 2, "include": [5]}}
    reply = written(scope, edits)
    out = client.chat.completions.create(**WRITE, extra_body=extra)
    assert out.choices[0].message.content == reply.text
    assert out.receipt["controller"] == fingerprint(edits)
    assert len(out.choices[0].features) == 6
    chunks = list(client.chat.completions.create(**WRITE, stream=True, extra_body=extra))
    assert chunks[-1].receipt == out.receipt
    assert [entry for chunk in chunks for entry in chunk.choices[0].features] == out.choices[0].features


def test_completions_of_texts_and_token_ids(client, scope):
    prompt, more = "Once upon a", {"model": "org/tiny", "max_tokens": 5, "seed": 7}
    reply = scope.complete(prompt, sampling=Sampling(5, temperature=1.0, seed=7))
    assert client.completions.create(prompt=prompt, **more).choices[0].text == reply.text
    ids = list(scope.lm.prompt(prompt).ids)
    assert client.completions.create(prompt=ids, **more).choices[0].text == reply.text
    many = client.completions.create(prompt=[prompt, "Hello"], n=2, logprobs=1, echo=False, **more)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert len(many.choices[3].logprobs.tokens) == len(many.choices[3].logprobs.text_offset)
    stream = client.completions.create(prompt=prompt, stream=True, stream_options={"include_usage": True}, **more)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == reply.text
    assert chunks[-1].usage.total_tokens == reply.prompt_tokens + len(reply.ids)


@pytest.mark.parametrize(
    ("more", "kind", "param"),
    [
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
        ({"extra_body": {"controller": {"schema": 9}}}, openai.BadRequestError, "controller"),
        ({"model": "gpt-4"}, openai.NotFoundError, "model"),
        ({"messages": [{"role": "user", "content": "dog " * 400}]}, openai.BadRequestError, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_own(client, more, kind, param, stream):
    with pytest.raises(kind) as error:
        client.chat.completions.create(**WRITE | more, stream=stream)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"
    assert error.value.request_id.startswith("req_")


def test_a_prompt_that_is_too_long_has_openais_code(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**WRITE | {"messages": [{"role": "user", "content": "dog " * 400}]})
    assert error.value.code == "context_length_exceeded"


def test_a_stream_that_fails_midway_raises_in_the_client(client, engine):
    def broken(index):
        if index == 2:
            raise Busy("Too much waits.", 2.0)

    engine.broken = broken
    try:
        with pytest.raises(openai.APIError, match="Too much waits"):
            list(client.chat.completions.create(**WRITE, stream=True))
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(**WRITE)
        assert error.value.response.headers["retry-after"] == "2"
    finally:
        engine.broken = lambda index: None


def test_keys_and_variants(scope, tmp_path):
    with Store(tmp_path / "keys.db") as store:
        secret = store.add_key("anna", requests_per_minute=2)
        store.save("loud", "org/tiny", Controller.of(scope.features[3].nudge(2.0)), "anna")
        app = create_app(Catalog({"org/tiny": Threads(scope)}), ServeSpec(), Store(tmp_path / "keys.db"))
        with live(app) as url:
            with pytest.raises(openai.AuthenticationError):
                OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
            client = OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)
            assert [model.id for model in client.models.list()] == ["org/tiny", "org/tiny:loud"]
            out = client.chat.completions.create(**WRITE | {"model": "org/tiny:loud"})
            assert out.receipt["touched"] > 0
            with pytest.raises(openai.RateLimitError) as error:
                client.models.list()
            assert int(error.value.response.headers["retry-after"]) >= 20
