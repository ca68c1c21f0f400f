"""Training: an SAE from a store of activations, at the L0 that was asked for, and a run that is never lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import HOOK

from sparsight.errors import BadFile, BadInput, DiskFull, Diverged, Mismatch
from sparsight.evaluate.synthetic import KINDS, Toy, score
from sparsight.sae.files import load_sae
from sparsight.shards.manifest import Manifest
from sparsight.shards.shards import Shards
from sparsight.shards.writer import ShardWriter
from sparsight.train import checkpoint, run
from sparsight.train.log import read as read_log
from sparsight.train.objective import OBJECTIVE
from sparsight.train.parallel import Team
from sparsight.train.run import train
from sparsight.train.source import StreamSource
from sparsight.train.spec import PENALISED, TrainSpec
from sparsight.train.trainer import Trainer
from sparsight.train.weights import Frame, geometric_median

D, TRUE, L0 = 16, 24, 3.0
OUT = "model.layers.9"
QUICK = {"d_hidden": 32, "l0": L0, "batch": 256, "lr": 3e-3, "validation": 1024, "start": 4096, "validate": 3}


def directions() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(TRUE, D, generator=torch.Generator().manual_seed(5)))


def activations(rows: int, seed: int = 0) -> torch.Tensor:
    """Sums of a few true features of 24, far from the origin and of odd size, as a model's are."""
    g = torch.Generator().manual_seed(seed)
    active = torch.rand(rows, TRUE, generator=g) < L0 / TRUE
    magnitudes = active * (torch.rand(rows, TRUE, generator=g) + 0.5)
    return magnitudes @ directions() * 7 + torch.linspace(-20, 30, D)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path, rows = tmp_path_factory.mktemp("store"), 20_000
    x = activations(rows)
    about = Manifest(model="tests/toy", hook_points={HOOK: D, OUT: D + 2}, corpus="toy", dtype="float16")
    with ShardWriter(path, about) as writer:
        zeros = torch.zeros(rows, dtype=torch.int64)
        y = torch.cat([x.flip(1), x[:, :2]], 1)
        writer.append({HOOK: x, OUT: y}, zeros, zeros + 64, torch.arange(rows) // 10)
    return path


def spec(**changes) -> TrainSpec:
    return TrainSpec(**{"hook_point": HOOK, "tokens": 30_000, **QUICK, **changes})


def figures(sae) -> dict:
    return sae.config.notes["held_out"]


def quality(sae, x: torch.Tensor) -> tuple[float, float]:
    """(L0, fvu) of an SAE on raw activations, densely, in float64."""
    sae = sae.moved("cpu", torch.float64)
    x_hat, f = sae(x.double())
    wrong = (x_hat - x).square().sum() / (x.double() - x.double().mean(0)).square().sum()
    return float((f > 0).sum(-1).double().mean()), float(wrong)


# ── what comes out ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("objective", OBJECTIVE)
def test_an_sae_of_each_kind_finds_the_true_features_at_the_l0_asked_for(objective, store, tmp_path):
    (made,) = train(store, spec(objective=objective, tokens=300_000, validation=4096), tmp_path / "run")
    sae = load_sae(tmp_path / "run")
    assert sae.fingerprint == made.fingerprint
    assert (sae.config.hook_point, sae.config.model, sae.config.activation) == (HOOK, "tests/toy", objective)
    l0, fvu = quality(sae, activations(4000, seed=9))
    assert l0 == pytest.approx(L0, rel=0.1)
    assert fvu < (0.5 if objective == "relu" else 0.25), "an L1 penalty shrinks what it keeps"
    assert figures(sae)["fvu"] == pytest.approx(fvu, abs=0.03)
    found = (directions() @ sae.W_dec.T).max(dim=1).values
    assert found.mean() > 0.93
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(32))
    assert (sae.scale > 0).float().mean() > 0.5


def test_matryoshka_groups_each_reconstruct(store, tmp_path):
    (sae,) = train(store, spec(objective="batchtopk", groups=(8, 32), tokens=150_000), tmp_path / "run")
    x = activations(2000, seed=9)
    f = sae.encode(x)
    first = f.clone()
    first[:, 8:] = 0
    spread = (x - x.mean(0)).square().sum()
    errors = [float((sae.decode(part) - x).square().sum() / spread) for part in (first, f)]
    assert errors[1] < errors[0] < 0.9, "eight features alone say something; all say more"


