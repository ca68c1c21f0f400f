"""sparsight: see and steer the features inside a language model.

Two machines (a language model, a sparse autoencoder). Two stores (Shards, Atlas). One instrument (Scope: a model with
an SAE attached). Everything else is a function between them.

    import sparsight
    scope = sparsight.load("demo")
    f = scope.features
    scope.compare([{"role": "user", "content": "Hello!"}], f["talks like a pirate"].nudge(3).on("template"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sparsight.edits import Condition, Controller, Edit, Feature, compare
    from sparsight.errors import SparsightError
    from sparsight.lm.lm import ObservableLanguageModel
    from sparsight.records import Message, Receipt, Sampling
    from sparsight.remote.connect import connect
    from sparsight.sae.codes import Codes
    from sparsight.sae.files import load_sae, save_sae
    from sparsight.sae.sae import SparseAutoEncoder
    from sparsight.scope.load import load
    from sparsight.scope.scope import Scope

_HOMES = {
    "Condition": "edits",
    "Controller": "edits",
    "Edit": "edits",
    "Feature": "edits",
    "compare": "edits",
    "connect": "remote.connect",
    "SparsightError": "errors",
    "ObservableLanguageModel": "lm.lm",
    "Message": "records",
    "Receipt": "records",
    "Sampling": "records",
    "Codes": "sae.codes",
    "load_sae": "sae.files",
    "save_sae": "sae.files",
    "SparseAutoEncoder": "sae.sae",
    "load": "scope.load",
    "Scope": "scope.scope",
}
__all__ = [
    "Codes",
    "Condition",
    "Controller",
    "Edit",
    "Feature",
    "Message",
    "ObservableLanguageModel",
    "Receipt",
    "Sampling",
    "Scope",
    "SparseAutoEncoder",
    "SparsightError",
    "compare",
    "connect",
    "load",
    "load_sae",
    "save_sae",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import sparsight` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sparsight' has no attribute {name!r}")
    return getattr(import_module(f"sparsight.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
