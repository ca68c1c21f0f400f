"""Servers as processes, and streams from them: what bench/serve.py and bench/churn.py ask with.

The client side reads lines and looks at the clock, and no more, since it shares the machine with the server.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsight.scope.load import demo_folder

CHAT = "/v1/chat/completions"
START = 240.0  # seconds that a server may take until it answers, on a busy machine
UNWRITTEN = (5, "<|finetune_right_pad_id|>")  # a token that no answer has


@dataclass
class Process:
    """A server that answers. model: the name that it is asked for by."""

    pid: int
    port: int
    model: str

    def cpu(self) -> float:
        """Seconds of CPU time so far, with that of its children."""
        return sum(cpu_of(pid) for pid in family(self.pid))

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self) -> int:
        """Open files, connections among them."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def get(self, path: str, body: bytes | None = None) -> Any:
        """What is there, as JSON."""
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body)
        asked.add_header("content-type", "application/json")
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, asked: Any) -> Any:
        return self.get(path, json.dumps(asked).encode())


@contextmanager
def serving(args: list[str], model: str, log: Path, ready: str = "/readyz") -> Iterator[Process]:
    """A command that serves at the port that is put for PORT. Raises RuntimeError, with the log's end, where it does
    not come to answer."""
    port = free_port()
    command = [arg.replace("PORT", str(port)) for arg in args]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB
    with log.open("w") as written:
        child = subprocess.Popen(command, stdout=written, stderr=written, env=environment)
    try:
        until = time.monotonic() + START
        while not answers(port, ready):
            if child.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command[0]} does not answer: {log.read_text()[-500:]}")
            time.sleep(0.2)
        yield Process(child.pid, port, model)
    finally:
        child.kill()
        child.wait()


def sparsight(folder: Path | None, keys: Path, *more: str) -> list[str]:
    """The command of our own server: of the demo, or of a model in a folder with the demo's SAE."""
    of = [] if folder is None else [str(folder), "--sae", str(demo_folder() / "sae")]
    return [sys.executable, "-m", "sparsight", "serve", *of, "--port", "PORT", "--keys", str(keys), *more]


def family(pid: int) -> list[int]:
    """A process and those that came of it."""
    tasks = Path(f"/proc/{pid}/task")
    children = {int(child) for task in tasks.glob("*/children") for child in task.read_text().split()}
    return [pid, *(one for child in sorted(children) for one in family(child))]


def cpu_of(pid: int) -> float:
    """Seconds of CPU time of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def endless_demo(to: Path) -> Path:
    """The demo's model, to which no token means the end: so that every answer is as long as was asked for."""
    folder = to / "demo"
    shutil.copytree(demo_folder() / "model", folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        told = json.loads((folder / name).read_text())
        told |= {"eos_token": UNWRITTEN[1]} if name.startswith("tokenizer") else {"eos_token_id": UNWRITTEN[0]}
        (folder / name).write_text(json.dumps(told))
    return folder


@dataclass
class Stream:
    """One answer as it came: status, seconds of the clock when it was asked for and at each piece, tokens."""

    asked: float = 0.0
    status: int = 0
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    retry_after: float = 1.0
    whole: bool = False

    @property
    def first(self) -> float:
        """Seconds until the first piece."""
        return self.times[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def request(body: bytes, path: str = CHAT) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


async def stream(port: int, body: bytes, leave_after: int | None = None, slow: float = 0.0) -> Stream:
    """Asks, and hears it out. leave_after: pieces after which the caller is gone. slow: seconds between two looks."""
    out = Stream()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        out.asked = time.perf_counter()
        writer.write(request(body))
        out.status = int((await reader.readline()).split()[1])
        while leave_after is None or len(out.times) < leave_after:
            line = await reader.readline()
            if not line:
                break
            if line.startswith(b"data: {"):
                _heard(out, line)
            elif line.startswith(b"data: [DONE]"):
                out.whole = True
            elif line.lower().startswith(b"retry-after:"):
                out.retry_after = float(line.split(b":")[1])
            if slow:
                await asyncio.sleep(slow)
    finally:
        writer.transport.abort() if leave_after is not None else writer.close()
    return out


def _heard(out: Stream, line: bytes) -> None:
    if b'"content":' in line and b'"content":null' not in line:
        out.times.append(time.perf_counter())
    if b'"completion_tokens":' in line:
        out.tokens = json.loads(line[6:])["usage"]["completion_tokens"]
        out.whole = True
