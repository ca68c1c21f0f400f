"""Are the demo's features found by plain English? Whether a hit is right is measured on activations, not on labels.

    python bench/search_recall.py [--atlas FOLDER] [--concepts demo/concepts.json]

demo/concepts.py measured which features detect each voice, service, theme and kind of text. Each concept's query is
asked of the atlas; it is answered if one of those features is among the first five hits. Recall is the share that is,
with everything (meaning, words, tokens), with less, and without what a human has written or found by steering. Beside
it, for each concept, the feature that detects it best, its AUC, its label, and whether that says so: whether it has a
word of the concept, or its beginning. "by chance": the recall of five features drawn at random among those that have a
label.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import measure

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.search import Hit, search
from sparsight.atlas.vectors import Embedder, default_embedder
from sparsight.lm.spelling import load_tokenizer, spellings
from sparsight.scope.load import demo_folder

FIRST, BAR = 5, 0.8
CONCEPTS = Path(__file__).resolve().parent.parent / "demo" / "concepts.json"


def ways(atlas: Atlas, embedder: Embedder | None) -> dict[str, Callable[[str], list[Hit]]]:
    tokenizer = load_tokenizer(atlas.about.model, fingerprint=atlas.about.tokenizer)
    ids_of = lru_cache(maxsize=None)(lambda text: spellings(tokenizer, text))
    given = {
        "all": {"embedder": embedder, "ids_of": ids_of},
        "meaning and words": {"embedder": embedder},
        "words and tokens": {"ids_of": ids_of},
        "words": {},
    }
    out = {name: (lambda query, how=how: search(atlas, query, 20, **how)) for name, how in given.items()}
    if embedder:
        out["meaning"] = lambda query: by(out["meaning and words"](query), "meaning")
    return out


def by(hits: list[Hit], ranking: str) -> list[Hit]:
    """These hits in the order of one ranking."""
    return sorted((hit for hit in hits if ranking in hit.ranks), key=lambda hit: hit.ranks[ranking])


def asked(concept: Mapping[str, Any], ask: Callable[[str], list[Hit]]) -> dict[str, Any]:
    right = {int(feature) for feature in concept["features"]}
    hits = ask(concept["query"])
    rank = next((place for place, hit in enumerate(hits, 1) if hit.feature in right), None)
    return {"rank": rank, "hits": [[hit.feature, hit.text] for hit in hits[:FIRST]]}


def chance(concept: Mapping[str, Any], labelled: int) -> float:
    """That one of its features is among the first, drawn at random."""
    right = len(concept["features"])
    return 1 - math.comb(labelled - right, FIRST) / math.comb(labelled, FIRST) if labelled > FIRST + right else 1.0


def told(atlas: Atlas, concept: Mapping[str, Any]) -> dict[str, Any]:
    """Of the feature that detects it best: its label, and whether that says so."""
    label = atlas.label(concept["best"])
    text = label.text if label else ""
    words = text.lower().replace(",", " ").replace('"', " ").split()
    says = any(word.startswith(tuple(concept["says"])) for word in words)
    return {"label": text, "method": label.method if label else None, "says_so": says}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", type=Path, default=demo_folder() / "atlas")
    parser.add_argument("--concepts", type=Path, default=CONCEPTS)
    arguments = parser.parse_args()
    atlas, table = Atlas(arguments.atlas), json.loads(arguments.concepts.read_text(encoding="utf-8"))
    atlas.about.check(str(arguments.atlas), sae=table["sae"])
    concepts, embedder = table["concepts"], default_embedder()
    found = {
        way: {name: asked(one, ask) for name, one in concepts.items()} for way, ask in ways(atlas, embedder).items()
    }
    recall = {way: share(row["rank"] for row in rows.values()) for way, rows in found.items()}
    with tempfile.TemporaryDirectory() as folder:
        ask = ways(without_human(atlas, Path(folder) / "atlas"), embedder)["all"]
        recall["all, without labels by hand"] = share(asked(one, ask)["rank"] for one in concepts.values())
    recall["by chance"] = sum(chance(one, len(atlas.texts())) for one in concepts.values()) / len(concepts)
    rows = {
        name: {"query": one["query"], "best": one["best"], "auc": one["auc"], **told(atlas, one), **found["all"][name]}
        for name, one in concepts.items()
    }
    groups = sorted({name.split()[0] for name in rows})
    of_groups = {g: share(row["rank"] for name, row in rows.items() if name.split()[0] == g) for g in groups}
    for name, row in rows.items():
        hit = "yes" if row["rank"] and row["rank"] <= FIRST else "NO "
        print(
            f"{hit} {row['rank'] or '-':>3} {name:22} AUC {row['auc']:.3f} {row['label'][:40]!r:44} {row['hits'][:1]}"
        )
    says = sum(row["says_so"] for row in rows.values()) / len(rows)
    print(f"recall@{FIRST} {recall} by group {of_groups}; labels that say so {says:.2f}")
    result = {
        "question": __doc__,
        "machine": measure.machine(),
        "bar": BAR,
        "embedder": getattr(embedder, "name", None),
    }
    result |= {"concepts": len(rows), "recall": recall, "by_group": of_groups, "labels_that_say_so": says, "rows": rows}
    measure.save("search_recall", result)


def without_human(atlas: Atlas, to: Path) -> Atlas:
    """A copy of an atlas, without what a human has said."""
    shutil.copytree(atlas.folder, to)
    out = Atlas(to)
    for labels in out.all_labels(rules=False).values():
        for one in labels:
            if one.method == "human" and one.id is not None:
                out.remove(one.id)
    return out


def share(ranks: Any) -> float:
    """Of these, how many are among the first."""
    every = list(ranks)
    return sum(rank is not None and rank <= FIRST for rank in every) / len(every)


if __name__ == "__main__":
    main()
