"""A save, stopped at each of its system calls: killed there, or told that the disk is full.

strace injects the fault into the real call (``-e inject``). The save is that of a real run: the
training process is forked as it is about to save, once for each call.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.training.faults import PHASES, SAVE_EVERY, newest_step, settings
from tests.training.toy import silent
from transformers import TrainerCallback

#: Everything that changes a file system, and what opens a file for it.
WRITES = (
    "write,pwrite64,writev,fsync,fdatasync,ftruncate,fallocate,mkdir,mkdirat,"
    "rename,renameat,renameat2,copy_file_range,sendfile"
)
CHANGES = f"{WRITES},openat,unlink,unlinkat,rmdir"
#: The save under test; two are there before it, so that one is cleared away.
STEP = 3 * SAVE_EVERY
Call = tuple[str, int]


class _Fork(TrainerCallback):
    """Stands in a run just before the save of ``STEP``, and forks it as often as asked."""

    def __init__(self, look: Callable[[_Fork], None]) -> None:
        self._look, self._owner = look, os.getpid()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STEP and os.getpid() == self._owner:
            self._look(self)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if os.getpid() != self._owner:
            os._exit(0)


class _InChild(Exception):
    """Unwinds the looking function in a forked run, which then goes on to save."""


class Saves:
    """Saves of one phase, each in a fork that strace watches."""

    def __init__(self, phase: str, folder: Path) -> None:
        self.phase, self.folder = phase, folder
        self.pristine = folder.with_name(f"{folder.name}.before")
        self.log = folder.with_name("strace.log")
        self.words = folder.with_name("words")

    def each(self, look: Callable[[Saves], None]) -> None:
        """Train up to the save, and call ``look`` there."""

        def here(fork: _Fork) -> None:
            shutil.copytree(self.folder, self.pristine)
            try:
                look(self)
            except _InChild:
                return
            raise KeyboardInterrupt  # all is seen: the run itself need not go on

        run = settings(self.folder, callbacks=(_Fork(here),))
        owner = os.getpid()
        try:
            PHASES[self.phase](run, silent)
        except KeyboardInterrupt:
            pass
        except BaseException as error:
            if os.getpid() == owner:
                raise
            code = getattr(error, "exit_code", 99)
            self.words.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
            os._exit(code)

    def save(self, *options: str) -> tuple[int, str]:
        """Save in a fork under strace; return its exit status and its last words."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.pristine, self.folder)
        self.words.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            raise _InChild
        os.waitpid(child, os.WUNTRACED)
        tracer = subprocess.Popen(
            ["strace", "-f", "-p", str(child), "-o", str(self.log), *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        assert "attached" in line, f"strace cannot attach: {line}"
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
        while os.WIFSTOPPED(status):
            _, status = os.waitpid(child, 0)
        tracer.communicate(timeout=60)
        text = self.words.read_text(encoding="utf-8") if self.words.exists() else ""
        return os.waitstatus_to_exitcode(status), text

    def calls(self, kinds: str) -> list[Call]:
        """Return every call of some kinds that a save makes: its name and its number."""
        status, _ = self.save("-e", f"trace={kinds}")
        assert status == 0
        names = re.findall(r"^\d+ +(\w+)\(", self.log.read_text(errors="replace"), re.MULTILINE)
        seen: Counter[str] = Counter()
        found = []
        for name in names:
            seen[name] += 1
            found.append((name, seen[name]))
        return found

    def killed_at(self, call: Call) -> str:
        """Kill a save at a call; return what is wrong with what it left, or nothing."""
        name, number = call
        status, _ = self.save(
            "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}"
        )
        if status != -signal.SIGKILL:
            return f"{name} {number}: ended with {status}, not killed"
        try:
            newest = newest_step(self.folder)
        except Exception as error:
            return f"{name} {number}: {error}"
        lost = newest not in (STEP, STEP - SAVE_EVERY)
        return f"{name} {number}: newest is step {newest}" if lost else ""

    def full_at(self, call: Call) -> str:
        """Let a call of a save find the disk full; return what is wrong then, or nothing."""
        name, number = call
        inject = f"inject={name}:error=ENOSPC:when={number}"
        status, words = self.save("-e", f"trace={name}", "-e", inject)
        try:
            newest = newest_step(self.folder)
        except Exception as error:
            return f"{name} {number}: {error}"
        if status == 0 and newest == STEP:
            return ""  # it was no call that the save depends on
        named = "cannot be written" in words and "No space left on device" in words
        if status != 3 or not named:
            return f"{name} {number}: ended with {status}: {words}"
        left = [path.name for path in self.folder.iterdir() if path.name.startswith(".")]
        if newest not in (STEP, STEP - SAVE_EVERY) or left:
            return f"{name} {number}: newest is step {newest}, left {left}"
        return ""


def can_trace() -> bool:
    """Return whether strace is here and may attach to a process."""
    if shutil.which("strace") is None:
        return False
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    done = subprocess.Popen(
        ["strace", "-p", str(child), "-o", os.devnull], stderr=subprocess.PIPE, text=True
    )
    assert done.stderr is not None
    able = "attached" in done.stderr.readline()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done.communicate(timeout=60)
    return able
