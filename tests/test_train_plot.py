"""The course of a training as a picture, and told to others."""

import json
import sys
import types
import xml.etree.ElementTree as ET

import pytest
from conftest import HOOK

from sparsight.errors import BadFile, BadInput, Missing
from sparsight.records import Progress
from sparsight.train.listeners import REPORTS, Listener, all_of
from sparsight.train.log import Log
from sparsight.train.plot import course, plot
from sparsight.train.run import train
from sparsight.train.spec import TrainSpec

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(tmp_path):
    """A folder as a training of several SAEs leaves it: (name, l0, the coefficient or 0)."""

    def made(*saes: tuple[str, float, float], steps: int = 20):
        log, folder = Log(tmp_path, 0), tmp_path
        specs = [{"l0": l0, "batch": 100} for _, l0, _ in saes]
        (folder / "train.json").write_text(json.dumps({"specs": specs}))
        for step in range(1, steps + 1):
            for name, l0, coefficient in saes:
                log.saw(name, {"l0": l0 + 60 / step, "fvu": 1 / step, "coefficient": coefficient, "lr": 1e-3})
                if step % 5 == 0:
                    log.validated(name, step, {"l0": l0, "fvu": 2 / step, "silent": 0.1})
            log.write(step, step * 100, {name: {"dead": step, "revived": 0} for name, *_ in saes})
        return folder

    return made


