"""What every answer and every chunk has, whichever form it is told in."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from sparsight.ids import feature_uuid
from sparsight.serve.engine import Update
from sparsight.serve.openai.logprobs import token_bytes
from sparsight.serve.service import Served


@dataclass(frozen=True)
class Telling:
    """One answer's name and origin. kind: of the id: chatcmpl, cmpl."""

    served: Served
    kind: str
    with_features: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, object_: str) -> dict[str, Any]:
        """What an answer or a chunk begins with."""
        return {
            "id": f"{self.kind}-{self.id}",
            "object": object_,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": self.served.fingerprint,
        }

    def features(self, update: Update) -> list[dict[str, Any]]:
        """The active features of one new token, as a list of one entry, so that chunks can be strung together."""
        scope = self.served.engine.scope
        active = [
            {
                "id": feature_uuid(scope.sae.fingerprint, one.feature),
                "index": one.feature,
                "label": scope.features.labels.get(one.feature),
                "activation": one.activation,
                "edited": one.edited,
            }
            for one in update.features
        ]
        text = token_bytes(scope.lm.tokenizer, update.id).decode("utf-8", "replace")
        return [{"token": update.index, "id": update.id, "text": text, "active": active}]
