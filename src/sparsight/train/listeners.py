"""Who else hears of a training's progress: wandb, trackio, TensorBoard. Each is imported when it is asked for.

A Listener is a `tell` for train(): it begins at the first progress, and goes on with the same run where the training
goes on after a stop, by a name that it keeps in the folder.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from sparsight.disk import write_aside
from sparsight.errors import BadInput, Missing
from sparsight.records import Progress

REPORTS = ("wandb", "trackio", "tensorboard")
PROJECT = "sparsight"
NAME = "report.txt"

Log = Callable[[Mapping[str, float | str], int], Any]
Begun = tuple[Log, Callable[[], Any]]
"""How figures are logged at a step, and how it ends."""


class Listener:
    """Call it with each Progress; close it, or leave its `with`, at the end.

    report: one of REPORTS. to: the training's folder. settings: what the run is called by there, as JSON.
    Raises Missing where its library is not installed, BadInput for a report that there is not.
    """

    def __init__(
        self, report: str, to: str | Path, settings: Mapping[str, Any] | None = None, project: str = PROJECT
    ) -> None:
        if report not in REPORTS:
            raise BadInput(f"No report {report!r}. There are: {', '.join(REPORTS)}.")
        self.report, self.to, self.settings, self.project = report, Path(to), dict(settings or {}), project
        self._module = _installed(report)
        self._begun: Begun | None = None

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __call__(self, progress: Progress) -> None:
        if self._begun is None:
            with redirect_stdout(sys.stderr):  # what they have to say is no answer
                self._begun = BEGIN[self.report](self, self._module, progress.done)
        facts = progress.facts
        several = any("/" in name for name in facts)  # then those of the first are there twice
        shared = ("tokens", "tokens_per_second")
        told = {name: value for name, value in facts.items() if not several or "/" in name or name in shared}
        self._begun[0](told, progress.done)

    def close(self) -> None:
        """Bring to its place what was told, and end."""
        if self._begun is not None:
            with redirect_stdout(sys.stderr):
                self._begun[1]()
            self._begun = None

    def name(self) -> str:
        """The run's, made once for each folder."""
        path = self.to / NAME
        if not path.exists():
            made = f"{self.to.resolve().name}-{secrets.token_hex(4)}"
            write_aside(path, lambda part: part.write_text(made, encoding="utf-8"))
        return path.read_text(encoding="utf-8").strip()


def all_of(tells: Sequence[Callable[[Progress], None]]) -> Callable[[Progress], None]:
    """A `tell` that tells them all."""

    def tell(progress: Progress) -> None:
        for one in tells:
            one(progress)

    return tell


def _wandb(listener: Listener, wandb: ModuleType, step: int) -> Begun:
    name = listener.name()
    run = wandb.init(project=_project(listener), id=name, name=name, resume="allow", config=listener.settings)
    return (lambda told, at: run.log(dict(told), step=at)), run.finish


def _trackio(listener: Listener, trackio: ModuleType, step: int) -> Begun:
    name = listener.name()
    trackio.init(project=_project(listener), name=name, resume="allow", config=listener.settings)
    return (lambda told, at: trackio.log(dict(told), step=at)), trackio.finish


def _tensorboard(listener: Listener, module: ModuleType, step: int) -> Begun:
    writer = module.SummaryWriter(str(listener.to / "tensorboard"), purge_step=step)

    def log(told: Mapping[str, float | str], at: int) -> None:
        for name, value in told.items():
            writer.add_scalar(name, value, at)

    return log, writer.close


def _project(listener: Listener) -> str | None:
    """None: wandb takes that of the environment."""
    return None if listener.report == "wandb" and "WANDB_PROJECT" in os.environ else listener.project


BEGIN: dict[str, Callable[[Listener, ModuleType, int], Begun]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "tensorboard": _tensorboard,
}


def _installed(report: str) -> ModuleType:
    """The library. Raises Missing."""
    try:
        return import_module("torch.utils.tensorboard" if report == "tensorboard" else report)
    except ImportError as error:
        raise Missing(f"{report} is not installed: pip install {report}.") from error
