"""Refuses chat requests that cannot be taken now, before they are routed, parsed or decoded.

Under load most requests end here: what a refusal costs is what all others wait for.
"""

from __future__ import annotations

from starlette.datastructures import Headers

from medmoe.serving.problems import ProblemError, raw_reply
from medmoe.serving.service import Service
from medmoe.serving.transport import App, Receive, Scope, Send

CHAT_PATH = "/v1/chat/completions"
#: A body up to this size is read to its end, so that who is refused keeps the connection.
SMALL_BODY = 2**20


class Gate:
    """An ASGI layer inside `medmoe.serving.transport.Transport`.

    Args:
        app: The routes.
        service: Knows whether there is room.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", CHAT_PATH):
            try:
                self._service.check_open()
            except ProblemError as problem:
                return await _refuse(problem, scope, receive, send)
        await self._app(scope, receive, send)


async def _refuse(problem: ProblemError, scope: Scope, receive: Receive, send: Send) -> None:
    length = Headers(scope=scope).get("content-length", "")
    keeps = length.isdigit() and int(length) <= SMALL_BODY
    while keeps and (await receive()).get("more_body", False):
        pass
    status, headers, body = raw_reply(problem, close=not keeps)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
