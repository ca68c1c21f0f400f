"""OpenAI's API, as its clients use it, with controllers, features and receipts besides."""
