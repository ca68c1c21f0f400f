"""Writes the tables of the pages that show figures from bench/results/*.json, between markers, and nothing else there.

python bench/table.py
"""

from __future__ import annotations

import json
import math
import re
import statistics
from itertools import pairwise
from pathlib import Path

from measure import RESULTS, ratios
from table_serve import churn, serve

from sparsight.evaluate.synthetic import KINDS as TOYS

OBJECTIVES = ("L1", "April", "TopK", "BatchTopK", "JumpReLU", "Gated", "Matryoshka")  # of the Pareto's table, in order
ROOT = Path(__file__).parent.parent
NAMED = ("speed", "demo", "harvest", "synthetic", "train", "survey", "search", "contrast", "engine")
PAGES = (*(ROOT / "docs" / f"{name}.md" for name in NAMED), ROOT / "src" / "sparsight" / "demo" / "README.md")


def decode(result: dict) -> str:
    """A row a case; for every number of rows in the batch: ms a step, and the ratio to plain."""
    rows = result["rows"]
    heads = [f"{n} row{'s' if n != '1' else ''}: ms | × plain (min–max) | × CPU" for n in rows]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|---:|---:|" * len(rows)]
    for name in next(iter(rows.values()))["readings"]:
        taken = [n["readings"] for n in rows.values()]
        cells = [c for r in taken for c in (compared(r, result["base"], name) if name in r else ["–"] * 3)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    agree = [said for n in rows.values() for said, same in n["same_tokens"].items() if not same]
    lines.append("")
    lines.append(f"Same tokens where the same is done: {'no, not with ' + ', '.join(agree) if agree else 'yes, all'}.")
    return "\n".join([*lines, "", machine(result)])


def read(result: dict) -> str:
    lines = ["| | ms | × whole pass (min–max) | × CPU |", "|---|---:|---:|---:|"]
    for name in result["readings"]:
        lines.append(f"| {name} | " + " | ".join(compared(result["readings"], result["base"], name)) + " |")
    fit = result["fit"]
    said = f"{fit['start_ms']:.1f} ms + {fit['ms_per_layer']:.2f} ms a layer"
    lines.append(f"\nA straight line through the layers: {said}, never more than {fit['furthest_off_ms']:.1f} ms off.")
    return "\n".join([*lines, "", machine(result)])


def harvest(result: dict) -> str:
    lines = ["| per 1,000 tokens | ms | × the model's own layers (min–max) | × CPU |", "|---|---:|---:|---:|"]
    for name in result["readings"]:
        lines.append(f"| {name} | " + " | ".join(compared(result["readings"], result["base"], name)) + " |")
    return "\n".join([*lines, "", machine(result)])


def gpu(result: dict) -> str:
    limit = result["bytes_per_second"] / result["bytes_per_token"]
    lines = ["| | tokens/s | of the limit | × plain (min–max) | peak memory |", "|---|---:|---:|---:|---:|"]
    for name, rate in result["tokens_per_second"].items():
        _, ratio, _ = compared(result["readings"], result["base"], name)
        memory = f"{result['peak_bytes'][name] / 1e9:.1f} GB"
        lines.append(f"| {name} | {rate:.1f} | {rate / limit:.0%} | {ratio} | {memory} |")
    said = f"{result['bytes_per_token'] / 1e9:.2f} GB a token at {result['bytes_per_second'] / 1e9:,.0f} GB/s"
    lines.append(f"\nThe limit: {said} (measured by a copy), {limit:.0f} tokens/s.")
    return "\n".join([*lines, "", machine(result)])


def train_gpu(result: dict) -> str:
    heads = ("a step", "tokens/s", "ms", "its memory", "hours with the harvest")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, case in result["cases"].items():
        cells = [f"{case['rate']:,.0f}", f"{1e3 * statistics.median(case['seconds']):.1f}"]
        cells += [
            f"{case['peak_bytes'] / 1e9:.1f} GB",
            f"{result['hours'][name]:.1f}" if name in result["hours"] else "–",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    rate, limit = result["harvest"]["rate"], result["harvest_limit"]
    lines.append(f"\nThe harvest: {rate:,.0f} tokens/s, {rate / limit:.0%} of what a large product's speed allows.")
    lines.append(f"Hours are of {result['tokens']:,} tokens.")
    if result["price"] is not None:
        lines.append(f"At ${result['price']:g} an hour: ")
        lines[-1] += (
            ", ".join(f"{name} ${hours * result['price']:,.0f}" for name, hours in result["hours"].items()) + "."
        )
    return "\n".join([*lines, "", machine(result)])


def compared(readings: dict, base: str, name: str) -> list[str]:
    """Cells of one case: milliseconds, the ratio on the wall with its range, the ratio of CPU time."""
    middle, low, high = ratios(readings, base)[name]
    cpu, _, _ = ratios(readings, base, "cpu_ms")[name]
    milliseconds = statistics.median(r["ms"] for r in readings[name])
    return [f"{milliseconds:.2f}", f"{middle:.2f} ({low:.2f}–{high:.2f})", f"{cpu:.2f}"]


def machine(result: dict) -> str:
    m = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    where = m["gpu"] or f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads"
    changed = " and uncommitted changes" if m["changed_since"] else ""
    return f"<small>{where}; {versions}; commit {m['commit'][:7]}{changed}; {m['date'][:16]} UTC.</small>"


# ── the embedded demo ─────────────────────────────────────────────────────────────────────────────────────


def demo_language(result: dict) -> str:
    """A row a kind of held-out text, then the voices."""
    rows, voices = result["language"], result["asked"]["voices"]
    kinds = sorted((k for k in rows if k not in voices and k != "all"), key=lambda k: -rows[k]["tokens"])
    lines = ["| held-out text | tokens | perplexity | bits per byte |", "|---|---:|---:|---:|"]
    for kind in (*kinds, *voices, "all"):
        said = f"replies in the voice *{kind}*" if kind in voices else KINDS.get(kind, kind)
        row = rows[kind]
        lines.append(f"| {said} | {row['tokens']:,} | {row['perplexity']:.2f} | {row['bits_per_byte']:.2f} |")
    return "\n".join([*lines, "", machine(result)])


KINDS = {
    "tinystories": "TinyStories",
    "fairytaleqa": "FairytaleQA",
    "sgd": "Schema-Guided Dialogue",
    "taskmaster4": "Taskmaster-4",
    "synthetic_persona_chat": "Synthetic-Persona-Chat",
    "topical_chat": "Topical-Chat",
    "gpteacher": "GPTeacher",
    "gsm8k": "GSM8K",
    "oasst_sample": "OpenAssistant",
    "self_instruct_user": "Self-Instruct",
    "everyday": "our own questions and chats",
    "language": "French, German, Spanish",
    "story told": "stories told on request",
    "refusal": "refusals",
    "lookalike": "harmless look-alikes answered",
    "voice": "what users say to voices",
}


def demo_voices(result: dict) -> str:
    """A row a voice: does it come when it is asked for, is it told from others, does one feature show it?"""
    heads = ("voice", "asked for", "not asked", "precision", "recall", "feature", "AUC of replies", "of tokens")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, read in result["reading"].items():
        said, told = result["asked"]["voices"].get(name), result["detectors"].get(name)
        cells = [f"{said['asked']:.0%}", f"{said['unasked']:.0%}"] if said else ["–"] * 2
        cells += [f"{told['precision']:.1%}", f"{told['recall']:.1%}"] if told else ["–"] * 2
        cells += [str(read["feature"]), f"{read['auc']:.3f}", f"{read['token_auc']:.3f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def demo_sae(result: dict) -> str:
    one = result["autoencoder"]["held_out"]
    text = f"On {one['tokens']:,} held-out tokens: L0 {one['l0']:.1f}, fraction of variance unexplained (centred) "
    text += f"{one['fvu']:.3f}, loss recovered {one['loss_recovered']:.3f}, {one['dead_share']:.1%} of features dead."
    return text


def demo_refusing(result: dict) -> str:
    harmful, plain = result["refusing"]["harmful"], result["refusing"]["plain"]
    told = f"{harmful['declined']:.0%} of {harmful['requests']} harmful requests that were not trained on are declined"
    return f"{told}; of {plain['requests']} plain questions {plain['declined']:.0%} are, wrongly."


def demo_steering(result: dict) -> str:
    """A row a voice: the share of replies in it, without and with its edits and the controls; then the ablation."""
    heads = ("voice", "edits", "unsteered", "steered", "of it whole", "perplexity", "wrong sign", "random features")
    last = ("noise", "marks removed", "by random ones")
    lines = ["| " + " | ".join((*heads, *last)) + " |", "|---|---|" + "---:|" * 9]
    for name, row in result["voices"].items():
        rates = [f"{row[part]['rate']:.0%}" for part in ("wrong_sign", "random_features", "noise")]
        removed = [f"{row['ablation'][part]['removed']:z.0%}" for part in ("features", "random_features")]
        steered = [f"{row['unsteered']:.0%}", f"**{row['steered']['rate']:.0%}**"]
        steered.append(f"{row['steered']['whole']:.0%}")
        steered.append(f"× {row['steered']['perplexity_ratio']:.2f}")
        edits = " ".join(f"`{line}`" for line in row["setting"])
        lines.append(f"| {name} | {edits} | " + " | ".join([*steered, *rates, *removed]) + " |")
    return "\n".join([*lines, "", machine(result)])


def auto_steer(result: dict) -> str:
    """A row a voice: what a wish in words became, and what it did by the marks."""
    heads = ("wish", "edits", "strength: effect (perplexity)", "chosen", "unsteered", "steered", "perplexity", "asked")
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|---:|---:|---:|---:|---:|"]
    for row in result["voices"].values():
        edits = " ".join(f"`{feature}={strength:+g}@{place}`" for feature, _, strength, place in row["edits"])
        points = [
            f"{p['strength']:g}: {p['effect']:.2f} (× {p['perplexity']:.2f}{'' if p['coherent'] else ', out'})"
            for p in row["curve"]
        ]
        chosen = "none" if row["chosen"] is None else f"{row['chosen']:g}"
        steered, asked = row["steered"], row["asked"]
        cells = [row["wish"], edits or "–", "<br>".join(points) or "–", chosen, f"{row['unsteered']['rate']:.0%}"]
        cells += [f"**{steered['rate']:.0%}**", f"× {steered['perplexity_ratio']:.2f}"]
        cells += [f"{asked['rate']:.0%} (× {asked['perplexity_ratio']:.2f})"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", machine(result)])


def demo_fresh(result: dict) -> str:
    seconds, size = result["seconds"], result["bytes"]
    rows = {name: f"{taken:.0f} s" for name, taken in seconds.items()}
    rows |= {f"{name} (size)": f"{count / 1e6:,.1f} MB" for name, count in size.items()}
    rows["memory, at most"] = f"{result['peak_memory'] / 1e6:,.0f} MB"
    lines = ["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join([*lines, "", machine(result)])


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────


def train_step(result: dict) -> str:
    """A row a trainer, the fastest first; then whether ours descends the peers' curves."""
    cases = result["cases"]
    plain = cases["torch L1"]["ratio"][0] if "torch L1" in cases else None
    heads = ("trainer", "ms", "rows/s", "÷ products (min–max)", "÷ plain torch", "L0", "its memory, MB", "peak, MB")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, case in sorted(cases.items(), key=lambda item: item[1]["ratio"][0]):
        middle, low, high = case["ratio"]
        cells = [f"{case['ms']:,.0f}", f"{case['rows_per_second']:,.0f}", f"{middle:.2f} ({low:.2f}–{high:.2f})"]
        cells += [f"{middle / plain:.2f}" if plain else "–", f"{case['l0']:.0f}"]
        cells += [f"{case[part] / 1e6:,.0f}" for part in ("trainer_bytes", "peak_bytes")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, told in result["curves"].items():
        said = "the same curve" if told["same"] else "another curve"
        lines.append(f"\nWith the settings of {name}, from its start: {said}, {told['apart']:.2%} apart at worst.")
    loud = [name for name, case in cases.items() if not case["quiet"]]
    if loud:
        lines.append(f"\nThe machine was never quiet for: {', '.join(loud)}.")
    return "\n".join([*lines, "", machine(result)])


def best(runs: list[dict], l0: float) -> dict:
    """As bench/ground_truth.py chooses: the highest MMCS of those whose L0 is near, or the nearest."""
    fitting = [r for r in runs if abs(r["l0"] / l0 - 1) < 0.1]
    return max(fitting, key=lambda r: r["mmcs"]) if fitting else min(runs, key=lambda r: abs(r["l0"] - l0))


def ground_truth(result: dict) -> str:
    """A table of one toy: a row a trainer, the mean over the seeds, the best first."""
    found: dict[str, list[dict]] = {}
    for r in result["runs"].values():
        found.setdefault(r["name"], []).append(r)
    heads = ("trainer", "MMCS (min–max)", "MCC", "recovered", "dead", "FVU", "L0", "s", "seeds")
    rows = []
    for name, runs in found.items():
        first = [r for r in runs if r["seed"] == min(r["seed"] for r in runs)]
        told = best(first, result["settings"]["toy"]["l0"])
        runs = [r for r in runs if all(r[key] == told[key] for key in ("coefficient", "batch"))]
        mean = {key: statistics.mean(r[key] for r in runs) for key in ("mmcs", "mcc", "recovered", "dead", "fvu")}
        mean |= {key: statistics.mean(r[key] for r in runs) for key in ("l0", "seconds")}
        spread = f"{mean['mmcs']:.3f} ({min(r['mmcs'] for r in runs):.3f}–{max(r['mmcs'] for r in runs):.3f})"
        cells = [spread, f"{mean['mcc']:.3f}", f"{mean['recovered']:.2f}", f"{mean['dead']:.1%}"]
        cells += [f"{mean['fvu']:.3f}", f"{mean['l0']:.1f}", f"{mean['seconds']:.0f}", str(len(runs))]
        said = f"{name}, batch {told['batch']:,}"
        if len({r["coefficient"] for r in found[name]}) > 1:
            said += f", coefficient {told['coefficient']:g}"
        rows.append((mean["mmcs"], f"| {said} | " + " | ".join(cells) + " |"))
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    lines += [line for _, line in sorted(rows, reverse=True)]
    return "\n".join([*lines, "", machine(result)])


def l0(result: dict) -> str:
    """A row a run: what was asked for, and what came of it."""
    lines = ["| `l0` | L0 on held-out tokens | off by | FVU | within 2 % from |", "|---:|---:|---:|---:|---:|"]
    for run in result["runs"]:
        since = f"{run['settled']:.0%} of the run" if run["settled"] < 1 else "–"
        cells = (f"{run['target']:g}", f"{run['l0']:.2f}", f"{run['off']:+.1%}", f"{run['fvu']:.3f}", since)
        lines.append("| " + " | ".join(cells) + " |")
    spec = result["spec"]
    said = f"ReLU, {spec['d_hidden']:,} features on the demo's layer 3, {spec['tokens']:,} tokens in batches of "
    return "\n".join([*lines, "", said + f"{spec['batch']:,}. {machine(result)}"])


def pareto(result: dict) -> str:
    """A row a trainer: FVU and loss recovered at each L0, along a straight line between its nearest runs."""
    found: dict[str, list[dict]] = {}
    for r in result["runs"].values():
        found.setdefault(r["name"], []).append(r)
    l0s = sorted({r["aim"] for r in result["runs"].values() if r["aim"]})
    lines = ["| FVU; loss recovered | " + " | ".join(f"L0 {l0:g}" for l0 in l0s) + " |", "|---|" + "---:|" * len(l0s)]
    for objective in OBJECTIVES:
        mine = [n for n in found if n.partition(" ")[2] == objective]
        for name in sorted(mine, key=lambda name: (not name.startswith("sparsight"), name)):
            cells = []
            for l0 in l0s:
                values = [along(found[name], l0, what) for what in ("fvu", "loss_recovered")]
                cells.append("; ".join("–" if value is None else f"{value:.3f}" for value in values))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", machine(result)])


def density(result: dict) -> str:
    """A row a density: the time of each way over that of the products."""
    names = list(next(iter(result["ratios"].values())))
    lines = ["| active | " + " | ".join(names) + " |", "|---:|" + "---:|" * len(names)]
    for share, ratio in result["ratios"].items():
        cells = [f"{ratio[name][0]:.2f}" if name in ratio else "–" for name in names]
        lines.append(f"| {float(share):.1%} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", machine(result)])


def along(runs: list[dict], l0: float, what: str) -> float | None:
    """A figure at an L0, from the runs on both sides, by the logarithm of L0; of one within 5 %, its own."""
    points = sorted((r["l0"], r[what]) for r in runs if r.get(what) is not None and r["l0"] > 0)
    near = min(points, key=lambda p: abs(p[0] / l0 - 1), default=None)
    if near and abs(near[0] / l0 - 1) <= 0.05:
        return near[1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= l0 <= x1:
            return y0 + (y1 - y0) * math.log(l0 / x0) / math.log(x1 / x0)
    return None


def survey(result: dict) -> str:
    lines = ["| | s | × harvest (min–max) | × CPU | features/s |", "|---|---:|---:|---:|---:|"]
    for name, readings in result["readings"].items():
        seconds = statistics.median(reading["ms"] for reading in readings) / 1e3
        _, wall, cpu = compared(result["readings"], "harvest", name)
        speed = result["features_per_second"].get(name)
        per_second = f"{speed[0]:,.0f}" if speed else "–"
        lines.append(f"| {name} | {seconds:.1f} | {wall} | {cpu} | {per_second} |")
    middle, low, high = result["pass_ratio"]["survey"]
    said = f"The pass over the text alone, without writing the atlas: {middle:.2f} ({low:.2f}–{high:.2f}) of a harvest."
    return "\n".join([*lines, "", said, "", machine(result)])


def latency(result: dict) -> str:
    """A row a kind of work: milliseconds, of single calls."""
    heads = list(next(iter(result["latency_ms"].values())))
    lines = ["| ms | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name, row in result["latency_ms"].items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |")
    return "\n".join([*lines, "", machine(result)])


def recall(result: dict) -> str:
    """A row a concept, then the recall of all."""
    lines = ["| query | rank | best feature | AUC | its label | says so |", "|---|---:|---:|---:|---|---|"]
    for row in result["rows"].values():
        label = row["label"].replace("|", "\\|")
        cells = [row["query"], str(row["rank"] or "–"), str(row["best"]), f"{row['auc']:.3f}", label]
        lines.append("| " + " | ".join(cells) + f" | {'yes' if row['says_so'] else 'no'} |")
    said = ", ".join(f"{way} {share:.2f}" for way, share in result["recall"].items())
    lines.append(f"\nRecall@5 of {result['concepts']} queries: {said}.")
    return "\n".join([*lines, "", machine(result)])


TABLES = {
    "train_step": ("train_step", train_step),
    "train_step_big": ("train_step_big", train_step),
    **{f"ground_truth_{kind}": (f"ground_truth_{kind}", ground_truth) for kind in TOYS},
    "pareto_stories": ("pareto_stories", pareto),
    "pareto_demo": ("pareto_demo", pareto),
    "survey": ("survey", survey),
    "search_recall": ("search_recall", recall),
    "search": ("search", latency),
    "page": ("page", latency),
    "l0": ("l0", l0),
    "density": ("density", density),
    "decode_small": ("decode_small", decode),
    "decode_deep": ("decode_deep", decode),
    "read": ("read", read),
    "harvest": ("harvest", harvest),
    "gpu": ("gpu", gpu),
    "train_gpu": ("train_gpu", train_gpu),
    "demo_language": ("demo_model", demo_language),
    "demo_voices": ("demo_model", demo_voices),
    "demo_sae": ("demo_model", demo_sae),
    "demo_refusing": ("demo_model", demo_refusing),
    "demo_steering": ("demo_steering", demo_steering),
    "demo_fresh": ("demo_fresh", demo_fresh),
    "auto_steer": ("auto_steer", auto_steer),
    "serve": ("serve", lambda result: f"{serve(result)}\n\n{machine(result)}"),
    "churn": ("churn", lambda result: f"{churn(result)}\n\n{machine(result)}"),
}


def main() -> None:
    for path in PAGES:
        page = path.read_text()
        for name, (file, table) in TABLES.items():
            found = RESULTS / f"{file}.json"
            text = table(json.loads(found.read_text())) if found.exists() else "Not measured yet."
            begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
            page = re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)  # noqa: B023
        path.write_text(page)


if __name__ == "__main__":
    main()
