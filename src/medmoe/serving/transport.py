"""What holds for every request, whatever its route: sign-in, limits, headers, a number of its own.

It stands before routing and parsing. A body is counted while it comes, and refused before it is
kept; one that is too slow is cut off, and so is whatever gives no reply until the deadline. A fault
of ours becomes a 500 that says nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from medmoe.errors import MedMoeError
from medmoe.serving.access import LOGIN_POLICY, Access, login_page
from medmoe.serving.metrics import Metrics
from medmoe.serving.problems import ProblemError, problem_of
from medmoe.serving.settings import NOTICE, ServerSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)
#: Routes that are counted by name; all else is "page" or "other".
_COUNTED = ("/v1/chat/completions", "/v1/responses", "/v1/models", "/v1/files", "/v1/dicomweb",
            "/health/live", "/health/ready", "/metrics", "/login", "/logout",
            "/openapi.json")  # fmt: skip
#: A body up to this size that nobody asked for is read to its end, if that comes within a second.
SMALL_BODY, REST_SECONDS = 2**20, 1.0
#: Of every body, whatever the others hold: a question in words has fewer.
FREE_BYTES = 2**16
_UNPACKED = frozenset({"", "identity"})
_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_ALWAYS = {
    "x-content-type-options": "nosniff",
    # Not no-referrer: with it a browser sends the sign-in form with the origin "null".
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "x-medmoe-notice": NOTICE,
}


class Transport:
    """The outermost ASGI layer."""

    def __init__(
        self, app: App, settings: ServerSettings, access: Access, metrics: Metrics
    ) -> None:
        self._app, self._settings = app, settings
        self._access, self._metrics = access, metrics
        self._held = _Held(4 * settings.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, hand it to the app, and send what comes back with our headers."""
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, path = Headers(scope=scope), route_path(scope)
        body = _Body(receive, self._settings, headers, self._held)
        reply = _Reply(send, body, form="text/html" in headers.get("accept", ""))
        started = time.perf_counter()
        ends = asyncio.get_running_loop().time() + self._settings.deadline_seconds
        scope.setdefault("state", {}).update(request_id=reply.request_id, ends=ends)
        try:
            self._access.check(path, headers)
            body.check()
            async with asyncio.timeout_at(ends) as reply.limit:
                await self._app(scope, body.receive, reply.send)
        except ClientDisconnect:
            pass
        except Exception as error:
            if not isinstance(error, ProblemError | MedMoeError | TimeoutError):
                _log.error("request %s failed: %s", reply.request_id, _names(error))
            await reply.refuse(problem_of(error))
        finally:
            body.let_go()
            route = _route(path)
            self._metrics.requests.labels(route, str(reply.status or 499)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


def route_path(scope: Scope) -> str:
    """Return a request's path as the routes see it, without the prefix the app is mounted at."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :] or "/"
    return path


class Stream(StreamingResponse):
    """A reply in pieces that lets go of what they are made of when it ends, however it does.

    Args:
        pieces: Of the reply.
        begun: What they are made of, where it was begun already: `pieces` may never be.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes],
        *begun: AsyncGenerator[Any],
        media_type: str = "text/event-stream",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(pieces, headers=headers, media_type=media_type)
        self._sources = (pieces, *begun)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for source in self._sources:
                await source.aclose()


