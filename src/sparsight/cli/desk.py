"""The front desk: the verbs by name, and how every run of one ends: well, or in one line and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

import click

from sparsight import __version__
from sparsight.cli.contrast import attribute, contrast
from sparsight.cli.exchange import export, import_
from sparsight.cli.features import features
from sparsight.cli.label import label
from sparsight.cli.make import convert, evaluate, harvest, train, train_plot
from sparsight.cli.options import Verbs
from sparsight.cli.recipes import recipes
from sparsight.cli.serve import keys, serve
from sparsight.cli.survey import survey
from sparsight.cli.talk import chat, demo, doctor, info, read
from sparsight.errors import SparsightError

SHORT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Verbs, context_settings=SHORT, invoke_without_command=True)
@click.version_option(__version__, prog_name="sparsight", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """See and steer the features inside a language model.

    Begin with `sparsight demo`. Every verb works on the embedded demo, or on --model NAME --sae NAME.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for verb in (demo, chat, read, info, doctor, recipes, harvest, train, evaluate, convert):
    cli.add_command(verb)
for verb in (contrast, attribute, survey, label, features, export, import_, serve, keys):
    cli.add_command(verb)
cli.add_command(train_plot, "train plot")


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
