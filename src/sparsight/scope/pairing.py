"""Whether an SAE and a model belong together: a short reading that speaks up where they do not.

An SAE on another model, another hook point or another text format than its own still encodes and decodes without a
word, and every feature read there is noise. What gives it away is the fraction of variance unexplained (FVU,
sae/quality.py): trained SAEs have 0.05 to 0.5 at their own hook point, and the plain mean has 1. Above 1 the SAE is
worse than no SAE, and something is wrong. That is the threshold. It is a coarse one: a residual stream resembles that
of the next layer, and there an SAE may still explain half of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from sparsight.errors import BadInput
from sparsight.lm.batch import Prompt
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.sae.quality import measured
from sparsight.sae.sae import SparseAutoEncoder

WRONG = 1.0  # FVU: see above
TOKENS = 1_024  # at most so many are read
CHEAP = 50_000_000  # parameters of model and SAE together up to which the reading takes a CPU about a second

TALK = (
    (
        "Why is the sky blue?",
        "Sunlight is a mixture of colours. Air scatters short waves, the blue ones, far more than long ones, so that "
        "blue light reaches us from all over the sky. At sunset it has come a longer way, and red is what is left.",
    ),
    (
        "Write a function that counts the vowels in a word.",
        'Here is one in Python:\n\n```python\ndef vowels(word: str) -> int:\n    """How many vowels there are."""\n'
        "    return sum(letter in 'aeiou' for letter in word.lower())\n\nprint(vowels(\"Onion\"))  # 3\n```\n\n"
        "It looks at each letter once. Do you want `y` to count too?",
    ),
    (
        "My sister and I had a quarrel. What should I say to her?",
        "I'm sorry to hear that. You could start with what you feel and leave out who was right: \"I miss talking to "
        'you." Then listen. Most people only want to be heard first.',
    ),
    ("¿Qué tiempo hace hoy en Madrid?", "No lo sé, pero en otoño suele hacer fresco por la mañana y sol por la tarde."),
    ("What is 17 times 6?", "17 times 6 is 102: ten sixes are 60, seven sixes are 42, and 60 + 42 = 102."),
    (
        "Tell me a very short story about a fox.",
        "Once upon a time a fox found a red ball in the snow. She pushed it, and it rolled down the hill, faster and "
        "faster, until it stopped at the feet of a little boy. He laughed and threw it back. They played until dark.",
    ),
    (
        "Pourquoi les feuilles tombent-elles ?",
        "En automne, l'arbre garde son eau et laisse partir ses feuilles, dont il n'a plus besoin.",
    ),
    (
        "Give me three tips for a job interview.",
        "1. Read about the company the evening before.\n2. Bring one question that shows you care about the work.\n"
        "3. Be on time, and say so early if you cannot be.",
    ),
    (
        "Is it true that goldfish forget everything after three seconds?",
        "No. In experiments goldfish have learned to press a lever for food, and remembered weeks later at what time "
        "of the day it worked. The story of the three seconds is told so often that few people ask where it is from.",
    ),
    (
        "How do I keep bread fresh?",
        "Keep it in a paper bag or a bread box, cut side down, for up to three days. In the fridge it dries out "
        "sooner. What you cannot eat in that time you had better freeze in slices, and toast them as they are.",
    ),
    (
        "Draft a mail: the meeting moves from Tuesday to Thursday.",
        "Subject: Meeting moved to Thursday\n\nHi all,\n\nour meeting on Tuesday has to move to Thursday, same time, "
        "same room. Please tell me by tomorrow evening if you cannot make it.\n\nThanks,\nJo",
    ),
)
TEXTS = (
    "The harbour was built in 1874 by a company that hoped to ship coal. The coal ran out within thirty years, the "
    "company with it, and the town turned to herring, then to tourists. Of the eleven cranes one is left; on Sundays, "
    "if there is no wind, children are allowed to climb it.",
    "Water boils at 100 °C at sea level and at about 93 °C in a town 2,000 metres above it, since the pressure of the "
    "air is lower there. This is why potatoes take longer to cook in the mountains.",
    "import json\n\nwith open('orders.json') as file:\n    orders = json.load(file)\ntotal = sum(order['price'] * "
    "order['count'] for order in orders)\nif total > 1000:\n    print(f'large: {total:.2f}')",
    "She had never seen the sea before. When the bus came over the last hill she thought at first that it was the sky, "
    "hanging too low. Then a white boat moved across it, and she began to laugh.",
    "Der Zug nach Leipzig fährt heute von Gleis neun ab. Wir bitten um Entschuldigung.",
)


@dataclass(frozen=True)
class Pairing:
    """What the short reading found. fvu: fraction of variance unexplained; l0: active features per token; made_for:
    what the SAE says of itself."""

    model: str
    hook_point: str
    fvu: float
    l0: float
    tokens: int
    made_for: str

    @property
    def fits(self) -> bool:
        """Whether the SAE is of any use there."""
        return self.fvu <= WRONG

    def __str__(self) -> str:
        told = f"FVU {self.fvu:.3g} on {self.tokens:,} tokens ({WRONG:g} is the mean's), L0 {self.l0:.1f}"
        if self.fits:
            return f"The SAE fits what '{self.model}' gives at '{self.hook_point}': {told}."
        todo = f"It was made for {self.made_for}: check model, hook point and chat template"
        return f"The SAE explains nothing of what '{self.model}' gives at '{self.hook_point}': {told}. {todo}."


def check_pairing(
    lm: ObservableLanguageModel, sae: SparseAutoEncoder, hook_point: str | None = None, stacklevel: int = 2
) -> Pairing:
    """Reads about a thousand tokens of built-in chats and texts with the SAE, and warns where it explains nothing.

    They are in English for the most part, with some Spanish, French, German and code. Chats go through the tokenizer's
    chat template where it has one. Each row's first token, BOS or not, is left out: its residual is far off the
    others'. hook_point: None takes the SAE's own.
    Raises BadInput where the model came without a tokenizer, or the SAE does not say where it reads.
    """
    point = hook_point or sae.config.hook_point
    if point is None:
        raise BadInput("This SAE does not say which hook point it was trained on: say which with hook_point=.")
    x, target = _activations(lm, point, getattr(sae.config, "hook_point_out", None) or point)
    quality = measured(sae, x.to(sae.device), target.to(sae.device))
    theirs = [f"'{part}'" for part in (sae.config.model, sae.config.hook_point) if part]
    made_for = " at ".join(theirs) or "what it does not say"
    found = Pairing(str(lm.name), point, quality.fvu, quality.l0, quality.tokens, made_for)
    if not found.fits:
        warnings.warn(str(found), stacklevel=stacklevel)
    return found


def is_cheap(lm: ObservableLanguageModel, sae: SparseAutoEncoder) -> bool:
    """Whether the reading takes no more than about a second: on a GPU, or with a small model and a small SAE."""
    parameters = sum(p.numel() for p in (*lm.model.parameters(), *sae.parameters()))
    return lm.device.type not in ("cpu", "meta") or parameters <= CHEAP


def _activations(lm: ObservableLanguageModel, point: str, out: str) -> tuple[Tensor, Tensor]:
    """What flows at both hook points on the built-in text, [token, d], without the first token of each row."""
    batch = lm.batch(list(_prompts(lm)))
    flow = lm.activations(batch, list({point, out}))
    counted = batch.mask & (batch.positions > 0)
    if any(tensor.shape[:2] != counted.shape for tensor in flow.values()):
        raise BadInput(f"What flows at '{point}' has no axes of rows and tokens.")
    x, target = (flow[at][counted.to(flow[at].device)] for at in (point, out))
    return x, target


def _prompts(lm: ObservableLanguageModel) -> Iterator[Prompt]:
    """The built-in text as rows, up to TOKENS tokens and no more than the model's context holds."""
    chat = bool(lm.tokenizer.chat_template)
    chats = [[{"role": "user", "content": ask}, {"role": "assistant", "content": say}] for ask, say in TALK]
    left = TOKENS
    for text in (*TEXTS, *(chats if chat else ("\n\n".join(pair) for pair in TALK))):
        prompt = lm.prompt(text, add_generation_prompt=False) if isinstance(text, list) else lm.prompt(text)
        length = min(len(prompt), left, lm.context or left)
        if length:
            yield Prompt(prompt.ids[:length], prompt.kinds[:length])
        left -= length
