"""The front desk: what a person types, and the one line that answers what cannot be done."""

import json
import os
import re
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from conftest import llama, random_sae

from sparsight import doctor, screen
from sparsight.cli import bar, cli, knobs, main
from sparsight.cli.bar import Bar
from sparsight.config import knob
from sparsight.edits import Controller
from sparsight.errors import BadInput
from sparsight.recipes.recipe import recipe_text
from sparsight.sae.files import load_sae, save_sae
from sparsight.scope.load import showcase, voice_settings


@dataclass(frozen=True)
class Oven:
    """Settings of every kind of option."""

    heat: float = knob(180.0, "degrees")
    eggs: int | None = knob(3, "how many; None: as they come")
    layers: tuple[str, ...] = knob(("jam",), "what is between")
    sizes: tuple[int, ...] = knob((), "centimetres")
    fan: bool = knob(True, "moves the air")
    key: str | None = knob(None, "opens it", repr=False)


@pytest.fixture
def bake(monkeypatch):
    """A verb with an oven's knobs: what it was given, or what it said."""
    monkeypatch.setattr(knobs, "sections", lambda: {"oven": Oven})

    @click.command()
    @knobs.knob_options("oven", "o-", {"heat": "heat"})
    @knobs.knob_options("absent")
    def verb(**options):
        click.echo(json.dumps(knobs.gathered(options)))

    def baked(*args):
        out = CliRunner().invoke(verb, args)
        return json.loads(out.output) if out.exit_code == 0 and args != ("--help",) else out.output

    return baked


@pytest.fixture(scope="session")
def saved(tmp_path_factory, tokenizer):
    """(model folder, SAE folder) on disk."""
    folder = tmp_path_factory.mktemp("saved")
    llama().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model"), str(save_sae(random_sae(), folder / "sae"))


@pytest.fixture
def here(saved):
    return ["--model", saved[0], "--sae", saved[1]]


def run(capsys, *args):
    """(exit code, standard output, standard error)"""
    code = main([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


def process(*args, stdin=b"", **env):
    command = [sys.executable, "-m", "sparsight.cli", *args]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, env={**os.environ, **env})


def test_help_names_every_verb_and_needs_no_torch(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"\n  {verb} " in out for verb in ("chat", "demo", "doctor", "info", "read"))
    probe = "import sys; from sparsight.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 0


def verbs(group=cli, words=()):
    """Every verb, those in groups too: ((word, ...), command)."""
    for name, verb in sorted(group.commands.items()):
        yield (*words, *name.split()), verb
        yield from verbs(verb, (*words, name)) if isinstance(verb, click.Group) else ()


@pytest.mark.parametrize(("words", "verb"), [pytest.param(*pair, id=" ".join(pair[0])) for pair in verbs()])
def test_every_verb_explains_itself_and_its_options(capsys, words, verb):
    code, out, _ = run(capsys, *words, "--help")
    assert code == 0
    assert out.startswith(f"Usage: sparsight {' '.join(words)} ")
    assert all(option.help for option in verb.params if option.param_type_name == "option")
    assert verb.help.split()[:6] == out.split("\n\n")[1].split()[:6]


def test_reading_shows_tokens_and_features(capsys, here):
    code, out, err = run(capsys, "read", "Once upon a time", *here)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()][:2] == ["<|begin_of_text|>", "Once"]
    code, out, _ = run(capsys, "read", "Once upon a time", *here, "--json", "--top", 2)
    data = json.loads(out)
    assert [t["token"] for t in data["tokens"]][1:] == ["Once", " upon", " a", " time"]
    assert all(len(t["features"]) <= 2 for t in data["tokens"])


def test_a_reading_takes_text_from_a_pipe_and_a_users_message(saved):
    out = process("read", "-", "--model", saved[0], "--sae", saved[1], "--json", stdin="Once upon ☕".encode())
    assert out.returncode == 0
    assert "".join(t["token"] for t in json.loads(out.stdout)["tokens"][1:]) == "Once upon ☕"
    out = process("read", "Hello", "--chat", "--model", saved[0], "--sae", saved[1], "--json")
    assert {"user", "prompt"} in [set(t["kind"]) for t in json.loads(out.stdout)["tokens"]]


