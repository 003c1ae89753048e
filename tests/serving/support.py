"""A real server in a process of its own, on a tiny model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

TOKEN = "a-token-of-many-signs"


@dataclass
class Running:
    """A server that runs."""

    address: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    folder: Path

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")


@dataclass
class Inside:
    """An app in this process, asked without a socket, so that each step of a client is chosen."""

    app: Any
    loop: asyncio.AbstractEventLoop
    log: Path

    def exchange(
        self, method: str, path: str, *messages: dict[str, Any], root: str = "", **headers: str
    ) -> tuple[int | None, dict[str, str], bytes]:
        """Give the app what a client does, one message after the other, and then nothing.

        Returns:
            Status (None where nothing was sent), headers and body of the reply.
        """
        coming, sent = list(messages), list[dict[str, Any]]()
        named = {"host": "127.0.0.1", "content_type": "application/json"} | headers
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": method,
            "http_version": "1.1", "scheme": "http", "path": path, "raw_path": path.encode(),
            "root_path": root, "query_string": b"", "client": ("127.0.0.1", 1),
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in named.items()],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            if coming:
                return coming.pop(0)
            return await self.loop.create_future()  # type: ignore[no-any-return]

        async def send(message: dict[str, Any]) -> None:
            await asyncio.sleep(0)  # as a server does whose buffers are full
            sent.append(message)

        self.loop.run_until_complete(asyncio.wait_for(self.app(scope, receive, send), 300))
        if not sent:
            return None, {}, b""
        found = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
        return sent[0]["status"], found, b"".join(each.get("body", b"") for each in sent[1:])

    def written(self) -> list[tuple[int, str | None]]:
        """Return status and code of each request in the audit log."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [(line["status"], line["code"]) for line in lines if line["event"] == "chat"]


@contextmanager
def running(
    model: Path,
    folder: Path,
    *flags: str,
    wrap: tuple[str, ...] = (),
    program: tuple[str, ...] = ("-m", "medmoe"),
) -> Iterator[Running]:
    """Run `medmoe serve`, ready, with an empty folder for temporary files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = folder / "tmp"
    files.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDMOE_TOKEN")}
    environment |= {"TMPDIR": str(files), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    words = [*wrap, sys.executable, *program, "serve", str(model), "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*words, *flags], env=environment, stdout=log, stderr=log)
    server = Running(f"http://127.0.0.1:{port}", port, process, folder / "log", files)
    try:
        for _ in range(3000):  # on a busy machine
            if "ready:" in server.said():
                break
            assert process.poll() is None, server.said()
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def png(size: int = 32, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def question(text: str = "Is there a mass?", image: bytes | None = None, **more: object) -> dict:  # type: ignore[type-arg]
    parts: list[dict[str, object]] = [{"type": "text", "text": text}]
    if image is not None:
        parts.append({"type": "image_url", "image_url": {"url": data_url(image)}})
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 8,
    } | more


def ask(address: str, **more: object) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json=question(**more), timeout=60)  # type: ignore[arg-type]
