"""What holds for every request, whatever its route: sign-in, limits, headers, a number of its own.

It stands before routing, parsing and Gradio. A body is counted while it comes, and refused before
it is kept; one that is too slow is cut off. A fault of ours becomes a 500 that says nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from medmoe.serving.access import LOGIN_POLICY, Access, login_page
from medmoe.serving.metrics import Metrics
from medmoe.serving.problems import ProblemError, raw_reply
from medmoe.serving.settings import NOTICE, ServerSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)
#: Routes that are counted by name; all else is "page" or "other".
_COUNTED = ("/v1/chat/completions", "/v1/models", "/v1/files", "/health/live", "/health/ready",
            "/metrics", "/login", "/logout", "/openapi.json")  # fmt: skip
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
    """The outermost ASGI layer.

    Args:
        app: All that is inside.
        settings: Limits.
        access: Who may pass.
        metrics: Counts.
    """

    def __init__(
        self, app: App, settings: ServerSettings, access: Access, metrics: Metrics
    ) -> None:
        self._app, self._settings = app, settings
        self._access, self._metrics = access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        reply = _Reply(send, scope["path"])
        started = time.perf_counter()
        scope.setdefault("state", {})["request_id"] = reply.request_id
        try:
            headers = Headers(scope=scope)
            self._access.check(scope["path"], scope["method"], headers)
            body = _Body(receive, self._settings, headers)
            await self._app(scope, body.receive, reply.send)
        except ProblemError as problem:
            await reply.refuse(problem, form="text/html" in Headers(scope=scope).get("accept", ""))
        except Exception as error:
            _log.error("request %s failed: %s", reply.request_id, _names(error))
            await reply.refuse(ProblemError(500, "internal_error", "the server failed; try again"))
        finally:
            route = _route(scope["path"])
            self._metrics.requests.labels(route, str(reply.status or 499)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


class _Reply:
    """Sends the reply, with our headers."""

    def __init__(self, send: Send, path: str) -> None:
        self._send, self._path = send, path
        self.request_id = f"req-{secrets.token_hex(12)}"
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name, value in _ALWAYS.items():
                headers[name] = value
            headers["x-request-id"] = self.request_id
            headers.setdefault("content-security-policy", _POLICY)
            headers.setdefault("cache-control", "no-store")
        await self._send(message)

    async def refuse(self, problem: ProblemError, *, form: bool = False) -> None:
        """Send a problem, if nothing was sent yet; a browser without token gets the form."""
        if self.status is not None:
            return
        status, headers, body = raw_reply(problem)
        if form and status == 401:
            body = login_page(failed=False).encode()
            headers = [
                (b"content-type", b"text/html; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                (b"content-security-policy", LOGIN_POLICY.encode()),
            ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class _Body:
    """Passes a request's body on while it is within the limits.

    Raises:
        ProblemError: It says that it is too large or packed (at once), or turns out to be too large
            or too slow (while it is read).
    """

    def __init__(self, receive: Receive, settings: ServerSettings, headers: Headers) -> None:
        self._receive, self._limit = receive, settings.max_body_bytes
        self._ends = asyncio.get_running_loop().time() + settings.body_seconds
        self._seconds = settings.body_seconds
        self._size, self._complete = 0, False
        if headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
            raise ProblemError(
                415, "unsupported_encoding", "packed bodies are not accepted; send it as it is"
            )
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._complete:  # what is still to come is the client's leaving
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._ends):
                message = await self._receive()
        except TimeoutError:
            raise ProblemError(
                408, "too_slow", f"the body did not come within {self._seconds:g} s"
            ) from None
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise self._too_large()
        self._complete = not message.get("more_body", False)
        return message

    def _too_large(self) -> ProblemError:
        limit = f"{self._limit // 2**20} MiB"
        return ProblemError(413, "request_too_large", f"at most {limit} a request are accepted")


def _route(path: str) -> str:
    for known in _COUNTED:
        if path == known or path.startswith(known + "/"):
            return known
    return "page" if path == "/" or path.startswith(("/page/", "/gradio_api/")) else "other"


def _names(error: BaseException) -> str:
    """Return the kinds of an error and of what it holds; their texts may hold anything."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(_names(one) for one in error.exceptions)
    return type(error).__name__