def test_chat_answers_each_line_of_a_pipe(saved):
    options = ["--model", saved[0], "--sae", saved[1], "-n", "6", "--edit", "3=+9@generated"]
    out = process("chat", *options, "--compare", stdin=b"Hello\n\nHow are you?\n/quit\nnever read\n")
    assert out.returncode == 0
    assert out.stdout.decode().count("unsteered") == 2
    assert b"never read" not in out.stdout
    out = process("chat", *options, "--plain", stdin=b"Once")
    assert out.returncode == 0
    assert out.stdout.strip()


def test_the_same_seed_gives_the_same_text(capsys, saved):
    options = ["chat", "--model", saved[0], "--sae", saved[1], "-n", "8", "--plain", "--seed"]
    first, again, other = (process(*options, seed, stdin=b"Once\n").stdout for seed in ("1", "1", "2"))
    assert first == again != other


def test_info_says_what_it_is(capsys, here):
    code, out, _ = run(capsys, "info", *here, "--json")
    about = json.loads(out)
    assert code == 0
    assert (about["hook point"], about["features"], about["layers"]) == ("model.layers.2", 128, 4)
    code, out, _ = run(capsys, "info", *here)
    assert "SAE fingerprint" in out


def test_doctor_examines_the_machine(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["torch"] == torch.__version__
    sizes = {row["model"]: row["needs_gb"] for row in found["fits"]}
    size = sizes["Llama-3.1-8B-Instruct"]
    assert 17 < size["bfloat16"] < 20  # 16.1 of weights, 1.1 of SAE, 1.1 of cache
    assert size["float32"] == pytest.approx(2 * size["bfloat16"], abs=0.02)
    code, out, _ = run(capsys, "doctor")
    assert "Would it fit" in out


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["dmeo"], 2, "No verb 'dmeo'. Did you mean 'demo'?"),
        (["frobnicate"], 2, "No verb 'frobnicate'. There are: "),
        (["recipes", "lsit"], 2, "No verb 'lsit'. Did you mean 'list'?"),
        (["recipes", "show", "dmeo"], 1, "No recipe 'dmeo': it is no file. Did you mean 'demo'?"),
        (["harvest", "/no/such.toml", "--to", "x"], 1, "No recipe '/no/such.toml'"),
        (
            ["harvest", "--corpus-seed", "many", "--corpus", "x", "--to", "x"],
            2,
            "seed is a whole number, not 'many'",
        ),
        (["train", "shardz", "--to", "x"], 1, "'shardz' is neither a folder of activations nor a recipe"),
        (["harvest", "--to", "x"], 1, "[corpus] does not say source: a file, a folder"),
        (
            ["harvest", "--corpus", "x", "--set", "corpus.sead=3", "--to", "x"],
            1,
            "No setting 'sead' in [corpus]. Did",
        ),
        (["harvest", "--corpus", "x", "--set", "sead=3", "--to", "x"], 1, "Write section.key=value"),
        (["read", "x", "--tpo", "3"], 2, "--tpo"),
        (["read"], 2, "Missing argument 'TEXT'"),
        (["read", "x", "--top", "many"], 2, "'many' is not a valid integer"),
        (["read", "", "HERE"], 1, "The prompt is empty"),
        (["read", "word " * 300, "HERE"], 1, "this model's context holds 256"),
        (["read", "caf\udce9", "HERE"], 1, "not valid UTF-8"),
        (["read", "x", "--model", "/no/such/folder", "--sae", "SAE"], 1, "No model at '/no/such/folder'"),
        (["read", "x", "--model", "MODEL"], 1, "Which SAE?"),
        (["read", "x", "--model", "MODEL", "--sae", "/no/such.pth"], 1, "No SAE at '/no/such.pth'"),
        (["read", "x", "HERE", "--hook-point", "model.layers.40"], 1, "'model.layers' of this model has 0 to 3"),
        (["read", "x", "HERE", "--hook-point", "model.layers.1.mlp.gate_proj"], 1, "this model gives 64"),
        (["read", "x", "HERE", "--dtype", "float7"], 1, "No dtype 'float7'"),
        (["read", "x", "HERE", "--dtype", "int64"], 1, "No dtype 'int64'"),
        (["chat", "HERE", "--edit", "128=+1"], 1, "No feature 128: this SAE has 128 (0 to 127)"),
        (["chat", "HERE", "--edit", "pirate=+1"], 1, "No feature is labelled 'pirate'"),
        (["chat", "HERE", "--edit", "3=+nan"], 1, "must be a finite number"),
        (["chat", "HERE", "--edit", "loud"], 1, "Cannot read the edit 'loud'"),
        (["chat", "HERE", "--edit", "3=1.2.3"], 1, "Cannot read the edit '3=1.2.3'"),
        (["chat", "HERE", "--edit", "3=+1@99999999999999999999"], 1, "token position 99999999999999999999 is out of"),
        (["read", "x", "HERE", "--device", "foo"], 1, "foo"),
        (["read", "x", "HERE", "--top", "99999999999999999999"], 2, "1<=x<=1000000"),
        (["read", "x", "HERE", "--top", "0"], 2, "1<=x<=1000000"),
        (["read", "x", "--model", "/no/\x1b[31mred", "--sae", "SAE"], 1, "\\x1b[31mred"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(capsys, saved, args, code, says):
    names = {"HERE": ["--model", saved[0], "--sae", saved[1]], "MODEL": [saved[0]], "SAE": [saved[1]]}
    full = [part for arg in args for part in names.get(arg, [arg])]
    got, out, err = run(capsys, *full)
    assert got == code
    assert says in err
    assert err.startswith("sparsight: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert out == ""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("3=1.2.3", "Cannot read the edit"),
        ("3=.", "Cannot read the edit"),
        ("3=-off", "Cannot read the edit"),
        ("3=*off", "Cannot read the edit"),
        ("3=offraw", "Cannot read the edit"),
        ("3=+٣", "Cannot read the edit"),
        ("²=+1", "No feature is labelled '²'"),
        ("٣=+1", "No feature is labelled '٣'"),
        ("9" * 5000 + "=+1", "No feature is labelled"),
        ("3=1e99", "The strength 1e99 is out of reach"),
        ("3=*-1e10", "The strength -1e10 is out of reach"),
        ("3=+1e999", "must be a finite number"),
        ("3=+1@99999999999999999999", "token position 99999999999999999999 is out of reach"),
        ("3=+1@-2147483648", "token position -2147483648 is out of reach"),
        ("3=+1@" + "9" * 5000, "is out of reach"),
    ],
)
def test_an_edit_that_cannot_be_read_is_refused(scope, line, says):
    with pytest.raises(BadInput, match=says) as caught:
        scope.features.edit(line)
    assert "\n" not in str(caught.value)


