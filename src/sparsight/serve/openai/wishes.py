"""From what a client sent to what an engine is asked. Whatever cannot be done is refused here, before any work."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sparsight.edits import Controller
from sparsight.errors import BadInput, SparsightError
from sparsight.ids import feature_id, index_of
from sparsight.lm.batch import Prompt
from sparsight.lm.generate import check_room
from sparsight.records import Message, Sampling
from sparsight.scope.program import compile_controller
from sparsight.scope.scope import Scope
from sparsight.serve.engine import Request
from sparsight.serve.openai.forms import ChatForm, ChatMessage, CompletionForm, Part, Writing
from sparsight.serve.refusals import BadField
from sparsight.wire import computed_ids, from_json

UNBOUNDED = 4096  # tokens of an answer, where neither the request nor the model's context says how many
LARGEST = 32_768  # objects and lists in a controller's JSON: more than a row has room for
COMPLETION = 16  # of a completion, where the request does not say: OpenAI's


def chat_prompt(form: ChatForm, scope: Scope) -> Prompt:
    """The conversation as tokens. Raises BadField, NoChatTemplate, TooLong."""
    refuse_chat(form)
    messages = [message_of(message, f"messages[{i}]") for i, message in enumerate(form.messages)]
    template: dict[str, Any] = {}
    if form.tools and form.tool_choice != "none":
        if not takes_tools(scope):
            raise BadField("tools", "This model's chat template takes no tools. Describe them in a system message.")
        template["tools"] = form.tools
    prompt = scope.lm.prompt(messages, **template)
    check_room(scope.lm, [prompt])
    return prompt


def refuse_chat(form: ChatForm) -> None:
    """Raises BadField for what this server does not do."""
    if form.response_format is not None and form.response_format.type != "text":
        what = f"response_format {form.response_format.type!r}"
        raise BadField("response_format", f"This server writes text: {what} is not to be had. Ask for it in words.")
    if form.functions or form.function_call is not None:
        raise BadField("functions", "`functions` were replaced by `tools`, which this server takes.")
    if form.audio is not None or set(form.modalities or ()) - {"text"}:
        raise BadField("modalities", "This server writes text alone.")
    if form.tool_choice not in (None, "none", "auto"):
        raise BadField("tool_choice", "Nothing makes the model call a tool: tool_choice is 'auto' or 'none' here.")
    if form.top_logprobs and not form.logprobs:
        raise BadField("top_logprobs", "top_logprobs goes with logprobs: true.")


def message_of(message: ChatMessage, place: str) -> Message:
    """As the chat template is given it."""
    if message.tool_calls or message.function_call is not None:
        raise BadField(f"{place}.tool_calls", "Calls of tools cannot be shown to the model: write them as content.")
    if message.content is None:
        raise BadField(f"{place}.content", f"This message of role '{message.role}' has no content: give it a text.")
    content = message.content if isinstance(message.content, str) else _joined(message.content, f"{place}.content")
    return Message("system" if message.role == "developer" else message.role, content)


def _joined(parts: Sequence[Part], place: str) -> str:
    """Parts of text as one text."""
    for i, part in enumerate(parts):
        if part.type not in ("text", "refusal"):
            raise BadField(f"{place}[{i}].type", f"This server reads text, not {part.type!r}.")
        if (part.text if part.type == "text" else part.refusal) is None:
            raise BadField(f"{place}[{i}].{part.type}", f"A part of type '{part.type}' holds its text under that name.")
    return "".join((part.text if part.type == "text" else part.refusal) or "" for part in parts)


def takes_tools(scope: Scope) -> bool:
    """Whether the model's chat template looks at tools."""
    template: Any = scope.lm.tokenizer.chat_template
    return "tool_use" in template if isinstance(template, Mapping) else _looks_at_tools(str(template or ""))


@lru_cache(maxsize=64)
def _looks_at_tools(template: str) -> bool:
    sandbox = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return "tools" in meta.find_undeclared_variables(sandbox.parse(template))
    except TemplateError:  # a tag of transformers' own
        return "tools" in template


def text_prompts(form: CompletionForm, scope: Scope, most: int) -> list[Prompt]:
    """The prompts as tokens. Raises BadField, TooLong."""
    if form.suffix:
        raise BadField("suffix", "This server writes on, and fills nothing in: it takes no suffix.")
    if form.best_of not in (None, form.n or 1):
        raise BadField("best_of", "This server ranks no answers: best_of is n, or left out.")
    if form.echo and form.logprobs is not None:
        raise BadField("echo", "Probabilities of the prompt are not to be had: leave out echo, or logprobs.")
    given: Any = form.prompt
    each = given if isinstance(given, list) and given and isinstance(given[0], str | list) else [given]
    if not given:
        raise BadField("prompt", "The prompt is empty: there is nothing to go on from.")
    if len(each) > most:
        raise BadField("prompt", f"{len(each)} prompts in one request: this server takes {most}.")
    for ids in each:
        if isinstance(ids, list) and not all(0 <= token < scope.lm.vocabulary for token in ids):
            last = scope.lm.vocabulary - 1
            raise BadField("prompt", f"A token id lies outside this model's vocabulary (0 to {last:,}).")
    prompts = [scope.lm.prompt(one) for one in each]
    check_room(scope.lm, prompts)
    return prompts


