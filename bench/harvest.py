"""What does a harvest cost beside the model's own layers, and beside SAELens' ActivationsStore?

    python bench/harvest.py

The embedded demo reads chats, up to the output of its fourth layer of six. The base is the model cut off after that
layer, run by itself on the same tokens in full blocks without padding: the least that anybody can do. `stream` reads
files, applies the template, tokenises, packs, runs, and gives the rows of kept tokens without outliers, whose limit was
measured before; `harvest` puts them into a store with checksums. It measures no limit here, and estimates no number of
tokens: each is done once, on a part of the corpus, and a run as short as this would consist of that. SAELens has the
same chats and no shuffling to do, over each kind of model that it takes: its default, TransformerLens'
HookedTransformer; TransformerLens' bridge; and the Hugging Face model itself. All end the pass at the layer. Times are
per 1,000 tokens whose activations come out.
"""

from __future__ import annotations

import copy
import json
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import peers
import torch

import sparsight
from sparsight.corpus import CorpusSpec, read
from sparsight.harvest.harvest import expected, harvest
from sparsight.harvest.spec import KINDS, HarvestSpec
from sparsight.harvest.stream import stream
from sparsight.lm.lm import ObservableLanguageModel

CHATS = Path(__file__).parent.parent / "demo" / "text" / "chats.jsonl"
LAYER, BLOCK, PASS = 3, 256, 8192
POINT = f"model.layers.{LAYER}"
LENS = f"blocks.{LAYER}.hook_resid_post"  # TransformerLens' name of it
OWN, STREAM = "the model's own layers", "sparsight stream"


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Chats of one to six exchanges, mixed from the demo's own."""
    draw = random.Random(0)
    said = [json.loads(line)["messages"] for line in CHATS.read_text().splitlines()]
    pairs = [chat[i : i + 2] for chat in said for i in range(0, len(chat) - 1, 2) if chat[i]["role"] == "user"]
    return [[m for pair in draw.sample(pairs, draw.randint(1, 6)) for m in pair] for _ in range(count)]


def own_layers(lm: ObservableLanguageModel, corpus: CorpusSpec) -> Callable[[], int]:
    """Its layers up to the hook point, on all tokens of the corpus in full blocks."""
    body: Any = copy.deepcopy(lm.model.get_decoder())
    body.layers = body.layers[: LAYER + 1]
    ids = [i for chat in read(corpus) for i in lm.prompt(chat.messages, add_generation_prompt=False).ids]
    blocks = torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)

    @torch.no_grad()
    def work() -> int:
        for some in blocks.split(PASS // BLOCK):
            body(input_ids=some, use_cache=False)
        return blocks.numel()

    return work


def ours(lm: ObservableLanguageModel, corpus: CorpusSpec, spec: HarvestSpec) -> Callable[[], int]:
    begin, _ = next(stream(lm, corpus, spec))
    return lambda: sum(len(piece["ids"]) for _, piece in stream(lm, corpus, spec, begin))


def to_disk(lm: ObservableLanguageModel, corpus: CorpusSpec, tokens: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        spec = HarvestSpec((POINT,), keep=KINDS, outlier=0, tokens=tokens, pass_tokens=PASS)
        return harvest(lm, corpus, spec, folder).tokens


def saelens(model: Any, point: str, chats: list[Any], tokens: int) -> Callable[[], int]:
    """Passes of its store, as it would put them into its buffer, for about so many tokens."""
    from datasets import Dataset
    from sae_lens import ActivationsStore

    data = Dataset.from_list([{"messages": chat} for chat in chats])
    sizes = {"context_size": BLOCK, "d_in": 256, "store_batch_size_prompts": PASS // BLOCK}
    unused = {"n_batches_in_buffer": 64, "total_training_tokens": 1, "train_batch_size_tokens": 2048}
    options = {"prepend_bos": False, "normalize_activations": "none", "dtype": "float32", "use_chat_formatting": True}

    @torch.no_grad()
    def work() -> int:
        given = {"streaming": False, "hook_head_index": None, "device": torch.device("cpu")}
        store = ActivationsStore(model, data, hook_name=point, **given, **sizes, **unused, **options)
        return sum(len(store.get_filtered_llm_batch()) for _ in range(max(tokens // PASS, 1)))

    return work


def hooked_transformer(lm: ObservableLanguageModel) -> Any:
    """The demo's weights in TransformerLens' own model."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    c = lm.config
    heads = {"n_heads": c.num_attention_heads, "n_key_value_heads": c.num_key_value_heads, "d_head": c.head_dim}
    sizes = {"n_layers": lm.n_layers, "d_model": lm.d_model, "d_mlp": c.intermediate_size, "d_vocab": c.vocab_size}
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": c.head_dim, "rotary_base": 10_000}
    norm = {"normalization_type": "RMS", "final_rms": True, "eps": c.rms_norm_eps}
    more = {"n_ctx": lm.context, "act_fn": "silu", "gated_mlp": True, "original_architecture": "LlamaForCausalLM"}
    config = HookedTransformerConfig(**heads, **sizes, **rotary, **norm, **more, device="cpu")
    made = HookedTransformer(config, copy.deepcopy(lm.tokenizer))
    made.load_state_dict(convert_llama_weights(lm.model, config), strict=False)
    ids = torch.arange(100).unsqueeze(0)
    _, cache = made.run_with_cache(ids, names_filter=LENS, stop_at_layer=LAYER + 1)
    torch.testing.assert_close(cache[LENS], lm.activations(ids, [POINT])[POINT], atol=1e-2, rtol=1e-3)
    return made


def main(rounds: str = "5", chats: str = "250") -> None:
    warnings.simplefilter("ignore")  # SAELens' about its own settings
    lm = sparsight.load("demo").lm
    said = conversations(int(chats))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        path.write_text("\n".join(json.dumps({"messages": chat}) for chat in said))
        corpus = CorpusSpec(str(path), drop_duplicates=False)
        own, everything = own_layers(lm, corpus), HarvestSpec((POINT,), keep=KINDS, pass_tokens=PASS)
        most = expected(lm, corpus, everything)
        work = {OWN: own, STREAM: ours(lm, corpus, everything)}
        work["sparsight harvest"] = lambda: to_disk(lm, corpus, most)
        if peers.installed("sae_lens"):
            from sae_lens.load_model import HookedProxyLM

            hf = HookedProxyLM(copy.deepcopy(lm.model), lm.tokenizer)
            bridge = peers.lens_model(copy.deepcopy(lm.model), lm.tokenizer)
            work["SAELens, HookedTransformer"] = saelens(hooked_transformer(lm), LENS, said, most)
            work["SAELens, TransformerLens' bridge"] = saelens(bridge, f"blocks.{LAYER}.hook_out", said, most)
            work["SAELens, Hugging Face model"] = saelens(hf, POINT, said, most)
        cases = {name: measure.once(each) for name, each in work.items()}
        readings, tokens = measure.in_rounds(cases, int(rounds))
    for name, each in readings.items():
        for reading in each:
            reading |= {field: 1000 * value / tokens[name] for field, value in reading.items()}
    measure.tell(readings, OWN)
    result = {"question": __doc__, "machine": measure.machine(), "hook_point": POINT, "base": OWN, "tokens": tokens}
    result |= {"pass_tokens": PASS, "block": BLOCK, "readings": readings, "load_after": os.getloadavg()[0]}
    measure.save("harvest", result)


if __name__ == "__main__":
    main(*sys.argv[1:])
