"""A training run: from a source of activations to a folder with an SAE, or with several.

to/
  train.json           what the run is: the specs, and what the activations are of
  log.jsonl            its course: one line each so many steps, and each validation
  checkpoint-*         while it runs: the same call goes on from there
  sae.json, sae.safetensors      in the end; of several SAEs, each in a folder of its own
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsight.disk import read_json, write_json
from sparsight.errors import BadInput, Diverged, Mismatch
from sparsight.records import Progress
from sparsight.sae.files import load_sae, save_sae
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.shards.shards import Shards
from sparsight.train import checkpoint
from sparsight.train.log import Log
from sparsight.train.parallel import Team
from sparsight.train.source import Batch, ShardSource, Source
from sparsight.train.spec import PENALISED, TrainSpec
from sparsight.train.trainer import Trainer

SCHEMA = 1
LINES = 500  # of the log, but for validations
PIECE = 4096  # held-out tokens that are looked at at once
UNIT = 0.99  # a feature's unit is this quantile of its activations above zero
ENOUGH = 10  # activations that a unit is taken from, at least


def train(
    source: Source | Shards | str | Path,
    spec: TrainSpec | Sequence[TrainSpec],
    to: str | Path,
    tell: Callable[[Progress], None] | None = None,
    team: Team | None = None,
    device: torch.device | str = "cpu",
) -> list[SparseAutoEncoder]:
    """Train one SAE, or several on the same batches, and write them to `to`.

    source: a store of activations, its folder, or any Source. The same call goes on with a run that was stopped, and
    gives what one that was not would have given; it reads what is there where the run is done. tell: hears of the
    progress; its facts are the first SAE's l0, target_l0, fvu, dead, coefficient, lr, ..., of several each one's too as
    NAME/l0 and so on; held_out_l0, held_out_fvu, held_out_silent when there was a validation; tokens and
    tokens_per_second. team: the processes of the run; device: of this one.
    Raises Diverged where the loss is no number any more, DiskFull where a checkpoint does not fit, Mismatch where `to`
    is of another run, BadInput where the specs do not fit the source or each other.
    """
    team = team or Team()
    found = Shards(source) if isinstance(source, (str, Path)) else source
    specs = [spec] if isinstance(spec, TrainSpec) else list(spec)
    if not specs:
        raise BadInput("There is no SAE to train: give at least one spec.")
    batches = ShardSource(found, specs[0].seed, team) if isinstance(found, Shards) else found
    run = Run(batches, specs, Path(to), team, torch.device(device), tell)
    return run.result() if run.done else run.go()


@dataclass
class Held:
    """One of the SAEs of a run."""

    name: str
    folder: Path
    spec: TrainSpec
    read: str
    written: str | None
    trainer: Trainer
    held_out: dict[str, float] = field(default_factory=dict)  # figures that nobody was told yet

    def of(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Its input and target."""
        x = batch[self.read].to(device, non_blocking=True)
        return x, None if self.written is None else batch[self.written].to(device, non_blocking=True)


