"""What does steering cost per decoded token, against transformers' plain generate and against the tools people use?

    python bench/decode.py [small|deep [rows [rounds]]]

small: hidden 512, 8 layers, an SAE of 8,192 features; rows 1,8,32, each row with edits of its own.
deep: hidden 32, 32 layers: next to no arithmetic, so that dispatch is what is left.
Greedy, a prompt of 128 tokens, 49 new ones, float32. Cases run in rounds (measure.py). The ids must agree: eager,
compiled and the card's formula for the same edits; and the peers with the same vector.
"""

from __future__ import annotations

import os
import sys
import warnings

import measure
import peers
import torch
import toy
from measure import Case, Clock

from sparsight.edits import Edit
from sparsight.scope.scope import Scope

PROMPT, TOKENS = 128, 49
SHAPES = {"small": (toy.SMALL, 8192, 5), "deep": (toy.DEEP, 512, 19)}
PLAIN = "transformers generate"


def sparsight(scope: Scope, edits: list[list[Edit]], compiled: bool) -> Case:
    """Our own, as a user calls it: prompts in, text out piece by piece, receipts kept."""
    prompts = toy.prompts(len(edits), PROMPT)

    def case(clock: Clock) -> list[list[int]]:
        out: list[list[int]] = [[] for _ in edits]
        for chunk in scope.complete(prompts, edits, stream=True, compiled=compiled, max_new_tokens=TOKENS):
            out[chunk.row].append(chunk.id)
            if chunk.row == len(edits) - 1:
                clock()
        return out

    return case


def cases(scope: Scope, shape: dict[str, int], layer: int, rows: int) -> dict[str, Case]:
    """By name, the plain one first."""
    none, one, many = ([toy.edits(n, row) for row in range(rows)] for n in (0, 1, 16))
    model, sae, point = scope.lm.model, scope.sae, scope.hook_point
    ids = torch.tensor([p.ids for p in toy.prompts(rows, PROMPT)])
    add, formula = peers.vector(sae, one), peers.card(sae, many)
    out = {PLAIN: peers.plain(model, ids, TOKENS)}
    for said, edits in (("0 edits", none), ("1 edit", one), ("16 edits", many)):
        out[f"sparsight, {said}"] = sparsight(scope, edits, compiled=False)
        out[f"sparsight compiled, {said}"] = sparsight(scope, edits, compiled=True)
    out["hook, a vector"] = peers.hook(model, point, add, ids, TOKENS)
    out["hook, card's formula, 16 edits"] = peers.hook(model, point, formula, ids, TOKENS)
    both = (("a vector", add), ("card's formula, 16 edits", formula))
    if peers.installed("nnsight"):
        nnsight = peers.nnsight_model(toy.llama(shape), toy.tokenizer())
        for said, change in both:
            out[f"nnsight generate, {said}"] = peers.nnsight_generate(nnsight, layer, change, ids, TOKENS)
            if rows == 1:  # a round of many rows takes long, and the two cost the same there
                out[f"nnsight traces, {said}"] = peers.nnsight_traces(nnsight, layer, change, ids, TOKENS)
    if peers.installed("transformer_lens"):
        bridge = peers.lens_model(toy.llama(shape), toy.tokenizer())
        for said, change in both:
            out[f"TransformerLens, {said}"] = peers.lens(bridge, layer, change, ids, TOKENS)
    return out


def agreements(ids: dict[str, list[list[int]]]) -> dict[str, bool]:
    """Whether cases that do the same wrote the same tokens."""
    same = {
        "no edit": [PLAIN, *(n for n in ids if "0 edits" in n)],
        "1 edit": [n for n in ids if "1 edit" in n or "a vector" in n],
        "16 edits": [n for n in ids if "16 edits" in n],
    }
    return {said: all(ids[n] == ids[names[0]] for n in names) for said, names in same.items()}


def measured(kind: str, rows: list[int], rounds: int) -> None:
    """One of the two shapes, into its JSON file."""
    shape, d_hidden, layer = SHAPES[kind]
    scope = toy.scope(shape, d_hidden, layer)
    result = {"question": __doc__, "machine": measure.machine(), "shape": shape, "d_hidden": d_hidden, "layer": layer}
    result |= {"prompt": PROMPT, "new_tokens": TOKENS, "base": PLAIN, "rows": {}}
    for n in rows:
        turns = max(3, rounds * 8 // (7 + n))  # fewer where a round takes long
        print(f"\n{kind}, {n} rows, {turns} rounds", flush=True)
        readings, ids = measure.in_rounds(cases(scope, shape, layer, n), turns)
        measure.tell(readings, PLAIN)
        agree = agreements(ids)
        print("same tokens:", agree, flush=True)
        result["rows"][n] = {"same_tokens": agree, "texts": len({str(i) for i in ids.values()}), "readings": readings}
        measure.save(f"decode_{kind}", result | {"load_after": os.getloadavg()[0]})


def main(kinds: str = "small,deep", rows: str = "", rounds: str = "11") -> None:
    warnings.simplefilter("ignore")
    for kind in kinds.split(","):
        said = rows or {"small": "1,8,32", "deep": "1"}[kind]
        measured(kind, [int(n) for n in said.split(",")], int(rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
