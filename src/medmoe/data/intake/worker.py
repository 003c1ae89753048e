"""The decoder process: takes files from its standard input, which is a socket, one at a time.

Before the first file it gives up what it does not need: address space beyond the limit, core dumps,
files, processes, the network (`medmoe.data.intake.walls`). The processor time of each decoding is
bounded by a timer whose signal ends the process. It writes to no log; what libraries say to
standard error is discarded by its parent.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from medmoe.data.intake import protocol, walls
from medmoe.data.intake.decode import Request, decode, prepare
from medmoe.data.intake.limits import Limits
from medmoe.errors import ImageError

# Before the walls, behind which no file can be opened. Windows has no such module, and no decoder.
resource: Any = None if sys.platform == "win32" else importlib.import_module("resource")

Task = Callable[..., tuple[dict[str, Any], bytes | memoryview]]
_OPEN_FILES = 64  # imports, the socket; a picture needs none


def main(argv: list[str]) -> None:
    """Serve until the parent closes the socket.

    ``argv`` holds the memory limit in bytes, and modules whose ``TASKS`` can be asked for too.
    """
    channel = socket.socket(fileno=0)
    prepare()
    tasks: dict[str, Task] = {"picture": _picture}
    for module in map(importlib.import_module, argv[1:]):
        module.prepare()
        tasks |= module.TASKS
    close_calls = walls.raise_walls()
    _give_up(int(argv[0]))
    close_calls()
    protocol.send(channel, {"ready": True})
    while True:
        message = protocol.receive(channel, max_body=2**32 - 1)
        if message is None:
            return
        head, body = message
        if "probe" in head:
            _probe(channel)
            continue
        if not _answer(channel, head, bytes(body), tasks):
            return  # out of memory: what is left of it is in pieces


def _give_up(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    if sys.platform == "linux":  # macOS refuses it
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _probe(channel: socket.socket) -> None:
    """Send what was refused, and once more if executing a program was; else the process is gone."""
    protocol.send(channel, {"refused": walls.probe()})
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, "-S", "-c", ""])
    protocol.send(channel, {})


def _answer(
    channel: socket.socket, head: dict[str, Any], data: bytes, tasks: dict[str, Task]
) -> bool:
    """Do what is asked of one file and send what came of it; False where the process should end."""
    try:
        limits = Limits(**head["limits"])
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)  # its signal ends the process
        try:
            told, made = tasks[head["task"]](data, limits, **head["values"])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except ImageError as error:
        protocol.send(channel, {"code": error.code, "message": str(error)})
    except MemoryError:
        text = f"decoding needs more than {limits.memory_bytes:,} bytes of memory"
        head = {"code": "undecodable", "message": f"{text}; give a smaller image", "last": True}
        protocol.send(channel, head)
        return False
    except Exception as error:  # whatever a decoder raises: its kind may be told, its words not
        text = f"the decoder failed ({type(error).__name__}); export the image anew"
        protocol.send(channel, {"code": "undecodable", "message": text})
    else:
        protocol.send(channel, told, made)
    return True


def _picture(data: bytes, limits: Limits, **request: Any) -> tuple[dict[str, Any], memoryview]:
    decoded = decode(data, Request(**request), limits)
    pixels = np.ascontiguousarray(decoded.pixels)
    scale = decoded.scale and asdict(decoded.scale)
    told = {"shape": pixels.shape, "facts": asdict(decoded.facts), "scale": scale}
    return told, pixels.data.cast("B")
