"""Out of memory: one line that names the setting to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName
from medmoe.errors import GuardError
from medmoe.training.settings import RunSettings

#: How the allocators of torch say it where they raise a plain RuntimeError.
_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def named_out_of_memory(phase: PhaseName, batch_size: int, settings: RunSettings) -> Iterator[None]:
    """Turn a failed allocation inside into one line.

    Raises:
        GuardError: The machine or the GPU is out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise GuardError(
            f"{phase}: out of memory at batch_size {batch_size} "
            f"(gradient_accumulation {settings.gradient_accumulation}, "
            f"precision {settings.precision}); {_fix(phase, batch_size, settings)}"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SAYINGS)


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
