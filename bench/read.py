"""What does reading cost? The time of a 512-token prompt read at each layer, against a whole forward pass.

    python bench/read.py

Reading runs the layers up to the hook point and no unembedding, so its time should be a + b · layers with a small;
the encoder comes on top, and is timed apart. Reading the middle layer of eight should cost about half a pass.
"""

from __future__ import annotations

import os
import statistics
import sys

import measure
import numpy as np
import torch
import toy

PROMPT, D_HIDDEN, MIDDLE = 512, 8192, 3
WHOLE = "transformers forward"


def main(rounds: str = "11") -> None:
    scope = toy.scope(toy.SMALL, D_HIDDEN, MIDDLE)
    lm, model, point = scope.lm, scope.lm.model, scope.hook_point
    prompts = toy.prompts(1, PROMPT)
    ids = torch.tensor([p.ids for p in prompts])
    residual = lm.activations(prompts, [point])[point][0]

    @torch.no_grad()
    def whole() -> None:
        model(input_ids=ids, use_cache=False)

    def activations(layer: int) -> measure.Case:
        return measure.once(lambda: lm.activations(prompts, [f"model.layers.{layer}"]))

    layers = range(lm.n_layers)
    cases = {WHOLE: measure.once(whole)} | {f"activations of layer {i}": activations(i) for i in layers}
    cases["encode_codes"] = measure.once(lambda: scope.sae.encode_codes(residual))
    cases["scope.read"] = measure.once(lambda: scope.read(prompts))
    readings, _ = measure.in_rounds(cases, int(rounds))
    measure.tell(readings, WHOLE)
    milliseconds = [statistics.median(r["ms"] for r in readings[f"activations of layer {i}"]) for i in layers]
    slope, start = np.polyfit([i + 1 for i in layers], milliseconds, 1)
    off = np.abs(np.array(milliseconds) - [start + slope * (i + 1) for i in layers]).max()
    fit = {"start_ms": float(start), "ms_per_layer": float(slope), "furthest_off_ms": float(off)}
    print(fit)
    result = {"question": __doc__, "machine": measure.machine(), "shape": toy.SMALL, "prompt": PROMPT, "base": WHOLE}
    result |= {"d_hidden": D_HIDDEN, "active": scope.sae.encode_codes(residual).l0, "layer": MIDDLE}
    measure.save("read", result | {"fit": fit, "readings": readings, "load_after": os.getloadavg()[0]})


if __name__ == "__main__":
    main(*sys.argv[1:])
