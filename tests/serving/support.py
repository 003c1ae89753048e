"""A real server in a process of its own, on a tiny model."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


@contextmanager
def running(
    model: Path, folder: Path, *flags: str, wrap: tuple[str, ...] = ()
) -> Iterator[Running]:
    """Run `medmoe serve`, ready, with an empty folder for temporary files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = folder / "tmp"
    files.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDMOE_TOKEN")}
    environment |= {"TMPDIR": str(files), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    words = [*wrap, sys.executable, "-m", "medmoe", "serve", str(model), "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*words, *flags], env=environment, stdout=log, stderr=log)
    server = Running(f"http://127.0.0.1:{port}", port, process, folder / "log", files)
    try:
        for _ in range(600):
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
