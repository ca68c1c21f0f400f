"""From a server to a scope: `sparsight.connect`."""

from __future__ import annotations

from sparsight.remote.scope import Scope
from sparsight.remote.wire import SECONDS, Wire


def connect(url: str, key: str | None = None, *, model: str | None = None, seconds: float = SECONDS) -> Scope:
    """A scope on a server: what `load` gives, with the same names, over HTTP and without torch.

    url: as http://127.0.0.1:8000. key: where the server wants one. model: a name that it serves; None: its first one.
    seconds: that an answer may take. Raises NoAnswer where nobody answers, BadInput for a model that is not served.
    """
    return Scope(Wire(url, key, seconds), model)
