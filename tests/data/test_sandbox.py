"""The decoder processes: whatever a file does to one, the caller goes on; none is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import psutil
import pytest
from tests.data import samples
from tests.data.test_images import JPEG, PNG, smooth

from medmoe.data.images import open_picture
from medmoe.data.intake import protocol, sandbox
from medmoe.data.intake.decode import Request, decode
from medmoe.data.intake.facts import ImageFacts, Scale
from medmoe.data.intake.limits import Limits
from medmoe.data.intake.sandbox import DecoderPool
from medmoe.errors import ImageError


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(workers=2)
    yield pool
    pool.close()


def processes(pool: DecoderPool) -> list[psutil.Process]:
    return [psutil.Process(worker._process.pid) for worker in pool._all]


def acting(monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """Make new decoder processes do something instead of decoding the bytes ``odd…``."""
    program = sandbox._PROGRAM.replace(
        "from medmoe.data.intake.worker import main;",
        "import os, signal, time, ctypes, numpy; from medmoe.data.intake import worker; "
        "from medmoe.data.intake.worker import main; real = worker.decode; "
        f"worker.decode = lambda d, *r: ({action}) if d.startswith(b'odd') else real(d, *r);",
    )
    assert program != sandbox._PROGRAM
    monkeypatch.setattr(sandbox, "_PROGRAM", program)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("ctypes.string_at(0)", "the decoder died"),
        ("os.abort()", "the decoder died"),
        ("os._exit(0)", "the decoder died"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the decoder died"),
        ("time.sleep(60)", "took more than 1 s"),
        ("numpy.empty(2**31, numpy.uint8)", "bytes of memory"),
        ("1 / 0", "the decoder failed .ZeroDivisionError."),
        ("worker.protocol.send(__import__('socket').socket(fileno=0), {'shape': [-1, 2]})", "died"),
        ("os.write(0, bytes(64))", "died"),
        ("os.write(0, b'\\xff' * 64)", "died"),
    ],
)
def test_a_decoder_that_fails_in_any_way_is_undecodable_and_replaced(
    action: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting(monkeypatch, action)
    pool = DecoderPool(workers=1, limits=Limits(wall_seconds=1))
    try:
        with pytest.raises(ImageError, match=words) as caught:
            pool.decode(b"odd one")
        assert (caught.value.code, caught.value.status) == ("undecodable", 422)
        assert open_picture(PNG, pool=pool).image.tobytes() == smooth().tobytes()
    finally:
        pool.close()


def test_processor_time_is_bounded_whatever_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that catches all errors, in a process whose wall clock limit is far away."""
    acting(
        monkeypatch,
        "(signal.setitimer(signal.ITIMER_PROF, r[1].cpu_seconds), [0 for _ in iter(int, 1)])",
    )
    pool = DecoderPool(workers=1, limits=Limits(cpu_seconds=0.2, wall_seconds=60))
    with pytest.raises(ImageError, match=r"more than 0\.2 s of processor time"):
        pool.decode(b"odd one")
    pool.close()


def test_real_decoding_is_stopped_by_the_processor_time() -> None:
    pool = DecoderPool(workers=1, limits=Limits(cpu_seconds=0.02, wall_seconds=60))
    big = samples.dicom(np.random.default_rng(0).random((4000, 4000)).view(np.uint16)[:, :4000])
    with pytest.raises(ImageError, match=r"more than 0\.02 s of processor time"):
        pool.decode(big)
    pool.close()


def test_a_process_that_died_while_idle_is_not_asked(pool: DecoderPool) -> None:
    open_picture(PNG, pool=pool)
    for process in processes(pool):
        process.kill()
        process.wait(5)
    assert open_picture(PNG, pool=pool).image.size == smooth().size


@pytest.mark.parametrize(
    "make", [samples.rle_bomb, samples.deflate_bomb, samples.png_bomb, samples.gzip_bomb]
)
def test_bombs_are_refused_within_the_limits_of_the_process(make: Callable[[], bytes]) -> None:
    """Both limits are the kernel's: past 3 s of processor time or 1 GiB the code is another."""
    pool = DecoderPool(workers=1)
    assert (pool.limits.cpu_seconds, pool.limits.memory_bytes) == (3, 2**30)
    with pytest.raises(ImageError) as caught:
        pool.decode(make())
    assert caught.value.code == "image_too_large"
    (process,) = processes(pool)  # it lives: neither limit was met
    assert process.memory_info().rss < 2**30
    used = process.cpu_times()
    assert used.user + used.system < 3 + 3, "its start included"
    pool.close()


def test_bombs_are_small() -> None:
    assert len(samples.rle_bomb()) < 1000
    assert len(samples.png_bomb()) < 190_000
    assert len(samples.deflate_bomb()) < 2**20 + 2**16


