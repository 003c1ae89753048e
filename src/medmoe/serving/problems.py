"""Errors as a client gets them: OpenAI's shape, a stable code, one line, nothing of our inside."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from medmoe.errors import ConfigError, ImageError, MedMoeError
from medmoe.serving.chat_engine import EngineError, late

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          429: "rate_limit_error"}  # fmt: skip
#: Characters of a Content-Type: a boundary has 70 at most.
_LONGEST_TYPE = 256


class ProblemError(Exception):
    """A request that is refused.

    Args:
        code: Stable, for programs.
        message: One line for people.
        param: The field that it is about.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after = param, retry_after

    def to_json(self) -> dict[str, Any]:
        """Return the body of the reply."""
        kind = _KINDS.get(
            self.status, "invalid_request_error" if self.status < 500 else "api_error"
        )
        return {
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip

    def response(self) -> JSONResponse:
        """Return the problem as a reply."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        headers |= {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return JSONResponse(self.to_json(), self.status, headers=headers)


def problem_of(error: Exception) -> ProblemError:
    """Return what a client is told of an error: of one that is none of ours, nothing."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, TimeoutError):
        error = late()
    message = " ".join(str(error).split())
    if isinstance(error, ImageError):
        return ProblemError(error.status, error.code, message, param="messages")
    if isinstance(error, EngineError):
        return ProblemError(error.status, error.code, message, retry_after=error.retry_after)
    if isinstance(error, ConfigError):
        return ProblemError(400, "bad_conversation", message, param="messages")
    if isinstance(error, MedMoeError):
        return ProblemError(503, "engine_failed", "answering failed; try again", retry_after=1)
    return ProblemError(500, "internal_error", "the server failed; try again")


def check_type(request: Request, wanted: str) -> None:
    """Refuse a body of another type; a form of another site cannot send JSON, so that ends here.

    Raises:
        ProblemError: 415, also for text that is said to be in another encoding than UTF-8.
    """
    header = request.headers.get("content-type", "")
    kind, *parameters = header.lower().split(";")
    if kind.strip() != wanted or len(header) > _LONGEST_TYPE:
        raise ProblemError(415, "unsupported_media_type", f"send {wanted}")
    for name, _, value in (parameter.partition("=") for parameter in parameters):
        if name.strip() == "charset" and value.strip(' \t"') not in {"utf-8", "utf8"}:
            raise ProblemError(415, "unsupported_charset", "send text in UTF-8")
