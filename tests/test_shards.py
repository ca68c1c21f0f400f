"""Shards: what is written is there whole or not at all, whatever happens; each row is read once, and well mixed."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sparsight.errors import BadFile, BadInput, DiskFull, Mismatch
from sparsight.records import Kind
from sparsight.shards import writer as writing
from sparsight.shards.buffer import ShuffleBuffer
from sparsight.shards.manifest import Manifest
from sparsight.shards.order import GOLDEN, is_held_out, mixed, permutation
from sparsight.shards.read_ahead import read_ahead
from sparsight.shards.shards import Shards
from sparsight.shards.writer import ShardWriter

HOOK, OTHER = "model.layers.2", "model.layers.3.mlp"
D = 4
ABOUT = Manifest("a/model", {HOOK: D}, tokens_per_shard=8, corpus="tales", kept=("user", "assistant"))
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its own memory from Linux")


def text(tokens: int, d_in: int = D) -> SimpleNamespace:
    """Tokens of which no two are alike: token i has id i; a conversation has seven of them."""
    number = torch.arange(tokens)
    rows = torch.randn(tokens, d_in, generator=torch.Generator().manual_seed(0)).bfloat16()
    kinds = torch.where(number % 3 == 0, int(Kind.GENERATED), int(Kind.USER | Kind.PROMPT))
    return SimpleNamespace(rows=rows, ids=number, kinds=kinds, conversations=number // 7)


def write(store: Path, tokens: int = 40, pieces=(40,), about: Manifest = ABOUT, rank: int = 0, positions: bool = False):
    """Write the text, or what is left of it, cut into pieces of these sizes in turn."""
    made, ends = text(tokens), np.cumsum([0, *(list(pieces) * tokens)]).clip(max=tokens)
    with ShardWriter(store, about, rank) as writer:
        if writer.done:
            return
        begin = (writer.position or {"piece": 0})["piece"] if positions else 0
        for number in range(begin, len(pieces) * tokens):
            start, end = int(ends[number]), int(ends[number + 1])
            if not positions:
                start, end = max(start, writer.tokens), max(end, writer.tokens)
            if start == end == tokens:
                return
            columns = (column[start:end] for column in (made.rows, made.ids, made.kinds, made.conversations))
            writer.append(*columns, position={"piece": number} if positions else None)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing(call, left: list[int], error: BaseException):
    """The call, until so many are left; then it fails."""

    def attempt(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return call(*args, **kwargs)

    return attempt


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No power is cut here; what is brought to the disk itself, and when, has a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def shard(store: Path, number: int = 0, rank: int = 0) -> Path:
    return store / f"rank-{rank:04}" / f"{number:06}"


@pytest.fixture
def store(tmp_path) -> Path:
    """Five shards of eight tokens."""
    write(tmp_path / "store")
    return tmp_path / "store"


def refused(path: Path, said: str, names: Path | None = None) -> None:
    """The store is refused with one line that names the file and says why."""
    with pytest.raises(BadFile, match=said) as caught:
        Shards(path).verify()
    assert "\n" not in str(caught.value)
    assert str(names or path) in str(caught.value)


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_was_appended_is_read_to_the_bit(tmp_path, dtype):
    made = text(21)
    write(tmp_path, 21, about=replace(ABOUT, dtype=dtype, notes={"who": "Zoë"}))
    shards = Shards(tmp_path)
    shards.verify()
    assert (len(shards), shards.d_in, shards.complete) == (21, D, True)
    assert (shards.manifest.tokens, shards.manifest.notes) == (21, {"who": "Zoë"})
    assert torch.equal(shards.rows(slice(None)), made.rows.to(getattr(torch, dtype)))
    tokens = shards.tokens(slice(None))
    for name in ("ids", "kinds", "conversations"):
        assert torch.equal(getattr(tokens, name), getattr(made, name))
    assert Kind(int(tokens.kinds[1])) == Kind.USER | Kind.PROMPT
    assert "21 tokens of a/model" in repr(shards)


def test_the_files_are_safetensors_for_everybody(store):
    made = text(40)
    for number in range(5):
        part = slice(8 * number, 8 * number + 8)
        assert torch.equal(load_file(shard(store, number) / f"rows.{HOOK}.safetensors")["rows"], made.rows[part])
        tokens = load_file(shard(store, number) / "tokens.safetensors")
        assert {name: column.tolist() for name, column in tokens.items()} == {
            name: getattr(made, name)[part].tolist() for name in ("ids", "kinds", "conversations")
        }


def test_a_store_has_the_bytes_that_were_announced(tmp_path):
    about = Manifest("a/model", {HOOK: 64, OTHER: 32}, tokens_per_shard=1000)
    with ShardWriter(tmp_path / "store", about, expected=2500) as writer:
        rows = {HOOK: torch.zeros(2500, 64), OTHER: torch.zeros(2500, 32)}
        writer.append(rows, *torch.zeros(3, 2500, dtype=torch.int64))
    real = sum(-(-len(data) // 4096) * 4096 for name, data in content(tmp_path).items() if name.count("/") == 3)
    assert real <= about.bytes_for(2500) <= 1.1 * real


@linux
def test_a_shard_gets_its_name_after_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    seen = []

    def where(handle):
        seen.append(os.readlink(f"/proc/self/fd/{handle}") if isinstance(handle, int) else str(handle))

    rename = os.rename
    monkeypatch.setattr(os, "fsync", where)
    monkeypatch.setattr(os, "rename", lambda a, b: (where(b), rename(a, b)))
    write(tmp_path, 8)
    part = str(shard(tmp_path)) + ".part"
    named = seen.index(str(shard(tmp_path)))
    names = ("tokens.safetensors", f"rows.{HOOK}.safetensors", "shard.json.part/shard.json")
    files = [f"{part}/{name}" for name in names]
    assert sorted(seen[named - 4 : named - 1]) == sorted(files)
    assert (seen[named - 1], seen[named + 1]) == (part, str(tmp_path / "rank-0000"))


@settings(max_examples=40)
@given(pieces=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), tokens=st.integers(0, 40))
def test_however_it_is_appended_the_store_is_the_same(tmp_path_factory, pieces, tokens):
    folder = tmp_path_factory.mktemp("stores")
    write(folder / "at once", tokens)
    write(folder / "in pieces", tokens, pieces)
    assert content(folder / "at once") == content(folder / "in pieces")
    assert [s.tokens for s in Shards(folder / "in pieces").shards[:-1]] == [8] * (-(-tokens // 8) - 1)
    shutil.rmtree(folder)


def test_several_hook_points_share_their_tokens(tmp_path):
    made, about = text(20), replace(ABOUT, hook_points={HOOK: D, OTHER: 3})
    other = torch.randn(20, 3).bfloat16()
    with ShardWriter(tmp_path, about) as writer:
        writer.append({OTHER: other, HOOK: made.rows}, made.ids, made.kinds, made.conversations)
        with pytest.raises(BadInput, match="appended were rows without a name"):
            writer.append(made.rows, made.ids, made.kinds, made.conversations)
        with pytest.raises(BadInput, match=f"appended were {HOOK}"):
            writer.append({HOOK: made.rows}, made.ids, made.kinds, made.conversations)
    shards = Shards(tmp_path)
    assert torch.equal(shards.rows(slice(5, 9), OTHER), other[5:9])
    for batch in shards.batches(6, block=3):
        assert torch.equal(batch[HOOK], made.rows[batch["index"]])
        assert torch.equal(batch[OTHER], other[batch["index"]])
    (one,) = shards.batches(20, hook_points=OTHER)
    assert one.keys() == {"index", OTHER}
    with pytest.raises(BadInput, match="Say which hook point"):
        shards.rows(0)
    with pytest.raises(BadInput, match="differ in d_in"):
        shards.d_in  # noqa: B018
    with pytest.raises(BadInput, match="No hook point 'model.layers.9'"):
        shards.batches(4, hook_points=["model.layers.9"])


def test_a_row_that_is_not_finite_is_named_and_nothing_of_its_piece_is_written(tmp_path):
    made = text(12)
    half = replace(ABOUT, dtype="float16")
    with ShardWriter(tmp_path, half) as writer:
        for bad, said in (
            (float("nan"), "holds numbers that are none"),
            (-float("inf"), "none"),
            (7e4, "reaches 7e.04"),
        ):
            rows = made.rows.float()
            rows[9, 2] = bad
            with pytest.raises(BadInput, match=f"Row 9 of this piece .token 9 of conversation 1. .*{said}.*{HOOK}"):
                writer.append(rows, made.ids, made.kinds, made.conversations)
        writer.append(made.rows, made.ids, made.kinds, made.conversations)  # and goes on well
    assert len(Shards(tmp_path)) == 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": torch.zeros(12, 5)}, r"are \[12, 4\] here, not \[12, 5\]"),
        ({"rows": torch.zeros(11, 4)}, r"are \[12, 4\] here, not \[11, 4\]"),
        ({"rows": torch.zeros(12, 4, dtype=torch.int32)}, "are .12, 4. here"),
        ({"ids": torch.arange(12) - 1}, "ids are from 0 to 4,294,967,295, not -1 to 10"),
        ({"kinds": torch.full((12,), 2**16)}, "kinds are from 0 to 65,535"),
        ({"conversations": torch.zeros(3, dtype=torch.int64)}, "one for each of 12 tokens"),
        ({"conversations": torch.zeros(12)}, "whole numbers"),
        ({"position": {1, 2}}, "position is kept as JSON"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_parts_that_do_not_fit_together_are_refused(tmp_path, change, said):
    given = {**vars(text(12)), "position": None} | change
    with ShardWriter(tmp_path, ABOUT) as writer, pytest.raises(BadInput, match=said):
        writer.append(given.pop("rows"), **given)
    assert len(Shards(tmp_path)) == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hook_points": {}}, "hook points"),
        ({"hook_points": {"../../etc/passwd": 4}}, "module path"),
        ({"hook_points": {"index": 4}}, "module path"),
        ({"hook_points": {HOOK: 0}}, "d_in of"),
        ({"dtype": "int8"}, "bfloat16, float16, float32"),
        ({"model": 3}, "model of shards is text"),
        ({"kept": "user"}, "kept takes words"),
        ({"world": 0}, "world must be"),
        ({"tokens_per_shard": 1.5}, "tokens_per_shard"),
        ({"notes": {"x": object()}}, "notes is kept as JSON"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_manifest_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        replace(ABOUT, **wrong)


def test_a_shard_is_of_half_a_gibibyte_if_nothing_else_is_asked():
    assert Manifest("m", {HOOK: 8192}).tokens_per_shard == 32768
    assert Manifest("m", {HOOK: 512}, dtype="float32").tokens_per_shard == 262144


# ── going on ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40)
@given(
    pieces=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    stops=st.lists(st.integers(0, 12), max_size=4),
    positions=st.booleans(),
)
def test_a_run_that_stopped_goes_on_and_the_store_is_the_same(tmp_path_factory, pieces, stops, positions):
    folder = tmp_path_factory.mktemp("stores")
    write(folder / "whole", 40, pieces, positions=positions)
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ShardWriter, "append", failing(ShardWriter.append, [stop], KeyboardInterrupt()))
            with suppress(KeyboardInterrupt):
                write(folder / "stopped", 40, pieces, positions=positions)
        assert not list((folder / "stopped").rglob("*.part"))
    write(folder / "stopped", 40, pieces, positions=positions)
    assert content(folder / "stopped") == content(folder / "whole")
    shutil.rmtree(folder)


def test_a_writer_says_how_much_there_is_and_from_where_to_go_on(tmp_path):
    made = text(10)
    writer = ShardWriter(tmp_path, ABOUT)
    assert (writer.tokens, writer.position, writer.done) == (0, None, False)
    for piece in range(2):
        part = slice(5 * piece, 5 * piece + 5)
        writer.append(*(column[part] for column in vars(made).values()), position={"file": 3, "line": piece})
    writer.abort()
    writer = ShardWriter(tmp_path, ABOUT)
    assert (writer.tokens, writer.position, writer.done) == (8, {"file": 3, "line": 1}, False)
    writer.abort()
    assert (len(Shards(tmp_path)), Shards(tmp_path).complete, Shards(tmp_path).manifest.tokens) == (8, False, None)


def test_a_complete_store_takes_no_more(store):
    before = content(store)
    with ShardWriter(store, ABOUT) as writer:
        assert (writer.done, writer.tokens) == (True, 40)
        with pytest.raises(BadInput, match="rank 0 is complete"):
            writer.append(*vars(text(1)).values())
    assert content(store) == before


def test_a_short_shard_of_a_run_that_was_not_done_is_filled_up(tmp_path):
    """Killed between its last shard and the word that it is done; now there is more text."""
    write(tmp_path / "a", 20)
    (tmp_path / "a" / "rank-0000" / "done.json").unlink()
    write(tmp_path / "a", 40)
    write(tmp_path / "b", 40)
    assert content(tmp_path / "a").keys() == content(tmp_path / "b").keys()
    assert torch.equal(Shards(tmp_path / "a").rows(slice(None)), text(40).rows)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": "b/model"}, "model 'a/model', not 'b/model'"),
        ({"model_revision": "2"}, "model_revision '', not '2'"),
        ({"hook_points": {OTHER: D}}, f"{HOOK}.*, not .*{OTHER}"),
        ({"hook_points": {HOOK: 5}}, "4}, not .*5}"),
        ({"dtype": "float32", "corpus": "news"}, "dtype 'bfloat16', not 'float32'; corpus 'tales', not 'news'"),
        ({"chat_template": "ab12"}, "chat_template"),
        ({"kept": ("all",)}, "kept"),
        ({"tokens_per_shard": 16}, "tokens_per_shard 8, not 16"),
        ({"world": 2}, "world 1, not 2"),
    ],
)
def test_a_store_about_something_else_is_not_written_to(store, other, said):
    before = content(store)
    with pytest.raises(Mismatch, match=said):
        ShardWriter(store, replace(ABOUT, **other))
    assert content(store) == before
    ShardWriter(store, replace(ABOUT, notes={"new": "words"}))


def test_shards_without_a_manifest_are_not_added_to(store):
    (store / "manifest.json").unlink()
    with pytest.raises(BadFile, match="no manifest.json"):
        ShardWriter(store, ABOUT)
    refused(store, "Cannot read", store / "manifest.json")


# ── kill -9 ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def forked(task) -> int:
    """Run it in a child, which is returned."""
    child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def sound_so_far(store: Path, tokens: int) -> None:
    """What a killed run left can be read, and is the beginning of the text."""
    if (store / "manifest.json").exists():
        shards = Shards(store)
        shards.verify()
        assert torch.equal(shards.rows(slice(None)), text(tokens).rows[: len(shards)])


def killed_at_every_step(folder: Path) -> None:
    write(folder / "whole", 20, [5], positions=True)
    steps = ("fsync", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "open")
    for last in range(1000):
        store, left = folder / f"step {last}", [last]

        def dying(call, left=left):
            def attempt(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return attempt

        def victim(store=store, dying=dying):
            for name in steps:
                setattr(os, name, dying(getattr(os, name)))
            writing._Part.write = dying(writing._Part.write)
            write(store, 20, [5], positions=True)

        code = ended(forked(victim))
        sound_so_far(store, 20)
        write(store, 20, [5], positions=True)
        assert content(store) == content(folder / "whole"), f"step {last}"
        if code == 0:
            assert last > 40
            return
        assert code == -signal.SIGKILL
        shutil.rmtree(store)


def killed_at_any_moment(folder: Path) -> None:
    chance, store, kills = random.Random(0), folder / "killed", 0
    begin = time.monotonic()
    write(folder / "whole", 600, [5, 11], positions=True)
    takes = time.monotonic() - begin
    while True:
        child = forked(lambda: write(store, 600, [5, 11], positions=True))
        time.sleep(chance.uniform(0, takes / 6 * 1.1**kills))  # longer and longer: on a busy machine, too, it ends
        os.kill(child, signal.SIGKILL)
        code = ended(child)
        sound_so_far(store, 600)
        if code == 0:
            break
        kills += 1
    assert kills >= 3
    assert content(store) == content(folder / "whole")


def written_by_two_at_once(folder: Path) -> None:
    about = replace(ABOUT, world=2)
    for attempt in range(20):
        store = folder / f"attempt {attempt}"
        children = [forked(lambda r=r, s=store: write(s, 20 + 9 * r, [3], about, r)) for r in range(2)]
        assert [ended(child) for child in children] == [0, 0]
        shards = Shards(store)
        shards.verify()
        assert shards.complete
        assert shards.manifest.tokens == 49
        assert shards.tokens(slice(None)).ids.tolist() == [*range(20), *range(29)]
        assert sorted(p.name for p in store.iterdir()) == [
            "lock-0000", "lock-0001", "manifest.json", "rank-0000", "rank-0001",
        ]  # fmt: skip


def test_whatever_happens_to_its_processes_a_store_is_sound(tmp_path):
    """In a process of its own, which forks the victims: it runs no other threads."""
    code = "import os, pathlib, sys, test_shards as t; os.fsync = lambda handle: None\n"  # the system is not killed
    for task in (killed_at_every_step, killed_at_any_moment, written_by_two_at_once):
        (tmp_path / task.__name__).mkdir()
        code += f"t.{task.__name__}(pathlib.Path({str(tmp_path / task.__name__)!r}))\n"
    places = os.pathsep.join(map(os.path.abspath, [Path(__file__).parent, *sys.path]))
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_two_processes_of_one_rank_are_refused(tmp_path):
    with ShardWriter(tmp_path, ABOUT) as writer:
        with pytest.raises(BadFile, match="Another process holds"):
            ShardWriter(tmp_path, ABOUT)
        writer.append(*vars(text(9)).values())
    assert len(Shards(tmp_path)) == 9
    with pytest.raises(BadInput, match="rank must be a whole number from 0 to 0, not 1"):
        ShardWriter(tmp_path, ABOUT, rank=1)


def test_the_ranks_of_a_store_together_are_one_run(tmp_path):
    made, about = text(50), replace(ABOUT, world=3)
    for rank in (2, 0, 1):
        assert not (tmp_path / "manifest.json").exists() or Shards(tmp_path).manifest.tokens is None
        with ShardWriter(tmp_path, about, rank) as writer:
            writer.append(*(column[rank::3] for column in vars(made).values()))
    shards = Shards(tmp_path)
    ids = shards.tokens(slice(None)).ids
    assert shards.manifest.tokens == 50
    assert sorted(ids.tolist()) == list(range(50))
    assert torch.equal(shards.rows(slice(None)), made.rows[ids])


# ── a full disk ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_does_not_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    about = Manifest("m", {HOOK: 8192})
    assert about.bytes_for(10**9) == pytest.approx(16.4e12, rel=0.01)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * 10**12))
    with pytest.raises(DiskFull, match="1,000,000,000 tokens more take 16,3.* GB in .*; that disk has 2,000.0 GB free"):
        ShardWriter(tmp_path, about, expected=10**9)
    assert not (tmp_path / "manifest.json").exists()  # so that it can be asked for in another way
    ShardWriter(tmp_path, replace(about, dtype="float16"), expected=10**8).abort()


def test_what_is_there_already_needs_no_room(store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    ShardWriter(store, ABOUT, expected=40)
    with pytest.raises(DiskFull, match="1 tokens more"):
        ShardWriter(store, ABOUT, expected=41)


@contextmanager
def disk_full_at(step: int):
    """Every write, fsync and new folder fails from this one on. Gives what is left of the steps."""
    left, full = [step], OSError(errno.ENOSPC, "No space left on device")
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((writing._Part, "write"), (Path, "write_text"), (os, "fsync"), (os, "mkdir"), (os, "link")):
            patch.setattr(owner, name, failing(getattr(owner, name), left, full))
        yield left


def test_a_disk_that_fills_up_leaves_complete_shards_and_no_half_ones(tmp_path):
    write(tmp_path / "whole", 20, [5], positions=True)
    for step in range(1000):
        store = tmp_path / f"step {step}"
        with disk_full_at(step) as left, suppress(DiskFull):
            write(store, 20, [5], positions=True)
        if left[0] >= 0:
            break
        assert not list(store.rglob("*.part*"))
        if (store / "manifest.json").exists():
            shards = Shards(store)
            shards.verify()
            assert torch.equal(shards.rows(slice(None)), text(20).rows[: len(shards)])
        write(store, 20, [5], positions=True)
        assert content(store) == content(tmp_path / "whole")
        shutil.rmtree(store)
    assert step > 25


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_rows_that_the_disk_does_not_take_are_an_error_of_words(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "rows_file", lambda hook_point: "rows")
    mkdir = Path.mkdir

    def with_a_full_file(path, *args, **kwargs):
        mkdir(path, *args, **kwargs)
        if path.suffix == ".part":
            (path / "rows").symlink_to("/dev/full")

    monkeypatch.setattr(Path, "mkdir", with_a_full_file)
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode, *more, open=Path.open, **options: open(path, mode.replace("x", "r+"), *more, **options),
    )
    made = text(8000)
    with (
        pytest.raises(DiskFull, match="The disk is full at"),
        ShardWriter(tmp_path, replace(ABOUT, tokens_per_shard=9999)) as w,
    ):
        w.append(*vars(made).values())
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match="Cannot write shards to .*file"):
        ShardWriter(tmp_path / "file", ABOUT)

    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", denied)
    with pytest.raises(BadFile, match="Cannot write shards to .*new.*Permission denied"):
        ShardWriter(tmp_path / "new", ABOUT)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """Two processes' shards, 101 tokens in all; conversations of seven."""
    folder, about, made = tmp_path_factory.mktemp("three"), replace(ABOUT, world=2), text(101)
    for rank, part in enumerate((slice(0, 45), slice(45, 101))):
        with ShardWriter(folder, about, rank) as writer:
            writer.append(*(column[part] for column in vars(made).values()))
    return folder