def controller_of(form: Mapping[str, Any] | None, scope: Scope, before: Controller) -> Controller:
    """The variant's controller, then the request's own; one that this SAE has features for. Where it acts, and whether
    a row has room for it, is the engine's to say. Raises BadField."""
    check_size(form)
    try:
        wish = before if form is None else before + from_json(form) if before else from_json(form)
        if wish:
            compile_controller(wish, scope.sae)
        for index, id in () if form is None else computed_ids(form):
            check_id(scope, index, id)
        return wish
    except SparsightError as error:
        raise BadField("controller", str(error)) from error


def check_id(scope: Scope, index: int, id: str) -> None:
    """Raises BadInput for a feature whose id was computed for another feature, or another SAE."""
    sae = scope.sae
    if id in (feature_id(sae.fingerprint, index), feature_id(None, index)):
        return
    other = index_of(id, sae.fingerprint, sae.d_hidden)
    if other is not None:
        raise BadInput(f"The uuid is that of feature {other}, and index_in_sae says {index}: send one of the two.")
    what = f"Feature {index} was found on another SAE, as its uuid says, where it means something else"
    raise BadInput(f"{what}: find it anew on this model, or send its index without the uuid.")


def check_size(form: object) -> None:
    """Raises BadField for JSON that takes long to read, and that no row has room for."""
    inner, held = [form], 0
    while inner:
        one = inner.pop()
        if isinstance(one, dict | list):
            held += 1
            inner += one.values() if isinstance(one, dict) else one
        if held > LARGEST:
            raise BadField(
                "controller", f"The controller is too large: {LARGEST:,} objects and lists of JSON are read."
            )


def requests_of(
    form: Writing,
    scope: Scope,
    prompts: Sequence[Prompt],
    controller: Controller,
    limit: int | None,
    logprobs: int | None,
    owner: str,
    choices: int,
) -> list[Request]:
    """n rows for each prompt, prompt by prompt. limit: tokens of an answer; None: as many as there is room for."""
    n = form.n or 1
    if n > choices:
        raise BadField("n", f"This server writes at most {choices} answers to one request, not {n}.")
    if form.features is not None:
        for index in form.features.include:
            if index >= scope.sae.d_hidden:
                scope.features[index]  # raises NoFeature
    sampling = sampling_of(form, scope)
    wish = None if form.features is None else form.features.wish()
    rows = []
    for prompt in prompts:
        room = scope.lm.context - len(prompt) if scope.lm.context else UNBOUNDED
        longest = room if limit is None else min(limit, room) if scope.lm.context else limit
        for i in range(n):
            own = replace(sampling, max_new_tokens=longest, seed=seed_of(sampling.seed, i))
            rows.append(Request(prompt, own, controller, logprobs, wish, owner))
    return rows


def sampling_of(form: Writing, scope: Scope) -> Sampling:
    """How tokens are chosen. Raises BadField."""
    if any("\ud800" <= letter <= "\udfff" for stop in form.stops for letter in stop):
        raise BadField("stop", "A stop string is no Unicode.")
    return Sampling(
        temperature=1.0 if form.temperature is None else form.temperature,
        top_p=1.0 if form.top_p is None else form.top_p,
        seed=secrets.randbits(62) if form.seed is None else form.seed,
        stop=form.stops,
        logit_bias=bias_of(form.logit_bias or {}, scope),
        presence_penalty=form.presence_penalty or 0.0,
        frequency_penalty=form.frequency_penalty or 0.0,
    )


def bias_of(given: Mapping[str, float], scope: Scope) -> tuple[tuple[int, float], ...]:
    """{"token id": number} as pairs. Raises BadField."""
    for name in given:
        if not (name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < scope.lm.vocabulary):
            last = scope.lm.vocabulary - 1
            raise BadField(
                "logit_bias", f"logit_bias names token ids, 0 to {last:,} with this model, not {name[:40]!r}."
            )
    return tuple(sorted((int(name), float(value)) for name, value in given.items()))


def seed_of(seed: int, i: int) -> int:
    """The seed of the i-th of several answers: the first has the request's own."""
    if i == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{i}".encode()).digest()[:8], "little") >> 1
