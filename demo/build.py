"""Builds the demo: a small language model, its sparse autoencoder, and labels for features that steer it.

python demo/build.py --corpus stories_and_chats.jsonl.gz --out src/sparsight/demo
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import autoencoder
import corpus
import features
import figures
import model
import tokenizer
from files import replace


@dataclass
class Workshop:
    """What the steps share: the folders, the text and the model, each read when first asked for."""

    corpus: Path
    out: Path
    work: Path
    sae_plan: autoencoder.Plan = field(default_factory=autoencoder.Plan)

    @cached_property
    def documents(self) -> tuple[list[corpus.Document], list[corpus.Document]]:
        return corpus.load(self.corpus)

    @cached_property
    def words(self):
        folder = self.work / "model"
        if (folder / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(folder)
        return tokenizer.train(self.documents[0], folder)

    @cached_property
    def coded(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        train, held_out = self.documents
        return tokenizer.encode(train, self.words), tokenizer.encode(held_out, self.words)

    @cached_property
    def model(self) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(self.work / "model", dtype=torch.float32).eval()

    @cached_property
    def sae(self) -> autoencoder.Tensors:
        return torch.load(self.work / "sae.pt", weights_only=True)

    def number(self, token: str) -> int:
        return self.words.convert_tokens_to_ids(token)

    @property
    def template(self) -> tuple[list[int], int]:
        """The special tokens' numbers, and that of the one that opens a header."""
        return [self.number(t) for t in tokenizer.SPECIAL], self.number(tokenizer.START)


def language_model(shop: Workshop) -> None:
    train_ids, held_out_ids = shop.coded
    print(f"{sum(map(len, train_ids)):,} training tokens, {sum(map(len, held_out_ids)):,} held out", flush=True)
    eos = [shop.number(tokenizer.EOT), shop.number(tokenizer.EOS)]
    ends = shop.number(tokenizer.BOS), eos, shop.number(tokenizer.PAD)
    config = model.architecture(len(shop.words), *ends)
    trained = model.train(config, train_ids, held_out_ids, shop.work, model.Plan())
    model.save(trained, shop.work / "model")
    shutil.copytree(shop.work / "model", shop.out / "model", copy_function=shutil.copyfile, dirs_exist_ok=True)
    figures.draw(shop.work / "curve.json", Path(__file__).with_name("loss.png"))


def sparse_autoencoder(shop: Workshop) -> None:
    from sparsight.sae.files import save_sae
    from sparsight.sae.sae import SaeConfig, SparseAutoEncoder

    plan = shop.sae_plan
    order = np.random.default_rng(plan.seed).permutation(len(shop.coded[0]))
    shuffled = [shop.coded[0][i] for i in order]
    activations = autoencoder.harvest(shop.model, shuffled, *shop.template, plan, plan.tokens)
    print(f"{len(activations):,} activations", flush=True)
    tensors = autoencoder.train(activations, plan)
    tensors["scale"] = autoencoder.typical_top(tensors, activations[: plan.scale_tokens])
    with replace(shop.work / "sae.pt") as unfinished:
        torch.save(tensors, unfinished)
    for old in ("screen.json", "chosen.json"):  # they are about another autoencoder now
        (shop.work / old).unlink(missing_ok=True)
    config = SaeConfig(
        d_in=len(tensors["b_dec"]),
        d_hidden=len(tensors["b_enc"]),
        model="sparsight demo",
        hook_point=plan.hook_point,
        notes={"training": asdict(plan)},
    )
    save_sae(SparseAutoEncoder.from_tensors(config, tensors), shop.out / "sae")


def steering_labels(shop: Workshop) -> None:
    unit, rows = shop.sae["scale"], shop.sae["W_dec"].float()
    live = unit.nonzero()[:, 0].tolist()
    bench = features.Bench(shop.model, shop.words, shop.sae_plan.layer, unit[:, None] * rows)
    screened = features.screen(bench, live, shop.work)
    chosen = features.choose(bench, screened, shop.work)
    described = json.loads((shop.out / "sae" / "sae.json").read_text())
    labelled = features.labels(chosen)
    labels = {"schema": 1, "sae": described["fingerprint"], "labels": labelled}
    labels["showcase"] = features.showcase(labelled)
    with replace(shop.out / "labels.json") as unfinished:
        unfinished.write_text(json.dumps(labels, indent=2) + "\n")


def measured(shop: Workshop) -> None:
    held_out = shop.documents[1]
    result = figures.circumstances()
    result["parameters"] = sum(p.numel() for p in shop.model.parameters())
    result["training"] = asdict(model.Plan())
    result["held_out"] = figures.language(shop.model, held_out, shop.coded[1], *shop.template)
    sae = figures.sparse(shop.model, shop.sae, shop.coded[1], *shop.template, shop.sae_plan)
    result["autoencoder"] = {"training": asdict(shop.sae_plan), "held_out": sae}
    result["bytes"] = {
        str(path.relative_to(shop.out)): path.stat().st_size
        for path in sorted(shop.out.rglob("*"))
        if path.suffix in (".safetensors", ".json", ".jinja")
    }
    result["bytes"]["total"] = sum(result["bytes"].values())
    text = json.dumps(result, indent=2) + "\n"
    (Path(__file__).parents[1] / "bench" / "results" / "demo.json").write_text(text)
    print(text)


STEPS = {
    "model": language_model,
    "autoencoder": sparse_autoencoder,
    "features": steering_labels,
    "figures": measured,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL file, plain or .gz (see demo/README.md)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished files")
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="folder for checkpoints")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=STEPS, help="do this step alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shop = Workshop(arguments.corpus, arguments.out, arguments.work)
    shop.work.mkdir(parents=True, exist_ok=True)
    for name, step in STEPS.items():
        if arguments.only in (None, name):
            started = time.monotonic()
            step(shop)
            print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
