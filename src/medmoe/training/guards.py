"""What stops a phase early: values that are not finite, a SIGTERM, a disk that takes no more.

A guard stops within the step it looks at, says which samples were in it, and keeps what is spoilt
off the disk. It never repairs or skips anything.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from medmoe.errors import GuardError


@dataclass(slots=True)
class StopRequest:
    """Whether somebody has asked the run to stop."""

    asked: bool = False


@contextmanager
def sigterm_asks(request: StopRequest, listen: bool) -> Iterator[None]:
    """Let SIGTERM ask for a stop at the end of the step, as long as this lasts.

    Args:
        listen: Without checkpoints there is nothing to save: SIGTERM then ends the process as
            always. Only a process's main thread may listen to signals.
    """
    if not listen or threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def ask(number: int, frame: FrameType | None) -> None:
        # A loader process inherits this handler: it lives on until its parent is done with it.
        if os.getpid() == owner:
            request.asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def ignore_sigterm(worker: int) -> None:
    """Keep a loader process alive when the whole process group is told to stop.

    The training process still needs its batch to end the step; the worker ends with it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def not_finite(what: str, step: int, samples: Sequence[str]) -> GuardError:
    """Return the error of a value that is not finite, with the samples of its step."""
    names = ", ".join(dict.fromkeys(samples))
    return GuardError(
        f"{what} at step {step}; samples of the step: {names}; check them, or lower the phase's "
        "learning_rate with --set"
    )


def cannot_save(error: Exception, step: int, folder: str, before: int | None) -> GuardError:
    """Return the error of a checkpoint that could not be written."""
    resumes = f"step {before} is whole and resumes" if before is not None else "none is saved yet"
    reason = getattr(error, "strerror", None) or str(error)
    return GuardError(
        f"the checkpoint of step {step} cannot be written to {folder} ({reason}); "
        f"free some space there: {resumes}, with --resume"
    )