def test_a_transcoder_reads_one_hook_point_and_writes_another(store, tmp_path):
    asked = spec(objective="topk", hook_point_out=OUT, tokens=200_000)
    train(store, asked, tmp_path / "run")
    sae = load_sae(tmp_path / "run")
    assert (sae.config.hook_point, sae.config.hook_point_out) == (HOOK, OUT)
    assert (sae.d_in, sae.d_out) == (D, D + 2)
    x = activations(4000, seed=9)
    y = torch.cat([x.flip(1), x[:, :2]], 1)
    y_hat, _ = sae(x)
    assert float((y_hat - y).square().sum() / (y - y.mean(0)).square().sum()) < 0.25


def test_the_penalty_finds_its_coefficient_from_any_sane_start(store, tmp_path):
    for start in (0.1, 1.0, 10.0):
        run = tmp_path / str(start)
        (sae,) = train(store, spec(coefficient=start, tokens=400_000, validation=8192), run)
        assert quality(sae, activations(8000, seed=9))[0] == pytest.approx(L0, rel=0.03)
        ends = [line["coefficient"] for line in read_log(run) if "coefficient" in line]
        assert 1 < ends[-1] < 5, "and it is the same one"


def test_several_saes_come_of_one_reading(store, tmp_path):
    specs = [spec(l0=2.0, objective="topk"), spec(l0=4.0, objective="topk"), spec(tokens=20_000)]
    together = train(store, specs, tmp_path / "all")
    folders = sorted(path.name for path in (tmp_path / "all").iterdir() if path.is_dir())
    assert len(folders) == 3
    for one, asked in zip(together, specs, strict=True):
        (alone,) = train(store, asked, tmp_path / f"alone-{asked.l0}-{asked.objective}")
        assert alone.fingerprint == one.fingerprint
    assert load_sae(tmp_path / "all" / folders[0]).fingerprint in {sae.fingerprint for sae in together}


def test_the_bf16_product_costs_no_quality(store, tmp_path):
    errors = []
    for product in ("float32", "bfloat16"):
        (sae,) = train(store, spec(objective="topk", product=product, tokens=150_000), tmp_path / product)
        errors.append(figures(sae)["fvu"])
    assert errors[1] == pytest.approx(errors[0], abs=0.02)


def test_dead_features_come_back(store, tmp_path):
    dead = {}
    for revive in (0, 10_000):
        asked = spec(d_hidden=64, tokens=200_000, dead=10_000, revive=revive, aux=0.0, objective="batchtopk", seed=3)
        sample = activations(4096)
        trainer = Trainer(asked, sample)
        trainer.weights["b_enc"][:40] = -50  # as good as dead, and nothing teaches them
        for step in range(asked.steps):
            trainer.step(activations(256, seed=step + 1))
        dead[revive] = trainer.dead
    assert dead[0] >= 40
    assert dead[10_000] <= 12  # some die again


def test_the_average_of_the_weights_is_what_is_saved(store, tmp_path):
    (plain,) = train(store, spec(), tmp_path / "plain")
    (average,) = train(store, spec(ema=0.9), tmp_path / "ema")
    assert plain.fingerprint != average.fingerprint
    assert figures(average)["fvu"] < 1


def test_clipping_bounds_the_step():
    sample = activations(2048)
    one, other = Trainer(spec(), sample), Trainer(spec(clip=1e-9), sample)
    for trainer in (one, other):
        trainer.step(activations(256, seed=1))
    assert one.mean["W_enc"].norm() > 1e-3
    assert 0 < other.mean["W_enc"].norm() < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_of_every_kind_of_toy_is_found(kind):
    toy = Toy(kind, d_in=32, features=64, l0=3.0, group=8)
    asked = TrainSpec(objective="topk", d_hidden=64, l0=3.0, lr=5e-3, batch=512, tokens=512 * 1200, dead=50_000)
    trainer = Trainer(asked, toy.sample(8192, 10**6))
    for step in range(asked.steps):
        trainer.step(toy.sample(512, step))
    found = score(toy, trainer.weights["W_dec"])
    assert found.mmcs > (0.93 if kind in ("iid", "zipf") else 0.8)
    assert trainer.validate([(toy.sample(8192, 10**7), None)])["silent"] < 0.05


