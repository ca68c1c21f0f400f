"""What would an SAE of Llama 3.1 8B cost on one GPU? 65,536 features on the residual of layer 19, L0 91, 819 M tokens.

    python bench/train_gpu.py [--price 2.5]     needs a CUDA GPU with 80 GB; price: dollars for an hour of it
    python bench/train_gpu.py --tiny            the same programme on a toy, anywhere: whether it runs, not how fast

    train      batches of 8,192 rows with known features, in memory. Ours, of each of two objectives, beginning at the
               truth so that L0 is the one asked for, and all but staying there; no feature is dead. Beside it a dense
               step in torch as SAELens takes it, in its float32 and unfused; and one by fused Adam with bfloat16
               products
    products   of the encoder alone, in bfloat16: what no step of ours can be faster than
    harvest    the 8B shape with random weights in bfloat16, ended at layer 19, in full blocks; beside what its
               floating-point operations take at the speed of a large product, measured

Hours and dollars are those of a harvest followed by a training, without reading text or a disk. This script has never
run on a GPU: until it has, there are no figures.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import gpu
import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsight.train.spec import TrainSpec
from sparsight.train.trainer import Trainer

WARM, STEPS, BATCHES = 3, 20, 4
REAL = {"d_in": 4096, "d_hidden": 65536, "batch": 8192, "l0": 91, "start": 16384}
TINY = {"d_in": 64, "d_hidden": 512, "batch": 256, "l0": 8, "start": 1024}
TOKENS, LAYER, BLOCK, PASS = 819_000_000, 19, 1024, 16384
SLOW = 1e-7  # a learning rate at which L0 stays
DENSE = {"dense, as SAELens": False, "dense, bfloat16 products, fused Adam": True}

Step = Callable[[Tensor], Any]


class Data:
    """Sums of l0 features of d_hidden, in random directions, made on the device."""

    def __init__(self, shape: dict[str, int], device: str) -> None:
        self.shape, self.device = shape, device
        self.random = torch.Generator(device).manual_seed(0)
        size = (shape["d_hidden"], shape["d_in"])
        self.directions = F.normalize(torch.randn(*size, generator=self.random, device=device))

    def rows(self, count: int) -> Tensor:
        """float32 [row, d_in]."""
        size, to = (count, self.shape["l0"]), {"generator": self.random, "device": self.device}
        features, magnitudes = torch.randint(self.shape["d_hidden"], size, **to), torch.rand(*size, **to) + 0.5
        return F.embedding_bag(features, self.directions, mode="sum", per_sample_weights=magnitudes)

    def level(self, x: Tensor) -> float:
        """What l0 features a row are above, of the products of these rows with all directions."""
        return float((x @ self.directions.T).flatten().topk(len(x) * self.shape["l0"]).values[-1])


def ours(objective: str, data: Data) -> tuple[Step, Callable[[], float]]:
    """A step of our trainer, and the L0 of the last one."""
    s = data.shape
    how = {"batch": s["batch"], "tokens": s["batch"] * 10**6, "lr": SLOW, "dead": 10**12, "warmup": 0.0}
    spec = TrainSpec(objective=objective, d_hidden=s["d_hidden"], l0=s["l0"], coefficient=0.02, **how)
    trainer = Trainer(spec, data.rows(s["start"]))
    for name in ("W_enc", "W_dec"):
        trainer.weights[name].copy_(data.directions)
    inside = trainer.read.inside(data.rows(256), torch.float32)
    trainer.weights["b_enc"].fill_(0.0 if objective == "topk" else -data.level(inside))
    trainer.use_average()  # takes over what was written into the weights
    told: dict[str, float] = {}
    return lambda x: told.update(trainer.step(x)), lambda: told["l0"]


def dense(data: Data, fast: bool) -> tuple[Step, Callable[[], float]]:
    """ReLU and L1 as SAELens takes a step: all dense, by autograd and Adam."""
    begin, bias = data.directions, -data.level(data.rows(256))
    w = {"W_enc": begin.T.contiguous(), "W_dec": begin.clone()}
    w |= {"b_enc": begin.new_full((len(begin),), bias), "b_dec": begin.new_zeros(begin.shape[1])}
    w = {name: tensor.requires_grad_() for name, tensor in w.items()}
    adam = torch.optim.Adam(w.values(), lr=SLOW, fused=fast)
    told: list[Tensor] = []

    def step(x: Tensor) -> None:
        with torch.autocast(data.device, torch.bfloat16, enabled=fast):
            features = (x @ w["W_enc"] + w["b_enc"]).relu()
            error = features @ w["W_dec"] + w["b_dec"] - x
            loss = error.square().sum(1).mean() + (features * w["W_dec"].norm(dim=1)).sum(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        adam.step()
        adam.zero_grad()
        told[:] = [(features > 0).sum() / len(x)]

    return step, lambda: float(told[0])


def encoder_product(data: Data) -> Step:
    """pre of one batch, in bfloat16."""
    weight = data.directions.bfloat16()
    out = torch.empty(data.shape["batch"], len(weight), dtype=weight.dtype, device=weight.device)
    return lambda x: torch.mm(x.bfloat16(), weight.T, out=out)


def timed(step: Step, batches: list[Tensor], steps: int) -> dict[str, Any]:
    """Seconds of each step, the median's rows per second, and the most memory that was allocated, bytes."""
    cuda = torch.cuda.is_available()
    for x in batches[:WARM]:
        step(x)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for i in range(steps):
        start = measure.Clock.now()[0]
        step(batches[i % len(batches)])
        seconds.append(measure.Clock.now()[0] - start)
    rate = len(batches[0]) / statistics.median(seconds)
    return {"seconds": seconds, "rate": rate, "peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0}


def training(data: Data, steps: int) -> dict[str, dict[str, Any]]:
    """{case: its times, rate, memory and L0}. One after another; memory is what comes with the case."""
    batches = [data.rows(data.shape["batch"]) for _ in range(BATCHES)]
    makes: dict[str, Callable[[], tuple[Step, Callable[[], float] | None]]] = {
        "sparsight, relu": lambda: ours("relu", data),
        "sparsight, topk": lambda: ours("topk", data),
        **{name: (lambda fast=fast: dense(data, fast)) for name, fast in DENSE.items()},
        "the encoder's product alone": lambda: (encoder_product(data), None),
    }
    out = {}
    for name, make in makes.items():
        gc.collect()
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        step, l0 = make()
        out[name] = timed(step, batches, steps) | {"l0": l0() if l0 else None}
        out[name]["peak_bytes"] -= before
        said = f"L0 {out[name]['l0']:.1f}" if l0 else ""
        print(
            f"{name:38} {out[name]['rate']:12,.0f} tokens/s  {out[name]['peak_bytes'] / 1e9:6.1f} GB  {said}",
            flush=True,
        )
        del step, l0
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return out


def harvest(shape: dict[str, Any], layer: int, device: str, passes: int) -> dict[str, Any]:
    """Tokens per second to a layer's output, floating-point operations of a token, and the speed of a large product."""
    lm = gpu.language_model(shape | {"num_hidden_layers": layer + 1}, device)
    point = f"model.layers.{layer}"
    length, rows = (BLOCK, PASS // BLOCK) if layer == LAYER else (64, 4)
    ids = torch.randint(shape["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []
    for i in range(passes + 1):
        start = measure.Clock.now()[0]
        lm.activations(ids, [point])
        seconds += [measure.Clock.now()[0] - start] if i else []
    weights = sum(p.numel() for p in lm.model.get_decoder().layers.parameters() if p.dim() == 2)
    attention = 2 * 2 * (layer + 1) * shape["hidden_size"] * (length + 1) / 2  # scores and values, of the tokens before
    speed = product_speed(device, 8192 if layer == LAYER else 256)
    rate = ids.numel() / statistics.median(seconds)
    operations = 2 * weights + attention
    return {"seconds": seconds, "rate": rate, "operations_per_token": operations, "operations_per_second": speed}


def product_speed(device: str, size: int) -> float:
    """Floating-point operations per second of a square product in bfloat16: the best of several."""
    a, b = torch.randn(2, size, size, device=device).bfloat16().unbind()
    best = 0.0
    for _ in range(10):
        start = measure.Clock.now()[0]
        a @ b
        best = max(best, 2 * size**3 / (measure.Clock.now()[0] - start))
    return best


def main() -> None:
    say = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say.add_argument("--tiny", action="store_true", help="see whether all of it runs; nothing is saved")
    say.add_argument("--price", type=float, help="dollars for an hour of this GPU")
    say.add_argument("--tokens", type=int, default=TOKENS, help="tokens of the run that is reckoned")
    asked = say.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        print("bench/train_gpu.py needs a CUDA GPU, and there is none here. To try the programme: --tiny.")
        return
    device, began = "cuda" if torch.cuda.is_available() else "cpu", time.perf_counter()
    shape, model, layer = (TINY, gpu.TINY, 2) if asked.tiny else (REAL, gpu.LLAMA_8B, LAYER)
    cases = training(Data(shape, device), 2 if asked.tiny else STEPS)
    read = harvest(model, layer, device, 2 if asked.tiny else STEPS)
    limit = read["operations_per_second"] / read["operations_per_token"]
    print(
        f"harvest to layer {layer}: {read['rate']:,.0f} tokens/s, {read['rate'] / limit:.0%} of its operations' limit"
    )
    hours = {name: asked.tokens * (1 / case["rate"] + 1 / read["rate"]) / 3600 for name, case in cases.items()}
    del hours["the encoder's product alone"]
    for name, spent in hours.items():
        dollars = "" if asked.price is None else f", ${spent * asked.price:,.0f} at ${asked.price:g} an hour"
        print(f"{name:38} {asked.tokens:,} tokens harvested and trained on: {spent:.1f} hours{dollars}")
    if not asked.tiny:
        told = {"question": __doc__, "machine": measure.machine(), "shape": shape, "tokens": asked.tokens}
        told |= {"cases": cases, "harvest": read, "harvest_limit": limit, "hours": hours, "price": asked.price}
        measure.save("train_gpu", told)
    print(f"done in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
