"""Verbs that look at a model and talk with it: demo, chat, read, info, doctor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from sparsight.cli.options import as_json, model_options, print_json, writing_options
from sparsight.errors import BadInput, TooLong

SMALL = 30_000_000  # parameters


@click.command()
@click.option("--prompt", help="What you say to the model. [default: the demo's own question]")
@click.option("--voice", "-v", help="Which voice is turned up: pirate, butler, cat, ... [default: the demo's own]")
@click.option("--edit", "-e", "edits", multiple=True, help="In a voice's place: FEATURE=CHANGE, as in 27=+0.6.")
@writing_options(temperature=0.3)
@click.option("--seed", type=int, help="The same seed gives the same text. [default: the demo's own]")
@as_json
def demo(
    prompt: str | None, voice: str | None, edits: tuple[str, ...], seed: int | None, json_: bool, **sampling: Any
) -> None:
    """Watch a small real chat model answer, see its features, turn a voice up."""
    from sparsight import screen
    from sparsight.scope.load import showcase

    if voice is not None and edits:
        raise BadInput("Give a voice or edits, not both: a voice is the edits that turn it on.")
    (scope, sampling), story = _scope(dict(sampling)), showcase()
    said = str(story["prompt"]) if prompt is None else prompt
    seed = int(story["seed"]) if seed is None else seed
    wish = _edits(scope, edits or _voice(str(story["voice"]) if voice is None else voice))
    out = scope.compare([{"role": "user", "content": said}], wish, read=True, seed=seed, **sampling)
    print_json(screen.demo_json(scope, said, wish, out)) if json_ else screen.show_demo(scope, said, wish, out)


def _voice(name: str) -> list[str]:
    """The edits that turn one of the demo's voices on."""
    from sparsight.scope.load import voice_settings

    voices = voice_settings()
    if name not in voices:
        raise BadInput(f"No voice '{name}'. There are: {', '.join(voices)}.")
    return voices[name]


@click.command()
@model_options
@click.option("--edit", "-e", "edits", multiple=True, help="FEATURE=CHANGE: 27=+0.6, 27=8, 27=*2, 27=off. Repeatable.")
@click.option("--compare", is_flag=True, help="Show the unsteered answer too.")
@click.option("--system", help="A system message to begin with.")
@click.option("--plain", is_flag=True, help="Continue text, even where the model has a chat template.")
@writing_options()
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same text.")
@click.option("--json", "json_", is_flag=True, help="Print each answer as JSON, one to a line.")
def chat(edits: tuple[str, ...], compare: bool, system: str | None, plain: bool, json_: bool, **more: Any) -> None:
    """Talk with the model, steered or not. A model without a chat template continues your text.

    Reads lines from the terminal or a pipe; /reset begins anew; /quit, or end of file, ends.
    """
    from sparsight import screen

    scope, sampling = _scope(more)
    messages = bool(scope.lm.tokenizer.chat_template) and not plain
    if system and not messages:
        raise BadInput("A system message goes with a chat: --plain, or a model without a chat template, has none.")
    talk = Talk(scope, _edits(scope, edits), sampling, messages, system)
    for line in screen.lines(messages):
        if line.strip() == "/reset":
            talk.said.clear()
            screen.note("The conversation begins anew.")
            continue
        try:
            talk.answer(line, compare, json_)
        except TooLong as error:
            screen.note(f"{error} This line alone is too long: give a shorter one.")


@dataclass
class Talk:
    """A conversation. said: the exchanges that the model still has before it, two messages each."""

    scope: Any
    wish: Any
    sampling: dict[str, Any]
    messages: bool
    system: str | None = None
    said: list[list[dict[str, str]]] = field(default_factory=list)

    def answer(self, line: str, compare: bool, json_: bool) -> None:
        """Have a line answered, and show it."""
        from sparsight import screen

        inputs = self.inputs(line) if self.messages else line
        if compare:
            out = self.scope.compare(inputs, self.wish, **self.sampling)
            reply, plain = out.steered, out.plain
        elif json_:
            reply, plain = self.scope.chat(inputs, self.wish, **self.sampling), None
        if json_:
            print_json(screen.answer_json(line, reply, plain), indent=None)
            text = reply.text
        elif compare:
            text = screen.show_comparison(out)
        else:
            text = screen.stream(self.scope.chat(inputs, self.wish, stream=True, **self.sampling))
        if self.messages:
            self.said.append([{"role": "user", "content": line}, {"role": "assistant", "content": text}])

    def inputs(self, line: str) -> list[dict[str, str]]:
        """The messages that a line is asked with: the oldest exchanges are dropped where they leave no room."""
        from sparsight import screen

        before = len(self.said)
        while self.said and not self.fits(self._with(line)):
            self.said.pop(0)
        if dropped := before - len(self.said):
            screen.note(f"The context is full: the oldest {dropped} of {before} exchanges are forgotten.")
        return self._with(line)

    def fits(self, inputs: list[dict[str, str]]) -> bool:
        """Whether the model's context holds this and an answer; one that could fill it all gets a quarter of it."""
        context = self.scope.lm.context
        if not context:
            return True
        return len(self.scope.lm.prompt(inputs)) + min(self.sampling["max_new_tokens"], context // 4) <= context

    def _with(self, line: str) -> list[dict[str, str]]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *(message for exchange in self.said for message in exchange), {"role": "user", "content": line}]


@click.command()
@click.argument("text")
@model_options
@click.option(
    "--top", type=click.IntRange(1, 1_000_000), default=5, show_default=True, help="How many features of each token."
)
@click.option("--chat", "as_chat", is_flag=True, help="Read TEXT as a user's message, within the chat template.")
@as_json
def read(text: str, top: int, as_chat: bool, json_: bool, **more: Any) -> None:
    """Which features fire on TEXT ('-' reads standard input), token by token."""
    from sparsight import screen

    text = screen.standard_input().read().decode("utf-8", "surrogateescape") if text == "-" else text
    scope, _ = _scope(more)
    reading = scope.read([{"role": "user", "content": text}] if as_chat else text)
    print_json(reading.to_json(top)) if json_ else screen.show_reading(reading, top)


@click.command()
@model_options
@as_json
def info(json_: bool, **more: Any) -> None:
    """What the model and its SAE are."""
    from sparsight import screen

    scope, _ = _scope(more)
    about = scope.about()
    print_json(about) if json_ else screen.show_table(about)


@click.command()
@as_json
def doctor(json_: bool) -> None:
    """This machine: devices, memory, versions, and which models would fit."""
    from sparsight import doctor as examine
    from sparsight import screen

    found = examine.examine()
    print_json(found) if json_ else screen.show_doctor(found)


def _scope(options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The scope that the model options name, and the options that are left."""
    from sparsight.scope.load import load

    which = {name: options.pop(name) for name in ("model", "sae", "hook_point", "device", "dtype") if name in options}
    scope = load(which.pop("model", "demo"), which.pop("sae", None), **which)
    if scope.lm.device.type == "cpu" and sum(p.numel() for p in scope.lm.model.parameters()) < SMALL:
        import torch

        # for matrices this small, threads cost more than they give; on a busy machine, much more
        torch.set_num_threads(1)
    return scope, options


def _edits(scope: Any, lines: Sequence[str]) -> Any:
    from sparsight.edits import Controller

    return Controller(tuple(scope.features.edit(line) for line in lines))
