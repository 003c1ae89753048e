"""Runs the app with uvicorn: connections that never say anything end, and SIGTERM drains."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from medmoe.errors import first_line
from medmoe.serving.app import create_app
from medmoe.serving.audit import AuditLog
from medmoe.serving.chat_engine import ChatEngine, not_ready
from medmoe.serving.monitor import Monitor
from medmoe.serving.settings import ServerSettings

HEADER_SECONDS = 10.0
MAX_HEADER_BYTES = 32 * 1024
#: In which a client has to take something of a reply that waits for it.
UNREAD_SECONDS = 20.0
#: Read at once: in chunks of one byte each, more would hold up everybody else.
READ_BYTES = 2**14
#: Connections that may come before room is made for one.
BACKLOG = 256


def most_connections() -> int:
    """Return how many connections are kept, so that files are left to be opened."""
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if files == resource.RLIM_INFINITY else min(1024, files * 5 // 8)


class _Protocol(H11Protocol):
    """HTTP/1.1 where a client has to send its headers, and to read its reply, within some seconds.

    Where there are too many connections, the one whose client has owed the rest of a request for
    longest ends for a new one: so nobody keeps others out by sending halves.

    Attributes:
        owes_since: When we began to wait for a request or the rest of one, None where all came.
    """

    _headers_due: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _most = most_connections()
    owes_since: float | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.max_size = READ_BYTES
        self._expect_headers()
        if len(self.connections) > self._most:
            owing = [
                (one.owes_since, id(one), one)
                for one in self.connections
                if isinstance(one, _Protocol) and one is not self and one.owes_since is not None
            ]
            last = min(owing)[2] if owing else self
            self.connections.discard(last)
            last.transport.abort()
        self._note_owed()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_owed()

    def _note_owed(self) -> None:
        owed = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        self.owes_since = (self.owes_since or self.loop.time()) if owed else None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._note_owed()
        if self.conn.their_state is not h11.IDLE:
            self._expect_nothing()
        elif self._headers_due is None:
            self._expect_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading(0)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._expect_no_reading()

    def _expect_reading(self, before: int) -> None:
        """End a connection whose client has taken nothing of its reply since the last look."""
        left = self.transport.get_write_buffer_size()
        if left == before:
            return self.transport.abort()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self._expect_reading, left)

    def _expect_no_reading(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_no_reading()
        self._expect_nothing()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        self._headers_due = self.loop.call_later(HEADER_SECONDS, self._end)

    def _expect_nothing(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _end(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """A server that drains: at the first signal it takes nothing new and finishes its answers.

    Args:
        engine: Loaded while health can already be asked.
        audit: None where no log is kept.
        monitor: None where drift is not watched.
        page: Whether the page is mounted.
        on_ready: Called when the model answers.
        again: Makes another engine when SIGUSR1 asks for it, of what the model's folder holds then;
            None where that is not possible.
        say: Is told what came of that.

    Attributes:
        failure: Why the model could not be loaded, None if it could.
    """

    def __init__(
        self,
        engine: ChatEngine,
        settings: ServerSettings,
        *,
        audit: AuditLog | None = None,
        monitor: Monitor | None = None,
        page: bool = True,
        on_ready: Callable[[], None] = lambda: None,
        again: Callable[[], ChatEngine] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.failure: Exception | None = None
        self._again, self._say, self._changing = again, say, asyncio.Lock()
        self._settings, self._on_ready = settings, on_ready
        self._tasks: set[asyncio.Task[None]] = set()
        app = create_app(
            engine, settings, audit=audit, monitor=monitor, page=page, started=self._begin_loading
        )
        self._service = app.state.service
        config = uvicorn.Config(
            app, host=settings.host, port=settings.port, http=_Protocol, ws="none",
            h11_max_incomplete_event_size=MAX_HEADER_BYTES, timeout_keep_alive=30,
            limit_concurrency=None, backlog=BACKLOG, access_log=False, log_level="warning",
            server_header=False, date_header=True, proxy_headers=False,
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, end at the second."""
        if self._service.engine.state == "draining" or (sig == signal.SIGINT and self.should_exit):
            self.should_exit = True
            return
        asyncio.get_event_loop().call_soon_threadsafe(lambda: self._spawn(self._drain()))

    def _begin_loading(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        if self._again is not None and main and sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGUSR1, lambda: self._spawn(self._change())
            )
        self._spawn(self._load())

    async def _load(self) -> None:
        try:
            await self._service.engine.start()
        except Exception as error:  # a model that nobody foresaw ends the server too
            self.failure = error
            self.should_exit = True
            return
        self._on_ready()

    async def _change(self) -> None:
        """Answer by what the folder holds now; where that cannot be loaded, go on as before."""
        assert self._again is not None
        async with self._changing:
            try:
                if self._service.state != "ready":
                    raise not_ready(self._service.state)
                engine = await asyncio.to_thread(self._again)
                await engine.start()
            except Exception as error:
                self._say(f"not changed, the model before goes on: {first_line(error)}")
                return
            if self._service.state != "ready":  # told to end meanwhile
                return await engine.stop()
            self._say(f"changed to model {engine.facts.sha256}")
            await self._service.change_engine(engine)

    async def _drain(self) -> None:
        end = asyncio.get_running_loop().time() + self._settings.drain_seconds
        self._service.engine.drain()
        while self._service.under_way and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        await self._service.engine.stop()
        self.should_exit = True

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def quiet_logs() -> None:
    """Keep the libraries' own messages about requests out of the log."""
    for name in ("uvicorn.error", "uvicorn.access", "multipart", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
