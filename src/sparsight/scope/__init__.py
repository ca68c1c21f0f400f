"""The instrument: a model with an SAE attached."""