def test_pictures_are_those_of_decoding_in_this_process(pool: DecoderPool) -> None:
    for data in (PNG, JPEG, samples.dicom(), samples.nifti()):
        here, there = decode(data, Request(), Limits()), pool.decode(data)
        assert np.array_equal(here.pixels, there.pixels)
        assert here.facts == there.facts


def test_options_reach_the_decoder(pool: DecoderPool) -> None:
    frames = np.stack([samples.ramp(), samples.ramp()[::-1]])
    found = open_picture(samples.dicom(frames), frame=2, window=(100.0, 50.0), pool=pool)
    assert (found.facts.frame, found.facts.frames) == (2, 2)
    assert found.facts.window is not None
    assert (found.facts.window.center, found.facts.window.origin) == (100, "given")
    small = DecoderPool(workers=1, limits=replace(Limits(), max_pixels=1000))
    with pytest.raises(ImageError, match="at most 1,000 pixels"):
        small.decode(PNG)
    small.close()


def test_many_threads_share_the_processes(pool: DecoderPool) -> None:
    files = [PNG, JPEG, samples.dicom(), b"no picture"] * 10

    def one(data: bytes) -> object:
        try:
            return pool.decode(data).pixels.tobytes()
        except ImageError as error:
            return error.code

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(one, files))
    assert found == [one(data) for data in files[:4]] * 10
    assert len(pool._all) <= 2


