"""What answers behind a server: the one interface of all engines, whoever runs the model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from medmoe.inference.chat import ChatChunk, ChatRequest


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a server says of its model.

    Attributes:
        id: Its name, never its path.
        sha256: Of its manifest.
        domains: In the order of the experts.
    """

    id: str
    sha256: str
    domains: tuple[str, ...]


class ChatEngine(Protocol):
    """Answers conversations, many at once."""

    name: str
    ready: bool

    def stream(
        self, request: ChatRequest, *, deadline: float | None = None
    ) -> AsyncIterator[ChatChunk]:
        """Answer piece by piece; closing it frees the engine within one token."""
        ...

    async def explain(self, image: Image.Image, question: str) -> dict[str, Any]:
        """Return the evidence behind the answer to one question (`Evidence.to_dict`)."""
        ...

    def describe(self) -> ModelFacts:
        """Return what is served."""
        ...
