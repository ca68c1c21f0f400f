"""A small atlas of the tests' SAE, and a sentence model of a few meanings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsight.atlas.about import About
from sparsight.atlas.atlas import Atlas
from sparsight.atlas.draft import write_atlas
from sparsight.atlas.entries import Document, Label, Statistics

TEXTS = {
    3: "pirate speech: ahoy, matey",
    5: "ships and the sea",
    7: "small animals",
    9: "small houses",
    11: "kings and queens",
}
CONCEPTS = ("pirate ahoy matey buccaneer", "ship sea ocean boat", "dog cat animal", "house home cottage", "king queen")


class Concepts:
    """A sentence model: how many words of each concept a text has."""

    name = "concepts"

    def embed(self, texts):
        counts = [[sum(w.strip(",:").rstrip("s") in c.split() for w in t.lower().split()) for c in CONCEPTS]
                  for t in texts]  # fmt: skip
        vectors = np.concatenate([counts, np.full((len(texts), 1), 0.1)], 1).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def small_atlas(folder: Path, sae: str, tokenizer: str, features: int, scales: np.ndarray) -> Atlas:
    """Features have `scales` as their scale, twice that as their maximum, and the labels of TEXTS."""
    about = About(sae, "tiny", tokenizer, "model.layers.2", d_hidden=features, tokens=4, documents=1)
    rows = ((Statistics(i, 4, 100, s, 0.1, 2 * s, 1, s, top_tokens=((60 + i, 3),)), ()) for i, s in enumerate(scales))
    document = Document(0, 0, 4, "a document", None, "English", ((4, 32),))
    write_atlas(folder, about, [np.array([60, 61, 62, 63])], [document], rows)
    made = Atlas(folder)
    made.add(Label(feature, text, "embedded") for feature, text in TEXTS.items())
    return made