def test_edits_are_said_as_they_are_read(scope):
    f = scope.features
    assert f.edit("3=OFF") == f.edit("3=Off") == f[3].ablate()
    assert f.edit("3=+1e-1@2147483647") == f[3].nudge(0.1).on(2**31 - 1)
    assert f.edit("3=1.") == f[3].pin(1)
    lines = ["3=+0.6", "4=-0.1234567@generated", "5=8raw", "6=*-2@-1", "7=off@user", "8=+1e-07", "9=*.5raw"]
    edits = [f.edit(line) for line in lines]
    assert [f.edit(screen.edit_line(edit)) for edit in edits] == edits
    assert [screen.edit_line(edit) for edit in edits][:6] == lines[:6]
    assert screen.edit_lines(Controller(tuple(edits[:2]))) == lines[:2]
    for unsayable in (f[3].pin(-1), f[3].nudge(1).on("user", 4), f[3].nudge(1).when(f[4] > 0)):
        assert screen.edit_line(unsayable) is None
        assert screen.edit_lines(Controller((edits[0], unsayable))) == []


def test_bytes_that_are_no_text_are_refused_from_a_pipe(saved):
    for verb in (["read", "-"], ["chat", "--plain"]):
        out = process(*verb, "--model", saved[0], "--sae", saved[1], stdin=b"caf\xe9\n")
        assert out.returncode == 1
        assert b"not valid UTF-8" in out.stderr


