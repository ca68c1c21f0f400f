"""Builds the demo: a small chat model with voices, its sparse autoencoder, and the features that turn each voice on.

python demo/build.py --corpus mix.jsonl.gz --harmful requests.json --out src/sparsight/demo
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import features
import loss
import mixture
import model
import tokenizer
import truth
from sparsight.disk import read_json, write_json

SHUFFLED = 1  # seed
SURVEYED_DOCUMENTS = 12_000
SURVEY = {"tokens": 400_000, "length": 512, "top": 16, "samples": 32, "window": 20, "log_tokens": 50_000, "logits": 12}
SEARCHED_DOCUMENTS = 3000  # training documents on which features are compared by what they read


@dataclass
class Workshop:
    """What the steps share: the folders, the text and the model, each read when first asked for."""

    corpus: Path
    harmful: Path | None
    out: Path
    work: Path
    device: str
    plan: model.Plan = field(default_factory=model.Plan)

    @cached_property
    def documents(self) -> tuple[list[mixture.Document], list[mixture.Document]]:
        """For training, held out."""
        return mixture.split(mixture.compose(self.corpus, self.harmful))

    @cached_property
    def words(self):
        folder = self.work / "model"
        if (folder / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(folder)
        return tokenizer.train(self.documents[0], folder)

    @cached_property
    def coded(self) -> tuple[list[truth.Coded], list[truth.Coded]]:
        """For training, held out."""
        core = self.words.backend_tokenizer
        training, held_out = self.documents
        return truth.code(training, core), truth.code(held_out, core)

    @cached_property
    def shuffled(self) -> list[truth.Coded]:
        """The training documents in another order than the model saw them in."""
        order = np.random.default_rng(SHUFFLED).permutation(len(self.coded[0]))
        return [self.coded[0][i] for i in order]

    @cached_property
    def model(self) -> LlamaForCausalLM:
        whole = LlamaForCausalLM.from_pretrained(self.work / "model", dtype=torch.float32)
        return whole.eval().to(self.device)

    def number(self, token: str) -> int:
        return self.words.convert_tokens_to_ids(token)


def language_model(shop: Workshop) -> None:
    documents, held_out = shop.coded
    truth.keep(documents, shop.work / "truth" / "training")
    truth.keep(held_out, shop.work / "truth" / "held_out")
    print(f"{sum(map(len, documents)):,} training tokens, {sum(map(len, held_out)):,} held out", flush=True)
    eos = [shop.number(tokenizer.EOT), shop.number(tokenizer.EOS)]
    ends = shop.number(tokenizer.BOS), eos, shop.number(tokenizer.PAD)
    config = model.architecture(len(shop.words), *ends)
    trained = model.train(config, documents, held_out, shop.work, shop.plan, shop.device)
    model.save(trained, shop.work / "model")
    shutil.copytree(shop.work / "model", shop.out / "model", copy_function=shutil.copyfile, dirs_exist_ok=True)
    loss.draw(shop.work / "curve.json", Path(__file__).with_name("loss.png"))


def sparse_autoencoder(shop: Workshop) -> None:
    """By the recipe `demo` that comes with the package: text, activations, training."""
    from sparsight.harvest.harvest import harvest
    from sparsight.lm.lm import ObservableLanguageModel
    from sparsight.recipes.recipe import load_recipe
    from sparsight.sae.files import save_sae
    from sparsight.sae.sae import SparseAutoEncoder
    from sparsight.train.run import train

    text = shop.work / "text.jsonl"
    mixture.write(shop.documents[0], text)
    recipe = load_recipe("demo", [f"corpus.source={text}"])
    lm = ObservableLanguageModel(shop.work / "model", shop.device, torch.float32)
    lm.name = "sparsight demo"
    print(harvest(lm, recipe.corpus, recipe.harvest, shop.work / "shards"), flush=True)
    (sae,) = train(shop.work / "shards", recipe.train, shop.work / "sae", device=shop.device)
    print(sae.config.notes["held_out"], flush=True)
    for old in ("screen.json", "reading.json", "chosen.json"):  # they are about another autoencoder now
        (shop.work / old).unlink(missing_ok=True)
    tensors = {name: parameter.detach().cpu() for name, parameter in sae.named_parameters()}
    for name in ("W_enc", "W_dec"):  # half the bytes in the package
        tensors[name] = tensors[name].bfloat16()
    notes = json.loads(json.dumps(sae.config.notes).replace(f"{shop.work}/", ""))  # folders of this machine say nothing
    config = replace(sae.config, notes=notes)
    save_sae(SparseAutoEncoder.from_tensors(config, tensors | {"scale": sae.scale}), shop.out / "sae")


def steering_labels(shop: Workshop) -> None:
    import sparsight

    scope = sparsight.load(shop.work / "model", shop.out / "sae", device=shop.device, dtype=torch.float32)
    live = scope.sae.scale.nonzero()[:, 0].tolist()
    screened = features.screen(scope, live, shop.work)
    layer = int(scope.hook_point.rsplit(".", 1)[1])
    reading = features.by_reading(scope, shop.shuffled[:SEARCHED_DOCUMENTS], layer, shop.work)
    plain = features.unsteered(scope)
    chosen = features.widen(scope, plain, features.choose(scope, plain, screened, reading, shop.work))
    labels = {"schema": 1, "sae": scope.sae.fingerprint, "labels": features.labels(chosen)}
    labels |= {"settings": features.settings(chosen), "showcase": features.SHOWCASE}
    write_json(shop.out / "labels.json", labels)


def atlas_of_features(shop: Workshop) -> None:
    """What every feature fires on and what it means, by the package's own survey and labeller; then what was found by
    steering, and what a reader wrote (text/labels.json), by hand."""
    import sparsight
    from sparsight.atlas.bundle.hub import snapshot
    from sparsight.atlas.entries import Label
    from sparsight.corpus.spec import CorpusSpec
    from sparsight.label.methods import Setting, labellers
    from sparsight.label.run import label
    from sparsight.label.spec import LabelSpec
    from sparsight.survey.spec import SurveySpec
    from sparsight.survey.survey import survey

    folder, mixed = shop.work / "atlas", shop.work / "mixed.jsonl"
    order = np.random.default_rng(SHUFFLED).permutation(len(shop.documents[0]))[:SURVEYED_DOCUMENTS]
    mixture.write([shop.documents[0][i] for i in order], mixed)
    scope = sparsight.load(shop.work / "model", shop.out / "sae", device=shop.device, dtype=torch.float32)
    scope.lm.name = "demo"
    with contextlib.chdir(shop.work):  # folders of this machine say nothing
        made = survey(scope, CorpusSpec(mixed.name), SurveySpec(**SURVEY), folder)
    assert made is not None
    labeller, judge = labellers["embedded"](Setting(made, shop.words, LabelSpec()))
    print(label(made, labeller, LabelSpec(), shop.words, judge=judge), flush=True)
    steered = read_json(shop.out / "labels.json")["labels"]
    by_hand = {feature: entry["label"] for feature, entry in steered.items()}
    written = Path(__file__).with_name("text") / "labels.json"
    if written.exists() and (read := read_json(written))["sae"] == scope.sae.fingerprint:
        by_hand = read["labels"] | by_hand
    made.add(Label(int(feature), text, "human") for feature, text in by_hand.items())
    (shop.out / "atlas").mkdir(exist_ok=True)
    for name in ("log.bin", "tokens.bin"):
        shutil.copyfile(folder / name, shop.out / "atlas" / name)
    (shop.out / "atlas" / "atlas.db").unlink(missing_ok=True)
    snapshot(made, shop.out / "atlas" / "atlas.db")


STEPS = {"model": language_model, "autoencoder": sparse_autoencoder, "features": steering_labels}
STEPS |= {"atlas": atlas_of_features}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL file, plain or .gz (see demo/README.md)")
    parser.add_argument("--harmful", type=Path, help="JSON list of requests to refuse, besides our own")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished files")
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="folder for checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=STEPS, help="do this step alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shop = Workshop(arguments.corpus, arguments.harmful, arguments.out, arguments.work, arguments.device)
    shop.work.mkdir(parents=True, exist_ok=True)
    for name, step in STEPS.items():
        if arguments.only in (None, name):
            started = time.monotonic()
            step(shop)
            print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
