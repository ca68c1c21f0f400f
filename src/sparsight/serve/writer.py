"""Who writes contrastive chats for the server: a language model elsewhere where one is configured, else its own."""

from __future__ import annotations

from sparsight.label.clients.client import Question
from sparsight.label.clients.openai import OpenAIClient
from sparsight.label.clients.spec import EndpointSpec
from sparsight.serve.spec import ServeSpec

SHARED = "You write short, plain chats, and answer with JSON alone."
MOST, LIKELY = 4000, 1200  # tokens of an answer
SECONDS, PATIENCE, RETRIES = 60.0, 20.0, 2  # whoever asks is waiting


class Elsewhere:
    """What `contrastive` takes as its writer."""

    def __init__(self, spec: EndpointSpec) -> None:
        self._client = OpenAIClient(spec)

    def __call__(self, asked: str) -> str:
        """Raises NoAnswer."""
        return self._client.ask(Question("contrast", SHARED, asked, MOST, LIKELY)).text

    def close(self) -> None:
        self._client.close()


def writer_of(settings: ServeSpec) -> Elsewhere | None:
    """None where the served model writes. Raises BadInput without a key that is needed, Missing without httpx."""
    if settings.writer is None:
        return None
    patience = {"timeout": SECONDS, "retries": RETRIES, "patience": PATIENCE}
    return Elsewhere(
        EndpointSpec(settings.writer, settings.writer_url, settings.writer_key_env, temperature=0.7, **patience)
    )