class _Reply:
    """Sends the reply, with our headers.

    Args:
        body: Of the request: where it failed, that is the reply, whatever the app says.
        form: A browser asks: without a token it gets the form to sign in.
    """

    def __init__(self, send: Send, body: _Body, *, form: bool) -> None:
        self._send, self._body, self._form = send, body, form
        self._replaced = False
        self.request_id = f"req-{secrets.token_hex(12)}"
        self.status: int | None = None
        self.limit: asyncio.Timeout | None = None

    async def send(self, message: Message) -> None:
        """Pass on a message of the app's reply."""
        if message["type"] == "http.response.start":
            if self._body.problem is not None:
                await self.refuse(self._body.problem)
                self._replaced = True
                return
            self.status = message["status"]
            if self.limit is not None and not self.limit.expired():
                self.limit.reschedule(None)  # what is streamed has the deadline of its engine
            await self._decorate(message)
        if not self._replaced:
            await self._send(message)

    async def refuse(self, problem: ProblemError) -> None:
        """Send a problem, if nothing was sent yet."""
        if self.status is not None:
            return
        told = problem.response()
        self.status, headers, body = told.status_code, told.raw_headers, told.body
        if self._form and problem.status == 401:
            body = login_page(failed=False).encode()
            headers = [
                (b"content-type", b"text/html; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                (b"content-security-policy", LOGIN_POLICY.encode()),
            ]
        start = {"type": "http.response.start", "status": self.status, "headers": headers}
        await self._decorate(start)
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    async def _decorate(self, message: Message) -> None:
        message.setdefault("headers", [])
        headers = MutableHeaders(scope=message)
        headers.update(_ALWAYS)
        headers["x-request-id"] = self.request_id
        headers.setdefault("content-security-policy", _POLICY)
        headers.setdefault("cache-control", "no-store")
        # What still comes would be the next request; and where two headers say how long the body
        # is, a proxy in front of us may have believed the other one (RFC 9112, 6.1).
        if not await self._body.ended() or self._body.framed_twice:
            headers["connection"] = "close"


@dataclass(slots=True)
class _Held:
    """How many bytes of all bodies together are held, beyond what each may have anyway."""

    most: int
    bytes: int = 0


class _Body:
    """Passes a request's body on while it is within the limits.

    Attributes:
        problem: Why it was not taken, None where it was.
        framed_twice: It says its length, and that it comes in chunks.
    """

    def __init__(
        self, receive: Receive, settings: ServerSettings, headers: Headers, held: _Held
    ) -> None:
        self._receive, self._headers, self._limit = receive, headers, settings.max_body_bytes
        self._ends = asyncio.get_running_loop().time() + settings.body_seconds
        self._seconds = settings.body_seconds
        self._size, self._reading, self._begun = 0, False, False
        self._all, self._own = held, 0
        length = headers.get("content-length", "")
        self._length = int(length) if length.isdecimal() else None
        chunked = "transfer-encoding" in headers
        self._complete = not self._length and not chunked
        self.framed_twice = chunked and "content-length" in headers
        self.problem: ProblemError | None = None

    def check(self) -> None:
        """Let a body come.

        Raises:
            ProblemError: It says that it is packed or too large.
        """
        if self._headers.get("content-encoding", "identity").strip().lower() not in _UNPACKED:
            raise ProblemError(
                415, "unsupported_encoding", "packed bodies are not accepted; send it as it is"
            )
        if self._length is not None and self._length > self._limit:
            raise self._too_large()

    async def receive(self) -> Message:
        """Return the next piece of the body.

        Raises:
            ProblemError: It turns out to be too large or too slow.
        """
        if self._complete:  # what is still to come is the client's leaving
            return await self._receive()
        self._begun = self._reading = True
        try:
            async with asyncio.timeout_at(self._ends):
                message = await self._receive()
        except TimeoutError:
            self.problem = ProblemError(
                408, "too_slow", f"the body did not come within {self._seconds:g} s"
            )
            raise self.problem from None
        finally:
            self._reading = False
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            self.problem = self._too_large()
            raise self.problem
        self._hold(max(0, self._size - FREE_BYTES))
        if self._all.bytes > self._all.most:
            self.problem = ProblemError(
                429, "busy", "too much is being sent; try again", retry_after=random.randint(1, 3)
            )
            raise self.problem
        self._complete = not message.get("more_body", False)
        return message

    def let_go(self) -> None:
        """Count its bytes no longer: the request has ended."""
        self._hold(0)

    def _hold(self, size: int) -> None:
        self._all.bytes += size - self._own
        self._own = size

    async def ended(self) -> bool:
        """Return whether the client may send another request after this one.

        A small body that nobody asked for is taken in first, so that who is refused keeps the
        connection; one that a client holds back until it is told to go on is not asked for.
        """
        held = not self._begun and "100-continue" in self._headers.get("expect", "").lower()
        if self._reading or held or (self._length or 0) > SMALL_BODY:
            return self._complete
        with contextlib.suppress(TimeoutError, ProblemError):
            async with asyncio.timeout(REST_SECONDS):
                while not self._complete and self.problem is None and self._size <= SMALL_BODY:
                    await self.receive()
        return self._complete

    def _too_large(self) -> ProblemError:
        limit = f"{self._limit // 2**20} MiB"
        return ProblemError(413, "request_too_large", f"at most {limit} a request are accepted")


def _route(path: str) -> str:
    for known in _COUNTED:
        if path == known or path.startswith(known + "/"):
            return known
    return "page" if path == "/" or path.startswith("/page/") else "other"


def _names(error: BaseException) -> str:
    """Return the kinds of an error and of what it holds; their texts may hold anything."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(_names(one) for one in error.exceptions)
    return type(error).__name__
