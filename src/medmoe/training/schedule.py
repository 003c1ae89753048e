"""The samples of a phase in training order, as a function of (seed, epoch, sample).

Nothing here remembers what was drawn before: any position can be asked for at any time, in any
process, which is what an exact resume, several loader processes and drawing ahead rest on.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
from torch.utils.data import Dataset

from medmoe.data.collate import Packed, packed_together

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
        grouped = copy.copy(self)
        grouped._group, grouped._orders = batch_size, {}
        return grouped

    def names(self, first: int, last: int) -> list[str]:
        """Return what the samples at the positions from ``first`` to before ``last`` are called."""
        samples = [self._at(i)[1] for i in range(first, min(last, self._total))]
        return [self._names[i] if self._names else f"sample {i}" for i in samples]

    def rows(self, first: int, last: int) -> list[str]:
        """Return what the rows of a batch of the samples at some positions are called."""
        return self.names(first, last)

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
        order = self._shuffled(rng)
        return self._sorted_in_batches(order, epoch, rng) if self._group else order

    def _shuffled(self, rng: np.random.Generator) -> Order:
        return rng.permutation(self._count)

    def _lengths(self, order: Order, epoch: int) -> Order:
        """Return what samples are sorted by when they are grouped by length."""
        assert self._length is not None
        return np.array([self._length(self._drawn(epoch, int(i))) for i in order])

    def _sorted_in_batches(self, order: Order, epoch: int, rng: np.random.Generator) -> Order:
        """Return a permuted epoch with like lengths in one batch, the batches in random order.

        Batches are cut from the stream of all epochs: the first samples complete the batch that
        the epoch before began, and stay where they are.
        """
        size, lengths = self._group, self._lengths(order, epoch)
        head = -epoch * self._count % size
        whole = (len(order) - head) // size * size if head < len(order) else 0
        places = np.arange(head, head + whole)
        window = _BATCHES_SORTED_TOGETHER * size
        batches = [
            batch
            for start in range(0, whole, window)
            for together in [places[start : start + window]]
            for batch in together[np.argsort(lengths[together], kind="stable")].reshape(-1, size)
        ]
        shuffled = [batches[i] for i in rng.permutation(len(batches))]
        rest = np.arange(head + whole, len(order))
        start = np.arange(min(head, len(order)))
        sorted_order: Order = order[np.concatenate([start, *shuffled, rest])]
        return sorted_order


class QuestionSchedule(Schedule[Packed]):
    """Questions in training order, up to ``most`` of an image side by side for a batch to pack.

    An epoch has every question once and ends with a whole batch: its last one is filled up with
    its first questions, as in the reference, whose order is as random as this with ``most`` 1.

    Args:
        images: Number of each question's image.
        max_length: Longest row of a batch in tokens.
        schedule: What else a schedule takes, from ``total`` on.
    """

    def __init__(
        self,
        draw: Callable[[int, np.random.Generator], Packed],
        images: Sequence[int],
        most: int,
        max_length: int | None,
        batch_size: int,
        *schedule: Any,
    ) -> None:
        super().__init__(draw, -(-len(images) // batch_size) * batch_size, *schedule)
        self._images, self._most, self._max_length = np.array(images), most, max_length

    def pack(self, samples: Sequence[Packed]) -> list[Packed]:
        """Return the rows of a batch of questions."""
        return packed_together(samples, self._most, self._max_length)

    def rows(self, first: int, last: int) -> list[str]:
        """Return the names of the rows of a batch, each that of its image's questions."""
        samples = [self[i] for i in range(first, min(last, self._total))]
        images = ((sample.image, sample.further) for sample in samples)
        names = dict(zip(images, self.names(first, last), strict=True))
        return [names[row.image, row.further] for row in self.pack(samples)]

    def _shuffled(self, rng: np.random.Generator) -> Order:
        places = np.arange(len(self._images))
        order = np.lexsort((rng.random(len(places)), self._images))
        begins = np.diff(self._images[order], prepend=-1) != 0
        inside = places - np.maximum.accumulate(np.where(begins, places, 0))
        row = np.cumsum(inside % self._most == 0) - 1
        drawn = rng.permutation(row[-1] + 1)[row]
        return np.resize(order[np.argsort(drawn, kind="stable")], self._count)

    def _lengths(self, order: Order, epoch: int) -> Order:
        own = super()._lengths(order, epoch)
        starts = np.flatnonzero(np.diff(self._images[order], prepend=-1))
        return np.repeat(np.add.reduceat(own, starts), np.diff(starts, append=len(order)))


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
        self.schedule, self._stride, self._begin = schedule, stride, begin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._coming: dict[int, Future[Any]] = {}

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: int) -> Any:
        """Return a sample; what drawing it raised is raised here."""
        now = self._started(index)
        later = index + self._stride
        if later < len(self):
            self._coming[later] = self._started(later)
        return now.result()

    def close(self) -> None:
        """Draw no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()

    def _started(self, index: int) -> Future[Any]:
        return self._coming.pop(index, None) or self._thread.submit(self._draw, index)

    def _draw(self, index: int) -> Any:
        sample = self.schedule[index]
        if self._begin is not None:
            self._begin(sample)
        return sample
