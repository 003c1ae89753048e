"""What the routes share: engine, settings, pictures, numbers, and the audit log of each request.

A chat request is let in before it is routed, parsed or decoded: under load most end there, and what
a refusal costs is what all others wait for. It takes a place once it reaches the engine: who sends
slowly holds none, and pictures that are decoded have a queue of their own. One that is let in
leaves exactly one line in the audit log, whatever becomes of it; one that is refused leaves none,
so that nobody can fill a disk by asking a busy server (the numbers count it).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import inf
from typing import Any

from PIL import Image
from starlette.requests import ClientDisconnect

from medmoe.inference.chat import ChatChunk, ChatRequest
from medmoe.serving.audit import AuditLog
from medmoe.serving.chat_engine import ChatEngine, late, not_ready
from medmoe.serving.metrics import Metrics
from medmoe.serving.monitor import Monitor
from medmoe.serving.pictures import Decoding, UploadStore
from medmoe.serving.problems import problem_of
from medmoe.serving.settings import ServerSettings
from medmoe.serving.transport import App, Receive, Scope, Send, route_path

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.05
_BEGUN_WITH: ContextVar[ChatEngine | None] = ContextVar("engine", default=None)


@dataclass(slots=True)
class Record:
    """What the audit log will say of a request: that it was left, until its end is known.

    Attributes:
        image: Keyed hash of its picture.
        code: Why it was refused, None where it was answered.
    """

    image: str | None = None
    status: int = 499
    code: str | None = "client_left"

    def answered(self) -> None:
        """Take in that the whole answer was handed over."""
        self.status, self.code = 200, None

    def refused(self, error: Exception) -> None:
        """Take in why the request was refused, or its answer broken off."""
        problem = problem_of(error)
        self.status, self.code = problem.status, problem.code


class Service:
    """One server's parts.

    Args:
        audit: None where no log is kept.
        monitor: None where drift is not watched.
    """

    def __init__(
        self,
        engine: ChatEngine,
        settings: ServerSettings,
        audit: AuditLog | None,
        monitor: Monitor | None = None,
    ) -> None:
        self.settings, self.monitor = settings, monitor
        self._engine, self._open = engine, Counter[ChatEngine]()
        self.metrics = Metrics(lambda: self.engine, monitor)
        self.uploads = UploadStore()
        self.decoding = Decoding(settings.deadline_seconds, self.metrics)
        self.under_way = 0
        self._audit = audit
        self._log_failed = False

    @property
    def engine(self) -> ChatEngine:
        """The engine; of a chat request under way the one that it began with."""
        begun_with = _BEGUN_WITH.get()
        return begun_with if begun_with and self._open[begun_with] else self._engine

    async def change_engine(self, engine: ChatEngine) -> None:
        """Answer by another engine from the next request on; end the old one after its last.

        Args:
            engine: Started.
        """
        old, self._engine = self._engine, engine
        self.note("changed")
        while self._open[old]:
            await asyncio.sleep(_LOOK_SECONDS)
        await old.stop()

    @property
    def state(self) -> str:
        """The engine's state, or ``broken`` where the audit log cannot be written."""
        return "broken" if self._log_failed else self.engine.state

    def check_open(self) -> None:
        """Let a request pass if it can be answered, and written down.

        Raises:
            EngineError: There is no room, no answer now, or the log cannot be written.
        """
        if self._log_failed:
            raise not_ready(self.state)
        self.engine.check_room()

    def image_hash(self, images: Sequence[Image.Image]) -> str | None:
        """Return the keyed hash of the pixels of a conversation's pictures, for the log."""
        if self._audit is None or not images:
            return None
        return self._audit.image_hash(b"".join(f"{i.size}".encode() + i.tobytes() for i in images))

    async def stream(
        self, request: ChatRequest, started: float, deadline: float
    ) -> AsyncGenerator[ChatChunk]:
        """Answer a conversation, as `ChatEngine.stream` says, and count it.

        Args:
            started: When the request came, by `time.perf_counter`.
        """
        first = True
        with self._answering():
            async with aclosing(self.engine.stream(request, deadline=deadline)) as chunks:
                async for chunk in chunks:
                    if first:
                        self.metrics.first_token.observe(time.perf_counter() - started)
                        first = False
                    if chunk.finish is not None:
                        self.metrics.tokens.labels("prompt").inc(chunk.prompt_tokens)
                        self.metrics.tokens.labels("completion").inc(chunk.completion_tokens)
                        if self.monitor is not None and chunk.answer is not None:
                            self.monitor.see(request, chunk.answer)
                    yield chunk

    async def page_stream(self, request: ChatRequest) -> AsyncGenerator[ChatChunk]:
        """Answer a conversation of the page, and write that down."""
        self.check_open()
        with self.audited(f"page-{secrets.token_hex(12)}") as record:
            record.image = self.image_hash(request.images)
            stream = self.stream(request, time.perf_counter(), self.settings.deadline_seconds)
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    if chunk.finish is not None:
                        record.answered()
                    yield chunk

    async def explain(self, image: Image.Image, question: str) -> dict[str, Any]:
        """Explain an answer, as `ChatEngine.explain` says."""
        with self._answering():
            return await self.engine.explain(image, question)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        self.under_way += 1
        try:
            with self._holding():
                yield
        finally:
            self.under_way -= 1

    @contextmanager
    def _holding(self) -> Iterator[ChatEngine]:
        """Keep the engine until the end of what begins with it."""
        engine = self.engine
        _BEGUN_WITH.set(engine)
        self._open[engine] += 1
        try:
            yield engine
        finally:
            self._open[engine] -= 1

    @contextmanager
    def audited(self, request_id: str, ends: float = inf) -> Iterator[Record]:
        """Write one line about a request when it ends, however it does.

        Args:
            ends: Its deadline, by the event loop's clock.
        """
        record, started = Record(), time.perf_counter()
        with self._holding() as engine:
            try:
                yield record
            except asyncio.CancelledError:
                if asyncio.get_running_loop().time() >= ends:
                    record.refused(late())
                raise
            except ClientDisconnect:
                raise
            except Exception as error:
                record.refused(error)
                raise
            finally:
                self._write(
                    "chat",
                    request=request_id,
                    model=engine.facts.sha256,
                    image=record.image,
                    status=record.status,
                    code=record.code,
                    latency_ms=round(1000 * (time.perf_counter() - started), 1),
                )

    def note(self, event: str) -> None:
        """Write a line about the server itself."""
        self._write(event, model=self.engine.facts.sha256)

    def _write(self, event: str, **facts: str | int | float | bool | None) -> None:
        """Write a line; a log that cannot be written closes the server for new requests."""
        if self._audit is None:
            return
        try:
            self._audit.append(event, **facts)
        except OSError as error:
            if not self._log_failed:
                _log.error("the audit log cannot be written (%s): closed", error.strerror)
            self._log_failed = True


CHAT_PATH, RESPONSES_PATH, DICOMWEB_PATH = "/v1/chat/completions", "/v1/responses", "/v1/dicomweb"
_LET_IN = {("POST", path) for path in (CHAT_PATH, RESPONSES_PATH, DICOMWEB_PATH)}


class Admission:
    """An ASGI layer inside `medmoe.serving.transport.Transport`.

    Args:
        app: The routes; those that answer find the request's `Record` in its state.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a chat request in or refuse it; any other request passes.

        Raises:
            EngineError: 429 or 503.
        """
        if scope["type"] != "http" or (scope["method"], route_path(scope)) not in _LET_IN:
            return await self._app(scope, receive, send)
        self._service.check_open()
        state = scope["state"]
        with self._service.audited(state["request_id"], state["ends"]) as record:
            state["record"] = record
            await self._app(scope, receive, send)
