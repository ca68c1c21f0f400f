"""The server: OpenAI's API and Ember's, each request with edits of its own. The only async room."""