def test_a_pool_works_on_both_sides_of_a_fork(pool: DecoderPool) -> None:
    expected = pool.decode(PNG).pixels.tobytes()
    before = {process.pid for process in processes(pool)}
    read, write = os.pipe()
    child = os.fork()
    if not child:  # pragma: no cover
        status = 1
        try:
            same = pool.decode(PNG).pixels.tobytes() == expected
            mine = {process.pid for process in processes(pool)}
            pool.close()
            status = 0 if same and not mine & before else 1
        finally:
            os.write(write, bytes([status]))
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read, 1) == b"\0"
    assert pool.decode(PNG).pixels.tobytes() == expected
    assert {process.pid for process in processes(pool)} == before, "the child ended none of ours"
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("end", ["pass", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_process_outlives_the_program(end: str) -> None:
    program = (
        "import os, signal, sys; from medmoe.data.intake.sandbox import default_pool\n"
        "pool = default_pool(); data = sys.stdin.buffer.read(); pool.decode(data)\n"
        "print(*[worker._process.pid for worker in pool._all], flush=True)\n" + end
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=PNG, capture_output=True, check=False
    )
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 1, done.stderr
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_ctrl_c_is_for_the_parent_alone(pool: DecoderPool) -> None:
    pool.decode(PNG)
    (process, *_) = processes(pool)
    assert os.getsid(process.pid) != os.getsid(0)


def test_a_decoder_has_no_secrets_no_files_and_no_core(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMOE_SECRET_TOKEN", "s3cret")
    fresh = DecoderPool(workers=1)
    fresh.decode(PNG)
    (process,) = processes(fresh)
    assert "MEDMOE_SECRET_TOKEN" not in process.environ()
    assert process.open_files() == []
    assert process.net_connections("inet") == []
    if sys.platform == "linux":
        assert process.rlimit(psutil.RLIMIT_AS) == (2**30, 2**30)
        assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    fresh.close()
    assert not process.is_running()


def test_a_closed_pool_starts_again(pool: DecoderPool) -> None:
    pool.decode(PNG)
    pool.close()
    assert pool._all == set()
    assert pool.decode(PNG).pixels.shape == (64, 80, 3)


def test_a_memory_limit_that_is_too_low_is_said() -> None:
    pool = DecoderPool(workers=1, limits=Limits(memory_bytes=2**20))
    # Beyond what the libraries have freed by then, which varies from machine to machine.
    large = samples.png_bomb(4_000)
    for _ in range(2):  # the process that ran out of memory is not asked again
        with pytest.raises(ImageError, match="needs more than 1,048,576 bytes of memory"):
            pool.decode(large)
    pool.close()


def test_a_decoder_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_PROGRAM", "raise SystemExit")
    with pytest.raises(RuntimeError, match="decoder process did not start"):
        DecoderPool(workers=1).decode(PNG)


FACTS = asdict(ImageFacts("dicom"))
SCALE = {"slope": 2.0, "intercept": -1.0, "inverted": True, "linear": False, "apart": [1, 2]}


@pytest.mark.parametrize(
    "head",
    [
        {"shape": [2, 2], "facts": {}},
        {"shape": [3, 3], "facts": None},
        {"shape": [1, 2], "facts": FACTS, "scale": {"slope": 1.0}},
        {"shape": [1, 2], "facts": FACTS, "scale": SCALE | {"slope": 0.0}},
        {"shape": [1, 2], "facts": FACTS, "scale": SCALE | {"intercept": float("nan")}},
        {"shape": [2, 2], "facts": FACTS, "scale": SCALE},
        {"shape": "xx"},
        {},
        {"code": "made_up", "message": "x"},
        {"code": "undecodable", "message": "x" * 1000},
    ],
)
def test_what_a_decoder_says_is_checked(head: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        sandbox._checked(head, bytes(4))


def test_values_of_16_bits_are_taken_as_they_are_said() -> None:
    decoded = sandbox._checked({"shape": [1, 2], "facts": FACTS, "scale": SCALE}, b"\1\0\0\2")
    assert decoded.pixels.tolist() == [[1, 512]]
    assert decoded.scale == Scale(2.0, -1.0, True, False, (1.0, 2.0))


def test_messages_have_a_length_a_deadline_and_an_end() -> None:
    ours, theirs = socket.socketpair()
    protocol.send(theirs, {"a": 1}, b"body")
    assert protocol.receive(ours, 4) == ({"a": 1}, b"body")
    protocol.send(theirs, {"a": 1}, b"body")
    with pytest.raises(ValueError, match="too long"):
        protocol.receive(ours, 3)
    ours.close()
    ours, theirs = socket.socketpair()
    with pytest.raises(TimeoutError):
        protocol.receive(ours, 4, time.monotonic() + 0.01)
    theirs.close()
    assert protocol.receive(ours, 4) is None
    ours.close()


def test_an_interrupt_while_decoding_leaves_no_half_read_answer() -> None:
    """Ctrl-C between question and answer: the next picture must not get the last one's answer."""
    pool = DecoderPool(workers=1)
    expected = pool.decode(PNG).pixels.tobytes()
    big = samples.dicom(np.zeros((3000, 3000), np.uint16))
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.01, lambda: signal.pthread_kill(main, signal.SIGINT))
    try:
        timer.start()
        pool.decode(big)
        time.sleep(1)
    except KeyboardInterrupt:
        pass
    timer.join()
    assert pool.decode(PNG).pixels.tobytes() == expected
    pool.close()


ATTACKS = {
    "network": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "datagrams": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "local sockets": "import socket; socket.socket(socket.AF_UNIX)",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "fork": "import os; os.fork() or os._exit(0)",
    "threads": "import threading; threading.Thread(target=int).start()",
    "a file": "open('/etc/passwd')",
    "the parent's environment": "import os; open(f'/proc/{os.getppid()}/environ')",
    "its own environment": "open('/proc/self/environ')",
    "unlink": "import os; os.unlink('/tmp/nothing-of-this-name')",
    "folders": "import os; os.mkdir('/tmp/nothing-of-this-name')",
    "signals": "import os; os.kill(os.getppid(), 0)",
    "ptrace": "call('ptrace', 0x4206, os.getppid(), 0, 0)",
    "io_uring": "call('syscall', 425, 1, 0)",
    "capabilities": "call('unshare', 0x10000000)",
    "its limits": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))",
}
_CALL = (
    "import ctypes, os\n"
    "def call(name, *words):\n"
    "    if getattr(ctypes.CDLL(None, use_errno=True), name)(*words) < 0:\n"
    "        raise OSError(ctypes.get_errno(), name)\n"
)


def has_walls() -> bool:
    try:
        import pyseccomp  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return sys.platform == "linux"


@pytest.mark.skipif(not has_walls(), reason="pyseccomp or libseccomp2 is not installed")
def test_a_decoder_that_was_taken_over_can_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of somebody else runs in the process: each attack ends with what the kernel says."""
    acting(monkeypatch, "exec(d[3:].decode(), {})")
    pool = DecoderPool(workers=1)
    refused = {}
    for name, attack in ATTACKS.items():
        with pytest.raises(ImageError) as caught:
            pool.decode(f"odd{_CALL}{attack}".encode())
        refused[name] = str(caught.value)
    (process,) = processes(pool)
    assert process.num_threads() == 1
    # Two are named by Python for what it was doing; all others by what the kernel says.
    named = {"threads": "RuntimeError", "its limits": "ValueError"}
    for name, message in refused.items():
        assert f"failed ({named.get(name, 'PermissionError')})" in message, name
    pool.close()


@pytest.mark.skipif(not has_walls(), reason="pyseccomp or libseccomp2 is not installed")
def test_the_probe_says_that_all_was_refused() -> None:
    tried = DecoderPool(workers=1).probe()
    assert set(tried) >= {"exec", "files", "fork", "network", "ptrace", "signals"}
    assert all(tried.values())


def test_without_the_filter_of_calls_it_decodes_and_the_probe_says_what_stands_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = "import sys; sys.modules['pyseccomp'] = None; " + sandbox._PROGRAM
    monkeypatch.setattr(sandbox, "_PROGRAM", program)
    pool = DecoderPool(workers=1)
    assert pool.decode(PNG).pixels.shape == (64, 80, 3)
    assert not pool.probe()["network"], "datagrams are the filter's alone"
    pool.close()
