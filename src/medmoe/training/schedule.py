"""The samples of a phase in training order, as a function of (seed, epoch, sample).

Nothing here remembers what was drawn before: any position can be asked for at any time, in any
process, which is what an exact resume, several loader processes and drawing ahead rest on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
from torch.utils.data import Dataset

Sample = TypeVar("Sample")
Order = np.ndarray[Any, np.dtype[np.int64]]

#: Batches whose samples are sorted together when grouped by length: enough to find samples of
#: like length, few enough to leave the order random.
_BATCHES_SORTED_TOGETHER = 32


class Schedule(Dataset[Sample], Generic[Sample]):
    """The samples of a whole phase in training order: epoch after epoch, each freshly shuffled.

    Args:
        draw: Gives sample ``i`` of ``count`` its form in an epoch: ``draw(i, rng)``.
        total: How many are drawn in the phase (steps x batch size).
        names: What the samples are called in errors, e.g. image ids; their numbers by default.
        length: Length in tokens of a drawn sample, where samples may be grouped by it.
    """

    def __init__(
        self,
        draw: Callable[[int, np.random.Generator], Sample],
        count: int,
        total: int,
        seed: int,
        names: Sequence[str] | None = None,
        length: Callable[[Sample], int] | None = None,
    ) -> None:
        self._draw, self._count, self._total, self._seed = draw, count, total, seed
        self._names, self._length = names, length
        self._group = 0
        self._orders: dict[int, Order] = {}

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Sample:
        epoch, sample = self._at(index)
        return self._drawn(epoch, sample)

    def grouped(self, batch_size: int) -> Schedule[Sample]:
        """Return the same samples with those of like length in the same batches.

        Where the schedule knows no lengths it is returned as it is.
        """
        if self._length is None:
            return self
        copy = Schedule(self._draw, self._count, self._total, self._seed, self._names, self._length)
        copy._group = batch_size
        return copy

    def names(self, first: int, last: int) -> list[str]:
        """Return what the samples at the positions from ``first`` to before ``last`` are called."""
        samples = [self._at(i)[1] for i in range(first, min(last, self._total))]
        return [self._names[i] if self._names else f"sample {i}" for i in samples]

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be equal in a resumed run for the order of samples to be the same."""
        digest = hashlib.sha256("\0".join(self._names or ()).encode()).hexdigest()
        return {"samples": self._count, "names": digest, "grouped_by_length": bool(self._group)}

    def _drawn(self, epoch: int, sample: int) -> Sample:
        return self._draw(sample, np.random.default_rng((self._seed, epoch, sample)))

    def _at(self, index: int) -> tuple[int, int]:
        epoch, position = divmod(index, self._count)
        order = self._orders.get(epoch)
        if order is None:
            order = self._order(epoch)
            # The last two: around the end of an epoch both are asked for, by several threads.
            self._orders = dict([*self._orders.items(), (epoch, order)][-2:])
        return epoch, int(order[position])

    def _order(self, epoch: int) -> Order:
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(self._count)
        return self._sorted_in_batches(order, epoch, rng) if self._group else order

    def _sorted_in_batches(self, order: Order, epoch: int, rng: np.random.Generator) -> Order:
        """Return a permuted epoch with like lengths in one batch, the batches in random order.

        Batches are cut from the stream of all epochs: the first samples complete the batch that
        the epoch before began, and stay where they are.
        """
        assert self._length is not None
        size = self._group
        lengths = np.array([self._length(self._drawn(epoch, int(i))) for i in order])
        head = -epoch * self._count % size
        whole = (len(order) - head) // size * size if head < len(order) else 0
        places = np.arange(head, head + whole)
        window = _BATCHES_SORTED_TOGETHER * size
        batches = [
            batch
            for start in range(0, whole, window)
            for batch in _by_length(places[start : start + window], lengths).reshape(-1, size)
        ]
        shuffled = [batches[i] for i in rng.permutation(len(batches))]
        rest = np.arange(head + whole, len(order))
        start = np.arange(min(head, len(order)))
        sorted_order: Order = order[np.concatenate([start, *shuffled, rest])]
        return sorted_order


def _by_length(places: Order, lengths: Order) -> Order:
    chosen: Order = places[np.argsort(lengths[places], kind="stable")]
    return chosen


#: Starts what takes long about a sample, e.g. reading its picture; it must not wait for it.
Begin = Callable[[Any], None]


class Ahead(Dataset[Any]):
    """A schedule whose samples are drawn one batch before they are asked for, in one thread.

    Loader processes do the same for themselves; this is for the training process, which has the
    encoder.

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
