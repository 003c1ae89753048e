"""A pool of decoder processes with limits on memory and time; the caller outlives all of them.

A pool may be used from any number of threads, each of which waits for a free process, and after a
fork, where the child starts processes of its own. A process is started when it is first needed and
serves many pictures; one that crashes, is killed or hangs costs one `undecodable`, and the next
picture gets a new one. They end with the program that started them, however that ends.

Files travel through a socket: there are no temporary files and no names. POSIX only.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from medmoe.data.intake import facts, protocol
from medmoe.data.intake.decode import Decoded, Request
from medmoe.data.intake.limits import Limits
from medmoe.errors import IMAGE_STATUS, ConfigError, ImageError

T = TypeVar("T")
Body = memoryview | bytes

_START_SECONDS = 60.0
_END_SECONDS = 2.0
#: The child's program: its module path is the parent's, whatever set that.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from medmoe.data.intake.worker import main; main(sys.argv[2:])"
)
#: No secret of the parent's environment is needed to decode a picture.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
#: Each further thread of a numeric library takes address space, and none is needed.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
#: The C library keeps freed memory for the next picture instead of asking the kernel for new pages.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**26)}
_MAX_MESSAGE = 300
_BUFFER_BYTES = 4 * 2**20  # the system may grant less


class _GoneError(Exception):
    """The process ended instead of answering."""


class _Worker:
    """One decoder process and the socket to it."""

    def __init__(self, limits: Limits, also: Sequence[str]) -> None:
        if sys.platform == "win32":
            raise ConfigError(
                "pictures are decoded in a process with limits, which Windows cannot set; use "
                "Linux, macOS or the Windows Subsystem for Linux"
            )
        self._limits = limits
        self._channel, other = socket.socketpair()
        for end in (self._channel, other):  # a picture in one piece: fewer turns between the two
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        paths = [os.path.abspath(path) for path in sys.path]
        told = [json.dumps(paths), str(limits.memory_bytes), *also]
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, *told],
                stdin=other.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=_child_environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for the parent
            )
        deadline = time.monotonic() + _START_SECONDS
        try:
            if protocol.receive(self._channel, 0, deadline) is None:
                raise RuntimeError(
                    "the decoder process did not start: is its memory limit too low? "
                    f"({limits.memory_bytes:,} bytes)"
                )
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ask(self, data: bytes, wanted: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
        """Return the process's answer.

        Raises:
            _GoneError: It ended.
            TimeoutError: It did not answer in time.
        """
        head = wanted | {"limits": asdict(self._limits)}
        deadline = time.monotonic() + self._limits.wall_seconds
        try:
            self._channel.settimeout(self._limits.wall_seconds)
            protocol.send(self._channel, head, data)
            answer = protocol.receive(self._channel, 3 * self._limits.max_pixels, deadline)
        except (BrokenPipeError, ConnectionError):
            answer = None
        if answer is None:
            raise _GoneError
        return answer

    def probe(self) -> dict[str, bool]:
        """Return what the process tried that it may not do, and whether the system refused it."""
        protocol.send(self._channel, {"probe": True})
        deadline = time.monotonic() + _START_SECONDS
        tried = protocol.receive(self._channel, 0, deadline)
        if tried is None:
            raise RuntimeError("the decoder process ended while it was tried")
        # Another program in its place would not answer.
        executing = protocol.receive(self._channel, 0, deadline)
        return {**tried[0]["refused"], "exec": executing is not None}

    def ended_by(self) -> int | None:
        """Wait for the end of the process and return the signal that ended it, if one did."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        return -code if code < 0 else None

    def close(self) -> None:
        """Let the process end by itself, or else kill it."""
        self._channel.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._channel.close()
        self._process.wait()

    def disown(self) -> None:
        """Forget the process, after a fork: it is the parent's."""
        self._channel.close()
        self._process.returncode = 0  # or its end would be waited for here


