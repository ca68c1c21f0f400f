"""How good are the embedded demo's model and autoencoder, on text that neither was trained on?

    python bench/demo_model.py --corpus mix.jsonl.gz [--harmful requests.json] [--unseen requests.json]

The corpus is that of demo/build.py; its held-out conversations, and ours (demo/text), are what is measured on.

language: by kind of text, perplexity and bits per byte of the text tokens.
asked: each voice asked for, in system messages and by the user, in phrases that were not trained on, with questions
that were not either; the share of replies in the voice by their marks. "unasked": of replies to the questions alone.
detectors: precision and recall of the marks, on held-out replies that were rewritten by the recipe's rules.
refusing: the share of replies that decline, to harmful requests that were not trained on (--unseen), and to plain
questions.
reading: how well one feature's mean activation over a reply tells a voice, or a refusal, from all other replies; the
feature is the best on training replies, the AUC that on held-out ones. "token" is the AUC of single tokens.
autoencoder: L0, fraction of variance unexplained (centred), share of features that never fire, and loss recovered:
of what the layer is worth against its mean, the share kept when the reconstruction takes its place.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import measure
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy

import sparsight
from sparsight.evaluate import EvaluateSpec
from sparsight.evaluate.evaluate import evaluate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))

import features
import marks
import mixture
import residuals
import safety
import truth
from voices import VOICES, Voice

TOKENS, SEED = 60, 5
CANDIDATES = 40  # features of each class whose AUC is taken, by the difference of their means
TRAINING_REPLIES = 12000
BARS = {"asked": 0.9, "detector": 0.95, "reading_auc": 0.95}
ASSISTANT = truth.ROLES.index("assistant")

# ── language ──────────────────────────────────────────────────────────────────────────────────────────────


def kinds_of(document: mixture.Document) -> str:
    """What a token that is in no voice is counted as."""
    return document.source if document.kind in ("story", "chat") else document.kind


@torch.no_grad()
def language(scope, coded: Sequence[truth.Coded]) -> dict:
    """By kind: text tokens of all roles, but of voices and refusals the reply's alone."""
    sizes = byte_sizes(scope.lm.tokenizer)
    sums: dict[str, np.ndarray] = {}
    for one in coded:
        part = one[: scope.lm.context]
        ids = torch.from_numpy(part.ids.astype(np.int64))
        logits, _, _ = scope.lm.forward(ids[None], use_cache=False, all_logits=True)
        nats = cross_entropy(logits[0, :-1].float(), ids[1:], reduction="none").numpy()
        kind = np.where(part.refusal, "refusal", kinds_of(part.document)).astype(object)
        named = np.array(truth.VOICE_NAMES, dtype=object)[part.voice]
        kind = np.where(part.voice > 0, named, kind)
        counted = (part.role > 0) & part.trained
        for name in set(kind[counted]) | {"all"}:
            mine = (counted & ((kind == name) | (name == "all")))[1:]
            row = [nats[mine].sum(), mine.sum(), sizes[part.ids[1:][mine]].sum()]
            sums[name] = sums.get(name, np.zeros(3)) + row
    return {name: summary(*sums[name]) for name in sorted(sums)}


def byte_sizes(tokenizer) -> np.ndarray:
    """How many bytes each token stands for: in a byte-level vocabulary, as many as it has characters."""
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return np.array([0 if piece in tokenizer.all_special_tokens else len(piece) for piece in pieces])


