"""What reads the bytes of clients that nobody knows yet, each with the worst input of any size."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

from medmoe.serving.access import Access
from medmoe.serving.app import _uploaded
from medmoe.serving.json_body import read_json
from medmoe.serving.problems import ProblemError, check_type
from medmoe.serving.settings import ServerSettings

Call = Callable[[], object]


def _asks(**headers: str) -> Call:
    named = Headers({"host": "clinic"} | headers)
    access = Access(ServerSettings(token="a-token-of-many-signs"))
    return lambda: access.check("/v1/models", named)


def _json(data: bytes) -> Call:
    return lambda: read_json(data)


def _request(content_type: str, body: bytes = b"") -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", content_type.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def _type(value: str) -> Call:
    return lambda: check_type(_request(value), "multipart/form-data")


def _form(body: bytes) -> Call:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    request = _request("multipart/form-data; boundary=" + "x" * 60)
    request.stream = pieces  # type: ignore[method-assign, assignment]
    return lambda: asyncio.run(_uploaded(request))


_PART = b"--" + b"x" * 60 + b'\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
#: Name -> what reads an input of a size, as a call that can be made again and again.
PARSERS: dict[str, Callable[[int], Call]] = {
    "a cookie of quotes": lambda n: _asks(cookie='medmoe_session="' + '\\"' * (n // 2) + '"'),
    "many cookies": lambda n: _asks(cookie="a=b;" * (n // 4)),
    "an authorization of spaces": lambda n: _asks(authorization="Bearer" + " " * n),
    "an origin of brackets": lambda n: _asks(origin="http://" + "[" * n),
    "a host of brackets": lambda n: _asks(host="[" * n),
    "a type of quotes": lambda n: _type('multipart/form-data; a="' + ';"' * (n // 2)),
    "quotes behind too many brackets": lambda n: _json(b"[" * 60 + b'"' + b'\\"' * (n // 2)),
    "a text of escapes": lambda n: _json(b'{"a": "' + b"\\n" * (n // 2) + b'"}'),
    "a text of commas": lambda n: _json(b'["' + b"," * n + b'"]'),
    "spaces": lambda n: _json(b" " * n + b"1"),
    "empty objects": lambda n: _json(b"[" + b"{}," * (n // 3) + b"{}]"),
    "one long number": lambda n: _json(b"[" + b"1" * n + b"]"),
    "a form of line ends": lambda n: _form(_PART + b"\r\n-" * (n // 3)),
    "a form of nearly its ends": lambda n: _form(_PART + (b"\r\n--" + b"x" * 59) * (n // 63)),
    "a form of one header": lambda n: _form(_PART[:-4] + b"a" * n),
}  # fmt: skip


def reads(call: Call) -> None:
    """Make the call; being refused is right."""
    with contextlib.suppress(ProblemError):
        call()
