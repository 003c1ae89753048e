"""Inputs that once stalled, filled or fooled the server, and clients that measure it meanwhile."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from tests.serving.support import Running, png, question

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def quotes(size: int) -> bytes:
    """Return a string of quotes that never ends, behind one bracket more than may be open."""
    return b"[" * 65 + b'"' + b'\\"' * (size // 2)


def empty_messages(size: int) -> bytes:
    """Return a chat body of nothing but empty messages."""
    return b'{"model":"tiny","messages":[' + b"{}," * (size // 3) + b"{}]}"


def cookie(size: int) -> str:
    return 'medmoe_session="' + '\\"' * (size // 2) + '"'


def odd_charset(size: int) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a form whose text is said to be in a slow encoding."""
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"a" * size
    return {"Content-Type": "multipart/form-data; charset=punycode; boundary=x"}, (
        body + b"\r\n--x--\r\n"
    )


def slow_jpeg(repeats: int = 500) -> bytes:
    """Return a small JPEG that takes seconds to decode: its last scan stands there many times."""
    out = io.BytesIO()
    grey = Image.fromarray(np.full((7000, 7000), 128, np.uint8))
    grey.save(out, "JPEG", quality=1, progressive=True)
    data = out.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * repeats + b"\xff\xd9"


@dataclass
class Watched:
    """What another client saw meanwhile: seconds of each reply of health, and the memory."""

    health: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    @property
    def growth(self) -> int:
        return max(self.memory) - self.memory[0]


async def watched(server: Running, work: Awaitable[Any]) -> tuple[Any, Watched]:
    """Do some work while health is asked for and memory is read; return what both gave."""
    seen, process = Watched(), psutil.Process(server.process.pid)
    seen.memory.append(process.memory_info().rss)
    async with one_client(server) as client:
        task = asyncio.ensure_future(work)
        while not task.done() or not seen.health:
            begun = time.monotonic()
            await client.get("/health/live")
            seen.health.append(time.monotonic() - begun)
            seen.memory.append(process.memory_info().rss)
            await asyncio.sleep(0.02)
        return await task, seen


def one_client(server: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.address, timeout=300, verify=False)


async def timed(client: httpx.AsyncClient, **request: Any) -> tuple[httpx.Response, float]:
    begun = time.monotonic()
    reply = await client.request(**request)
    return reply, time.monotonic() - begun


async def at_once(server: Running, count: int, **request: Any) -> list[tuple[int, float]]:
    """Send one request many times together; return status and seconds of each reply."""

    async def one() -> tuple[int, float]:
        async with one_client(server) as client:
            try:
                reply, seconds = await timed(client, **request)
            except httpx.TransportError:
                return 0, 0.0
            return reply.status_code, seconds

    return await asyncio.gather(*(one() for _ in range(count)))


def chat(body: bytes, **headers: str) -> dict[str, Any]:
    return {"method": "POST", "url": CHAT, "content": body, "headers": JSON | headers}


def plain(text: str = "Is there any nodule?", **more: object) -> dict[str, Any]:
    return chat(json.dumps(question(text, **more)).encode())


def with_evidence() -> dict[str, Any]:
    return plain(image=png(), medmoe={"evidence": True})


async def in_a_row(server: Running, count: int, **request: Any) -> list[float]:
    """Send a request again and again from one client; return the seconds of each reply of 200."""
    seconds = []
    async with one_client(server) as client:
        for _ in range(count):
            reply, took = await timed(client, **request)
            assert reply.status_code == 200, reply.text
            seconds.append(took)
    return seconds


async def beside(
    server: Running, attack: Callable[[], Awaitable[Any]], count: int, **request: Any
) -> tuple[list[float], Any]:
    """Send a request in a row while something else is under way; return seconds, and that."""
    task = asyncio.ensure_future(attack())
    await asyncio.sleep(0.3)
    seconds = await in_a_row(server, count, **request)
    return seconds, await task