class Run:
    """The state of a run: several trainers, one source, one folder."""

    def __init__(
        self,
        source: Source,
        specs: Sequence[TrainSpec],
        to: Path,
        team: Team,
        device: torch.device,
        tell: Callable[[Progress], None] | None,
    ) -> None:
        self.source, self.specs, self.to, self.team, self.device = source, specs, to, team, device
        self.tell = tell or (lambda progress: None)
        if device.type == "mps":
            raise BadInput("Training sums in float64, which Apple's GPUs do not have: train with device 'cpu'.")
        if len({spec.batch for spec in specs}) > 1:
            raise BadInput("SAEs that are trained on the same batches have one batch size.")
        self.size, rest = divmod(specs[0].batch, team.data)
        if rest:
            raise BadInput(f"A batch of {specs[0].batch:,} cannot be dealt out evenly to {team.data} processes.")
        self.places = [_places(spec, source) for spec in specs]
        self.names = _names(specs)
        self.done = self._agree()

    def _agree(self) -> bool:
        """Compare what the run is with what is there. Whether it is done."""
        path = self.to / "train.json"
        if not path.exists():
            self._empty()
            return False
        said, there = self._said(), read_json(path)
        there["specs"] = [_of_before(spec) for spec in there.get("specs") or []]
        said["specs"] = [_of_before(spec) for spec in said["specs"]]
        for name in said:
            if there.get(name) != said[name]:
                other = _difference(there.get(name), said[name])
                raise Mismatch(f"'{self.to}' is of another run ({name}: {other}): write into another folder.")
        return bool(there.get("done"))

    def _empty(self) -> None:
        """Raises where the folder is none, or holds what a training would write over."""
        if self.to.exists() and not self.to.is_dir():
            raise BadInput(f"'{self.to}' is a file: an SAE is written into a folder.")
        for name, what in (("manifest.json", "activations"), ("sae.json", "an SAE")):
            if (self.to / name).exists():
                raise Mismatch(f"'{self.to}' holds {what} already: write into another folder.")

    def _said(self) -> dict[str, Any]:
        """What the run is, as JSON gives it back."""
        said = {"schema": SCHEMA, "specs": [asdict(spec) for spec in self.specs], "of": dict(self.source.about)}
        return json.loads(json.dumps(said))

    def result(self) -> list[SparseAutoEncoder]:
        """What a run that is done has written."""
        return [load_sae(folder) for folder in folders(self.specs, self.to)]

    def go(self) -> list[SparseAutoEncoder]:
        """Begin, or go on, to the end."""
        began = time.monotonic()
        held, position = self._begin()
        with checkpoint.writing(self.to / "train.json", self.to, self.team):
            self.to.mkdir(parents=True, exist_ok=True)  # only now: what cannot be trained leaves nothing
            if self.team.rank == 0:
                write_json(self.to / "train.json", self._said())
        step = good = max(h.trainer.steps for h in held)
        log = Log(self.to, step, self.team.rank == 0)
        longest = max(spec.steps for spec in self.specs)
        every = max(longest // LINES, 1)
        saved = line = time.monotonic()
        since = step
        batches = self.source.batches(self.size, position)
        while step < longest:
            position, batch = next(batches)
            step += 1
            for h in held:
                if h.trainer.steps >= h.spec.steps:
                    continue
                told = h.trainer.step(*h.of(batch, self.device))
                if not np.isfinite(told["fvu"]):
                    self._diverged(h, step, good)
                log.saw(h.name, told)
                if h.trainer.steps % max(h.spec.steps // h.spec.validate, 1) == 0:
                    h.held_out = h.trainer.validate(self._held_out(h))
                    log.validated(h.name, step, h.held_out)
            if step % every == 0 or step == longest:
                counts = {h.name: {"dead": h.trainer.dead, "revived": h.trainer.revived} for h in held}
                means, now = log.write(step, step * self.specs[0].batch, counts), time.monotonic()
                facts = self._facts(held, means, step, (step - since) / (now - line))
                self.tell(Progress("train", step, longest, "steps", now - began, facts))
                since, line = step, now
            if step < longest and self._due(saved, step):
                self._sound(held, step, good)
                self._save(held, position, step)
                saved, good = time.monotonic(), step
        self._sound(held, step, good)
        out = [self._finish(h, log, step) for h in held]
        self.tell(Progress("train", step, longest, "steps", time.monotonic() - began, self._facts(held, {}, step)))
        self._close()
        return out

    def _facts(
        self, held: Sequence[Held], means: Mapping[str, Mapping[str, float]], step: int, rate: float | None = None
    ) -> dict[str, float | str]:
        """What a Progress says: the numbers of the first SAE that has any and, of several, each one's as NAME/number.
        rate: steps per second since the last time. Held-out figures are said once."""
        batch = self.specs[0].batch
        facts: dict[str, float | str] = {"tokens": step * batch}
        for h in held:
            if (mean := dict(means.get(h.name, {}))) or h.held_out:
                mean |= {"target_l0": h.spec.l0} | {f"held_out_{name}": value for name, value in h.held_out.items()}
                facts |= {} if "target_l0" in facts else mean
                facts |= {f"{h.name}/{name}": value for name, value in mean.items() if len(held) > 1}
            h.held_out = {}
        return facts if rate is None else {**facts, "tokens_per_second": rate * batch}

    def _due(self, saved: float, step: int) -> bool:
        """Whether it is time for a checkpoint; the first process decides."""
        waited = time.monotonic() - saved >= min(spec.checkpoint for spec in self.specs)
        due = torch.tensor(float(waited), device=self.device)
        if self.team.world > 1:
            torch.distributed.broadcast(due, 0)
        return bool(due)

    def _begin(self) -> tuple[list[Held], Any]:
        sample = self.source.sample(max(spec.start for spec in self.specs))
        held = []
        for spec, name, folder, (read, written) in zip(
            self.specs, self.names, folders(self.specs, self.to), self.places, strict=True
        ):
            x = sample[read][: spec.start].to(self.device)
            y = None if written is None else sample[written][: spec.start].to(self.device)
            held.append(Held(name, folder, spec, read, written, Trainer(spec, x, y, self.team)))
        for h in held:
            if next(self._held_out(h), None) is None:  # said now, and not at the first validation
                raise BadInput("There are no held-out tokens to validate on.")
        step = checkpoint.newest(self.to, self.team)
        if step is None:
            return held, None
        tensors, facts = checkpoint.read(self.to, self.team, step)
        for h, mine, said in zip(held, checkpoint.split(tensors, len(held)), facts["trainers"], strict=True):
            h.trainer.restore(mine, said)
        return held, facts["position"]

    def _save(self, held: Sequence[Held], position: Any, step: int) -> None:
        tensors = {f"{i}.{name}": t for i, h in enumerate(held) for name, t in h.trainer.tensors().items()}
        facts = {"position": position, "trainers": [h.trainer.facts() for h in held]}
        checkpoint.write(self.to, self.team, step, tensors, facts)

    def _sound(self, held: Sequence[Held], step: int, good: int) -> None:
        """Raises Diverged where what is to be kept is no number: a step may do that whose loss does not show it."""
        for h in held:
            if not h.trainer.finite:
                self._diverged(h, step, good)

    def _diverged(self, h: Held, step: int, good: int) -> None:
        kept = f"The checkpoint of step {good:,} in '{self.to}' is good" if good else "No checkpoint was written yet"
        todo = "lower lr, set clip, or look for tokens of enormous norm"
        raise Diverged(f"The loss or a weight of {h.name} is no number at step {step:,}. {kept}: {todo}.")

    def _held_out(self, h: Held) -> Iterator[tuple[Tensor, Tensor | None]]:
        for piece in self.source.held_out(h.spec.validation, PIECE):
            yield h.of(piece, self.device)

    def _finish(self, h: Held, log: Log, step: int) -> SparseAutoEncoder:
        """The SAE, its features' units and figures, written."""
        trainer = h.trainer
        trainer.use_average()
        trainer.calibrate(self._held_out(h))
        figures = h.held_out = trainer.validate(self._held_out(h))
        log.validated(h.name, step, figures)
        if figures["fvu"] > 1:
            warnings.warn(
                f"{h.name} explains less than nothing of held-out activations: FVU {figures['fvu']:.2f}. Look at "
                f"'{log.path}'; a lower lr, or more tokens, may mend it.",
                stacklevel=2,
            )
        about = self.source.about
        notes = {"training": asdict(h.spec), "of": dict(about), "tokens": trainer.tokens, "held_out": figures}
        sae = trainer.sae(
            model=about.get("model"),
            model_revision=about.get("model_revision") or None,
            hook_point=h.read,
            hook_point_out=h.written,
            notes=notes,
        )
        sae = sae.altered(scale=units(sae, (x for x, _ in self._held_out(h))))
        if self.team.rank == 0:
            with checkpoint.writing(h.folder, self.to, self.team):
                save_sae(sae, h.folder)
        return sae

    def _close(self) -> None:
        if self.team.rank == 0:
            write_json(self.to / "train.json", {**read_json(self.to / "train.json"), "done": True})
        self.team.wait()  # if the first could not write the SAE, it goes on from the checkpoints of all
        checkpoint.clear(self.to, self.team)


def units(sae: SparseAutoEncoder, batches: Iterator[Tensor]) -> Tensor:
    """Each feature's unit, float32 [d_hidden]: the 99th percentile of its activations above zero; 0 if it has fewer
    than ten of them."""
    parts = [sae.encode_codes(x) for x in batches]
    feature = torch.cat([part.features for part in parts]).long()
    value = torch.cat([part.values for part in parts]).float()
    order = value.argsort(stable=True)
    order = order[feature[order].argsort(stable=True)]  # by feature, then by value
    count = feature.bincount(minlength=sae.d_hidden)
    place = count.cumsum(0) - count + (UNIT * (count - 1)).long().clamp(min=0)
    unit = value[order[place.clamp(max=len(order) - 1)]] if len(order) else value.new_zeros(sae.d_hidden)
    return torch.where(count >= ENOUGH, unit, 0.0)


def _places(spec: TrainSpec, source: Source) -> tuple[str, str | None]:
    """The hook points that an SAE reads and writes; None for the second where it is the first."""
    there = ", ".join(source.hook_points)
    read = spec.hook_point or (source.hook_points[0] if len(source.hook_points) == 1 else None)
    if read is None:
        raise BadInput(f"Say which hook point is read: hook_point. The activations are of {there}.")
    written = None if spec.hook_point_out in (None, read) else spec.hook_point_out
    for point in filter(None, (read, written)):
        if point not in source.hook_points:
            raise BadInput(f"No activations of '{point}': these are of {there}.")
    return read, written


def folders(specs: Sequence[TrainSpec], to: str | Path) -> list[Path]:
    """Where each SAE of a run is written: one SAE into `to`, several into folders of their own there."""
    return [Path(to) / name if len(specs) > 1 else Path(to) for name in _names(specs)]


def _names(specs: Sequence[TrainSpec]) -> list[str]:
    """What each SAE of a run is called: by what it is, and by number where that does not tell them apart."""
    names = []
    for spec in specs:
        parts = [spec.hook_point, spec.objective, spec.d_hidden or f"{spec.expansion}x", f"l0-{spec.l0:g}"]
        name = "_".join(str(part) for part in parts if part)
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def _of_before(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec as it was written down, with what there was no setting for then; without what changes nothing in it."""
    spec = {"rise": 0.0, "fit": False, **spec}
    if spec.get("objective") in PENALISED:
        del spec["rise"], spec["fit"]
    return spec


def _difference(there: Any, asked: Any) -> str:
    """The first thing in which two records differ."""
    if isinstance(there, list) and isinstance(asked, list) and len(there) == len(asked):
        there, asked = next((a, b) for a, b in zip(there, asked, strict=True) if a != b)
    if isinstance(there, dict) and isinstance(asked, dict):
        name = next(n for n in {**there, **asked} if there.get(n) != asked.get(n))
        return f"{name} {there.get(name)!r} there, {asked.get(name)!r} here"
    return f"{there!r} there, {asked!r} here"
