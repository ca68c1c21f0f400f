"""What every feature of an SAE fires on, what it means, and finding it: one folder, and all SQL of the house."""