def words(path) -> str:
    """What a picture's text was, in an SVG of matplotlib: it says it in comments."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    return "\n".join(str(e.text) for e in ET.parse(path, parser).iter() if not isinstance(e.tag, str))


def colours(path) -> set[str]:
    """Of the curves of a picture."""
    styles = [e.get("style", "") for e in ET.parse(path).iter(f"{SVG}path")]
    return {part.split(":")[1].strip() for style in styles for part in style.split(";") if "stroke:" in part}


def test_a_training_is_drawn_beside_its_log_or_where_it_is_wanted(run, tmp_path):
    folder = run(("relu", 16.0, 0.5))
    assert plot(folder) == folder / "plot.png"
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert plot(folder, tmp_path / "a.PDF").read_bytes().startswith(b"%PDF")
    assert not list(folder.glob("*.part"))


def test_every_number_of_the_log_has_its_panel_and_every_sae_its_line(run, tmp_path):
    folder = run(("one", 16.0, 0.5), ("two", 8.0, 0.0))
    path = plot(folder, tmp_path / "a.svg")
    said = words(path)
    for title in ("L0", "FVU", "dead features", "coefficient", "learning rate", "held out", "thousand tokens"):
        assert title in said
    assert "one" in said
    assert "L0 8, FVU 0.1" in said, "the last validation stands in the legend"
    assert {"#0072b2", "#d55e00"} <= colours(path)
    assert "coefficient" not in words(plot(run(("two", 8.0, 0.0)), tmp_path / "b.svg")), "topk has none"


def test_the_course_is_what_the_log_says(run):
    folder = run(("one", 16.0, 0.5), ("two", 8.0, 0.0), steps=10)
    one, two = course(folder)
    assert (one.name, one.target, two.target) == ("one", 16.0, 8.0)
    assert [line["tokens"] for line in one.lines] == [100 * step for step in range(1, 11)]
    assert [(point["tokens"], point["fvu"]) for point in two.held_out] == [(500, 0.4), (1000, 0.2)]


def test_many_saes_and_a_log_of_one_line_are_drawn_too(run, tmp_path):
    folder = run(*((f"model.layers.19_relu_65536_l0-{i}", float(i), 1.0) for i in range(1, 13)), steps=1)
    assert plot(folder, tmp_path / "a.png").exists()


def test_what_cannot_be_drawn_says_why(run, tmp_path, monkeypatch):
    with pytest.raises(BadFile, match="no log of a training run"):
        plot(tmp_path / "nowhere")
    folder = run(("relu", 16.0, 0.5))
    with pytest.raises(BadInput, match=r"\.png, \.svg, \.pdf, not 'a\.gif'"):
        plot(folder, tmp_path / "a.gif")
    with pytest.raises(BadFile, match="Cannot write"):
        plot(folder, tmp_path / "no" / "a.png")
    (folder / "train.json").write_text("{}")
    with pytest.raises(BadFile, match="not as a training leaves it"):
        plot(folder)
    (folder / "log.jsonl").write_text("")
    with pytest.raises(BadInput, match="not written a line"):
        plot(folder)
    run(("relu", 16.0, 0.5))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Missing, match=r"pip install 'sparsight\[plot\]'"):
        plot(folder)


# ── told to others ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def heard(monkeypatch):
    """Stand-ins for the libraries: all that they were told."""
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append(("init", {"folder": folder, "purge_step": purge_step}))

        def add_scalar(self, name, value, step):
            calls.append(("log", {name: value}, step))

        def close(self):
            calls.append(("finish",))

    def init(**options):
        calls.append(("init", options))
        return made["wandb"]

    for name in ("wandb", "trackio"):
        stub = types.ModuleType(name)
        stub.init = init
        stub.log = lambda told, step: calls.append(("log", told, step))
        stub.finish = lambda: calls.append(("finish",))
        monkeypatch.setitem(sys.modules, name, stub)
    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    made = {"wandb": sys.modules["wandb"]}
    return calls


@pytest.mark.parametrize("report", REPORTS)
def test_a_training_is_told_to_who_was_asked_for_from_its_first_step_to_its_end(report, heard, tmp_path):
    with Listener(report, tmp_path, {"l0": 16}) as tell:
        assert heard == [], "nothing is begun before there is something to say"
        tell(Progress("train", 3, 9, "steps", 1.0, {"l0": 20.0, "target_l0": 16.0}))
        tell(Progress("train", 6, 9, "steps", 2.0, {"l0": 18.0, "target_l0": 16.0}))
    kinds = [call[0] for call in heard]
    assert (kinds[0], kinds[-1], kinds.count("init"), kinds.count("finish")) == ("init", "finish", 1, 1)
    told = [(name, value, call[2]) for call in heard if call[0] == "log" for name, value in call[1].items()]
    assert sorted(told) == [("l0", 18.0, 6), ("l0", 20.0, 3), ("target_l0", 16.0, 3), ("target_l0", 16.0, 6)]


@pytest.mark.parametrize("report", ["wandb", "trackio"])
def test_a_training_that_goes_on_goes_on_there_too(report, heard, tmp_path):
    for step in (3, 6):
        with Listener(report, tmp_path) as tell:
            tell(Progress("train", step, 9, "steps", 1.0))
    one, again = [call[1] for call in heard if call[0] == "init"]
    assert one == again
    assert (one["project"], one["resume"]) == ("sparsight", "allow")
    assert one["name"].startswith(tmp_path.name)


def test_of_several_saes_each_is_told_once(heard, tmp_path):
    facts = {"l0": 2.0, "a/l0": 2.0, "b/l0": 3.0, "tokens": 100, "tokens_per_second": 5.0}
    with Listener("trackio", tmp_path) as tell:
        all_of([tell])(Progress("train", 1, 9, "steps", 1.0, facts))
    assert heard[1][1] == {"a/l0": 2.0, "b/l0": 3.0, "tokens": 100, "tokens_per_second": 5.0}


@pytest.mark.parametrize("report", REPORTS)
def test_a_library_that_is_not_installed_is_said_before_the_training(report, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if report == "tensorboard" else report, None)
    with pytest.raises(Missing, match=f"pip install {report}"):
        Listener(report, tmp_path)
    with pytest.raises(BadInput, match="There are: wandb, trackio, tensorboard"):
        Listener("mlflow", tmp_path)


@pytest.mark.filterwarnings("ignore:.*explains less than nothing")  # ten steps, on noise
def test_a_run_tells_its_l0_and_its_target_its_fvu_dead_features_and_speed(store, tmp_path):
    small = {
        "hook_point": HOOK,
        "objective": "topk",
        "d_hidden": 32,
        "lr": 3e-3,
        "batch": 64,
        "tokens": 640,
        "start": 512,
    }
    heard = []
    train(store, TrainSpec(l0=4.0, validate=2, **small), tmp_path / "one", heard.append)
    assert [p.done for p in heard] == [*range(1, 11), 10], "and in the end of the SAE as it is saved"
    first = heard[0].facts
    assert {"l0", "target_l0", "fvu", "dead", "coefficient", "lr", "tokens", "tokens_per_second"} <= first.keys()
    assert (first["target_l0"], first["tokens"]) == (4.0, 64)
    assert [p.done for p in heard if "held_out_fvu" in p.facts] == [5, 10, 10]
    heard.clear()
    train(store, [TrainSpec(l0=4.0, **small), TrainSpec(l0=2.0, **small)], tmp_path / "two", heard.append)
    facts = heard[0].facts
    assert facts["l0"] == facts[f"{HOOK}_topk_32_l0-4/l0"]
    assert len({name.partition("/")[0] for name in facts if "/" in name}) == 2


@pytest.fixture
def store(tmp_path):
    import torch

    from sparsight.shards.manifest import Manifest
    from sparsight.shards.writer import ShardWriter

    about = Manifest(model="tests/toy", hook_points={HOOK: 8}, corpus="toy", dtype="float16")
    with ShardWriter(tmp_path / "store", about) as writer:
        zeros = torch.zeros(2000, dtype=torch.int64)
        x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
        writer.append(x, zeros, zeros + 64, torch.arange(2000) // 10)
    return tmp_path / "store"
