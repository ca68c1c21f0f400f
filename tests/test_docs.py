"""Whatever is written about the code is executed: Python blocks of the README and the docs run, in order."""

import asyncio
import contextlib
import io
import re
import runpy
from pathlib import Path

import click
import pytest

from sparsight import errors
from sparsight.cli import cli
from sparsight.train.spec import TrainSpec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVED, ADDRESS = (
    ("ember.md", "remote.md"),
    "http://127.0.0.1:8000",
)  # pages that talk to a server of the demo, and where
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.name)
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with demo_server() if page.name in SERVED else contextlib.nullcontext(ADDRESS) as url:
        for block in BLOCK.finditer(page.read_text()):
            line = page.read_text()[: block.start()].count("\n") + 2
            code = block.group(1).replace(ADDRESS, url)
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


@contextlib.contextmanager
def demo_server():
    """A server of the demo, at an address of its own."""
    from live import listening

    import sparsight
    from sparsight.serve.app import create_app
    from sparsight.serve.catalog import Catalog
    from sparsight.serve.embedded import EmbeddedEngine

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # there are clients that take the thread's, and make none
    try:
        with listening(create_app(Catalog({"demo": EmbeddedEngine(sparsight.load("demo"), rows=2)}))) as url:
            yield url
    finally:
        asyncio.set_event_loop(None)
        loop.close()


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