@pytest.mark.parametrize("verb", [["read", "Once upon a time"], ["read", "Once", "--json"], ["chat"], ["--help"]])
def test_a_reader_that_leaves_early_is_no_error(saved, verb):
    """Nobody holds the other end of the pipe: what `| head -1` comes to, once head has gone."""
    end, begin = os.pipe()
    os.close(end)
    options = ["--model", saved[0], "--sae", saved[1]] if verb != ["--help"] else []
    command = [sys.executable, "-m", "sparsight.cli", *verb, *options]
    out = subprocess.run(command, input=b"Hello\n", stdout=begin, stderr=subprocess.PIPE, timeout=120)
    os.close(begin)
    assert (out.returncode, out.stderr) == (0, b"")


def test_bare_it_prints_its_help(capsys):
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert out == run(capsys, "--help")[1]


@pytest.mark.parametrize("verb", [["read", "-"], ["chat"]])
def test_a_closed_standard_input_is_said(saved, verb):
    command = [sys.executable, "-m", "sparsight.cli", *verb, "--model", saved[0], "--sae", saved[1]]
    out = subprocess.run(["bash", "-c", '"$@" <&-', "bash", *command], capture_output=True, timeout=120)
    assert out.returncode == 1
    assert out.stderr.startswith(b"sparsight: Standard input is closed")
    assert out.stderr.count(b"\n") == 1


def test_a_terminal_of_few_letters_gets_escapes(saved):
    verb = ["read", "a\nb ☕", "--model", saved[0], "--sae", saved[1]]
    out = process(*verb, PYTHONIOENCODING="ascii")
    assert (out.returncode, out.stderr) == (0, b"")
    assert rb"\u23ce" in out.stdout
    out = process(*verb, "--json", PYTHONIOENCODING="ascii")
    assert "".join(t["token"] for t in json.loads(out.stdout)["tokens"][1:]) == "a\nb ☕"


def test_control_characters_do_not_reach_the_terminal(capsys, here):
    code, out, _ = run(capsys, "read", "red \x1b[31m\x9b\r\n", *here)
    assert code == 0
    assert "\x1b" not in out
    assert "\x9b" not in out
    assert "\\x1b" in out

    class Chunk:
        text, receipt = "a\x1b[2Jb\n\tc\r", None

    assert screen.stream(iter([Chunk()])) == Chunk.text
    assert capsys.readouterr().out == "a\\x1b[2Jb\n\tc\\x0d\n"


