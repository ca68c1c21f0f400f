"""Clients of language models that answer questions: over HTTP, with patience, at a price that is kept account of."""
