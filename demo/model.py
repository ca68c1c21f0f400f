"""Trains the demo language model: transformers' own Llama, small, from scratch, on a CPU or a GPU."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from sparsight.disk import write_aside
from truth import Coded

KEEP_EVERY = 200  # steps, from one checkpoint and held-out loss to the next


@dataclass(frozen=True)
class Plan:
    """Everything that decides the outcome of the training."""

    steps: int = 2000
    batch_tokens: int = 8192
    context: int = 512
    short_context: int = 256
    short_part: float = 0.9
    warmup: int = 120
    cooldown: float = 0.4  # part of the steps over which the rate falls to nothing at the end
    muon_rate: float = 7e-3
    adam_rate: float = 4e-3
    weight_decay: float = 0.1
    seed: int = 1


def architecture(vocabulary: int, bos: int, eos: list[int], pad: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def rate_factor(step: int, plan: Plan) -> float:
    """Up in a line, level for most of the way, down in a line: a plan may be made longer while it is level."""
    left = (plan.steps - step) / (plan.cooldown * plan.steps)
    return min((step + 1) / plan.warmup, 1.0, left)


class Stream:
    """The training documents, shuffled anew each epoch and laid end to end."""

    def __init__(self, documents: Sequence[Coded], seed: int) -> None:
        self.documents, self.seed, self.epoch, self.at = documents, seed, -1, 0
        self.tokens = np.empty(0, dtype=np.int64)

    def shuffle(self, epoch: int) -> None:
        """Tokens that the model only reads are laid down as their own negative, less one."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.documents))
        shuffled = (self.documents[i] for i in order)
        self.tokens = np.concatenate([np.where(d.trained, d.ids, -1 - d.ids.astype(np.int32)) for d in shuffled])
        self.epoch, self.at = epoch, 0

    def batch(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and the tokens that follow them, -100 where those are not to be learned."""
        size = rows * length + 1
        if self.at + size > len(self.tokens):
            self.shuffle(self.epoch + 1)
        part = torch.from_numpy(self.tokens[self.at : self.at + size].astype(np.int64))
        self.at += size - 1
        inputs, targets = torch.where(part < 0, -1 - part, part), torch.where(part < 0, -100, part)
        return inputs[:-1].view(rows, length), targets[1:].view(rows, length)


def optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(inner, lr=plan.muon_rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=plan.adam_rate, betas=(0.9, 0.97), weight_decay=0.01, fused=True)
    return [muon, adam]


def loss_of(model, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    device = model.device
    with torch.autocast(device.type, torch.bfloat16):
        logits = model(input_ids=inputs.to(device), use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), targets.to(device).flatten())


@torch.no_grad()
def held_out_loss(model, documents: Sequence[Coded], limit: int = 400) -> float:
    """Nats per token over whole documents, each from its own first token."""
    total, count = 0.0, 0
    for document in documents[:limit]:
        row = torch.from_numpy(document.ids[:513].astype(np.int64))[None]
        total += float(loss_of(model, row[:, :-1], row[:, 1:])) * (row.shape[1] - 1)
        count += row.shape[1] - 1
    return total / count


def train(
    config: LlamaConfig,
    documents: Sequence[Coded],
    held_out: Sequence[Coded],
    work: Path,
    plan: Plan,
    device: str = "cpu",
) -> LlamaForCausalLM:
    """Trains to the end of the plan, going on from the last checkpoint in `work` if there is one."""
    torch.manual_seed(plan.seed)
    model = LlamaForCausalLM(config).to(device)
    fast = torch.compile(model)
    steppers = optimizers(model, plan)
    stream = Stream(documents, plan.seed)
    first, curve = restore(work / "checkpoint.pt", model, steppers, stream, plan)
    started = time.monotonic()
    for step in range(first, plan.steps):
        length = plan.short_context if step < plan.short_part * plan.steps else plan.context
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = group.setdefault("full_lr", group["lr"]) * rate_factor(step, plan)
        loss = loss_of(fast, *stream.batch(plan.batch_tokens // length, length))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        if (step + 1) % 20 == 0:
            curve["train"].append([step + 1, round(loss.item(), 4)])
        if (step + 1) % KEEP_EVERY == 0 or step + 1 == plan.steps:
            value = held_out_loss(model, held_out)
            curve["held_out"].append([step + 1, round(value, 4)])
            keep(work / "checkpoint.pt", model, steppers, stream, step + 1, curve)
            speed = (step + 1 - first) * plan.batch_tokens / (time.monotonic() - started)
            print(f"step {step + 1} train {loss.item():.3f} held-out {value:.3f} {speed:.0f} tok/s", flush=True)
    (work / "curve.json").write_text(json.dumps({"plan": asdict(plan), **curve}))
    return model


def keep(path: Path, model, steppers, stream: Stream, step: int, curve: dict) -> None:
    state = {
        "model": model.state_dict(),
        "steppers": [s.state_dict() for s in steppers],
        "step": step,
        "stream": [stream.epoch, stream.at],
        "curve": curve,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda part: torch.save(state, part))


def restore(path: Path, model, steppers, stream: Stream, plan: Plan) -> tuple[int, dict]:
    if not path.exists():
        return 0, {"train": [], "held_out": []}
    state = torch.load(path, map_location=model.device, weights_only=True)
    model.load_state_dict(state["model"])
    for stepper, saved in zip(steppers, state["steppers"], strict=True):
        stepper.load_state_dict(saved)
    epoch, at = state["stream"]
    stream.shuffle(epoch)
    stream.at = at
    print(f"going on from step {state['step']}", flush=True)
    return state["step"], state["curve"]


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes the model in bfloat16, as transformers does."""
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        max_new_tokens=200,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
