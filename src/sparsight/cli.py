"""The front desk: `sparsight VERB`. Verbs print; everything else in the house returns.

A verb is short: it loads a scope, calls it, and hands what comes back to screen.py. Nothing heavy is imported before
a verb needs it, so that --help answers at once.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from sparsight import __version__
from sparsight.errors import BadInput, SparsightError, TooLong

SMALL = 30_000_000  # parameters
SHORT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Verbs(click.Group):
    """A group that names the nearest verb when it is given one that it does not have."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0] if args else ""
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.commands, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" There are: {', '.join(self.commands)}."
            raise click.UsageError(f"No verb '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)


def model_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """--model, --sae, --hook-point, --device, --dtype: which scope."""
    for option in reversed(
        [
            click.option(
                "--model", "-m", default="demo", show_default=True, help="'demo', a folder, a name on the hub."
            ),
            click.option("--sae", "-s", help="A folder, the model card's .pth, a repository on the hub."),
            click.option("--hook-point", help="Where the SAE reads, as model.layers.19. [default: what the SAE says]"),
            click.option("--device", help="cpu, cuda, mps, auto. [default: the GPU where there is one]"),
            click.option("--dtype", help="bfloat16, float16, float32. [default: the model's own on a GPU]"),
        ]
    ):
        verb = option(verb)
    return verb


def writing_options(temperature: float = 0.7) -> Callable[..., Any]:
    """How tokens are chosen; a seed each verb has for itself."""
    likeliest = "0 takes the likeliest token."
    options = [
        click.option("--max-new-tokens", "-n", default=96, show_default=True, help="At most so many tokens."),
        click.option("--temperature", "-t", default=temperature, show_default=True, help=likeliest),
        click.option("--top-p", default=0.95, show_default=True, help="Nucleus sampling."),
    ]

    def with_options(verb: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            verb = option(verb)
        return verb

    return with_options


as_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


@click.group(cls=Verbs, context_settings=SHORT, invoke_without_command=True)
@click.version_option(__version__, prog_name="sparsight", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """See and steer the features inside a language model.

    Begin with `sparsight demo`. Every verb works on the embedded demo, or on --model NAME --sae NAME.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command()
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
    _print_json(screen.demo_json(scope, said, wish, out)) if json_ else screen.show_demo(scope, said, wish, out)


def _voice(name: str) -> list[str]:
    """The edits that turn one of the demo's voices on."""
    from sparsight.scope.load import voice_settings

    voices = voice_settings()
    if name not in voices:
        raise BadInput(f"No voice '{name}'. There are: {', '.join(voices)}.")
    return voices[name]


@cli.command()
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
            _print_json(screen.answer_json(line, reply, plain), indent=None)
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


@cli.command()
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
    _print_json(reading.to_json(top)) if json_ else screen.show_reading(reading, top)


@cli.command()
@model_options
@as_json
def info(json_: bool, **more: Any) -> None:
    """What the model and its SAE are."""
    from sparsight import screen

    scope, _ = _scope(more)
    about = scope.about()
    _print_json(about) if json_ else screen.show_table(about)


@cli.command()
@as_json
def doctor(json_: bool) -> None:
    """This machine: devices, memory, versions, and which models would fit."""
    from sparsight import doctor as examine
    from sparsight import screen

    found = examine.examine()
    _print_json(found) if json_ else screen.show_doctor(found)


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


def _print_json(data: Any, indent: int | None = 2) -> None:
    unicode = "utf" in (sys.stdout.encoding or "").lower()  # elsewhere JSON's own escapes lose nothing
    click.echo(json.dumps(data, indent=indent, ensure_ascii=not unicode))


def main(args: Sequence[str] | None = None) -> int:
    """Run a verb. 0: done; 1: an error of sparsight's, in one line; 2: a wrong verb or option; 70: an error that
    nobody foresaw, in one line too; 130: interrupted."""
    warnings.showwarning = lambda message, *_: _complain(f"note: {message}")  # type: ignore[assignment]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries, when there is no network
    _ready_streams()
    try:
        code = cli.main(args, prog_name="sparsight", standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except SparsightError as error:
        _complain(str(error))
        return 1
    except click.ClickException as error:
        hint = f" See `{error.ctx.command_path} --help`." if isinstance(error, click.UsageError) and error.ctx else ""
        _complain(error.format_message() + hint)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except (BrokenPipeError, SystemExit):  # click and rich make a SystemExit of a broken pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: nothing to say
        return 0
    except Exception as error:
        if os.environ.get("SPARSIGHT_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {error}"
        _complain(f"unexpected {what} (set SPARSIGHT_TRACEBACK=1 for the whole story)")
        return 70


def _ready_streams() -> None:
    """Let standard output and error take any text: what their encoding lacks is escaped, and a closed one is silent."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _complain(sentence: str) -> None:
    """One line on standard error."""
    from sparsight.screen import visible

    line = " ".join(sentence.encode("utf-8", "backslashreplace").decode().split())
    click.echo(f"sparsight: {visible(line)}", err=True)


if __name__ == "__main__":
    sys.exit(main())