def test_what_nobody_foresaw_is_one_line_too(capsys, monkeypatch):
    def examine():
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(doctor, "examine", examine)
    code, out, err = run(capsys, "doctor")
    assert (code, out) == (70, "")
    assert err == "sparsight: unexpected RuntimeError: two lines (set SPARSIGHT_TRACEBACK=1 for the whole story)\n"
    monkeypatch.setenv("SPARSIGHT_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="two"):
        main(["doctor"])


def chat(saved, *options, lines):
    """(standard output, standard error) of a chat that ends well."""
    verb = ["chat", "--model", saved[0], "--sae", saved[1], "-n", "8", *options]
    out = process(*verb, stdin="\n".join(lines).encode())
    assert out.returncode == 0
    return out.stdout.decode(), out.stderr.decode()


def test_a_steered_chat_gives_its_receipts(saved):
    out, _ = chat(saved, "--edit", "3=+9@generated", lines=["Hello", "Once"])
    assert out.count(": changed 7 of ") == 2
    assert "changed" not in chat(saved, lines=["Hello"])[0]
    assert "None" not in chat(saved, "--compare", lines=["Hello"])[0]


def test_a_chat_forgets_its_oldest_exchanges_when_the_context_is_full(saved):
    lines = [f"Hello {i}, how are you? I am fine, said the pirate." for i in range(8)]
    out, err = chat(saved, "--json", "--system", "Once", lines=lines)
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == lines
    assert "The context is full: the oldest 1 of " in err
    out, err = chat(saved, "--json", lines=["Hello", "word " * 300, "Once"])
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["Hello", "Once"]
    assert "This line alone is too long" in err
    assert "Traceback" not in err


def test_a_chat_begins_anew(saved):
    out, err = chat(saved, "--json", lines=["Hello", "Hello", "/reset", "Hello"])
    first, second, anew = (json.loads(line)["text"] for line in out.splitlines())
    assert first == anew != second
    assert "begins anew" in err


def test_a_system_message_without_a_chat_is_refused(saved, capsys):
    code, _, err = run(capsys, "chat", "--plain", "--system", "Be short.", "--model", saved[0], "--sae", saved[1])
    assert code == 1
    assert "A system message goes with a chat" in err


def test_it_runs_as_a_module_too():
    out = subprocess.run([sys.executable, "-m", "sparsight", "--version"], capture_output=True, text=True)
    assert out.returncode == 0
    assert out.stdout.startswith("sparsight ")


def test_a_chat_in_json_is_one_object_a_line(saved):
    out, _ = chat(saved, "--json", "--compare", "--edit", "3=+9@generated", lines=["Hello", "Once"])
    answers = [json.loads(line) for line in out.splitlines()]
    assert [list(a) for a in answers] == [["prompt", "text", "finish", "receipt", "plain"]] * 2
    assert answers[0]["receipt"]["touched"] == 7
    out, _ = chat(saved, "--json", lines=["Hello"])
    assert json.loads(out)["receipt"] is None


def test_the_demo_takes_every_seed_and_holds_what_belongs_together(capsys):
    def told(*options):
        code, out, _ = run(capsys, "demo", "-n", 24, "--json", *options)
        assert code == 0
        return json.loads(out)

    story = showcase()
    own, zero, other = told(), told("--seed", 0), told("--seed", 1001)
    assert own == told("--seed", story["seed"])
    written = {t["plain"]["text"] + t["steered"]["text"] for t in (own, zero, other)}
    assert len(written) == 3 - (story["seed"] == 0)
    assert zero["prompt"] == story["prompt"]
    index = zero["edit"]["edits"][0]["feature"]["index"]
    assert voice_settings()[story["voice"]][0].startswith(f"{index}=")
    assert f"feature {index} " in zero["edit_words"]
    for reply in (zero["plain"], zero["steered"]):
        assert len(reply["tokens"]) == len(reply["ids"]) == len(reply["features"])
        assert "".join(reply["tokens"]) == reply["text"]
    seen = {str(f) for reply in (zero["plain"], zero["steered"]) for pairs in reply["features"] for f, _ in pairs}
    assert zero["labels"].keys() <= seen
    assert any("pirate" in label for label in told("--prompt", "Talk like a pirate. Hello!")["labels"].values())


def test_the_demo_says_how_to_go_on_with_every_edit(capsys):
    code, out, _ = run(capsys, "demo", "-n", 4, "-e", "27=+0.6@generated", "-e", "3=off")
    assert code == 0
    assert "sparsight chat --edit 27=+0.6@generated --edit 3=off --compare" in out


def test_doctor_counts_what_is_there_to_take(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 64000 kB\nMemAvailable: 32000 kB\n")
    (tmp_path / "max").write_text("max\n")
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(doctor, "LIMITS", (tmp_path / "max", tmp_path / "nowhere"))
    assert doctor.memory(torch.device("cpu")) == 32000 * 1024
    (tmp_path / "max").write_text("4096000\n")
    assert doctor.memory(torch.device("cpu")) == 4096000
    known = doctor.Known("half a gigabyte", 0.25, 1, 1, 1, 1)
    assert doctor.fit(known, "bfloat16", 600_000_000)["fits"]
    assert not doctor.fit(known, "float32", 600_000_000)["fits"]


def test_a_knob_is_an_option_and_one_that_is_not_given_leaves_the_recipe_as_it_is(bake):
    assert bake() == {}
    assert bake("--heat", "1e2", "--o-eggs", "none") == {"oven": {"heat": 100.0, "eggs": "none"}}
    assert bake("--no-o-fan", "--o-eggs", "1e1") == {"oven": {"fan": False, "eggs": 10}}
    assert bake("--o-layers", "a", "--o-layers", '["b", "c"]', "--o-sizes", "3") == {
        "oven": {"layers": ["a", "b", "c"], "sizes": [3]}
    }


def test_a_knobs_option_says_what_it_means_and_what_is_wanted(bake):
    assert "heat is a number, not 'hot'. It is: degrees." in " ".join(bake("--heat", "hot").split())
    said = " ".join(bake("--help").split())
    assert "--heat NUMBER degrees. [default: 180]" in said
    assert "--o-eggs INTEGER how many; none: as they come. [default: 3]" in said
    assert "--o-layers TEXT what is between. [default: jam]" in said
    assert "--o-sizes INTEGER centimetres." in said
    assert "--o-fan / --no-o-fan moves the air. [default: yes]" in said
    assert "key" not in said


def test_recipes_are_listed_shown_and_copied_and_never_overwritten(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = '[corpus]\nsource = "a.txt" # mine\n'
    (tmp_path / "mine.toml").write_text(text)
    assert run(capsys, "recipes", "show", "mine.toml") == (0, text, "")
    code, out, _ = run(capsys, "recipes", "show", "mine.toml", "--resolved")
    assert code == 0
    assert 'source = "a.txt"  # a file, a folder, a glob' in out
    assert run(capsys, "recipes", "new", "other.toml", "--from", "mine.toml")[:2] == (0, "")
    assert (tmp_path / "other.toml").read_text() == text
    code, _, err = run(capsys, "recipes", "new", "other.toml", "--from", "demo")
    assert (code, (tmp_path / "other.toml").read_text()) == (1, text)
    assert "There is a 'other.toml' already" in err
    assert run(capsys, "recipes", "new", "other.toml", "--force")[0] == 0
    assert (tmp_path / "other.toml").read_text() == recipe_text("demo")
    code, _, err = run(capsys, "recipes", "new", "no/such.toml")
    assert code == 1
    assert "Cannot write 'no/such.toml'" in err


def test_the_recipes_that_come_along_are_listed(capsys):
    for room in ("harvest", "train", "evaluate"):
        pytest.importorskip(f"sparsight.{room}.spec")
    code, out, _ = run(capsys, "recipes", "list", "--json")
    assert code == 0
    assert {"demo", "llama-3.1-8b-instruct-l19"} <= json.loads(out).keys()
    code, out, _ = run(capsys, "recipes", "list")
    assert "llama-3.1-8b-instruct-l19" in out


def test_progress_is_told_in_lines_where_there_is_no_terminal(capsys, monkeypatch):
    with Bar() as tell:
        tell.show("read", 5, 1000, "tokens", {"disk_gb": 0.12345, "rows": 3})
        tell.show("read", 6, 1000, "tokens")
        tell.show("splice", 5, None, "tokens")
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.splitlines() == ["read: 5 of 1,000 tokens, disk gb 0.123, rows 3", "splice: 5 tokens"]
    monkeypatch.setattr(bar, "PAUSE", 0.0)
    with Bar() as tell:
        for done in range(2):
            tell.show("read", done, None, "tokens")
    assert capsys.readouterr().err.splitlines() == ["read: 0 tokens", "read: 1 tokens"]
    monkeypatch.setenv("RANK", "1")
    with Bar() as tell:
        tell.show("read", 5, None, "tokens")
    assert capsys.readouterr().err == "", "of several processes the first one speaks"


def test_each_process_of_a_harvest_has_a_gpu_of_its_own(capsys, tmp_path, monkeypatch):
    opened = []

    def open_model(model):
        opened.append(model.device)
        raise BadInput("enough")

    monkeypatch.setattr("sparsight.cli.make.open_model", open_model)
    monkeypatch.setattr("sparsight.lm.pretrained.best_device", lambda: torch.device("cuda"))
    harvest = ["harvest", "--corpus", "a.jsonl", "--hook-point", "model.layers.2", "--to", tmp_path / "shards"]
    run(capsys, *harvest)
    monkeypatch.setenv("LOCAL_RANK", "3")
    run(capsys, *harvest)
    run(capsys, *harvest, "--device", "cpu")
    assert opened == [None, "cuda:3", "cpu"]


def test_what_is_no_harvest_and_no_recipe_is_said(capsys, tmp_path):
    code, _, err = run(capsys, "train", tmp_path, "--to", tmp_path / "sae")
    assert (code, "is a folder without a manifest.json" in err) == (1, True)


def test_bare_recipes_print_their_help(capsys):
    code, out, err = run(capsys, "recipes")
    assert (code, err) == (0, "")
    assert "list" in out
    assert "\nCommands:" in out


def test_a_harvest_is_trained_on_and_the_sae_evaluated(capsys, saved, tmp_path, monkeypatch):
    for room in ("harvest.harvest", "train.run", "evaluate.evaluate"):
        pytest.importorskip(f"sparsight.{room}")
    text, to = tmp_path / "a.jsonl", {name: str(tmp_path / name) for name in ("shards", "sae", "report.json")}
    text.write_text("".join(json.dumps({"text": f"Once upon {i} times there was a dog"}) + "\n" for i in range(600)))
    where = ["--model", saved[0], "--corpus", text, "--hook-point", "model.layers.2"]
    code, out, _ = run(capsys, "harvest", *where, "--to", to["shards"], "--keep", "text", "--json")
    assert code == 0
    assert json.loads(out)["tokens"] > 1000
    small = [
        "--l0",
        8,
        "--batch",
        64,
        "--tokens",
        640,
        "--d-hidden",
        64,
        "--start",
        256,
        "--validation",
        64,
        "--validate",
        1,
    ]
    code, out, err = run(capsys, "train", to["shards"], "--to", to["sae"], *small, "--device", "cpu", "--json")
    assert code == 0, err
    (made,) = json.loads(out)["saes"]
    assert (made["features"], made["hook point"]) == (64, "model.layers.2")
    least = ["--tokens", 300, "--loss-tokens", 0, "--no-check", "--selections", "all"]
    args = ["evaluate", saved[0], "--sae", to["sae"], "--corpus", text, *least, "--to", to["report.json"], "--json"]
    code, out, _ = run(capsys, *args)
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "report.json").read_text())
    made_from = json.loads((tmp_path / "report.run.json").read_text())["inputs"]
    assert made_from["sae"] == made["SAE"]
    for folder in ("shards", "sae"):
        assert (tmp_path / folder / "recipe.toml").exists()
        assert json.loads((tmp_path / folder / "run.json").read_text())["inputs"]

    picture = f"{to['sae']}/plot.png"
    assert run(capsys, "train", "plot", to["sae"]) == (0, picture + "\n", "")
    assert run(capsys, "convert", to["sae"], str(tmp_path / "other"), "--as", "saelens")[0] == 0
    assert load_sae(tmp_path / "other").d_hidden == 64
    monkeypatch.setattr("sparsight.lm.pretrained.best_device", lambda: torch.device("mps"))  # nothing is trained there
    code, again, _ = run(capsys, "train", to["shards"], "--to", to["sae"], *small, "--json")
    assert (code, json.loads(again)["saes"]) == (0, [made]), "what is done is told once more"
    code, _, err = run(capsys, "train", to["shards"], "--to", to["sae"], *small, "--device", "cpu", "--seed", 1)
    assert (code, "seed 0 there, 1 here" in err) == (1, True)
    refused = tmp_path / "refused"
    code, _, err = run(capsys, "train", to["shards"], "--to", refused, *small, "--device", "cpu", "--d-hidden", 4)
    assert (code, refused.exists()) == (1, False), "what cannot be trained leaves nothing"
    code, _, err = run(capsys, "train", to["shards"], "--to", refused, "--corpus", text)
    assert (code, "--corpus goes with a recipe" in err) == (1, True)


def test_a_recipe_is_trained_straight_on_its_models_text(capsys, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, text = tmp_path / "mine.toml", tmp_path / "a.jsonl"
    text.write_text("".join(json.dumps({"text": f"Once upon {i} times there was a dog"}) + "\n" for i in range(600)))
    recipe.write_text(
        f'[model]\nname = "{saved[0]}"\ndevice = "cpu"\n[corpus]\nsource = "absent"\npart = "train"\n'
        '[harvest]\nhook_points = ["model.layers.2"]\nkeep = ["text"]\n'
        '[[train]]\nd_hidden = 64\nl0 = 4\nobjective = "topk"\nbatch = 64\ntokens = 640\nstart = 512\n'
        "validation = 64\n[[train]]\nd_hidden = 64\nl0 = 8\nbatch = 64\ntokens = 640\nstart = 512\nvalidation = 64\n"
    )
    heard, stub = [], types.ModuleType("trackio")
    stub.init, stub.log, stub.finish = lambda **_: None, lambda told, step: heard.append((step, told)), lambda: None
    train = ["train", recipe, "--corpus", text, "--to", "sae", "--device", "cpu", "--report", "trackio"]
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert run(capsys, *train)[::2] == (1, "sparsight: trackio is not installed: pip install trackio.\n")
    monkeypatch.setitem(sys.modules, "trackio", stub)
    code, out, err = run(capsys, *train)
    assert code == 0, err
    assert [step for step, _ in heard] == [*range(1, 11), 10]
    assert {"topk_64_l0-4/fvu", "relu_64_l0-8/coefficient", "tokens_per_second"} <= heard[0][1].keys()
    assert err.startswith("train: 1 of 10 steps, of 2 SAEs the first: L0 4 (target 4), FVU "), "topk has it at once"
    assert "held out: L0            4, asked for 4" in out
    assert "L0 is not where it was asked to be" in err, "the penalty of the other has had no time"
    folders = sorted(path.name for path in Path("sae").iterdir() if path.is_dir())
    assert folders == ["relu_64_l0-8", "topk_64_l0-4"]
    assert all(f"folder                  sae/{name}" in out for name in folders)


def test_a_training_on_a_terminal_fits_into_a_narrow_one(monkeypatch):
    import io

    from rich.console import Console

    page = io.StringIO()
    monkeypatch.setattr(bar, "console", lambda stderr: Console(file=page, force_terminal=True, width=80))
    facts = {"l0": 20.03, "target_l0": 16.0, "fvu": 0.1234, "dead": 1200, "tokens_per_second": 12345.6}
    with Bar() as tell:
        tell.show("train", 500, 1000, "steps", facts)
        tell.show("train", 1000, 1000, "steps", {"target_l0": 16.0, "held_out_l0": 15.9, "held_out_fvu": 0.11})
    first, last = [line for line in bar_text(page).split("\r") if "steps" in line]
    assert first.startswith("train ━")
    assert "500 of 1,000 steps, L0 20 (target 16), FVU 0.123, " in first
    assert "held out: L0 15.9, FVU 0.11" in last
    assert len(first) <= 80


def bar_text(page) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", page.getvalue())
