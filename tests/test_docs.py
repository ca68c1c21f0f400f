"""Whatever is written about the code is executed: Python blocks of the README and the docs run, in order."""

import asyncio
import contextlib
import io
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from sparsight import errors
from sparsight.cli import cli
from sparsight.train.spec import TrainSpec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CURL = re.compile(r"^```sh\n(curl .*?)^```", re.MULTILINE | re.DOTALL)
SERVED = "http://127.0.0.1:8000"  # where the pages say that a server listens


@pytest.fixture(scope="module")
def server():
    """The address of a server of the demo."""
    from engines import Threads, live

    from sparsight.scope.load import load
    from sparsight.serve.app import create_app
    from sparsight.serve.catalog import Catalog

    with live(create_app(Catalog({"demo": Threads(load("demo"))}))) as url:
        yield url


@pytest.fixture
def loop():
    """There are clients that take the thread's event loop, and make none."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.name)
def test_every_python_block_runs(page, tmp_path, monkeypatch, request, loop):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    text = page.read_text()
    text = text.replace(SERVED, request.getfixturevalue("server")) if SERVED in text else text
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count("\n") + 2
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile("\n" * (line - 1) + block.group(1), str(page), "exec"), names)
    if hasattr(names.get("client"), "close"):
        names["client"].close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("page", [p for p in PAGES if CURL.search(p.read_text())], ids=lambda p: p.name)
def test_every_call_by_curl_is_answered(page, server):
    for block in CURL.finditer(page.read_text()):
        line = (
            block.group(1).replace(SERVED, server).replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
        )
        out = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert out.returncode == 0, out.stdout + out.stderr
        assert json.loads(out.stdout)


def test_every_route_is_documented():
    from engines import Threads

    from sparsight.serve.app import create_app
    from sparsight.serve.catalog import Catalog

    page = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("http", "ember", "remote"))
    for path, operations in create_app(Catalog({"demo": Threads(None)})).openapi()["paths"].items():
        for method in operations:
            assert f"## {method.upper()} {path}\n" in page


def test_every_verb_and_option_is_documented():
    page = (ROOT / "docs" / "cli.md").read_text()
    for name, verb in every_verb(cli):
        assert f"## sparsight {name}" in page
        for option in verb.params:
            if option.param_type_name == "option":
                assert f"`{option.opts[0]}`" in page, f"{name} {option.opts[0]}"


def every_verb(group, before=""):
    for name, verb in group.commands.items():
        yield before + name, verb
        yield from every_verb(verb, f"{name} ") if isinstance(verb, click.Group) else ()


def test_the_tables_of_options_are_those_of_the_knobs():
    """Where this fails: python docs/knobs.py writes them."""
    tables = runpy.run_path(str(ROOT / "docs" / "knobs.py"))
    page = tables["PAGE"].read_text()
    assert tables["filled"](page) == page
    assert "| `--corpus-seed` | `0` |" in page
    page = tables["SURVEY"].read_text()
    assert tables["filled"](page) == page
    assert tables["filled"](tables["LABEL"].read_text()) == tables["LABEL"].read_text()
    page = tables["TRAIN"].read_text()
    assert tables["filled"](page) == page
    assert all(f"| `{name}` |" in page and says in page for name, says in TrainSpec.knobs().items())


def test_every_error_is_documented():
    page = (ROOT / "docs" / "errors.md").read_text()
    named = [n for n, e in vars(errors).items() if isinstance(e, type) and e is not errors.SparsightError]
    assert all(f"`{name}`" in page for name in named)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
