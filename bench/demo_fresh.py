"""From `git clone` to the first steered reply on a machine that has Python and git: how long, and how many bytes?

    python bench/demo_fresh.py [REPOSITORY]

Clones the repository (this one, unless another is named) into an empty folder and does what the README says there,
with an empty pip cache; then once more, as on every later day. Bytes: of the clone, of the packages that pip takes from
the registry for it (asked for a second time, into a folder), of the environment, and of the package as it is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent.parent


def timed(command: list[str], folder: Path, **environment: str) -> float:
    """Seconds."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def size(folder: Path) -> int:
    """Bytes of the files under a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def peak_memory(command: list[str], folder: Path) -> int:
    """Bytes that one process held at most: a process that starts it and then tells what its child used."""
    told = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    told += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    out = subprocess.run([sys.executable, "-c", told, *command], cwd=folder, capture_output=True, text=True, check=True)
    return int(out.stdout) * (1 if sys.platform == "darwin" else 1024)


def main(repository: str = f"file://{HERE}") -> None:
    with tempfile.TemporaryDirectory() as made:
        clone, cache = Path(made) / "sparsight", Path(made) / "pip"
        seconds = {"git clone": timed(["git", "clone", "--quiet", repository, str(clone)], Path(made))}
        cloned = size(clone)
        for turn in ("make demo", "make demo, again"):
            seconds[turn] = timed(["make", "demo"], clone, PIP_CACHE_DIR=str(cache))
        asked = [".venv/bin/pip", "download", "--quiet", "-c", "constraints.txt", "-d", str(Path(made) / "wheels"), "."]
        timed(asked, clone, PIP_CACHE_DIR=str(cache))
        program = str(clone / ".venv" / "bin" / "sparsight")
        result = {
            "question": __doc__,
            "machine": measure.machine(),
            "seconds": seconds,
            "bytes": {
                "clone": cloned,
                "downloaded": size(Path(made) / "wheels"),
                "environment": size(clone / ".venv"),
                "package": size(clone / "src" / "sparsight"),
                "of it, the demo": size(clone / "src" / "sparsight" / "demo"),
            },
            "peak_memory": peak_memory([program, "demo"], clone),
        }
    measure.save("demo_fresh", result)
    print(json.dumps({name: result[name] for name in ("seconds", "bytes", "peak_memory")}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