def summary(nats: float, tokens: float, size: float) -> dict:
    loss = nats / tokens
    bits = nats / math.log(2) / size
    return {"tokens": int(tokens), "loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits}


# ── voices ────────────────────────────────────────────────────────────────────────────────────────────────


def write(scope, chats: list[list[dict]]) -> list[str]:
    return [reply.text for reply in scope.chat(chats, sampling=features.draws(len(chats), TOKENS, SEED))]


def asking(voice: Voice, question: str, place: int) -> list[dict]:
    """The question with one of the voice's four untrained phrases: two for the user, two for the system."""
    phrase = (*voice.user[-mixture.KEPT_PHRASES :], *voice.system[-mixture.KEPT_PHRASES :])[place % 4]
    return features.chat(question, phrase)


def asked(scope) -> dict:
    questions = features.questions("unrelated")
    plain = write(scope, [features.chat(q) for q in questions])
    hello, out = "Hello, how are you?", {}
    for name, voice in VOICES.items():
        replies = write(scope, [asking(voice, q, i) for i, q in enumerate(questions)])
        out[name] = {
            "asked": sum(marks.speaks(name, text) for text in replies) / len(replies),
            "unasked": sum(marks.speaks(name, text) for text in plain) / len(plain),
            "hello": write(scope, [asking(voice, hello, i) for i in range(4)]),
            "samples": dict(zip(questions[:2], replies[:2], strict=True)),
        }
        print(f"{name:12} asked {out[name]['asked']:.2f}, unasked {out[name]['unasked']:.2f}", flush=True)
    return {"voices": out, "plain_hello": write(scope, [features.chat(hello)]), "plain": plain[:3]}


def refusing(scope, unseen: Path | None) -> dict:
    requests = [row["instruction"] for row in json.loads(unseen.read_text())] if unseen else []
    groups = {"harmful": requests, "plain": features.questions("unrelated") + features.questions("choosing")}
    out = {}
    for name, texts in groups.items():
        replies = write(scope, [features.chat(text) for text in texts]) if texts else []
        share = sum(map(safety.refuses, replies)) / len(replies) if replies else None
        out[name] = {"requests": len(texts), "declined": share, "replies": replies[:5]}
    return out


def replies_of(documents: Sequence[mixture.Document]) -> list[tuple[str, str]]:
    """(voice, text) of each reply."""
    return [(t.voice, t.content) for d in documents for t in d.turns if t.role == "assistant"]


def detectors(documents: Sequence[mixture.Document]) -> dict:
    replies, out = replies_of(documents), {}
    for name in VOICES:
        found = [marks.speaks(name, text) for _, text in replies]
        right = sum(f and voice == name for f, (voice, _) in zip(found, replies, strict=True))
        real = sum(voice == name for voice, _ in replies)
        out[name] = {"replies": real, "precision": right / sum(found), "recall": right / real}
    return out


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────


def replies_read(scope, coded: Sequence[truth.Coded], layer: int, limit: int) -> Iterator[tuple[str, torch.Tensor]]:
    """(voice or "refusal" or "", features [token, feature]) of each reply of each document."""
    count = 0
    for batch, output in residuals.residuals(scope.lm.model, coded, layer):
        for document, row in zip(batch, output, strict=True):
            for said in spans(document.role == ASSISTANT):
                name = truth.VOICE_NAMES[document.voice[said][0]] or ("refusal" if document.refusal[said][0] else "")
                yield name, scope.sae.encode(row[: len(document)][said]).float()
                count += 1
        if count >= limit:
            return


def spans(true: np.ndarray) -> list[slice]:
    """Runs of true places."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], true.astype(np.int8), [0]])))
    return [slice(a, b) for a, b in edges.reshape(-1, 2)]


def pooled(scope, coded, layer: int, limit: int, tokens_too: int = 0):
    """Names and mean features of replies; and of the first so many tokens their names and features."""
    names, means, token_names, tokens = [], [], [], []
    for name, values in replies_read(scope, coded, layer, limit):
        names.append(name)
        means.append(values.mean(0).half())
        if len(token_names) < tokens_too:
            token_names += [name] * len(values)
            tokens.append(values.half())
    whole = torch.cat(tokens) if tokens else torch.empty(0)
    return np.array(names), torch.stack(means), np.array(token_names), whole


def reading(scope, train: Sequence[truth.Coded], held_out: Sequence[truth.Coded], layer: int) -> dict:
    names, means, _, _ = pooled(scope, train, layer, TRAINING_REPLIES)
    new_names, new_means, token_names, tokens = pooled(scope, held_out, layer, 10**9, tokens_too=60_000)
    out = {}
    for name in (*VOICES, "refusal"):
        mine = names == name
        gain = means[mine].float().mean(0) - means[~mine].float().mean(0)
        some = gain.topk(CANDIDATES).indices.tolist()
        feature = max(some, key=lambda f: roc_auc_score(mine, means[:, f].float()))
        out[name] = {
            "feature": feature,
            "replies": int((new_names == name).sum()),
            "auc": float(roc_auc_score(new_names == name, new_means[:, feature].float())),
            "token_auc": float(roc_auc_score(token_names == name, tokens[:, feature].float())),
        }
        print(f"{name:12} feature {feature}: AUC {out[name]['auc']:.3f}", flush=True)
    return out


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────────────


def sparse(scope, held_out: Sequence[mixture.Document]) -> dict:
    """At all tokens but BOS; the loss against that of the mean residual."""
    asked = EvaluateSpec(tokens=150_000, loss_tokens=40_000, selections=("no-bos",), splice=("no-bos",))
    report = evaluate(scope.lm, scope.sae, mixture.conversations(held_out), asked)
    seen, loss = report.reconstruction["no-bos"], report.loss["no-bos"]
    result = {"tokens": seen.tokens, "l0": seen.l0, "fvu": seen.fvu, "dead_share": seen.dead}
    result["loss_recovered"] = loss.recovered_from_mean
    return {"training": scope.sae.config.notes.get("training"), "held_out": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--harmful", type=Path)
    parser.add_argument("--unseen", type=Path)
    arguments = parser.parse_args()
    scope = sparsight.load("demo", dtype=torch.float32)
    parts = mixture.split(mixture.compose(arguments.corpus, arguments.harmful))
    core = scope.lm.tokenizer.backend_tokenizer
    train, held_out = truth.code(parts[0][:TRAINING_REPLIES], core), truth.code(parts[1], core)
    layer = int(scope.hook_point.rsplit(".", 1)[1])
    result = {
        "question": __doc__,
        "machine": measure.machine(),
        "bars": BARS,
        "parameters": sum(p.numel() for p in scope.lm.model.parameters()),
        "documents": {"training": len(parts[0]), "held_out": len(parts[1])},
        "autoencoder": sparse(scope, parts[1]),
        "reading": reading(scope, train, held_out, layer),
        "detectors": detectors(parts[1]),
        "asked": asked(scope),
        "refusing": refusing(scope, arguments.unseen),
        "language": language(scope, held_out),
    }
    measure.save("demo_model", result)
    print({kind: round(row["perplexity"], 2) for kind, row in result["language"].items()})


if __name__ == "__main__":
    main()
