"""A real server for the browser, in a process of its own with an empty folder for its files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path(os.environ.get("MEDMOE_CHROMIUM", "/usr/bin/chromium"))


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server-files")


@pytest.fixture(scope="module")
def _log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def server_log(_log: Path) -> Callable[[], str]:
    return lambda: _log.read_text(encoding="utf-8")


@contextmanager
def running(words: list[str], port: int, folder: Path, log: Path, root: Path) -> Iterator[str]:
    """Run a server of ours until the end of the context; give its address once it answers."""
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *words], env=environment, cwd=root, stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health/ready", timeout=5)
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.25)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(server_folder: Path, _log: Path, repository: Path) -> Iterator[str]:
    port = free_port()
    words = ["-m", "tests.serving.page.support", str(port)]
    with running(words, port, server_folder, _log, repository) as address:
        yield address


@pytest.fixture(scope="module")  # its driver keeps an event loop running, which others cannot bear
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: install chromium or set MEDMOE_CHROMIUM")
    with playwright.sync_playwright() as driver:
        arguments = ["--enable-unsafe-swiftshader"]  # WebGL without a graphics card
        arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
        found = driver.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield found
        found.close()
