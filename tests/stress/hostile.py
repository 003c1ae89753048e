"""Hostile requests: the catalogue's rows, mutated, and nonsense for bare sockets."""

from __future__ import annotations

import base64
import json
import random
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
from tests.serving.support import Running, data_url, png, question

CHAT = "/v1/chat/completions"
#: What no reply may hold: a traceback, a path of ours, a pointer.
LEAK = re.compile(rb"Traceback|File \"|/(?:usr|home|root|tmp|site-packages)/|0x[0-9a-f]{6,}")
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1e308, 10**40, "", " ", "\0", "\u202e", "<script>", [], {}, [[]],
    {"a": 1}, "x" * 20_000, "\ud7ff", "../../etc/passwd", "http://169.254.169.254/", float("nan"),
    "data:image/png;base64,", "data:,", "file-x", [None], {"type": "text"},
)  # fmt: skip
_PATHS = (CHAT, "/v1/models", "/v1/files", "/v1/files/x", "/login", "/page/picture", "/page/export",
          "/page/ask", "/page/call/look", "/page/pixels", "/", "/metrics", "/openapi.json", "/%00",
          "/..%2f", "/v1/models/%ff", "/page/line/x", "/page/file=/etc/passwd")  # fmt: skip
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE")


def bodies(chance: random.Random) -> Iterator[bytes]:
    """Yield bodies of chat requests, most of them wrong in one to three places, without end."""
    while True:
        body: Any = question("Is there a mass?", png() if chance.random() < 0.3 else None)
        for _ in range(chance.randrange(1, 4)):
            body = _changed(body, chance)
        text = json.dumps(body).encode()
        kind = chance.random()
        if kind < 0.1:
            text = text[: chance.randrange(len(text))]
        elif kind < 0.2:
            place = chance.randrange(len(text))
            text = text[:place] + chance.randbytes(3) + text[place:]
        elif kind < 0.22:
            text = b"[" * chance.randrange(10_000)
        elif kind < 0.3:
            url = data_url(chance.randbytes(chance.randrange(200)), "image/png")
            text = json.dumps(question("x") | {"messages": [{"role": "user", "content": [
                {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]}]}
            ).encode()  # fmt: skip
        yield text


def _changed(node: Any, chance: random.Random) -> Any:
    """Return a JSON value with one place of it changed, removed or added."""
    if isinstance(node, dict) and node and chance.random() < 0.85:
        key = chance.choice(list(node))
        kind = chance.random()
        if kind < 0.15:
            return {k: v for k, v in node.items() if k != key}
        if kind < 0.25:
            return node | {
                chance.choice(["x", "n", "tools", "medmoe", "stream"]): chance.choice(_ODD)
            }
        return node | {key: _changed(node[key], chance)}
    if isinstance(node, list) and node and chance.random() < 0.85:
        place = chance.randrange(len(node))
        return [*node[:place], _changed(node[place], chance), *node[place + 1 :]]
    return chance.choice(_ODD)


def requests(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Yield arguments of `httpx.Client.request`, without end."""
    texts = bodies(chance)
    while True:
        if chance.random() < 0.75:
            kind = "application/json" if chance.random() < 0.95 else "text/plain"
            yield {"method": "POST", "url": CHAT, "content": next(texts),
                   "headers": {"Content-Type": kind}}  # fmt: skip
            continue
        headers = {
            "X-A": chance.choice(["", "a" * 3000, "\t"]),
            "Content-Type": chance.choice(
                [
                    "application/json",
                    "multipart/form-data; boundary=x",
                    "application/octet-stream",
                    "",
                ]
            ),
        }
        if chance.random() < 0.2:
            headers["Content-Encoding"] = chance.choice(["gzip", "br", "x"])
        yield {"method": chance.choice(_METHODS), "url": chance.choice(_PATHS), "headers": headers,
               "content": chance.choice([b"", b"{}", next(texts), bytes(300)])}  # fmt: skip


def raw(chance: random.Random) -> bytes:
    """Return bytes for a bare socket."""
    path = chance.choice(_PATHS).encode()
    get, post = b"GET " + path + b" HTTP/1.1", b"POST " + path + b" HTTP/1.1"
    host = b"\r\nHost: localhost\r\n"
    return chance.choice([
        chance.randbytes(chance.randrange(1, 500)),
        get + b"\r\n\r\n",
        b"GET " + path + b" HTTP/9.9\r\nHost: localhost\r\n\r\n",
        post + host + b"Content-Length: -1\r\n\r\n",
        post + host + b"Content-Length: 10\r\n\r\nabc",
        post + host + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        get + host + b"X: " + b"a" * chance.randrange(100_000) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
        base64.b64encode(chance.randbytes(200)),
    ])  # fmt: skip


def send_raw(server: Running, data: bytes) -> bytes:
    """Send bytes, hang up our side, and return the beginning of the reply."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as wire:
        wire.settimeout(5)
        try:
            wire.sendall(data)
            wire.shutdown(socket.SHUT_WR)
            return wire.recv(65536)
        except OSError:
            return b""


def fault_of(status: int, body: bytes) -> str | None:
    """Return what is wrong with a reply to a hostile request, None if nothing is."""
    if status >= 500:
        return f"status {status}"
    return "leak" if LEAK.search(body) and b"<!doctype html" not in body[:200].lower() else None


def client_of(server: Running) -> httpx.Client:
    return httpx.Client(base_url=server.address, timeout=30)
