"""The house keeps its order: who may import whom, what starts without torch, how long a file may get."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sparsight"
SHELVES = {
    "errors": 1,
    "disk": 2,
    "records": 2,
    "ids": 2,
    "where": 2,
    "edits": 2,
    "wire": 2,
    "config": 2,
    "lm": 3,
    "sae": 3,
    "corpus": 3,
    "shards": 3,
    "atlas": 3,
    "demo": 3,
    "scope": 4,
    "harvest": 5,
    "train": 5,
    "evaluate": 5,
    "survey": 5,
    "label": 5,
    "classify": 5,
    "guard": 5,
    "remote": 5,
    "serve": 6,
    "recipes": 7,
    "workspace": 7,
    "doctor": 7,
    "screen": 8,
    "cli": 8,
    "__main__": 9,
}
WITHIN_SHELF = {
    ("where", "records"),
    ("edits", "where"),
    ("wire", "where"),
    ("edits", "records"),
    ("wire", "edits"),
    ("wire", "records"),
    ("wire", "ids"),
    ("config", "disk"),
    ("cli", "screen"),
}
LIGHT = ("errors", "disk", "config", "records", "ids", "where", "edits", "wire", "corpus", "cli", "screen")
LIGHT += ("serve.spec", "serve.store", "serve.limits", "serve.logs")
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Modules of sparsight that a file imports anywhere in it, lazily too, as far as the room's name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module or ""]
            if node.module == "sparsight":
                names = [f"sparsight.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [name.split(".")[1] for name in names if name.startswith("sparsight.")]
    return [name for name in found if (SOURCE / name).exists() or (SOURCE / f"{name}.py").exists()]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_imports_from_its_own_room_or_a_lower_shelf(path):
    mine = room(path)
    if mine == "__init__":
        return
    assert mine in SHELVES, f"{mine} stands on no shelf"
    for other in imports(path):
        lower = SHELVES[other] < SHELVES[mine]
        assert other == mine or lower or (mine, other) in WITHIN_SHELF, f"{path.name} looks up to {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_says_what_it_is_and_is_one_thing(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path.name} opens without a word about itself"
    assert len(text.splitlines()) <= 400, f"{path.name} is two things"


def test_light_rooms_start_without_torch():
    code = "import sys\n" + "".join(f"import sparsight.{name}\n" for name in LIGHT)
    code += "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_only_the_tap_hooks_and_only_the_front_desk_prints():
    for path in FILES:
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        calls = {
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        if path.name != "tap.py":
            assert not {"register_forward_hook", "register_forward_pre_hook"} & names, f"{path.name} hooks"
        if room(path) not in ("cli", "screen"):
            assert "print" not in calls, f"{path.name} prints"


def test_only_the_atlas_and_the_servers_store_speak_sql_and_only_the_server_is_async():
    for path in FILES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        named = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        named |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        place = path.relative_to(SOURCE)
        if room(path) != "atlas" and str(place) != "serve/store.py":
            assert "sqlite3" not in named, f"{place} speaks SQL"
        if room(path) != "serve":
            assert not any(isinstance(n, ast.AsyncFunctionDef) for n in nodes), f"{place} is async"


def test_nothing_is_unpickled():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                assert "weights_only=True" in ast.unparse(node), f"{path.name} loads what could be code"
