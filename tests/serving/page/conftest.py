"""A real server for the browser, in a process of its own with an empty folder for its files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server-files")


@pytest.fixture(scope="module")
def _log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def server_log(_log: Path) -> Callable[[], str]:
    return lambda: _log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(server_folder: Path, _log: Path, repository: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"TMPDIR": str(server_folder), "PYTHONUNBUFFERED": "1"}
    with _log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.serving.page.support", str(port)],
            env=environment,
            cwd=repository,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=5)
            break
        except OSError:
            assert process.poll() is None, _log.read_text()
            time.sleep(0.25)
    yield address
    process.terminate()
    process.wait(10)
