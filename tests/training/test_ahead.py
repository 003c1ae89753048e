"""Preparing samples ahead: the same samples in the same order, one batch before they are needed."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from medmoe.errors import DataError
from medmoe.training.schedule import Ahead, Schedule

COUNT, BATCH, TOTAL = 7, 3, 23


def schedule(seen: list[int] | None = None) -> Schedule[tuple[int, float]]:
    def draw(index: int, rng: np.random.Generator) -> tuple[int, float]:
        if seen is not None:
            seen.append(index)
        return index, float(rng.random())

    return Schedule(draw, COUNT, TOTAL, seed=3)


@pytest.mark.parametrize("skip", [0, 4])
@pytest.mark.parametrize(("rank", "processes"), [(0, 1), (0, 2), (1, 2)])
def test_samples_are_those_of_the_schedule_in_their_order(
    rank: int, processes: int, skip: int
) -> None:
    plain = schedule()
    ahead = Ahead(schedule(), BATCH * processes)
    batches = list(BatchSampler(SequentialSampler(plain), BATCH, drop_last=False))
    for batch in batches[rank::processes][skip:]:
        assert [ahead[i] for i in batch] == [plain[i] for i in batch]
    ahead.close()


def test_a_batch_is_drawn_while_the_one_before_is_used() -> None:
    seen: list[int] = []
    begun: list[Any] = []
    drawn = threading.Event()

    def begin(sample: Any) -> None:
        begun.append(sample)
        if len(begun) == 2 * BATCH:
            drawn.set()

    ahead = Ahead(schedule(seen), BATCH, begin)
    loader = iter(DataLoader(ahead, batch_size=BATCH, collate_fn=list))
    first = next(loader)
    assert drawn.wait(10)  # without the second batch being asked for
    assert len(seen) == 2 * BATCH
    assert sorted(first + next(loader)) == sorted(begun[: 2 * BATCH])
    ahead.close()


def test_every_sample_is_drawn_once_and_none_beyond_the_end() -> None:
    seen: list[int] = []
    ahead = Ahead(schedule(seen), BATCH)
    assert len(list(DataLoader(ahead, batch_size=BATCH, collate_fn=list))) == -(-TOTAL // BATCH)
    ahead.close()
    assert len(seen) == TOTAL == len(ahead)


def test_an_error_comes_with_its_sample_and_not_before() -> None:
    def draw(index: int, rng: np.random.Generator) -> int:
        if index == 4:
            raise DataError("sample 4 is too long")
        return index

    plain = Schedule(draw, COUNT, COUNT, seed=3)
    place = next(i for i, name in enumerate(plain.names(0, COUNT)) if name == "sample 4")
    ahead = Ahead(plain, 1)
    assert len([ahead[i] for i in range(place)]) == place
    with pytest.raises(DataError, match="sample 4 is too long"):
        ahead[place]
    ahead.close()
