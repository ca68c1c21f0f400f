"""Draws the pictures of the docs that show the program at work on the embedded demo: python docs/pictures.py

search.svg    what the terminal shows of a search, and of one feature
page.png      a feature's page, as a browser shows it (needs Chromium; left as it is where there is none)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parent
SHOWN = (["features", "talk like a pirate", "--top", "5"], ["features", "1029"])
WIDTH = 110  # characters


def said(arguments: list[str]) -> str:
    """What the command prints, in its colours."""
    colours = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color", "COLUMNS": str(WIDTH)}
    command = [sys.executable, "-m", "sparsight", *arguments]
    return subprocess.run(command, env=os.environ | colours, capture_output=True, text=True, check=True).stdout


def terminal(to: Path) -> None:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor")
        for arguments in SHOWN:
            console.print(Text(f"$ sparsight {subprocess.list2cmdline(arguments)}", style="bold"))
            console.print(Text.from_ansi(said(arguments)))
        to.write_text(console.export_svg(title="sparsight"))


def page(to: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "page.html"
        subprocess.run(
            [sys.executable, "-m", "sparsight", "export", "demo", str(html), "--features", "1029"], check=True
        )
        shot = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=900,1100", f"--screenshot={to}"]
        subprocess.run([browser, *shot, html.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    terminal(DOCS / "search.svg")
    page(DOCS / "page.png")
