"""Names of features that last: a UUID computed from an SAE's fingerprint and a feature's index.

The same feature has the same id on every server, after every restart; and no two SAEs share one. The way back is a
table of all ids of one SAE, made when first asked for: 65,536 take a tenth of a second.
"""

from __future__ import annotations

import hashlib
import uuid
from functools import lru_cache

NAMESPACE = uuid.UUID("6d0cbd5e-5a5e-5c07-9e5d-1f1b5a9a7e01")  # fixed for ever


def feature_id(sae: str | None, index: int) -> str:
    """32 hex digits: the UUID (version 5) of a feature's SAE, by its fingerprint, and its index."""
    digest = hashlib.sha1(NAMESPACE.bytes + f"{sae or ''}/{index}".encode(), usedforsecurity=False).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) & ~(0x3 << 62) | 5 << 76 | 2 << 62  # version and variant: RFC 9562, 5.5
    return f"{number:032x}"


def feature_uuid(sae: str | None, index: int) -> str:
    """The same id in the form with dashes, in which clients compare ids as texts."""
    return dashed(feature_id(sae, index))


def index_of(id: str, sae: str | None, features: int) -> int | None:
    """The index of a feature of an SAE that has so many, from its id in any of a UUID's forms; None for what is no id
    of it."""
    try:
        return _table(sae, features).get(uuid.UUID(id).int)
    except (ValueError, AttributeError):
        return None


def dashed(id: str) -> str:
    """A UUID's 32 hex digits in groups: 8, 4, 4, 4, 12."""
    return f"{id[:8]}-{id[8:12]}-{id[12:16]}-{id[16:20]}-{id[20:]}"


@lru_cache(maxsize=16)
def _table(sae: str | None, features: int) -> dict[int, int]:
    """{id: index} of all features of an SAE."""
    return {int(feature_id(sae, index), 16): index for index in range(features)}
