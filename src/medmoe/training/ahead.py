"""Samples prepared while the step before computes: tokenised here, pictures read beside.

A sample is a function of its position alone, so that preparing it earlier changes nothing. Loader
processes do the same for themselves; this is for the training process, which has the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import Dataset

from medmoe.training.schedule import Schedule

#: Starts what takes long about a sample, e.g. reading its picture; it must not wait for it.
Begin = Callable[[Any], None]


class Ahead(Dataset[Any]):
    """A schedule whose samples are drawn one batch before they are asked for, in one thread.

    Args:
        stride: Positions from a sample to the one at its place in the next batch of this process:
            batch size times processes.
        begin: Called with every sample drawn.
    """

    def __init__(self, schedule: Schedule[Any], stride: int, begin: Begin | None = None) -> None:
        self._schedule, self._stride, self._begin = schedule, stride, begin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._coming: dict[int, Future[Any]] = {}

    def __len__(self) -> int:
        return len(self._schedule)

    def __getitem__(self, index: int) -> Any:
        """Return a sample; what drawing it raised is raised here."""
        now = self._started(index)
        later = index + self._stride
        if later < len(self):
            self._coming[later] = self._started(later)
        return now.result()

    def names(self, first: int, last: int) -> list[str]:
        """Return the schedule's names of the samples from ``first`` to before ``last``."""
        return self._schedule.names(first, last)

    def close(self) -> None:
        """Draw no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()

    def _started(self, index: int) -> Future[Any]:
        return self._coming.pop(index, None) or self._thread.submit(self._draw, index)

    def _draw(self, index: int) -> Any:
        sample = self._schedule[index]
        if self._begin is not None:
            self._begin(sample)
        return sample