# ── the frame ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_few_enormous_tokens_do_not_move_the_frame():
    x = activations(2000)
    far = x.clone()
    far[:20] *= 1000
    one, other = Frame.of(x), Frame.of(far)
    assert other.size == pytest.approx(one.size, rel=0.05)
    assert (one.centre - other.centre).norm() < 0.1 * one.size * D**0.5
    assert (far.mean(0) - one.centre).norm() > 10 * one.size, "the mean is moved far"


def test_the_geometric_median_has_the_least_sum_of_distances():
    x = torch.randn(300, 5, dtype=torch.float64) ** 3
    centre = geometric_median(x)
    least = (x - centre).norm(dim=1).sum()
    for _ in range(50):
        assert (x - centre - 0.05 * torch.randn(5, dtype=torch.float64)).norm(dim=1).sum() > least


@pytest.mark.parametrize("objective", OBJECTIVE)
def test_the_finished_sae_computes_what_was_trained(objective):
    """Centre, size and decoder norms are folded away: raw activations in, the same reconstruction out."""
    sample = activations(2048).double()
    asked = spec(objective=objective, l0=3, product="float32")
    trainer = Trainer(asked, sample, dtype=torch.float64)
    for step in range(30):
        trainer.step(activations(256, seed=step).double())
    x = activations(500, seed=99).double()
    trainer.calibrate([(x, None)])
    sae = trainer.sae().moved("cpu", torch.float64)
    work = trainer._work(x, None)
    g = trainer._inferred(work)
    x_hat, f = sae(x)
    inside = (x_hat - trainer.read.centre) / trainer.read.size
    torch.testing.assert_close(inside - work.y, g.err[-1], rtol=1e-3, atol=1e-4)
    assert int((f > 0).sum()) == pytest.approx(int(g.active), abs=2)


