"""Messages to tokens, by the tokenizer's own chat template, knowing of every token whose it is.

The template is rendered twice: with the messages, and with a mark in place of each content. What stands between the
marks is template; the rest is the messages'. A content that the template treats (strips, rewrites) is what stands
between two pieces of template. Where the pieces are not all there, since the template looks at contents, each content
is looked up, in order, in what was rendered.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsight.errors import BadInput, NoChatTemplate
from sparsight.lm.batch import Prompt
from sparsight.records import ROLES, Kind, Message

NOT_THE_TEMPLATES = {
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
    "return_assistant_tokens_mask",
}  # fmt: skip
MARK, MARKS = "\ue000{}\ue001", "\ue000([0-9]+)\ue001"  # private-use characters, that no template treats


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message | Mapping[str, Any]],
    add_generation_prompt: bool = True,
    **template: Any,
) -> Prompt:
    """The rendered chat as token ids with their kinds. template: more keywords for the chat template.

    Raises NoChatTemplate for a tokenizer that has none.
    """
    said = [Message.of(message) for message in messages]
    if not said:
        raise BadInput("There is no message: a chat has at least one.")
    if not tokenizer.chat_template:
        raise NoChatTemplate(
            "This model's tokenizer has no chat template: it is a base model, that goes on with a text. "
            "Give it text instead of messages (complete(text), or `sparsight chat`, which then continues text)."
        )
    for message in said:
        check_text(message.content)
    if not_its := NOT_THE_TEMPLATES & template.keys():
        raise BadInput(f"template= holds keywords of the chat template; '{min(not_its)}' is not one of those.")
    goes_on = bool(template.get("continue_final_message"))
    options = {"add_generation_prompt": add_generation_prompt and not goes_on, "tokenize": False, **template}
    rendered = _render(tokenizer, said, options)
    spans = _spans(tokenizer, said, options, rendered)
    coded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    ids, kinds = coded["input_ids"], _kinds(coded["offset_mapping"], spans)
    if ids and ids[0] == tokenizer.bos_token_id:
        kinds[0] = Kind.PROMPT | Kind.BOS
    return Prompt(tuple(ids), tuple(kinds))


def _kinds(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int, str]]) -> list[Kind]:
    """What each token is. Tokens and spans both go forward through the text, so one walk finds whose each is."""
    template, of_role = Kind.PROMPT | Kind.TEMPLATE, {role: Kind.PROMPT | kind for role, kind in ROLES.items()}
    ahead = iter(spans)
    nowhere = (sys.maxsize, sys.maxsize, "")
    low, high, role = next(ahead, nowhere)
    kinds = []
    for start, stop in offsets:
        while high <= start:
            low, high, role = next(ahead, nowhere)
        kinds.append(of_role[role] if low <= start or low < stop else template)
    return kinds


def text_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> Prompt:
    """A plain text as token ids with their kinds; begins with BOS where the tokenizer adds one."""
    check_text(text)
    ids = tokenizer(text)["input_ids"]
    if not text or not ids:
        raise BadInput("The prompt is empty: there is nothing to read or to go on from.")
    first = Kind.BOS if ids[0] == tokenizer.bos_token_id else Kind.TEXT
    return Prompt(tuple(ids), (Kind.PROMPT | first, *[Kind.PROMPT | Kind.TEXT] * (len(ids) - 1)))


def check_text(text: object) -> None:
    """Raises BadInput for what is not text, or is text that was not valid UTF-8."""
    if not isinstance(text, str):
        raise BadInput(f"A prompt is text, not {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(f"The text is not valid UTF-8 (at character {error.start}).") from None


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
    from jinja2 import TemplateError

    plain = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return str(tokenizer.apply_chat_template(plain, **options))
    except (TemplateError, ValueError) as error:  # a template's own refusal: of a role, of no system message
        raise BadInput(f"This model's chat template refused the messages: {error}") from error


def _spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: Mapping[str, Any], rendered: str
) -> list[tuple[int, int, str]]:
    """(start, stop, role) of each content in what was rendered."""
    marked = _render(tokenizer, [Message(m.role, MARK.format(i)) for i, m in enumerate(messages)], options)
    opening, *rest = re.split(MARKS, marked)
    pairs = [(messages[int(i)], template) for i, template in zip(rest[::2], rest[1::2], strict=True)]
    if rendered.startswith(opening):
        spans = _between(pairs, rendered, len(opening))
        if spans is not None:
            return spans
    return _found(messages, rendered)


def _between(pairs: Sequence[tuple[Message, str]], rendered: str, at: int) -> list[tuple[int, int, str]] | None:
    """Spans of messages that the template pieces after them delimit; None where those are not all there."""
    spans = []
    for i, (message, template) in enumerate(pairs):
        last = i + 1 == len(pairs)
        stop = _end(message.content, template, rendered, at, last)
        if stop < 0:
            return None
        spans.append((at, stop, message.role))
        at = stop + len(template)
    return spans if at == len(rendered) else None


def _end(content: str, template: str, rendered: str, at: int, last: bool) -> int:
    """Where the content that begins at `at` ends: as it was written, or stripped, or else where the template goes on;
    -1 where it does not."""
    for written in (content, content.strip()):
        if rendered.startswith(written + template, at):
            stop = at + len(written)
            if not last or stop + len(template) == len(rendered):
                return stop
    if last:
        return len(rendered) - len(template) if rendered.endswith(template) else -1
    return rendered.find(template, at) if template else -1


def _found(messages: Sequence[Message], rendered: str) -> list[tuple[int, int, str]]:
    """The same by looking each content up after the one before it; one that is not there has no tokens."""
    spans, at = [], 0
    for message in messages:
        content = message.content.strip()
        start = rendered.find(content, at)
        if content and start >= 0:
            at = start + len(content)
            spans.append((start, at, message.role))
    return spans
