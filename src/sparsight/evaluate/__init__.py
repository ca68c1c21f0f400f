"""How good an SAE is, on text that it was not trained on: reconstruction, and the loss with it spliced in."""

from sparsight.evaluate.report import Reconstruction, Report, Spliced
from sparsight.evaluate.spec import EvaluateSpec

__all__ = ["EvaluateSpec", "Reconstruction", "Report", "Spliced"]
