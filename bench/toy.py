"""The model and SAE that the CPU benchmarks use: random weights, a real Llama's proportions, no end-of-text token."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsight.edits import Edit, Feature
from sparsight.lm.batch import Prompt
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import Kind
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.scope.scope import Scope

VOCABULARY = 8000
SMALL = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1792}
DEEP = {"hidden_size": 32, "num_hidden_layers": 32, "num_attention_heads": 4, "intermediate_size": 64}


def llama(shape: dict[str, int]) -> LlamaForCausalLM:
    """The same weights for the same shape, in a new object each time: some peers rebuild the model they are given."""
    torch.manual_seed(0)
    more = {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 2048}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**shape, **more, **ends, initializer_range=0.05)).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and pairs of bytes, as byte-level BPE; it never ends a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in letters for b in letters][: VOCABULARY - len(letters)]
    vocabulary = {piece: i for i, piece in enumerate([*letters, *(a + b for a, b in pairs)])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def scope(shape: dict[str, int], d_hidden: int, layer: int) -> Scope:
    """The model with a random ReLU SAE on its residual."""
    return on(ObservableLanguageModel(llama(shape), tokenizer=tokenizer()), d_hidden, f"model.layers.{layer}")


def on(lm: ObservableLanguageModel, d_hidden: int, hook_point: str, active: int = 64) -> Scope:
    """A scope over this model with a random ReLU SAE, about so many of whose features are active at a token."""
    to = {"device": lm.device, "dtype": lm.dtype}
    sae = SparseAutoEncoder(lm.d_model, d_hidden, **to, hook_point=hook_point)
    g = torch.Generator(lm.device).manual_seed(1)
    for weight in (sae.W_enc, sae.W_dec):
        weight.normal_(0, lm.d_model**-0.5, generator=g)
    seen = lm.activations(prompts(1, 64, lm.config.vocab_size), [hook_point])[hook_point]
    sae.b_enc -= sae.encode(seen[0]).topk(active + 1).values[:, -1].mean()
    return Scope(lm, sae)


def edits(count: int, row: int = 0) -> list[Edit]:
    """Edits of every kind, on features of this row's own: nudge, pin, scale, ablate, nudge, ..."""
    features = [Feature(16 * row + i, unit="raw") for i in range(count)]
    make = (lambda f: f.nudge(2.0), lambda f: f.pin(3.0), lambda f: f.scale(4.0), lambda f: f.ablate())
    return [make[i % 4](feature) for i, feature in enumerate(features)]


def prompts(rows: int, length: int, vocabulary: int = VOCABULARY) -> list[Prompt]:
    """Rows of random token ids, as plain text."""
    ids = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(2)).tolist()
    return [Prompt(tuple(row), (Kind.PROMPT | Kind.TEXT,) * length) for row in ids]
