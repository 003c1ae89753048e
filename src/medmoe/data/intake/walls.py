"""The walls around a decoder process: what it gives up for good before it sees a picture.

On Linux: new privileges and capabilities; opening any file (Landlock); every system call that
decoding does not need, among them those that start programs and processes, make sockets and touch
other processes (seccomp, by pyseccomp over libseccomp2). What a system lacks is left out: `probe`
tells what stands, and `medmoe doctor` prints it. All that a decoder needs is imported before.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import sys
from collections.abc import Callable
from functools import partial

_DUMPABLE, _NO_NEW_PRIVILEGES = 4, 38  # of prctl
_CAPABILITIES_VERSION = 0x20080522
#: Landlock's system calls have these numbers on every architecture.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_ASK_VERSION = 1
#: Version of Landlock -> how many rights on files it knows; later ones know 16.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_WITH_NETWORK, _WITH_SCOPES = 4, 6
#: TCP's bind and connect; nameless sockets and signals of processes outside.
_NETWORK, _SCOPES = 3, 3
#: What computing, and reading from and writing to what is open, needs.
_CALLS = (
    *("read", "write", "readv", "writev", "recvfrom", "sendto", "shutdown", "close", "lseek"),
    *("fstat", "poll", "ppoll", "getsockopt", "getsockname", "uname", "sysinfo", "getrusage"),
    *("mmap", "mmap2", "munmap", "mremap", "mprotect", "madvise", "brk", "futex", "futex_time64"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigreturn", "sigaltstack"),
    *("restart_syscall", "exit", "exit_group", "setitimer", "getitimer", "nanosleep"),
    *("clock_nanosleep", "clock_nanosleep_time64", "clock_gettime", "clock_gettime64"),
    *("clock_getres", "gettimeofday", "time", "getrandom", "sched_yield", "sched_getaffinity"),
    *("getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid"),
)
#: Only to itself, as `abort` does.
_SIGNALS = ("kill", "tgkill")
_SOCKETS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)


def raise_walls() -> Callable[[], None]:
    """Raise all walls but the last, and return what raises it: no limit can be set behind that."""
    if sys.platform != "linux":
        return lambda: None
    close_calls = _call_filter()  # its library is looked for by a program
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)())
    _close_files(libc)
    return close_calls


def hide_process() -> None:
    """Keep other processes of the same user from reading this one's memory and environment."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DUMPABLE, 0, 0, 0, 0)


def _close_files(libc: ctypes.CDLL) -> None:
    """Forbid all that Landlock knows: a set of rules without any rule."""
    number = ctypes.c_long
    version = libc.syscall(number(_CREATE_RULESET), None, number(0), number(_ASK_VERSION))
    if version < 1:
        return
    rules = (ctypes.c_uint64 * 3)(2 ** _FILE_RIGHTS.get(version, 16) - 1, _NETWORK, _SCOPES)
    # Older kernels know the first one or two of these words.
    size = 8 * (1 + (version >= _WITH_NETWORK) + (version >= _WITH_SCOPES))
    handle = libc.syscall(number(_CREATE_RULESET), ctypes.byref(rules), number(size), number(0))
    if handle >= 0:
        libc.syscall(number(_RESTRICT_SELF), number(handle), number(0))
        os.close(handle)


def _call_filter() -> Callable[[], None]:
    """Return what has all system calls refused but those of this module."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError, AttributeError):  # also without its library
        return lambda: None
    calls = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    me = pyseccomp.Arg(0, pyseccomp.EQ, os.getpid())
    for name in (*_CALLS, *_SIGNALS):
        with contextlib.suppress(OSError, ValueError):  # not on this architecture
            calls.add_rule(pyseccomp.ALLOW, name, *[me][: name in _SIGNALS])

    def load() -> None:
        with contextlib.suppress(OSError):  # a kernel without it
            calls.load()

    return load


def probe() -> dict[str, bool]:
    """Try what a decoder may not do and return whether it was refused; `exec` is the caller's."""
    return {name: _refused(attempt) for name, attempt in _ATTEMPTS.items()}


def _refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (PermissionError, BlockingIOError):  # the latter: no further process
        return True
    except OSError:
        return False  # nothing was there, but it was let through
    return False


def _connect() -> None:
    refused = [_refused(partial(_connect_by, kind)) for kind in _SOCKETS]
    if all(refused):
        raise PermissionError


def _connect_by(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as wire:
        wire.connect(("127.0.0.1", 9))


def _fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def _read_parent() -> None:
    """Read a byte of the parent's memory: what a debugger may, by the same rule of the kernel."""
    libc = ctypes.CDLL(None, use_errno=True)
    byte = ctypes.create_string_buffer(1)
    here, there = (ctypes.c_size_t * 2)(ctypes.addressof(byte), 1), (ctypes.c_size_t * 2)(1, 1)
    done = libc.process_vm_readv(os.getppid(), here, 1, there, 1, 0)
    if done < 0 and ctypes.get_errno() in (errno.EPERM, errno.EACCES):
        raise PermissionError


_ATTEMPTS: dict[str, Callable[[], object]] = {
    "files": lambda: os.close(os.open(sys.executable, os.O_RDONLY)),
    "folders": lambda: os.listdir("/"),
    "fork": _fork,
    "network": _connect,
    "signals": lambda: os.kill(os.getppid(), 0),
    **({"ptrace": _read_parent} if sys.platform == "linux" else {}),
}
