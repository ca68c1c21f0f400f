"""Does the penalty's coefficient find the L0 that is asked for, and when is it there?

    sparsight harvest demo --corpus text.jsonl --to shards
    python bench/l0.py --shards shards [--tokens 3000000] [--targets 16 32 64 91 200] [--starts 0.1 10]

One ReLU SAE for each target, all trained on the same batches of a store of activations, each from a coefficient of 1;
the middle target from other --starts too. For each: L0 on held-out tokens in the end, by how much
it is off, and since when (a share of the run) every validation was within 2 %. bench/results/l0.json has the curves;
docs/l0.png shows them.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import measure

from sparsight.shards.shards import Shards
from sparsight.train.log import read
from sparsight.train.run import folders, train
from sparsight.train.spec import TrainSpec

NEAR = 0.02
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "l0.png"


def main() -> None:
    say = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say.add_argument("--shards", type=Path, required=True)
    say.add_argument("--hook-point")
    say.add_argument("--targets", type=float, nargs="+", default=[16, 32, 64, 91, 200])
    say.add_argument("--starts", type=float, nargs="*", default=[])
    say.add_argument("--tokens", type=int, default=3_000_000)
    say.add_argument("--d-hidden", type=int, default=4096)
    say.add_argument("--batch", type=int, default=2048)
    say.add_argument("--lr", type=float, default=1e-3)
    asked = say.parse_args()
    shards = Shards(asked.shards)
    base = TrainSpec(
        hook_point=asked.hook_point, d_hidden=asked.d_hidden, tokens=asked.tokens, batch=asked.batch, lr=asked.lr,
        dead=asked.tokens // 10, validate=40, checkpoint=1e9,
    )  # fmt: skip
    middle = sorted(asked.targets)[len(asked.targets) // 2]
    specs = [replace(base, l0=target) for target in asked.targets]
    specs += [replace(base, l0=middle, coefficient=start) for start in asked.starts]
    with tempfile.TemporaryDirectory() as folder:
        saes = train(shards, specs, folder, tell=print)
        lines = read(Path(folder))
        names = [path.name for path in folders(specs, Path(folder))]
    runs = [
        run(spec, [line for line in lines if line["sae"] == name], sae.config.notes["held_out"])
        for spec, name, sae in zip(specs, names, saes, strict=True)
    ]
    result: dict[str, Any] = {"machine": measure.machine(), "spec": asdict(base), "of": repr(shards), "runs": runs}
    measure.save("l0", result)
    draw(runs)
    for one in runs:
        print(f"target {one['target']:g} from {one['start']:g}: {one['l0']:.2f}, {one['off']:+.1%}, {one['settled']}")


def run(spec: TrainSpec, lines: list[dict[str, Any]], final: dict[str, float]) -> dict[str, Any]:
    """Of one SAE: its validations and its coefficient along the run, and what came of it."""
    curve = [(line["step"] / spec.steps, line["held_out"]["l0"]) for line in lines if "held_out" in line]
    away = [share for share, l0 in curve if abs(l0 / spec.l0 - 1) > NEAR]
    return {
        "target": spec.l0,
        "start": spec.coefficient,
        "l0": final["l0"],
        "off": final["l0"] / spec.l0 - 1,
        "fvu": final["fvu"],
        "settled": max(away, default=0.0),
        "curve": [[round(share, 4), round(l0, 3)] for share, l0 in curve],
        "coefficient": [
            [round(line["step"] / spec.steps, 4), line["coefficient"]] for line in lines if "coefficient" in line
        ][::5],
    }


def draw(runs: list[dict[str, Any]]) -> None:
    """L0 on held-out tokens, and the coefficient, along the run."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=[2, 1])
    colours = {target: f"C{i}" for i, target in enumerate(dict.fromkeys(one["target"] for one in runs))}
    for one in runs:
        style = {"color": colours[one["target"]], "linestyle": "-" if one["start"] == 1 else ":", "linewidth": 1.4}
        label = f"{one['target']:g}" if one["start"] == 1 else f"{one['target']:g}, from {one['start']:g} times that"
        above.plot(*zip(*one["curve"], strict=True), label=label, **style)
        above.axhline(one["target"], color=style["color"], alpha=0.25, linewidth=3)
        below.plot(*zip(*one["coefficient"], strict=True), **style)
    above.set(yscale="log", ylabel="L0 on held-out tokens")
    above.legend(title="l0", fontsize="small")
    below.set(yscale="log", ylabel="coefficient", xlabel="share of the run")
    for axes in (above, below):
        axes.grid(alpha=0.2)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
