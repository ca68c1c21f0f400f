"""The front desk: what a person types, and the one line that answers what cannot be done."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import llama, random_sae

from sparsight.cli import cli, main
from sparsight.sae.files import save_sae


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


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_verb_explains_itself_and_its_options(capsys, verb):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert all(option.help for option in cli.commands[verb].params if option.param_type_name == "option")
    assert cli.commands[verb].help.split()[:6] == out.split("\n\n")[1].split()[:6]


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
    assert 17 < sizes["Llama-3.1-8B-Instruct"] < 20  # 16.1 of weights, 1.1 of SAE, 1.1 of cache
    code, out, _ = run(capsys, "doctor")
    assert "Would it fit" in out


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["dmeo"], 2, "No verb 'dmeo'. Did you mean 'demo'?"),
        (["frobnicate"], 2, "No verb 'frobnicate'. There are: "),
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
        (["chat", "HERE", "--edit", "128=+1"], 1, "No feature 128: this SAE has 128 (0 to 127)"),
        (["chat", "HERE", "--edit", "pirate=+1"], 1, "No feature is labelled 'pirate'"),
        (["chat", "HERE", "--edit", "3=+nan"], 1, "must be a finite number"),
        (["chat", "HERE", "--edit", "loud"], 1, "Cannot read the edit 'loud'"),
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
    assert out == ""


def test_bytes_that_are_no_text_are_refused_from_a_pipe(saved):
    for verb in (["read", "-"], ["chat", "--plain"]):
        out = process(*verb, "--model", saved[0], "--sae", saved[1], stdin=b"caf\xe9\n")
        assert out.returncode == 1
        assert b"not valid UTF-8" in out.stderr


def test_a_reader_that_leaves_early_is_no_error(saved):
    verb = f"read 'Once upon a time' --model {saved[0]} --sae {saved[1]} --json"
    command = f"{sys.executable} -m sparsight.cli {verb} | head -c 20"
    out = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, timeout=120)
    assert out.stderr == b""
