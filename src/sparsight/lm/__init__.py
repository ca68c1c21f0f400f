"""The first machine: a language model that can be looked at, changed and made to write."""