class DecoderPool:
    """Decodes pictures in child processes.

    Args:
        workers: At most so many processes at once; by default one for each core.
        limits: Of every picture.
        also: Modules whose tasks can be asked for (`medmoe.data.intake.worker.main`).
    """

    def __init__(
        self, workers: int | None = None, limits: Limits | None = None, also: Sequence[str] = ()
    ) -> None:
        self.limits, self._also = limits or Limits(), also
        self.workers = workers or cores()
        self._reset()
        _POOLS.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.workers)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def decode(self, data: bytes, request: Request | None = None) -> Decoded:
        """Return the picture of a file.

        Raises:
            ImageError: It cannot be used, or its decoder died.
        """
        return self.do("picture", data, asdict(request or Request()), _checked)

    def do(self, task: str, data: bytes, values: dict[str, Any], read: Callable[..., T]) -> T:
        """Return what ``read`` (`told`) finds in what a task makes of a file; else as `decode`."""
        self.limits.check_file(len(data))
        with self._slots:
            worker = self._take()
            last = False
            try:
                head, body = worker.ask(data, {"task": task, "values": values})
                last = bool(head.get("last"))
                found = read(head, body)
            except ImageError:
                (self._drop if last else self._give_back)(worker)
                raise
            except BaseException as error:
                gone = isinstance(error, _GoneError)
                by = worker.ended_by() if gone else None
                self._drop(worker)
                if isinstance(error, _GoneError | TimeoutError | ValueError | KeyError | TypeError):
                    raise _lost(self.limits, by, isinstance(error, TimeoutError)) from None
                raise
            self._give_back(worker)
            return found

    def probe(self) -> dict[str, bool]:
        """Have a new process try what no decoder may do.

        Returns:
            By what was tried, whether the system refused it.
        """
        worker = _Worker(self.limits, self._also)
        try:
            return worker.probe()
        finally:
            worker.kill()

    def close(self) -> None:
        """End all processes; the next picture starts new ones."""
        with self._lock:
            workers, self._all, self._idle = list(self._all), set(), []
        for worker in workers:
            worker.close()

    def _take(self) -> _Worker:
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                worker = _Worker(self.limits, self._also)
                with self._lock:
                    self._all.add(worker)
                return worker
            if worker.alive:
                return worker
            self._drop(worker)

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            if worker in self._all:
                self._idle.append(worker)

    def _drop(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.kill()

    def _after_fork(self) -> None:
        workers = list(self._all)
        self._reset()
        for worker in workers:
            worker.disown()


_POOLS: weakref.WeakSet[DecoderPool] = weakref.WeakSet()
_default: DecoderPool | None = None
_default_lock = threading.Lock()


def default_pool() -> DecoderPool:
    """Return the pool that this program shares, with the default limits."""
    global _default
    with _default_lock:
        if _default is None:
            _default = DecoderPool()
        return _default


def _after_fork() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for pool in list(_POOLS):
        pool._after_fork()


def _close_all() -> None:
    for pool in list(_POOLS):
        pool.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close_all)


def _child_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return _ONE_THREAD | _KEEP_MEMORY | kept


def cores() -> int:
    """Return how many cores this program may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)


def told(head: dict[str, Any], body: Body) -> tuple[dict[str, Any], Body]:
    """Return what a decoder process sent, or raise the error that it is."""
    if "code" in head:
        code, message = str(head["code"]), str(head["message"])
        if code not in IMAGE_STATUS or len(message) > _MAX_MESSAGE:
            raise ValueError("no error of ours")
        raise ImageError(code, message)
    return head, body


def _checked(head: dict[str, Any], body: Body) -> Decoded:
    """Return the picture that a decoder process sent, which is believed in nothing."""
    told(head, body)
    height, width, *colours = (int(length) for length in head["shape"])
    if colours not in ([], [3]) or height < 1 or width < 1:
        raise ValueError("no picture")
    # Wrong lengths fail here.
    scale = None if head["scale"] is None else facts.scale_from_json(head["scale"])
    kind: Any = np.uint8 if scale is None else np.uint16
    pixels = np.frombuffer(body, kind).reshape(height, width, *colours)
    return Decoded(pixels, facts.from_json(head["facts"]), scale)


def _lost(limits: Limits, by: int | None, late: bool) -> ImageError:
    """Return the error for a picture whose decoder was lost."""
    if by == signal.SIGPROF:
        what = f"decoding took more than {limits.cpu_seconds:g} s of processor time"
    elif late:
        what = f"decoding took more than {limits.wall_seconds:g} s"
    else:
        what = "the decoder died"
    return ImageError("undecodable", f"{what}; export the image anew or give a smaller one")
