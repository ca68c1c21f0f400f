"""The real shape on a real GPU: Llama 3.1 8B with an SAE of 65,536 features on layer 19, in bf16, random weights.

    python bench/gpu.py             needs a CUDA GPU with 24 GB
    python bench/gpu.py --tiny      the same programme on a toy, anywhere: whether it runs, not how fast

Tokens per second of plain generate, of sparsight with 0, 1, 16 edits and with every feature read, eager and compiled,
and of the card's formula; beside the limit that the memory sets, at which each weight is moved once per token.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import warnings

import measure
import peers
import torch
import toy
from measure import Case, Clock
from transformers import LlamaConfig, LlamaForCausalLM

from sparsight.edits import Edit
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.scope.scope import Scope

PROMPT, TOKENS, ROUNDS, ACTIVE = 128, 129, 7, 91
PLAIN = "transformers generate"
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
TINY = LLAMA_8B | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "vocab_size": 8000}


def language_model(shape: dict, device: str) -> ObservableLanguageModel:
    """Made where it is used, of random weights: 16 GB."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    return ObservableLanguageModel(model.eval(), tokenizer=toy.tokenizer())


def build(shape: dict, d_hidden: int, layer: int, device: str) -> Scope:
    """Model and SAE: 16 GB and 1 GB."""
    return toy.on(language_model(shape, device), d_hidden, f"model.layers.{layer}", ACTIVE)


def sparsight(scope: Scope, edits: list[Edit], compiled: bool, read: bool = False) -> Case:
    prompt = toy.prompts(1, PROMPT, toy.VOCABULARY)[0]
    options = {"stream": True, "compiled": compiled, "read": read, "max_new_tokens": TOKENS}

    def case(clock: Clock) -> list[list[int]]:
        ids = []
        for chunk in scope.complete(prompt, edits, **options):
            ids.append(chunk.id)
            clock()
        return [ids]

    return case


def bandwidth(device: str, size: int) -> float:
    """Bytes per second that a copy on this device moves, reading and writing: the best of several."""
    a = torch.empty(size, dtype=torch.uint8, device=device)
    b, best = torch.empty_like(a), 0.0
    for _ in range(10):
        start = Clock.now()[0]
        b.copy_(a)
        best = max(best, 2 * size / (Clock.now()[0] - start))
    return best


def peak_memory(case: Case) -> int:
    """The most that was allocated during one run, bytes; what idle compiled steps keep is in it."""
    if not torch.cuda.is_available():
        return 0
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    case(Clock())
    return torch.cuda.max_memory_allocated()


def main(tiny: bool) -> None:
    if not tiny and not torch.cuda.is_available():
        print("bench/gpu.py needs a CUDA GPU, and there is none here. To try the programme: --tiny.")
        return
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, d_hidden, layer = (TINY, 512, 2) if tiny else (LLAMA_8B, 65536, 19)
    start = time.perf_counter()
    scope = build(shape, d_hidden, layer, device)
    print(f"{scope}, built in {time.perf_counter() - start:.0f} s", flush=True)
    model, ids = scope.lm.model, torch.tensor([toy.prompts(1, PROMPT)[0].ids], device=device)
    many = [toy.edits(16)]
    formula = peers.card(scope.sae, many)
    cases = {PLAIN: peers.plain(model, ids, TOKENS)}
    cases["hook, card's formula, 16 edits"] = peers.hook(model, scope.hook_point, formula, ids, TOKENS)
    for how, compiled in (("sparsight", False), ("sparsight compiled", True)):
        for said, count in (("0 edits", 0), ("1 edit", 1), ("16 edits", 16)):
            cases[f"{how}, {said}"] = sparsight(scope, toy.edits(count), compiled)
        cases[f"{how}, 16 edits, reading"] = sparsight(scope, toy.edits(16), compiled, read=True)
    readings, written = measure.in_rounds(cases, 2 if tiny else ROUNDS)
    measure.tell(readings, PLAIN)
    embedding = model.get_input_embeddings().weight
    moved = sum(p.nbytes for p in model.parameters() if p is not embedding)
    speed = bandwidth(device, 2**22 if tiny else 2**32)
    tokens_per_second = {name: 1e3 / statistics.median(r["ms"] for r in rounds) for name, rounds in readings.items()}
    memory = {name: peak_memory(case) for name, case in cases.items()}
    limit = speed / moved
    for name, rate in tokens_per_second.items():
        print(f"{name:34} {rate:7.1f} tokens/s  {rate / limit:5.1%} of the limit  {memory[name] / 1e9:6.2f} GB")
    print(f"{moved / 1e9:.2f} GB of weights a token at {speed / 1e9:,.0f} GB/s: at most {limit:.1f} tokens/s")
    same = {
        said: len({str(ids) for name, ids in written.items() if name.startswith("sparsight") and said in name}) == 1
        for said in ("0 edits", "1 edit", "16 edits")
    }
    print("eager and compiled write the same tokens:", same)
    result = {"question": __doc__, "machine": measure.machine(), "shape": shape, "d_hidden": d_hidden, "layer": layer}
    result |= {"prompt": PROMPT, "new_tokens": TOKENS, "base": PLAIN, "same_tokens": same, "readings": readings}
    result |= {"bytes_per_token": moved, "bytes_per_second": speed, "peak_bytes": memory}
    if not tiny:
        measure.save("gpu", result | {"tokens_per_second": tokens_per_second})


if __name__ == "__main__":
    main("--tiny" in sys.argv)
