"""Clients that load a server: closed loops, leavers, sockets that say nothing, and hostile ones."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from tests.serving.support import Running, png, question

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
WORDS = [
    "Is",
    "there",
    "a",
    "mass",
    "in",
    "the",
    "left",
    "lung",
    "what",
    "organ",
    "yes",
    "no",
    "liver",
]


@dataclass
class Outcomes:
    """What clients saw: seconds by status, and what was wrong."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, reply: httpx.Response, seconds: float) -> None:
        self.seconds.setdefault(reply.status_code, []).append(seconds)
        if reply.status_code == 429 and not reply.headers.get("retry-after", "").isdigit():
            self.faults.append("429 without Retry-After")

    def count(self, status: int) -> int:
        return len(self.seconds.get(status, []))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def a_question(chance: random.Random, tokens: int = 12, pictures: int = 16) -> dict[str, Any]:
    text = " ".join(chance.choices(WORDS, k=6))
    return question(text, png(seed=chance.randrange(pictures))) | {"max_tokens": tokens}


async def closed_loops(
    server: Running, clients: int, seconds: float, tokens: int = 12
) -> tuple[Outcomes, list[float]]:
    """Ask from many clients, each waiting for its reply; return outcomes and times of health."""
    outcomes, health = Outcomes(), list[float]()
    end = time.monotonic() + seconds

    async def loop(seed: int) -> None:
        chance = random.Random(seed)
        bodies = [json.dumps(a_question(chance, tokens)) for _ in range(4)]
        async with one_client(server) as client:
            while time.monotonic() < end:
                begun = time.monotonic()
                try:
                    reply = await client.post(CHAT, content=chance.choice(bodies), headers=JSON)
                except httpx.HTTPError as error:
                    outcomes.faults.append(type(error).__name__)
                    continue
                outcomes.add(reply, time.monotonic() - begun)
                if reply.status_code == 429:
                    await asyncio.sleep(float(reply.headers.get("retry-after", "1")))

    async def watch() -> None:
        async with one_client(server) as client:
            while time.monotonic() < end:
                begun = time.monotonic()
                reply = await client.get("/health/live")
                health.append(time.monotonic() - begun)
                if reply.status_code != 200:
                    outcomes.faults.append(f"health {reply.status_code}")
                await asyncio.sleep(0.2)

    await asyncio.gather(watch(), *(loop(seed) for seed in range(clients)))
    return outcomes, health


def one_client(server: Running) -> httpx.AsyncClient:
    """Return a client of its own: one pool of many connections is slow at finding a free one."""
    return httpx.AsyncClient(base_url=server.address, timeout=60, verify=False)


async def leave_in_the_middle(server: Running, times: int, at_once: int = 8) -> int:
    """Begin streams and leave after the first word; return how many were met in the middle."""
    left = 0
    gate = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:

        async def one(seed: int) -> None:
            nonlocal left
            body = a_question(random.Random(seed), 150) | {"stream": True}
            async with gate, client.stream("POST", CHAT, json=body) as reply:
                async for _ in reply.aiter_bytes():
                    left += 1
                    break

        await asyncio.gather(*(one(seed) for seed in range(times)))
    return left


def numbers(server: Running) -> dict[str, float]:
    """Return the server's numbers without labels, and those of its process."""
    lines = httpx.get(f"{server.address}/metrics", timeout=30).text.splitlines()
    found = {
        n: float(v) for n, v in (x.rsplit(" ", 1) for x in lines if x[0] != "#") if "{" not in n
    }
    process = psutil.Process(server.process.pid)
    return found | {
        "rss": process.memory_info().rss, "threads": process.num_threads(),
        "files": process.num_fds(),
    }  # fmt: skip


async def seconds_until_idle(server: Running) -> float:
    begun = time.monotonic()
    async with httpx.AsyncClient(base_url=server.address, timeout=30) as client:
        while time.monotonic() < begun + 30:
            text = (await client.get("/metrics")).text
            if "medmoe_running 0.0" in text and "medmoe_waiting 0.0" in text:
                break
            await asyncio.sleep(0.005)
    return time.monotonic() - begun


class SlowSockets:
    """Sockets that send a header byte by byte, as a context."""

    def __init__(self, server: Running, count: int) -> None:
        self._port, self._count = server.port, count
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> SlowSockets:
        for _ in range(self._count):
            wire = socket.create_connection(("127.0.0.1", self._port), 10)
            wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A")
            self._sockets.append(wire)
        return self

    def drip(self) -> int:
        """Send one more byte on each; return how many are still open."""
        alive = []
        for wire in self._sockets:
            try:
                wire.sendall(b"a")
                alive.append(wire)
            except OSError:
                wire.close()
        self._sockets = alive
        return len(alive)

    def __exit__(self, *_: object) -> None:
        for wire in self._sockets:
            wire.close()
