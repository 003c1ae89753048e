"""Messages between this process and a decoder process: a JSON head and a body of bytes.

Plain JSON and plain bytes on purpose: what a decoder sends can build no object here. Lengths are
checked before anything is allocated.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

import numpy as np

_HEAD = struct.Struct(">II")
MAX_HEAD_BYTES = 2**16


def send(channel: socket.socket, head: dict[str, Any], body: memoryview | bytes = b"") -> None:
    """Send one message to the other process."""
    text = json.dumps(head).encode()
    channel.sendall(_HEAD.pack(len(text), len(body)) + text)
    if body:
        channel.sendall(body)


def receive(
    channel: socket.socket, max_body: int, deadline: float | None = None
) -> tuple[dict[str, Any], memoryview] | None:
    """Return one message, None where the other side has gone.

    Args:
        max_body: The most bytes a body may have.
        deadline: On the clock of `time.monotonic`.

    Raises:
        TimeoutError: The deadline has passed.
        ValueError: This is no message.
    """
    start = _exactly(channel, _HEAD.size, deadline)
    if start is None:
        return None
    head_bytes, body_bytes = _HEAD.unpack(start)
    if head_bytes > MAX_HEAD_BYTES or body_bytes > max_body:
        raise ValueError("message too long")
    text = _exactly(channel, head_bytes, deadline)
    body = _exactly(channel, body_bytes, deadline)
    if text is None or body is None:
        return None
    head = json.loads(bytes(text))
    if not isinstance(head, dict):
        raise ValueError("no message")
    return head, body


def _exactly(channel: socket.socket, count: int, deadline: float | None) -> memoryview | None:
    """Return so many bytes, None where the other side closed before."""
    # Not a bytearray: that would be filled with zeros first.
    view, there = np.empty(count, np.uint8).data, 0
    while there < count:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            channel.settimeout(left)
        got = channel.recv_into(view[there:])
        if not got:
            return None
        there += got
    return view
