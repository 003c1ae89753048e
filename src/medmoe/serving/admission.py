"""Where a chat request is let in: refused before it is routed, parsed or decoded, or written down.

Under load most requests end here: what a refusal costs is what all others wait for. A request that
is let in leaves exactly one line in the audit log, whatever becomes of it; one that is refused here
leaves none, so that nobody can fill a disk by asking a busy server (the numbers count it).
"""

from __future__ import annotations

from medmoe.serving.chat_engine import EngineError
from medmoe.serving.problems import problem_of
from medmoe.serving.service import Service
from medmoe.serving.transport import App, Receive, Scope, Send, route_path

CHAT_PATH = "/v1/chat/completions"


class Admission:
    """An ASGI layer inside `medmoe.serving.transport.Transport`.

    Args:
        app: The routes; that of chat finds the request's `Record` in its state.
        service: Knows whether there is room.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a chat request in or refuse it; any other request passes.

        Raises:
            ProblemError: 429 or 503.
        """
        if scope["type"] != "http" or (scope["method"], route_path(scope)) != ("POST", CHAT_PATH):
            return await self._app(scope, receive, send)
        try:
            self._service.check_open()
        except EngineError as error:
            raise problem_of(error) from None
        with self._service.audited(scope["state"]["request_id"]) as record:
            scope["state"]["record"] = record
            await self._app(scope, receive, send)