ways = st.fixed_dictionaries(
    {
        "size": st.integers(1, 120),
        "seed": st.integers(0, 2**64),
        "window": st.integers(1, 120),
        "block": st.integers(1, 20),
        "split": st.sampled_from([None, "train", "validation"]),
        "held_out": st.floats(0.05, 0.95),
        "ahead": st.sampled_from([0, 0, 1, 3]),
    }
)


@settings(max_examples=120)
@given(way=ways, world=st.integers(1, 4), epoch=st.integers(0, 5))
def test_every_row_is_read_once_an_epoch_by_one_reader(three, way, world, epoch):
    shards, made, seen = Shards(three), text(101), []
    for rank in range(world):
        batches = shards.batches(rank=rank, world=world, **way)
        drawn = list(batches.epoch(epoch))
        assert len(drawn) == len(batches)
        assert all(len(batch["index"]) == way["size"] for batch in drawn[:-1])
        for batch in drawn:
            assert torch.equal(batch[HOOK], made.rows[batch["index"]])
            seen += batch["index"].tolist()
    wanted = range(101)
    if way["split"]:
        apart = is_held_out(made.conversations.numpy(), way["held_out"])
        wanted = np.flatnonzero(apart == (way["split"] == "validation"))
    assert Counter(seen) == Counter(wanted)


