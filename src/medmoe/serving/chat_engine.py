"""What the server and its page ask of an engine, whichever it is: answer, explain, start, drain.

`medmoe.serving.local_engine` decodes in this process; `medmoe.serving.vllm` hands over to vLLM.
Nothing here knows HTTP; an error's status is one of its facts, as with `medmoe.errors.ImageError`.
"""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medmoe.errors import ConfigError, MedMoeError
from medmoe.inference.chat import ChatChunk, ChatRequest
from medmoe.model import locate
from medmoe.model.checkpoint import identity, read_config

#: What a model may be called: it stands in addresses, replies and requests. Letters of any script.
_NAME, _OTHER = re.compile(r"[\w.:@+-]+"), re.compile(r"[^\w.:@+-]+")


class EngineError(MedMoeError):
    """The engine does not answer now; another time or another request it would.

    Args:
        code: Stable, for programs.
        message: One line for people.
        status: Of HTTP.
        retry_after: Seconds after which it makes sense to ask again, None where it never does.
    """

    def __init__(
        self, code: str, message: str, status: int, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.status, self.retry_after = code, status, retry_after


def busy(seconds: int) -> EngineError:
    """Return the error for a full queue.

    Args:
        seconds: To come back after, on average: who was refused together shall not return together.
    """
    retry_after = random.randint(1, 2 * seconds - 1)
    return EngineError("queue_full", "too many requests are waiting; try again", 429, retry_after)


def failed(what: str) -> EngineError:
    """Return the error for a fault of ours in what was being done (answering, explaining)."""
    return EngineError("engine_failed", f"{what} failed; try again", 503, 1)


def late() -> EngineError:
    """Return the error for an answer that was not ready in time."""
    return EngineError("deadline_passed", "no answer in time; ask for less", 504)


def not_ready(state: str) -> EngineError:
    """Return the error of an engine that is loading, draining or broken."""
    return EngineError("not_ready", f"the model is {state}; try again later", 503, 5)


def no_evidence() -> EngineError:
    """Return the error for evidence that is asked of an engine that cannot explain."""
    return EngineError(
        "no_evidence", "this server's engine does not show the router's choices; evidence needs a "
        "server with --engine local", 501,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What may be said of the model.

    Attributes:
        id: Its name in requests and replies.
        sha256: Of its manifest, and so of every file of it.
        domains: In the order of the experts; empty for a dense model.
    """

    id: str
    sha256: str
    domains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """How much an engine has to do: requests that wait, and those being answered or explained."""

    waiting: int
    running: int
    explaining: int = 0


class ChatEngine(ABC):
    """An engine that the server runs; all methods are called on one event loop.

    Args:
        directory: Of the model; only its facts are read here.
        name: What to call the model, as `model_facts` says.
        max_batch: Conversations that are answered together.
        max_waiting: Requests that may wait; more are refused.

    Attributes:
        facts: Of the model; they are known before it is loaded.
        explains: Whether `explain` can answer: a fact of the engine, known as early.
        most_images: How many pictures a conversation may have.
    """

    explains, most_images = False, 4

    def __init__(
        self, directory: Path, name: str | None, *, max_batch: int = 16, max_waiting: int = 32
    ) -> None:
        self.facts = model_facts(directory, name)
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._state = "loading"

    @property
    def state(self) -> str:
        """One of ``loading``, ``ready``, ``draining``, ``broken``."""
        return self._state

    @abstractmethod
    def stream(
        self, request: ChatRequest, *, deadline: float | None = None
    ) -> AsyncGenerator[ChatChunk]:
        """Answer a conversation piece by piece; closing the iterator stops it within one token.

        Args:
            deadline: Seconds from now in which the whole answer must be there.

        Raises:
            EngineError: The queue is full, the deadline passed, or the engine does not answer now.
            ConfigError: The conversation does not fit the model.
        """

    async def explain(self, image: Image.Image, question: str) -> dict[str, Any]:
        """Return what `medmoe.inference.evidence.explain` finds, as an object for JSON.

        Raises:
            EngineError: As with `stream`; always `no_evidence` where ``explains`` is false.
        """
        raise no_evidence()

    @abstractmethod
    def load(self) -> Load:
        """Return how much there is to do."""

    def check_room(self) -> None:
        """Let a request come that could be taken now, before its picture is decoded.

        Raises:
            EngineError: The queue is full, or the engine does not answer now.
        """
        if self.state != "ready":
            raise not_ready(self.state)
        if self.load().waiting >= self._max_waiting:
            raise busy(1 + self._max_waiting // (2 * self._max_batch))

    @abstractmethod
    async def start(self) -> None:
        """Load the model.

        Raises:
            MedMoeError: It cannot be loaded.
        """

    def drain(self) -> None:
        """Take nothing new; what is under way goes on."""
        if self._state == "ready":
            self._state = "draining"

    @abstractmethod
    async def stop(self) -> None:
        """End the engine; what is still being answered is cut off."""


def model_facts(directory: Path, name: str | None = None) -> ModelFacts:
    """Return the facts of a model folder; its files are not read but for two small ones.

    Args:
        name: What to call it; by default what `name_of` says.

    Raises:
        ConfigError: The name has a character that no name may have.
        CheckpointError: It is no model folder.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name!r} must be one or more letters, digits and . _ : @ + -; give another, "
            "or leave it out"
        )
    config = read_config(directory)
    return ModelFacts(name or name_of(directory), identity(directory), tuple(config.domains or ()))


def name_of(directory: Path) -> str:
    """Return what a model is called by its folder: never empty, and fit for an address.

    It is the folder's name, or for ``…/model`` its run's; other characters than those of `_NAME`
    become ``-``. A folder that leaves nothing to call it by (``/``, or ``/model`` in a container)
    is ``medmoe``.
    """
    return _OTHER.sub("-", locate.name_of(directory)).strip(".-") or "medmoe"
