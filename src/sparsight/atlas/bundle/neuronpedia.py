"""An atlas as Neuronpedia's files: one folder MODEL/SOURCE with

  features/batch-N.jsonl.gz      a row per feature        activations/batch-N.jsonl.gz   a row per example
  explanations/batch-N.jsonl.gz  a row per label          release, model, sourceset, source .jsonl: one row each

and sparsight.json beside them: the SAE's fingerprint, which the format has no place for. Batch N holds the same
features in all three. Rows have every key that Neuronpedia's tables have.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sparsight.atlas.atlas import Atlas
from sparsight.atlas.bundle.bands import Band, bands, strongest
from sparsight.atlas.bundle.folders import write_folder
from sparsight.atlas.bundle.moved import Moved, Tell, told
from sparsight.atlas.bundle.table import _known, label_row
from sparsight.atlas.bundle.values import unfit
from sparsight.atlas.entries import Example, Label, Statistics
from sparsight.atlas.histogram import middle
from sparsight.disk import write_json
from sparsight.errors import BadInput, Mismatch

CREATOR = "clkht01d40000jv08hvalcvly"  # the account that its importer gives everything to
BATCH = 1024  # features of a file
KINDS = ("features", "activations", "explanations")
ABOUT = "sparsight.json"
SCHEMA = 1


class Vocabulary(Protocol):
    """What of a tokenizer is needed here: its tokens as the strings that its vocabulary has."""

    def get_vocab(self) -> dict[str, int]: ...

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...


def write_neuronpedia(
    atlas: Atlas,
    to: str | Path,
    vocabulary: Vocabulary | None = None,
    features: Iterable[int] | None = None,
    model_id: str | None = None,
    source_id: str | None = None,
    tell: Tell | None = None,
) -> Moved:
    """Write `to`/MODEL/SOURCE. A whole folder, or what was there before.

    vocabulary: the tokenizer; without it tokens are ids as text. features: of these alone. model_id, source_id: what
    Neuronpedia calls them, as "llama3.1-8b-it" and "19-goodfire-res-65k"; by default made of what the atlas says.
    Raises BadInput for a source that does not begin with a layer's number, Mismatch for a token the tokenizer lacks.
    """
    about = atlas.about
    layer = next(iter(re.findall(r"\d+", about.hook_point)), "0")
    model_id = _name(about.model.rstrip("/").rpartition("/")[2]) if model_id is None else model_id
    source_id = f"{layer}-sparsight-{about.sae[:8]}" if source_id is None else source_id
    if not re.fullmatch(r"\d+-[\w.-]+", source_id) or not re.fullmatch(r"[\w.-]*\w[\w.-]*", model_id):
        raise BadInput(f"A source is called LAYER-SET, as 19-res-65k, not '{source_id}'; and a model not '{model_id}'.")
    wanted = list(range(len(atlas))) if features is None else _known(atlas, features)
    place = Path(to) / model_id / source_id
    counts: dict[str, int] = dict.fromkeys(KINDS, 0)

    def write(folder: Path) -> None:
        rows = _Rows(atlas, model_id, source_id, _tokens(vocabulary))
        for kind in KINDS:
            (folder / kind).mkdir()
        every = iter(told(wanted, "export", len(wanted), "features", tell))
        for number in range(-(-len(wanted) // BATCH)):
            with ExitStack() as stack:
                out = {kind: stack.enter_context(_Packed(folder / kind / f"batch-{number}.jsonl.gz")) for kind in KINDS}
                for feature in islice(every, BATCH):
                    for kind, row in rows.of(feature):
                        out[kind](row)
                        counts[kind] += 1
        for _ in every:  # it says that it is done
            pass
        for name, row in _sources(atlas, model_id, source_id).items():
            (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        how = "ids" if vocabulary is None else "vocabulary"
        write_json(folder / ABOUT, {"schema": SCHEMA, "tokens": how, "about": asdict(about)})

    write_folder(place, ABOUT, write)
    return Moved(place, counts)


class _Rows:
    """The rows of a feature, of all three kinds."""

    def __init__(self, atlas: Atlas, model: str, source: str, tokens: Callable[[Iterable[int]], list[str]]) -> None:
        self.atlas, self.tokens = atlas, tokens
        self.source = {"modelId": model, "layer": source}
        self.created = atlas.about.created or None
        self.labels = atlas.all_labels()
        self.sources = [source for (source,) in atlas.rows("SELECT source FROM document ORDER BY number")]

    def of(self, feature: int) -> Iterator[tuple[str, dict[str, Any]]]:
        statistics, examples = self.atlas.statistics(feature), self.atlas.examples(feature)
        yield "features", self.feature(statistics)
        for one in strongest(examples):
            yield "activations", self.activation(one, None)
        for band in bands(statistics, examples):
            for one in band.examples:
                yield "activations", self.activation(one, band)
        for one in self.labels.get(feature, ()):
            yield "explanations", self.explanation(one)

    def feature(self, one: Statistics) -> dict[str, Any]:
        lists = ("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
                 "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1",
                 "correlated_features_indices", "correlated_features_pearson", "correlated_features_l1")  # fmt: skip
        bars = sorted(one.histogram.items())
        hook = re.fullmatch(r"model\.layers\.(\d+)", self.atlas.about.hook_point)
        return {
            **self.source,
            "index": str(one.feature),
            "creatorId": CREATOR,
            "createdAt": self.created,
            "maxActApprox": one.max,
            "hasVector": False,
            "vector": [],
            "vectorLabel": None,
            "vectorDefaultSteerStrength": one.max,
            "hookName": f"blocks.{hook[1]}.hook_resid_post" if hook else self.atlas.about.hook_point,
            "topkCosSimIndices": [feature for feature, _ in one.neighbours],
            "topkCosSimValues": [cosine for _, cosine in one.neighbours],
            **{name: [] for name in lists},
            "neg_str": self.tokens(token for token, _ in one.bottom_logits),
            "neg_values": [value for _, value in one.bottom_logits],
            "pos_str": self.tokens(token for token, _ in one.top_logits),
            "pos_values": [value for _, value in one.top_logits],
            "frac_nonzero": one.density,
            "freq_hist_data_bar_heights": [count for _, count in bars],
            "freq_hist_data_bar_values": [_short(float(middle(bin))) for bin, _ in bars],
            "logits_hist_data_bar_heights": [],
            "logits_hist_data_bar_values": [],
            "decoder_weights_dist": [],
            "sourceSetName": self.source["layer"].partition("-")[2],
        }

    def activation(self, one: Example, band: Band | None) -> dict[str, Any]:
        """band: None for one of the strongest."""
        values = [_short(value) if value else 0.0 for value in one.values.tolist()]
        peak = int(np.argmax(one.values))
        ids = self.atlas.tokens[one.start : one.start + len(values)].tolist()
        low, high, share = (-1, -1, -1) if band is None else (band.low, band.high, band.share)
        key = f"{one.feature} {one.at} {'top' if band is None else 'fair'}"
        return {
            "id": _cuid("activation", self.source["modelId"], self.source["layer"], key),
            "tokens": self.tokens(ids),
            "dataIndex": str(one.document),
            "index": str(one.feature),
            **self.source,
            "dataSource": self.sources[one.document],
            "maxValue": values[peak],
            "maxValueTokenIndex": peak,
            "minValue": min(values),
            "values": values,
            "dfaValues": [],
            "dfaTargetIndex": None,
            "dfaMaxValue": None,
            "creatorId": CREATOR,
            "createdAt": self.created,
            "lossValues": [],
            "logitContributions": None,
            "binMin": low,
            "binMax": high,
            "binContains": share,
            "qualifyingTokenIndex": one.at - one.start,
            "zIndices": [],
            "zValues": [],
        }

    def explanation(self, one: Label) -> dict[str, Any]:
        """notes: all of the label, for whoever reads it back."""
        if fault := unfit(one.text):
            raise BadInput(f"The label of feature {one.feature} holds {fault}: mend it before it is exported.")
        whole = {"sparsight": label_row(one, self.atlas.about.sae)}
        key = f"{one.feature} {one.method} {one.model} {one.prompt}"
        nothing = ("umap_x", "umap_y", "umap_cluster", "umap_log_feature_sparsity")
        return {
            "id": _cuid("explanation", self.source["modelId"], self.source["layer"], key),
            **self.source,
            "index": str(one.feature),
            "description": one.text,
            "authorId": CREATOR,
            "embedding": None,
            "triggeredById": None,
            "typeName": f"sparsight_{one.method}",
            "explanationModelName": one.model or one.method,
            "notes": json.dumps(whole),
            "createdAt": one.created or None,
            **dict.fromkeys(nothing),
        }


def _sources(atlas: Atlas, model: str, source: str) -> dict[str, dict[str, Any]]:
    """The rows that describe the whole."""
    about, set_name = atlas.about, source.partition("-")[2]
    when = {"creatorId": CREATOR, "createdAt": about.created or None}
    title = f"SAE of {about.d_hidden:,} features at {about.hook_point} of {about.model}"
    return {
        "release": {
            "name": set_name, "description": title, "descriptionShort": title, "creatorName": "sparsight",
            "creatorNameShort": "sparsight", "creatorEmail": None, "urls": [], "visibility": "PUBLIC",
            "isNewUi": False, "featured": False, "defaultSourceSetName": set_name, "defaultSourceId": source,
            "defaultUmapSourceIds": [], **when,
        },
        "model": {
            "id": model, "instruct": "instruct" in about.model.lower(), "displayNameShort": model,
            "displayName": about.model, "tlensId": None, "dimension": None, "visibility": "PUBLIC",
            "defaultSourceSetName": set_name, "defaultSourceId": source, "inferenceEnabled": False, "layers": 0,
            "neuronsPerLayer": 0, "owner": "", "updatedAt": about.created or None, "website": None, **when,
        },
        "sourceset": {
            "modelId": model, "name": set_name, "hasDashboards": True, "visibility": "PUBLIC", "description": title,
            "type": "", "creatorName": "sparsight", "urls": [], "creatorEmail": None, "releaseName": set_name,
            "defaultOfModelId": None, "defaultRange": 1, "defaultShowBreaks": True, "showDfa": False,
            "showCorrelated": False, "showHeadAttribution": False, "showUmap": False, **when,
        },
        "source": {
            "id": source, "modelId": model, "setName": set_name, "hasDashboards": True, "inferenceEnabled": False,
            "inferenceHosts": [], "saelensConfig": None, "saelensRelease": None, "saelensSaeId": None,
            "hfRepoId": None, "hfFolderId": None, "visibility": "PUBLIC", "defaultOfModelId": None, "hasUmap": False,
            "hasUmapLogSparsity": False, "hasUmapClusters": False, "num_prompts": about.documents,
            "num_tokens_in_prompt": None, "dataset": about.corpus or None, "notes": f"SAE {about.sae}", **when,
        },
    }  # fmt: skip


def _tokens(vocabulary: Vocabulary | None) -> Callable[[Iterable[int]], list[str]]:
    """Ids to the strings of the vocabulary, or to their numbers."""
    if vocabulary is None:
        return lambda ids: [str(id) for id in ids]
    words = {id: token for token, id in vocabulary.get_vocab().items()}

    def strings(ids: Iterable[int]) -> list[str]:
        try:
            return [words[id] for id in ids]
        except KeyError as error:
            said = f"No token {error} in this tokenizer, of {len(words):,}"
            raise Mismatch(f"{said}: the atlas was made with another.") from None

    return strings


class _Packed:
    """Opens a packed file for rows, which it writes when it is called. The same rows give the same bytes."""

    def __init__(self, path: Path) -> None:
        self.raw = path.open("wb")
        self.file = gzip.GzipFile("", "wb", 5, self.raw, 0)

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        return self.write

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row).encode() + b"\n")

    def __exit__(self, *_: Any) -> None:
        self.file.close()
        self.raw.close()


def _cuid(*parts: str) -> str:
    """An id of the kind that Neuronpedia's tables have, the same for the same row: a letter, and 24 of [0-9a-z]."""
    number = int.from_bytes(hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).digest())
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "c" + "".join(digits[number // 36**i % 36] for i in range(24))


def _name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text.lower()).strip("-.") or "model"


def _short(value: float) -> float:
    """Five digits: activations are stored within 0.2 %."""
    return float(f"{value:.5g}")