@settings(max_examples=80)
@given(way=ways, world=st.integers(1, 3), epoch=st.integers(0, 5), data=st.data())
def test_reading_goes_on_from_any_batch_as_if_it_had_never_stopped(three, way, world, epoch, data):
    batches = Shards(three).batches(rank=world - 1, world=world, **way)
    whole = list(batches.epoch(epoch))
    start = data.draw(st.integers(0, len(whole)))
    for batch, known in zip(batches.epoch(epoch, start), whole[start:], strict=True):
        assert torch.equal(batch["index"], known["index"])
        assert torch.equal(batch[HOOK], known[HOOK])


@settings(max_examples=40)
@given(way=ways, world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_full_batches_are_equally_many_for_all_readers(three, way, world, epoch):
    readers = [Shards(three).batches(rank=rank, world=world, full=True, **way) for rank in range(world)]
    drawn = [[len(batch["index"]) for batch in reader.epoch(epoch)] for reader in readers]
    assert {len(reader) for reader in readers} == {len(lengths) for lengths in drawn}
    assert {length for lengths in drawn for length in lengths} <= {way["size"]}


def test_seeds_and_epochs_are_other_orders_and_the_same_seed_is_the_same(three):
    def order(seed, epoch):
        batches = Shards(three).batches(10, seed=seed, window=40, block=4)
        return torch.cat([batch["index"] for batch in batches.epoch(epoch)]).tolist()

    assert order(1, 0) == order(1, 0)
    orders = [order(seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4


def test_orders_are_the_same_forever():
    """What a run that goes on a year later depends on. The first numbers are SplitMix64's as published."""
    stream = np.array([1234567], np.uint64) + np.arange(1, 4, dtype=np.uint64) * GOLDEN
    assert mixed(stream).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert permutation(10, 7, 1).tolist() == [3, 2, 6, 4, 7, 1, 8, 5, 0, 9]
    assert is_held_out(np.arange(300), 0.02).nonzero()[0].tolist() == [48, 68, 120, 133, 173, 186, 196, 295]


def test_a_batch_is_of_all_the_store(tmp_path):
    """40 batches from one window of 64 runs: each has rows of most runs, and no more of one than chance gives."""
    made = text(4096, 2)
    with ShardWriter(tmp_path, Manifest("m", {HOOK: 2}, tokens_per_shard=512)) as writer:
        writer.append(*vars(made).values())
    for batch in Shards(tmp_path).batches(128, window=4096, block=64):
        runs = Counter((batch["index"] // 64).tolist())
        assert len(runs) > 44
        assert max(runs.values()) < 11
        steps = batch["index"].diff()
        assert 0.3 < (steps > 0).float().mean() < 0.7
        assert steps.abs().float().mean() == pytest.approx(4096 / 3, rel=0.25)


def test_conversations_stay_together_on_one_side_of_the_split(tmp_path):
    made = text(7 * 500, 1)
    with ShardWriter(tmp_path, Manifest("m", {HOOK: 1}, tokens_per_shard=1000)) as writer:
        writer.append(*vars(made).values())
    shards = Shards(tmp_path)

    def conversations(**options):
        index = torch.cat([batch["index"] for batch in shards.batches(100, **options)])
        return shards.tokens(index).conversations.unique(return_counts=True)

    kept, sizes = conversations(split="validation", held_out=0.1)
    others, _ = conversations(split="train", held_out=0.1, seed=5)
    assert set(sizes.tolist()) == {7}
    assert sorted([*kept.tolist(), *others.tolist()]) == list(range(500))
    assert 25 < len(kept) < 75
    more, _ = conversations(split="validation", held_out=0.2)
    assert set(kept.tolist()) <= set(more.tolist())


def test_rows_and_tokens_are_found_by_their_numbers(three):
    shards, made = Shards(three), text(101)
    for index in (slice(40, 50), slice(None, None, -7), slice(3, 3), torch.tensor([100, 0, -1, 44, 45, 44])):
        wanted = torch.arange(101).tolist()[index] if isinstance(index, slice) else index.tolist()
        assert torch.equal(shards.rows(index), made.rows[wanted])
        assert shards.tokens(index).ids.tolist() == made.ids[wanted].tolist()
    assert torch.equal(shards.rows(-2), made.rows[99])
    for outside in (101, -102):
        with pytest.raises(BadInput, match=f"No row {outside}: there are 101"):
            shards.rows(outside)


def test_a_fingerprint_is_of_the_content(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", about=replace(ABOUT, notes={"other": "words"}))
    write(tmp_path / "c", 39)
    a, b, c = (Shards(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_batches_say_how_they_mix(store):
    said = repr(Shards(store).batches(8, window=30, block=4))
    assert said == "Batches(5 of 8 rows an epoch, from windows of 32 rows, filled with runs of 4)"
    assert Shards(store).batches(4096).window == 2**29 // (2 * D)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size must be"),
        ({"seed": -1}, "seed must be"),
        ({"split": "test"}, "No split 'test'"),
        ({"held_out": 1.0}, "held_out is a share"),
        ({"rank": 2, "world": 2}, "rank must be a whole number from 0 to 1"),
        ({"window": 0}, "window must be"),
        ({"hook_points": ()}, "at least one hook point"),
    ],
)
def test_batches_that_cannot_be_are_refused(store, options, said):
    with pytest.raises(BadInput, match=said):
        Shards(store).batches(**{"size": 8, **options})
    with pytest.raises(BadInput, match="start must be a whole number from 0 to 5, not 6"):
        Shards(store).batches(8).epoch(0, 6)


def test_an_empty_store_has_no_batches(tmp_path):
    write(tmp_path, 0)
    assert (len(Shards(tmp_path)), list(Shards(tmp_path).batches(4)), Shards(tmp_path).complete) == (0, [], True)
    assert Shards(tmp_path).rows(slice(None)).shape == (0, D)


def test_reading_ahead_keeps_the_order_and_the_errors_and_ends_when_nobody_listens():
    closed = []

    def numbers(last):
        try:
            yield from range(last)
            raise BadFile("gone")
        finally:
            closed.append(last)

    taken = []
    with pytest.raises(BadFile, match="gone"):
        taken.extend(read_ahead(numbers(50), 3))
    assert taken == list(range(50))
    few = read_ahead(numbers(10**9), 3)
    assert [next(few), next(few)] == [0, 1]
    few.close()
    assert closed == [50, 10**9]
    assert not [thread for thread in threading.enumerate() if thread.name == "reads ahead"]


def memory() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@linux
def test_a_store_is_read_in_the_memory_of_a_window(tmp_path):
    """96 MB through a window of 8 MB."""
    about = Manifest("m", {HOOK: 1024}, tokens_per_shard=6144)
    piece = torch.ones(6144, 1024, dtype=torch.bfloat16)
    columns = torch.zeros(3, 6144, dtype=torch.int64)
    with ShardWriter(tmp_path, about) as writer:
        for _ in range(8):
            writer.append(piece, *columns)
    del piece
    batches = Shards(tmp_path).batches(512, window=4096, ahead=2)
    before, peak, rows = memory(), 0, 0
    for batch in batches:
        peak, rows = max(peak, memory()), rows + len(batch["index"])
    assert rows == 8 * 6144
    assert peak - before < 48 * 2**20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_with_cuda_pieces_come_from_it_and_batches_are_pinned(tmp_path):
    made = text(40)
    with ShardWriter(tmp_path, ABOUT) as writer:
        writer.append(*(column.cuda() for column in vars(made).values()))
    assert torch.equal(Shards(tmp_path).rows(slice(None)), made.rows)
    assert all(batch[HOOK].is_pinned() for batch in Shards(tmp_path).batches(8))
    there = ((p, {name: column.cuda() for name, column in piece.items()}) for p, piece in pieces(40, [7]))
    for here, out in zip(ShuffleBuffer(pieces(40, [7]), 16, 4), ShuffleBuffer(there, 16, 4), strict=True):
        assert out[HOOK].is_cuda
        assert torch.equal(out[HOOK].cpu(), here[HOOK])


# ── stores that others made ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [f"rows.{HOOK}.safetensors", "tokens.safetensors"])
def test_files_that_were_cut_or_changed_are_named(store, name):
    path = shard(store, 3) / name
    whole = path.read_bytes()
    for length in (0, 7, 4000, 4096, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(store, "cut short or damaged", path)
    path.write_bytes(whole + b"\0")
    refused(store, "cut short or damaged", path)
    path.write_bytes(whole[:20] + b"?" + whole[21:])
    refused(store, "header", path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    Shards(store)
    refused(store, "other data than its checksum says", path)
    path.unlink()
    refused(store, "No such file", path)
    path.mkdir()
    refused(store, "cut short or damaged", path)


def test_a_check_names_all_that_is_damaged(store):
    for number in (1, 4):
        with (shard(store, number) / "tokens.safetensors").open("r+b") as file:
            file.seek(4096)
            file.write(b"?")
    for number in (1, 4):
        refused(store, "checksum", shard(store, number))


def test_a_file_that_is_cut_while_it_is_read_is_an_error(store):
    batches = Shards(store).batches(4, block=4, window=4, split="train", held_out=0.5)
    shards = Shards(store)
    for path in store.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadFile, match="was cut short after it was opened"):
        list(batches)
    with pytest.raises(BadFile, match="Cannot read"):
        shards.rows(slice(None))


def test_a_shard_that_is_missing_is_noticed(store):
    shutil.rmtree(shard(store, 4))
    refused(store, "has 4 shards; it was done with 5", store / "rank-0000")
    shutil.rmtree(shard(store, 2))
    refused(store, "A shard is missing: .* holds 000003, but no 000002", store / "rank-0000")
    with pytest.raises(BadFile, match="A shard is missing"):
        ShardWriter(store, ABOUT)
    shutil.rmtree(store / "rank-0000")
    refused(store, "has 0 tokens; its manifest says 40")


def test_a_damaged_end_can_be_taken_off_and_written_again(store):
    before = content(store)
    for number in (3, 4):
        shutil.rmtree(shard(store, number))
    (store / "rank-0000" / "done.json").unlink()
    write(store)
    assert content(store) == before


def test_shards_of_wrong_sizes_are_refused(store):
    write(store.parent / "short", 5)
    shutil.rmtree(shard(store, 1))
    shutil.copytree(shard(store.parent / "short"), shard(store, 1))
    refused(store, "has 5 tokens, and only a last shard may be short", shard(store, 1))


@pytest.mark.parametrize("name", ["manifest.json", "rank-0000/000001/shard.json", "rank-0000/done.json"])
@pytest.mark.usefixtures("unchecked")
def test_another_schema_and_garbage_are_refused(store, name):
    path = store / name
    said = json.loads(path.read_text())
    for schema in (2, None, "1"):
        path.write_text(json.dumps(said | {"schema": schema}))
        refused(store, f"is of schema {schema!r}; this sparsight reads schema 1", path)
    for garbage in ("", "{", "[]", "null", "\x00" * 9, "[" * 10**5):
        path.write_text(garbage)
        refused(store, "Cannot read|holds no JSON object", path)
    path.write_text('{"schema": 1}')
    refused(store, "does not say|not sound|it was done with None", path.parent if name.endswith("done.json") else path)
    path.write_bytes(b'{"schema": 1, "x": "\xff"}')
    refused(store, "Cannot read", path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=150)
@given(value=values, data=st.data())
def test_no_value_in_its_json_breaks_a_store_in_any_other_way(tmp_path_factory, value, data):
    store = tmp_path_factory.getbasetemp() / "garbled"
    if not store.exists():
        write(store)
    name = data.draw(st.sampled_from(["manifest.json", "rank-0000/000001/shard.json", "rank-0000/done.json"]))
    path = store / name
    whole = path.read_text()
    said = json.loads(whole)
    key = data.draw(st.sampled_from(sorted(said)))
    path.write_text(json.dumps(said | {key: value}))
    try:
        shards = Shards(store)
        shards.verify()
        list(shards.batches(16, window=16))
    except BadFile as error:
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        path.write_text(whole)


def test_links_are_followed_by_readers_and_never_by_what_cleans_up(store, tmp_path):
    path = shard(store, 1) / "tokens.safetensors"
    moved = path.rename(tmp_path / "elsewhere")
    path.symlink_to(moved)
    Shards(store).verify()
    moved.unlink()
    refused(store, "No such file", path)
    path.unlink()
    path.symlink_to(path)
    refused(store, "Too many levels of symbolic links", path)

    precious = tmp_path / "precious"
    write(precious)
    before = content(precious)
    (tmp_path / "new" / "rank-0000").mkdir(parents=True)
    shutil.copy(store / "manifest.json", tmp_path / "new")
    for name in ("000000.part", "000001.part"):
        (tmp_path / "new" / "rank-0000" / name).symlink_to(precious if name < "000001" else precious / "lock-0000")
    write(tmp_path / "new")
    assert content(precious) == before
    assert not list((tmp_path / "new").rglob("*.part"))


def test_a_pipe_in_place_of_a_file_does_not_hang(store):
    path = shard(store, 1) / "tokens.safetensors"
    path.unlink()
    os.mkfifo(path)
    refused(store, "cut short or damaged", path)


def test_files_that_may_not_be_read_are_named(store, monkeypatch):
    def denied(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("sparsight.shards.shard.FileIO", denied)
    refused(store, "Permission denied", shard(store))
    with pytest.raises(BadFile, match="Permission denied"):
        list(Shards(store).batches(4))
    monkeypatch.setattr(Path, "read_text", denied)
    refused(store, "Permission denied", store / "manifest.json")


def test_what_is_no_store_is_said_to_be_none(tmp_path):
    refused(tmp_path / "nowhere", "Cannot read", tmp_path / "nowhere" / "manifest.json")
    (tmp_path / "manifest.json").write_text("{}")
    refused(tmp_path, "schema None")


# ── without a disk ───────────────────────────────────────────────────────────────────────────────────────────────────


def pieces(tokens: int, sizes, begin: int = 0):
    """(position, piece) pairs; a position is the piece's number."""
    made, ends = text(tokens), np.cumsum([0, *(list(sizes) * (tokens + 1))]).clip(max=tokens).tolist()
    for number in range(begin, ends.index(tokens) if tokens else 0):
        part = slice(ends[number], ends[number + 1])
        yield number, {HOOK: made.rows[part], "ids": made.ids[part]}


sizes = st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any)


@settings(max_examples=100)
@given(tokens=st.integers(0, 90), cut=sizes, rows=st.integers(1, 50), batch=st.integers(1, 20))
def test_a_stream_is_mixed_alike_however_it_comes(tokens, cut, rows, batch):
    made, seen = text(tokens), []
    buffer = ShuffleBuffer(pieces(tokens, cut), rows, batch, seed=3)
    known = list(ShuffleBuffer(pieces(tokens, [max(tokens, 1)]), rows, batch, seed=3))
    for number, (out, other) in enumerate(zip(buffer, known, strict=True)):
        assert torch.equal(out["ids"], other["ids"])
        assert torch.equal(out[HOOK], made.rows[out["ids"]])
        window = number * batch // buffer.rows
        assert all(i // buffer.rows == window for i in out["ids"].tolist())
        seen += out["ids"].tolist()
    assert Counter(seen) == Counter(range(tokens))


@settings(max_examples=100)
@given(tokens=st.integers(0, 90), cut=sizes, rows=st.integers(1, 50), batch=st.integers(1, 20), stop=st.integers(0, 90))
def test_a_stream_goes_on_from_its_small_state(tokens, cut, rows, batch, stop):
    whole = [out["ids"].tolist() for out in ShuffleBuffer(pieces(tokens, cut), rows, batch)]
    first = ShuffleBuffer(pieces(tokens, cut), rows, batch)
    taken = [out["ids"].tolist() for out in islice(first, stop)]
    state = json.loads(json.dumps(first.state()))
    again = ShuffleBuffer(pieces(tokens, cut, state["position"] or 0), rows, batch, state=state)
    assert taken + [out["ids"].tolist() for out in again] == whole


@linux
def test_a_stream_is_mixed_in_the_memory_of_its_buffer():
    """A buffer of 96 MB: two of them would be 192."""
    peak = [0]

    def source():
        for number in range(100):
            yield number, {HOOK: torch.ones(1024, 1024, dtype=torch.bfloat16)}
            peak[0] = max(peak[0], memory())

    before, rows = memory(), 0
    for out in ShuffleBuffer(source(), 48 * 1024, 512):
        peak[0], rows = max(peak[0], memory()), rows + len(out[HOOK])
    assert rows == 100 * 1024
    assert peak[0] - before < 144 * 2**20


def test_a_piece_is_gone_before_the_next_is_made():
    gone = []

    def source():
        for number in range(9):
            assert len(gone) == number
            rows = np.zeros((10, 4), np.float32)
            weakref.finalize(rows, gone.append, number)
            piece = {HOOK: torch.from_numpy(rows)}
            del rows
            yield number, piece
            del piece

    assert sum(len(out[HOOK]) for out in ShuffleBuffer(source(), 32, 4)) == 90


def test_pieces_that_do_not_match_are_refused():
    def mixed(*given):
        return list(ShuffleBuffer(enumerate(given), 8, 4))

    a = {HOOK: torch.zeros(3, 4), "ids": torch.arange(3)}
    with pytest.raises(BadInput, match=r"A piece has .*\[3, 5\].*those before had .*\[8, 4\]"):
        mixed(a, a | {HOOK: torch.zeros(3, 5)})
    with pytest.raises(BadInput, match="float64"):
        mixed(a, a | {HOOK: torch.zeros(3, 4, dtype=torch.float64)})
    with pytest.raises(BadInput, match="A piece has ids"):
        mixed(a, {"ids": torch.arange(3)})
    with pytest.raises(BadInput, match="different lengths"):
        mixed(a | {"ids": torch.arange(2)})
    with pytest.raises(BadInput, match="A piece has nothing"):
        mixed(a, {})
    assert sum(len(out["ids"]) for out in mixed(a, a | {HOOK: torch.zeros(4, 3).T})) == 6  # not contiguous


def test_a_state_of_another_buffer_is_refused():
    state = ShuffleBuffer(pieces(20, [5]), 8, 4).state()
    for other in ({"rows": 16}, {"batch": 2}, {"seed": 1}):
        with pytest.raises(Mismatch, match="The state is of a buffer with"):
            ShuffleBuffer(pieces(20, [5]), **{"rows": 8, "batch": 4, **other}, state=state)
