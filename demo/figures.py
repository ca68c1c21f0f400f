"""Measures the finished demo on held-out text, and draws the loss curve."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import autoencoder
from autoencoder import text_mask
from corpus import Document


@torch.no_grad()
def language(model, documents: list[Document], coded: list[np.ndarray], template: list[int], start: int) -> dict:
    """By source, perplexity and bits per byte of the text tokens (headers are easy, and left out)."""
    total: dict[str, list[float]] = {}
    for document, ids in zip(documents, coded, strict=True):
        if len(ids) > 512:
            continue
        row = torch.from_numpy(ids.astype(np.int64))
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
        nats = cross_entropy(logits.float(), row[1:], reduction="none")[text_mask(row, template, start)[1:]]
        said = document.text or "".join(content for _, content in document.messages)
        sums = total.setdefault(document.source, [0.0, 0, 0])
        sums[0] += float(nats.sum())
        sums[1] += len(nats)
        sums[2] += len(said.encode())
    total["all"] = [sum(column) for column in zip(*total.values(), strict=True)]
    return {source: summary(*sums) for source, sums in total.items()}


def summary(nats: float, tokens: int, size: int) -> dict:
    return {
        "tokens": tokens,
        "loss": round(nats / tokens, 4),
        "perplexity": round(math.exp(nats / tokens), 3),
        "bits_per_byte": round(nats / math.log(2) / size, 4),
    }


def sparse(model, tensors, coded: list[np.ndarray], template: list[int], start: int, plan) -> dict:
    """Quality of the autoencoder at held-out text tokens."""
    held_out = autoencoder.harvest(model, coded, template, start, plan, plan.held_out_tokens)
    result = autoencoder.quality(tensors, held_out)
    result["loss_recovered"] = autoencoder.loss_recovered(model, tensors, coded[:200], template, start, plan)
    return {name: round(value, 4) for name, value in result.items()}


def circumstances() -> dict:
    """Where and with what this was measured."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "commit": asked.stdout.strip() if asked.returncode == 0 else None,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }


def processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def draw(curve: Path, picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = json.loads(curve.read_text())
    figure, axes = pyplot.subplots(figsize=(6, 3.2), dpi=90)
    axes.plot(*zip(*points["train"], strict=True), color="#b8c4d0", linewidth=0.8, label="training batch")
    axes.plot(*zip(*points["held_out"], strict=True), color="#1f4e79", linewidth=1.6, label="held out")
    axes.set(xlabel="step", ylabel="nats per token", ylim=(1.4, 4.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture)
