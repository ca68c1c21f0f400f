"""Recipes: what is to be harvested, trained and evaluated, as TOML that can be read, changed and run again."""