def test_batchtopk_whose_features_are_too_few_for_its_l0_keeps_all_that_are_above_zero():
    x = torch.randn(2048, D, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(spec(objective="batchtopk", l0=20.0), x)
    for start in range(0, 2048, 256):
        trainer.step(x[start : start + 256])
    trainer.calibrate([(x, None)])
    assert trainer.threshold == 0
    work = trainer._work(x, None)
    above = int((work.pre.float() + trainer.weights["b_enc"] > 0).sum()) / len(x)
    assert 10 < trainer.validate([(x, None)])["l0"] == pytest.approx(above, rel=0.01)


def test_the_threshold_in_the_end_is_found_among_the_strongest_pairs_not_all(monkeypatch):
    trainer = Trainer(spec(objective="batchtopk", d_hidden=512), activations(2048))
    for step in range(20):
        trainer.step(activations(256, seed=step))
    real, taken = trainer.do.above, []
    monkeypatch.setattr(trainer.do, "above", lambda *given: taken.append(real(*given)) or taken[-1])
    trainer.calibrate([(activations(1024, seed=99), None)])
    assert sum(map(len, taken)) < 10 * L0 * 1024, "of 512 features for each token"
    trainer.bound = 100.0  # a guess that is far too high
    taken.clear()
    assert trainer.step(activations(1024, seed=100))["l0"] == pytest.approx(L0, rel=1e-3)
    assert sum(map(len, taken)) < 10 * L0 * 1024


def test_the_first_step_of_topk_looks_at_few_pairs_too(monkeypatch):
    x = torch.randn(1024, 128, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(spec(objective="topk", d_hidden=512), x)
    real, taken = trainer.do.candidates, []
    monkeypatch.setattr(trainer.do, "candidates", lambda *given: taken.append(real(*given)) or taken[-1])
    assert trainer.step(x)["l0"] == L0
    assert sum(map(len, taken)) < 0.2 * x.shape[0] * 512, "half of all are above zero"


# ── never losing a run ───────────────────────────────────────────────────────────────────────────────────────────

RUN = """
import sys
from sparsight.train.run import train
from sparsight.train.source import StreamSource
from sparsight.train.spec import TrainSpec
store, to, objective = sys.argv[1:]
train(store, TrainSpec(hook_point="model.layers.2", objective=objective, tokens=60_000, checkpoint=0.0, dead=5_000,
    d_hidden=32, l0=3.0, batch=256, lr=3e-3, validation=512, start=1024, validate=3), to)
"""


def test_a_run_killed_again_and_again_ends_with_the_very_same_sae(store, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

    def start(to):
        return subprocess.Popen([sys.executable, "-c", RUN, str(store), str(to), "relu"], env=environment)

    whole = start(tmp_path / "whole")
    kills = 0
    for share in (0.15, 0.5, 0.85):
        process = start(tmp_path / "killed")
        while process.poll() is None:
            steps = [int(p.name.split("-")[1]) for p in (tmp_path / "killed").glob("checkpoint-*.safetensors")]
            if steps and max(steps) > share * 234:
                process.send_signal(signal.SIGKILL)
                kills += 1
                process.wait()
            time.sleep(0.002)
    assert kills == 3
    assert start(tmp_path / "killed").wait() == 0
    assert whole.wait() == 0
    one, other = ((tmp_path / name / "sae.safetensors").read_bytes() for name in ("whole", "killed"))
    assert one == other
    held_out = [[ln for ln in read_log(tmp_path / n) if "held_out" in ln] for n in ("whole", "killed")]
    assert held_out[0] == held_out[1]
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {"sae.json", "sae.safetensors", "train.json", "log.jsonl"}


@pytest.mark.parametrize("objective", OBJECTIVE)
def test_going_on_from_any_checkpoint_changes_no_bit(objective):
    sample = activations(2048)
    asked = spec(objective=objective, tokens=256 * 40, dead=1500, ema=0.99 if objective == "relu" else None)
    whole = Trainer(asked, sample)
    kept = None
    for step in range(40):
        if step == 17:
            kept = {name: tensor.clone() for name, tensor in whole.tensors().items()}, json.dumps(whole.facts())
        whole.step(activations(256, seed=step))
    again = Trainer(asked, sample)
    again.restore(kept[0], json.loads(kept[1]))
    for step in range(17, 40):
        again.step(activations(256, seed=step))
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_a_run_that_is_done_is_read_and_another_is_refused(store, tmp_path):
    (one,) = train(store, spec(), tmp_path / "run")
    before = (tmp_path / "run" / "sae.safetensors").stat().st_mtime_ns
    (again,) = train(store, spec(), tmp_path / "run")
    assert again.fingerprint == one.fingerprint
    assert (tmp_path / "run" / "sae.safetensors").stat().st_mtime_ns == before
    with pytest.raises(Mismatch, match=r"lr 0\.003 there, 0\.001 here.*another folder"):
        train(store, spec(lr=1e-3), tmp_path / "run")


def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(store, tmp_path, monkeypatch):
    real, count = Trainer.step, []

    def poisoned(trainer, x, y=None):
        count.append(1)
        return real(trainer, x * torch.nan if len(count) == 50 else x, y)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(Diverged, match=r"no number at step 50\. The checkpoint of step 49 in .* is good: lower lr"):
        train(store, spec(checkpoint=0.0), tmp_path / "run")
    tensors, facts = checkpoint.read(tmp_path / "run", Team(), 49)
    assert facts["trainers"][0]["steps"] == 49
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    monkeypatch.setattr(Trainer, "step", real)
    (sae,) = train(store, spec(checkpoint=0.0), tmp_path / "run")
    assert figures(sae)["fvu"] < 1


def test_a_step_that_breaks_a_weight_is_never_kept(store, tmp_path, monkeypatch):
    real, count = Trainer.step, []

    def breaking(trainer, x, y=None):
        told = real(trainer, x, y)
        count.append(1)
        if len(count) == 20:
            trainer.weights["log_threshold"][5] = torch.inf  # a feature that is silent, and no loss shows it
        return told

    monkeypatch.setattr(Trainer, "step", breaking)
    with pytest.raises(Diverged, match=r"no number at step 20\. The checkpoint of step 19 in .* is good"):
        train(store, spec(checkpoint=0.0, objective="jumprelu"), tmp_path / "run")
    assert checkpoint.newest(tmp_path / "run", Team()) == 19


def test_what_was_being_written_when_a_run_was_killed_goes_with_its_next_checkpoint(tmp_path):
    left = [tmp_path / f"checkpoint-{step:09}-{rank:04}.safetensors.part" for step, rank in ((7, 0), (7, 1), (9, 0))]
    for aside in left:
        aside.mkdir()
        (aside / ".tmp8QHpIo").write_bytes(b"half of it")  # safetensors' own way to write aside
    checkpoint.write(tmp_path, Team(), 3, {"0.a": torch.ones(3)}, {"position": None, "trainers": []})
    assert [aside.exists() for aside in left] == [False, True, False], "another process may be at its own"
    checkpoint.clear(tmp_path, Team())
    assert [path.name for path in tmp_path.iterdir()] == [left[1].name]


def test_a_full_disk_is_an_error_and_keeps_the_checkpoint_before(store, tmp_path, monkeypatch):
    real, count = checkpoint.save_file, []

    def full(tensors, path, metadata):
        count.append(1)
        if len(count) == 5:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DiskFull, match=r"the checkpoint of step 4 is whole; make room"):
        train(store, spec(checkpoint=0.0), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").glob("*.part")) == []
    assert checkpoint.newest(tmp_path / "run", Team()) == 4


def test_a_disk_that_is_full_in_the_end_keeps_the_last_checkpoint(store, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparsight.sae.disk.save_file", full)
    asked = spec(checkpoint=0.0, tokens=256 * 10, objective="topk")
    with pytest.raises(DiskFull, match=r"the checkpoint of step 9 is whole; make room"):
        train(store, asked, tmp_path / "run")
    monkeypatch.undo()
    (sae,) = train(store, asked, tmp_path / "run")
    assert load_sae(tmp_path / "run").fingerprint == sae.fingerprint


def test_a_damaged_checkpoint_is_named(store, tmp_path):
    folder = tmp_path
    checkpoint.write(folder, Team(), 3, {"0.a": torch.ones(3)}, {"position": None, "trainers": []})
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(Exception, match=f"Cannot go on from '{path}'"):
        checkpoint.read(folder, Team(), 3)


class Member(Team):
    """One of several processes, as far as files are concerned."""

    def __init__(self, rank: int, world: int = 2, features: int = 1) -> None:
        self.rank, self.world, self.features = rank, world, features


def test_a_file_that_a_killed_run_left_of_a_later_step_never_displaces_a_whole_checkpoint(tmp_path):
    tensors = {"0.a": torch.ones(3)}
    for step, rank in ((50, 0), (50, 1), (100, 0)):  # killed before process 1 wrote its part of 100
        checkpoint.write(tmp_path, Member(rank), step, tensors, {})
    checkpoint.write(tmp_path, Member(0), 80, tensors, {})  # it went on from 50, and is killed again
    assert checkpoint.newest(tmp_path, Member(0)) == 50
    checkpoint.write(tmp_path, Member(1), 80, tensors, {})
    assert checkpoint.newest(tmp_path, Member(0)) == 80


@pytest.mark.parametrize(
    ("objective", "asked", "goes_on"),
    [("topk", {}, False), ("topk", {"rise": 0.0, "fit": False}, True), ("jumprelu", {}, True)],
)
def test_a_run_of_before_there_was_a_setting_goes_on_as_it_began(objective, asked, goes_on, store, tmp_path):
    folder, made = tmp_path / "run", {"objective": objective, "rise": 0.0, "fit": False}
    (before,) = train(store, spec(**made), folder)
    told = json.loads((folder / "train.json").read_text())
    for one in told["specs"]:
        del one["rise"], one["fit"]
    (folder / "train.json").write_text(json.dumps(told))
    now = spec(objective=objective, **asked)
    if goes_on:
        assert train(store, now, folder)[0].fingerprint == before.fingerprint
    else:
        with pytest.raises(Mismatch, match=r"rise 0\.0 there, 0\.5 here"):
            train(store, now, folder)


@pytest.mark.parametrize("other", [Member(0, 4), Member(0, 1), Member(0, 2, 2)])
def test_a_run_is_not_begun_anew_because_the_processes_are_others(other, tmp_path):
    for rank in range(2):
        checkpoint.write(tmp_path, Member(rank), 3, {"0.a": torch.ones(3)}, {})
    with pytest.raises(Mismatch, match=r"of a run of 2 processes, 1 to a dictionary; now there are"):
        checkpoint.read(tmp_path, other, checkpoint.newest(tmp_path, other))


# ── more than one process ────────────────────────────────────────────────────────────────────────────────────────


def member(rank: int, world: int, features: int, port: int, folder: str) -> None:
    """One process of a team: it trains on its part of the same batches, and leaves what it holds."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    team = Team.from_environment(torch.device("cpu"), features)
    rows = 256 // team.data
    mine = slice(team.data_rank * rows, (team.data_rank + 1) * rows)
    for objective in OBJECTIVE:
        trainer = Trainer(team_spec(objective), activations(2048).double(), team=team, dtype=torch.float64)
        silence(trainer)
        told = [trainer.step(activations(256, seed=step).double()[mine]) for step in range(25)]
        found = {"sae": trainer.sae().state_dict(), "told": told, "dead": trainer.dead}
        torch.save(found, f"{folder}/{objective}-{rank}.pt")
    end(rank, team, Path(folder))


def end(rank: int, team: Team, folder: Path) -> None:
    """A run whose SAE cannot be written by the first process, and a while after the others are through."""

    def full(*_):
        time.sleep(0.5)
        raise OSError(28, "No space left on device")

    class Toy:
        about, hook_points = {}, (HOOK,)

        def sample(self, tokens):
            return {HOOK: activations(tokens)}

        def held_out(self, tokens, size):
            yield {HOOK: activations(tokens, seed=9)}

        def batches(self, size, position=None):
            for step in range(position or 0, 10**6):
                yield step + 1, {HOOK: activations(size, seed=1 + step + 1000 * team.data_rank)}

    run.save_sae = full
    try:
        train(Toy(), spec(objective="topk", tokens=256 * 8, checkpoint=0.0, validate=1), folder / "run", team=team)
    except (DiskFull, RuntimeError):  # the other hears that the first is gone
        if rank == 0:
            dist.destroy_process_group()


def team_spec(objective: str) -> TrainSpec:
    groups = (8, 32) if objective == "batchtopk" else ()
    clip = 0.05 if objective == "gated" else None
    changes = {"clip": clip, "groups": groups, "product": "float32"}
    return spec(objective=objective, tokens=256 * 25, dead=1024, revive=2048, **changes)


SILENT = (3, 14, 20, 21, 30)


def silence(trainer: Trainer) -> None:
    """Some features that are as good as dead, in both halves of the dictionary."""
    for feature in SILENT:
        if trainer.mine.start <= feature < trainer.mine.stop:
            trainer.weights["b_enc"][feature - trainer.mine.start] = -50


def free_port() -> int:
    import socket

    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


@pytest.fixture(scope="module", params=[1, 2], ids=["data parallel", "feature sharded"])
def trained_by_two(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(member, (2, request.param, free_port(), str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("objective", OBJECTIVE)
def test_two_processes_train_what_one_does(objective, trained_by_two):
    alone = Trainer(team_spec(objective), activations(2048).double(), dtype=torch.float64)
    silence(alone)
    told = [alone.step(activations(256, seed=step).double()) for step in range(25)]
    assert alone.revived == len(SILENT), "what is compared has been through a revival"
    assert ("aux" in told[6]) == (objective in ("topk", "batchtopk")), "and dead features had a loss of their own"
    for rank in range(2):
        found = torch.load(trained_by_two / f"{objective}-{rank}.pt", weights_only=True)
        for there, here in zip(found["told"], told, strict=True):
            assert there == pytest.approx(here, rel=1e-6)
        assert found["dead"] == alone.dead
        for name, tensor in alone.sae().state_dict().items():
            torch.testing.assert_close(
                found["sae"][name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n} {m}"
            )


def test_checkpoints_of_all_processes_stay_until_the_sae_is_written(trained_by_two):
    left = sorted(path.name for path in (trained_by_two / "run").glob("*.safetensors"))
    assert left == [f"checkpoint-{step:09}-{rank:04}.safetensors" for step in (6, 7) for rank in (0, 1)]


# ── without a disk ───────────────────────────────────────────────────────────────────────────────────────────────


def pieces(seed: int, count: int = 40):
    """As harvest.stream gives them: pieces of odd lengths, from a position on."""

    def stream(position):
        for number in range(position or 0, count):
            yield number, {HOOK: activations(90 + 7 * (number % 5), seed=seed + number), "ids": None}

    return stream


def test_activations_that_come_straight_from_a_model_are_trained_on_and_gone_on_with(tmp_path, monkeypatch):
    def source():
        return StreamSource(pieces(0), pieces(0), pieces(1000), [HOOK], {"model": "toy"}, rows=1000, seed=4)

    asked = spec(checkpoint=0.0, tokens=20_000)
    (whole,) = train(source(), asked, tmp_path / "whole")
    real, count = Trainer.step, []

    def stopped(trainer, *batch):
        count.append(1)
        if len(count) == 50:
            raise KeyboardInterrupt
        return real(trainer, *batch)

    monkeypatch.setattr(Trainer, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(source(), asked, tmp_path / "stopped")
    monkeypatch.setattr(Trainer, "step", real)
    (again,) = train(source(), asked, tmp_path / "stopped")
    assert again.fingerprint == whole.fingerprint
    first = next(source().batches(256))[1][HOOK]
    assert not torch.equal(first[:90], activations(90)), "the buffer mixes what comes"


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "relo"}, "objective is one of: relu, jumprelu"),
        ({"l0": 0}, "l0 is a number above 0"),
        ({"l0": 40.0}, "l0 is 40; this SAE has 32 features"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"groups": (8, 4)}, "groups is whole numbers above 0, each larger"),
        ({"groups": (8, 16)}, "The last of the groups holds all features: 32, not 16"),
        ({"tokens": 10}, "tokens is one batch"),
        ({"warmup": 0.9, "decay": 0.5}, "at most 1 together"),
        ({"hook_point": "model.layers.7"}, "No activations of 'model.layers.7': these are of model.layers.2, "),
        ({"hook_point": None}, "Say which hook point is read"),
        ({"batch": True}, "batch is a whole number"),
        ({"ema": 1.0}, "ema is a number from 0 to below 1"),
        ({"objective": "topk", "l0": 2.5}, "l0 is a whole number of features for topk, not '2.5'"),
        ({"objective": "topk", "l0": 0.5}, "l0 is a whole number of features for topk"),
        ({"objective": "batchtopk", "l0": 0.001}, "l0 is at least one feature in a batch"),
    ],
)
def test_a_spec_that_cannot_be_says_what_is_wrong(changes, said, store, tmp_path):
    with pytest.raises(BadInput, match=said):
        train(store, spec(**changes), tmp_path / "run")


def test_every_knob_says_what_it_means():
    assert all(TrainSpec.knobs().values())
    assert set(PENALISED) < set(OBJECTIVE)


def test_a_store_too_small_for_a_batch_says_so(store, tmp_path):
    with pytest.raises(BadInput, match="fewer than a batch"):
        train(Shards(store), spec(batch=100_000, tokens=100_000), tmp_path / "run")


def test_a_text_too_short_for_a_batch_says_so():
    few = pieces(0, count=2)
    source = StreamSource(few, few, few, [HOOK], {"model": "toy"}, rows=1000)
    with pytest.raises(BadInput, match="fewer tokens that are kept than a batch of this process: 256"):
        next(source.batches(256))


def test_what_cannot_be_validated_is_not_begun(tmp_path):
    row = torch.arange(2000)
    with ShardWriter(tmp_path / "one", Manifest("tests/toy", {HOOK: D}, corpus="toy")) as writer:
        writer.append(activations(2000), row * 0, row * 0 + 64, row * 0)  # one conversation
    with pytest.raises(BadInput, match="has no conversation for validation"):
        train(tmp_path / "one", spec(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_tokens_that_are_all_the_same_are_an_error():
    trainer = Trainer(spec(), activations(2048))
    with pytest.raises(BadInput, match="The 4 held-out tokens do not differ"):
        trainer.validate([(activations(1).expand(4, D), None)])


@pytest.mark.parametrize("name", ["manifest.json", "sae.json"])
def test_nothing_is_written_over(name, store, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(Mismatch, match="already: write into another folder"):
        train(store, spec(), tmp_path)
    with pytest.raises(BadInput, match="is a file: an SAE is written into a folder"):
        train(store, spec(), tmp_path / name)
    with pytest.raises(BadFile, match="Cannot write"):
        train(store, spec(), tmp_path / name / "below")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_device_that_cannot_sum_in_float64_is_refused(store, tmp_path):
    with pytest.raises(BadInput, match="train with device 'cpu'"):
        train(store, spec(), tmp_path / "run", device="mps")


def test_to_write_what_is_read_is_no_transcoder():
    sample = activations(2048)
    one, other = (Trainer(spec(hook_point_out=out), sample) for out in (None, HOOK))
    assert torch.equal(one.weights["W_dec"], other.weights["W_dec"])
