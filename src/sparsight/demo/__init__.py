"""The embedded demo: a small model that was really trained, its SAE and labels, as data files."""
