"""How good an SAE is: on ground truth, and on a language model."""
