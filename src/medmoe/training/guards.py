"""What stops a phase early: values that are not finite, a SIGTERM, a full disk, no more memory.

A guard stops within the step it looks at, says which samples were in it, and keeps what is spoilt
off the disk, or names the setting to change. It never repairs or skips anything.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from accelerate.utils.memory import should_reduce_batch_size

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName
from medmoe.errors import GuardError
from medmoe.training.context import RunSettings


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


@contextmanager
def named_out_of_memory(phase: PhaseName, batch_size: int, settings: RunSettings) -> Iterator[None]:
    """Turn a failed allocation inside into one line.

    Raises:
        GuardError: The machine or the GPU is out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        raise GuardError(
            f"{phase}: out of memory at batch_size {batch_size} "
            f"(gradient_accumulation {settings.gradient_accumulation}, "
            f"precision {settings.precision}); {_fix(phase, batch_size, settings)}"
        ) from None


def _fix(phase: PhaseName, batch_size: int, settings: RunSettings) -> str:
    """Return the setting that saves most and changes least: first what keeps the loss the same."""
    parts = 2 * settings.gradient_accumulation
    if not PHASE_TABLE[phase].whole_batch and batch_size % parts == 0:
        return f"use --set run.gradient_accumulation={parts} (the same loss in smaller parts)"
    if not settings.gradient_checkpointing and PHASE_TABLE[phase].recomputes:
        return "use --set run.gradient_checkpointing=true (the same loss, more time)"
    if batch_size > 1:
        return f"use --set phases.{phase}.batch_size={batch_size // 2}"
    return f"use --set phases.{phase}.max_questions=1, or a machine with more memory"
