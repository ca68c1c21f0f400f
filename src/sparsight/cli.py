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
from typing import Any

import click

from sparsight import __version__
from sparsight.errors import SparsightError

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


def writing_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """How tokens are chosen."""
    for option in reversed(
        [
            click.option("--max-new-tokens", "-n", default=96, show_default=True, help="At most so many tokens."),
            click.option("--temperature", "-t", default=0.7, show_default=True, help="0 takes the likeliest token."),
            click.option("--top-p", default=0.95, show_default=True, help="Nucleus sampling."),
            click.option("--seed", default=0, show_default=True, help="The same seed gives the same text."),
        ]
    ):
        verb = option(verb)
    return verb


as_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


@click.group(cls=Verbs, context_settings=SHORT)
@click.version_option(__version__, prog_name="sparsight", message="%(prog)s %(version)s")
def cli() -> None:
    """See and steer the features inside a language model.

    Begin with `sparsight demo`. Every verb works on the embedded demo, or on --model NAME --sae NAME.
    """


@cli.command()
@click.option("--prompt", help="What the model goes on from. [default: the demo's own]")
@click.option("--edit", "-e", "edits", multiple=True, help="FEATURE=CHANGE, as in 27=+0.6. [default: the demo's own]")
@writing_options
@as_json
def demo(prompt: str | None, edits: tuple[str, ...], json_: bool, **sampling: Any) -> None:
    """Watch a small real model write, see its features, turn one up."""
    from sparsight import screen
    from sparsight.scope.load import showcase

    (scope, sampling), story = _scope(dict(sampling)), showcase()
    begin = str(story["prompt"]) if prompt is None else prompt
    wish = _edits(scope, edits or (story["edit"],))
    out = scope.compare(begin, wish, read=True, **{**sampling, "seed": sampling["seed"] or story.get("seed", 0)})
    _print_json(screen.comparison_json(out)) if json_ else screen.show_demo(scope, begin, wish, out)


@cli.command()
@model_options
@click.option("--edit", "-e", "edits", multiple=True, help="FEATURE=CHANGE: 27=+0.6, 27=8, 27=*2, 27=off. Repeatable.")
@click.option("--compare", is_flag=True, help="Show the unsteered answer too.")
@click.option("--system", help="A system message to begin with.")
@click.option("--plain", is_flag=True, help="Continue text, even where the model has a chat template.")
@writing_options
def chat(edits: tuple[str, ...], compare: bool, system: str | None, plain: bool, **more: Any) -> None:
    """Talk with the model, steered or not. A model without a chat template continues your text.

    Reads lines from the terminal or a pipe; /quit, or end of file, ends.
    """
    from sparsight import screen

    scope, sampling = _scope(more)
    wish = _edits(scope, edits)
    history = [{"role": "system", "content": system}] if system else []
    talks = bool(scope.lm.tokenizer.chat_template) and not plain
    for line in screen.lines(talks):
        inputs: Any = [*history, {"role": "user", "content": line}] if talks else line
        if compare:
            out = scope.compare(inputs, wish, **sampling)
            screen.show_comparison(out)
            said = out.steered.text
        else:
            said = screen.stream(scope.chat(inputs, wish, stream=True, **sampling))
        if talks:
            history = [*inputs, {"role": "assistant", "content": said}]


@cli.command()
@click.argument("text")
@model_options
@click.option("--top", default=5, show_default=True, help="How many features of each token.")
@click.option("--chat", "as_chat", is_flag=True, help="Read TEXT as a user's message, within the chat template.")
@as_json
def read(text: str, top: int, as_chat: bool, json_: bool, **more: Any) -> None:
    """Which features fire on TEXT ('-' reads standard input), token by token."""
    from sparsight import screen

    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if text == "-" else text
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

        torch.set_num_threads(
            1
        )  # for matrices this small, threads cost more than they give; on a busy machine, much more
    return scope, options


def _edits(scope: Any, lines: Sequence[str]) -> Any:
    from sparsight.edits import Controller

    return Controller(tuple(scope.features.edit(line) for line in lines))


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def main(args: Sequence[str] | None = None) -> int:
    """Run a verb. 0: done; 1: an error of sparsight's, in one line; 2: a wrong verb or option; 130: interrupted."""
    warnings.showwarning = lambda message, *_: _complain(f"note: {message}")  # type: ignore[assignment]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return cli.main(args, prog_name="sparsight", standalone_mode=False) or 0
    except SparsightError as error:
        _complain(str(error))
        return 1
    except click.ClickException as error:
        hint = f" See `{error.ctx.command_path} --help`." if isinstance(error, click.UsageError) and error.ctx else ""
        _complain(error.format_message() + hint)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: nothing to say
        return 0


def _complain(sentence: str) -> None:
    """One line on standard error."""
    line = " ".join(sentence.encode("utf-8", "backslashreplace").decode().split())
    click.echo(f"sparsight: {line}", err=True)


if __name__ == "__main__":
    sys.exit(main())
