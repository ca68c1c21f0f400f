"""Models and SAEs built in memory, shared by all tests. Shapes in signatures are checked while the tests run."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a network
os.environ.setdefault("PYTHONWARNINGS", "ignore:The SAE explains nothing:UserWarning")  # as in pyproject.toml

from jaxtyping import install_import_hook

CHECKED = ["sparsight.lm", "sparsight.sae", "sparsight.scope", "sparsight.shards", "sparsight.harvest"]
CHECKED += ["sparsight.survey.state", "sparsight.survey.directions"]
install_import_hook(CHECKED, "shapes.check")

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsight.lm.lm import ObservableLanguageModel
from sparsight.sae.activation import CHOOSING
from sparsight.sae.sae import SparseAutoEncoder
from sparsight.scope.scope import Scope

settings.register_profile(
    "sparsight", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("sparsight")
torch.set_num_threads(1)

D, FEATURES, LAYERS, VOCABULARY, CONTEXT = 32, 128, 4, 400, 256
HOOK = "model.layers.2"
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Llama 3's special tokens and chat template; a BOS token is put before plain text."""
    from tokenizers.processors import TemplateProcessing

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    text = "Once upon a time there was a little dog. Hello, how are you? I am fine, said the pirate. " * 4
    made.train_from_iterator([text, "user assistant system answer the question of the day"], trainer)
    made.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        chat_template=LLAMA_3,
    )


def llama(dtype: torch.dtype = torch.float32, seed: int = 0, **changes) -> LlamaForCausalLM:
    """A small random Llama with grouped-query attention; big enough weights that edits show in its logits."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 4,
        "pad_token_id": 5,
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | changes))).to(dtype).eval()


@pytest.fixture(scope="session")
def lm(tokenizer) -> ObservableLanguageModel:
    return ObservableLanguageModel(llama(), tokenizer=tokenizer)


@pytest.fixture(scope="session")
def lm64(tokenizer) -> ObservableLanguageModel:
    """In float64, for comparisons with a formula."""
    return ObservableLanguageModel(llama(torch.float64), tokenizer=tokenizer)


def random_sae(
    activation: str = "relu", dtype: torch.dtype = torch.float32, seed: int = 0, d_in: int = D, **more
) -> SparseAutoEncoder:
    """Random weights with some features active, some not; scales between 0.5 and 1.5."""
    g = torch.Generator().manual_seed(seed)
    if activation in CHOOSING:
        more.setdefault("k", 8)
    more.setdefault("hook_point", HOOK)
    sae = SparseAutoEncoder(d_in, FEATURES, dtype=torch.float64, activation=activation, **more)
    for name, parameter in sae.named_parameters():
        spread = {"W_enc": 0.3, "W_dec": 0.3, "threshold": 0.5, "r_mag": 0.3}.get(name, 0.2)
        parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64) * spread)
        if name == "threshold":
            parameter.abs_()
    sae = sae.moved("cpu", dtype)
    sae._fingerprint = None
    return sae.altered(scale=torch.rand(FEATURES, generator=g) + 0.5)


@pytest.fixture(scope="session")
def sae() -> SparseAutoEncoder:
    return random_sae()


@pytest.fixture(scope="session")
def scope(lm, sae) -> Scope:
    return Scope(lm, sae, labels={3: "pirate speech", 7: "small animals", 9: "small houses"})


@pytest.fixture
def unchecked():
    """Without the checker of shapes, which torch.compile cannot trace through."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
