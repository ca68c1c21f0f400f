"""Features as clients are told of them: ids that last, labels, and what is found for a few words. No model is run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

from sparsight.atlas.brief import briefs
from sparsight.atlas.meant import closeness, ranked_labels
from sparsight.atlas.query import Query
from sparsight.atlas.search import FUSED, WEIGHTS, search
from sparsight.atlas.vectors import Embedder, default_embedder, vectors_of
from sparsight.errors import Stopped
from sparsight.ids import feature_uuid, index_of
from sparsight.lm.spelling import spellings
from sparsight.records import Progress
from sparsight.scope.scope import Scope
from sparsight.serve.logs import tell

NICE = 10  # how much later than others the thread that reads labels has its turn
LEAVING = 10.0  # seconds that it is waited for: a batch of texts, and the loading of the sentence model, end first
PATIENCE = 2.0  # seconds that a search waits for the vectors of labels, before it does without
PLACEHOLDER = "feature {}"  # the label of a feature that nobody has named


class Known:
    """What one scope knows of its features. May be used from several threads."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.sae = scope, scope.sae.fingerprint
        self._turn = threading.Lock()
        self._ready: Future[Embedder | None] | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The id of every feature."""
        return tuple(feature_uuid(self.sae, index) for index in range(len(self.scope.features)))

    @cached_property
    def scales(self) -> list[float] | None:
        """Each feature's scale, raw; None where the SAE has none."""
        scale = self.scope.sae.scale
        return None if scale is None else scale.tolist()

    def index(self, id: str) -> int | None:
        """Which feature has this id; None where none of this SAE has."""
        return index_of(id, self.sae, len(self.scope.features))

    def told(self, features: Sequence[int]) -> list[dict[str, Any]]:
        """{"id", "label", "index_in_sae", "max_activation_strength"} of each. Raises NoFeature.

        The last is the highest raw activation that the atlas has seen; without an atlas the feature's scale, and null
        where it has none.
        """
        held = self.scope.features
        for index in features:
            held[index]  # raises NoFeature
        found = {} if held.atlas is None else {one.feature: one for one in briefs(held.atlas, features)}
        out = []
        for index in features:
            brief = found.get(index)
            label = (brief.text if brief else None) or held.labels.get(index) or PLACEHOLDER.format(index)
            peak = brief.max if brief else None if self.scales is None else self.scales[index]
            out.append({"id": self.ids[index], "label": label, "index_in_sae": index, "max_activation_strength": peak})
        return out

    def labels(self, features: Sequence[int]) -> dict[int, str]:
        """{index: label} of those that somebody has named."""
        held = self.scope.features
        found = {} if held.atlas is None else {one.feature: one.text for one in briefs(held.atlas, features)}
        texts = ((index, found.get(index) or held.labels.get(index)) for index in features)
        return {index: text for index, text in texts if text}

    def named(self, features: Sequence[int]) -> list[dict[str, Any]]:
        """{"id", "label", "index_in_sae"} of each. Raises NoFeature."""
        return [{name: one[name] for name in ("id", "label", "index_in_sae")} for one in self.told(features)]

    def found(self, words: str, start: int, end: int) -> list[dict[str, Any]]:
        """Those from start to end (exclusive) of what words find, best first, with "relevance": 1 for what is first in
        every ranking (see docs/search.md). Raises BadInput for no words."""
        atlas, embedder = self.scope.features.atlas, self.embedder()
        if atlas is None:
            ranked = ranked_labels(words, self.scope.features.labels, embedder)
        else:
            ids_of = partial(spellings, self.scope.lm.tokenizer) if self.scope.lm.has_tokenizer else None
            hits = search(atlas, Query(" ".join(words.split())), end, embedder, ids_of=ids_of)
            rankings = 1 + (embedder is not None) + WEIGHTS["tokens"] * (ids_of is not None)
            ranked = [(hit.feature, hit.score * (FUSED + 1) / rankings) for hit in hits]
        return self._with_relevance(ranked[start:end])

    def reranked(self, words: str, features: Sequence[int], k: int) -> list[dict[str, Any]]:
        """The k of these whose labels are nearest in meaning to words; "relevance": the cosine, 0 where it is below,
        and for a feature without a label. Without a sentence model: the share of the words that the label has."""
        features = list(dict.fromkeys(features))
        held, embedder = self.scope.features, self.embedder()
        labels = dict(held.labels)
        if held.atlas is not None and embedder is None:
            labels |= {one.feature: one.text for one in briefs(held.atlas, features) if one.text}
        near = closeness(words, features, labels, held.atlas, embedder)
        order = sorted(range(len(features)), key=lambda i: (-near[i], i))[:k]
        return self._with_relevance([(features[i], near[i]) for i in order])

    def _with_relevance(self, ranked: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        told = self.told([feature for feature, _ in ranked])
        return [one | {"relevance": min(max(near, 0.0), 1.0)} for one, (_, near) in zip(told, ranked, strict=True)]

    def embedder(self) -> Embedder | None:
        """The sentence model, once it has read all labels: until then, and where none is installed, words are looked
        for as they stand."""
        try:
            return self.read_labels().result(PATIENCE)
        except TimeoutError:
            return None
        except Exception as error:  # words are found without it, and the next search tries again
            tell("labels not read", error=error)
            self._ready = None
            return None

    def read_labels(self) -> Future[Embedder | None]:
        """Have the sentence model read all labels, in a thread, once. `close` ends it."""
        with self._turn:
            if self._ready is None:
                self._ready = Future()
                self._thread = threading.Thread(target=self._read, args=(self._ready,), daemon=True, name="labels")
                self._thread.start()
            return self._ready

    def close(self) -> None:
        """Ends the reading of labels: a process that goes while torch computes is aborted. What was read is kept where
        it was written already."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(LEAVING)
            if self._thread.is_alive():
                return
        with self._turn:  # whoever serves this scope anew begins anew
            self._thread = None
            if self._ready is not None and self._ready.exception() is not None:
                self._ready = None
        self._closed.clear()

    def _read(self, ready: Future[Embedder | None]) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own: what is asked of the server goes first
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            ready.set_result(self._prepared())
        except BaseException as error:  # it is told to whoever asks
            ready.set_exception(error)

    def _prepared(self) -> Embedder | None:
        embedder = default_embedder()
        if embedder is not None and self.scope.features.atlas is not None:
            vectors_of(self.scope.features.atlas, embedder, self._go_on)
        return embedder

    def _go_on(self, _: Progress) -> None:
        if self._closed.is_set():
            raise Stopped("The server is stopping: labels are read when they are searched again.")
