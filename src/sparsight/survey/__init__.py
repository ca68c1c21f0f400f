"""What every feature of an SAE fires on: one walk over a corpus."""
