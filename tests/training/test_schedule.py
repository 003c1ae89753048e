"""Grouping by length: still every sample once an epoch, in batches of like length."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from medmoe.training.schedule import Schedule

BATCH = 4


def schedule(count: int, epochs: int, seed: int = 1) -> Schedule[tuple[int, int]]:
    """Return samples that show their index and a length between 10 and 99."""

    def draw(index: int, rng: np.random.Generator) -> tuple[int, int]:
        return index, int(rng.integers(10, 100))

    return Schedule(draw, count, count * epochs, seed, length=lambda sample: sample[1])


def padding(samples: Schedule[tuple[int, int]]) -> float:
    """Return the share of padding in all batches."""
    lengths = [samples[i][1] for i in range(len(samples) // BATCH * BATCH)]
    rows = np.array(lengths).reshape(-1, BATCH)
    whole = rows.max(axis=1).sum() * BATCH
    return float(1 - rows.sum() / whole)


@pytest.mark.parametrize("count", [1, 3, 4, 7, 64, 203])
def test_every_epoch_has_every_sample_once_with_the_draw_it_has_ungrouped(count: int) -> None:
    plain = schedule(count, 3)
    grouped = plain.grouped(BATCH)
    for epoch in range(3):
        places = range(epoch * count, (epoch + 1) * count)
        assert sorted(grouped[i] for i in places) == sorted(plain[i] for i in places)


def test_padding_falls_to_a_fifth() -> None:
    plain = schedule(400, 3)
    assert padding(plain.grouped(BATCH)) < padding(plain) / 5


def test_batches_come_in_random_order_of_length() -> None:
    grouped = schedule(400, 1).grouped(BATCH)
    lengths = [grouped[i][1] for i in range(0, 400, BATCH)]
    rises = sum(a < b for a, b in pairwise(lengths))
    assert 30 < rises < 70  # of 99: neither sorted up nor down


def test_grouped_position_depends_on_nothing_that_was_asked_before() -> None:
    forwards, backwards = schedule(50, 4).grouped(BATCH), schedule(50, 4).grouped(BATCH)
    places = range(200)
    assert [forwards[i] for i in places] == [backwards[i] for i in reversed(places)][::-1]
    other = schedule(50, 4, seed=2).grouped(BATCH)
    assert [forwards[i] for i in places] != [other[i] for i in places]


def test_samples_without_a_length_stay_as_they_are() -> None:
    plain = Schedule(lambda i, rng: i, 10, 20, 1)
    assert plain.grouped(BATCH) is plain


def test_names_are_those_of_the_samples_at_the_positions() -> None:
    names = [f"image {i}" for i in range(7)]
    named = Schedule(lambda i, rng: i, 7, 21, 1, names=names)
    assert named.names(5, 9) == [f"image {named[i]}" for i in range(5, 9)]
    assert named.names(20, 25) == [f"image {named[20]}"]
    assert Schedule(lambda i, rng: i, 7, 21, 1).names(0, 1) == [f"sample {named[0]}"]


def test_fingerprint_tells_other_samples_and_another_grouping() -> None:
    def named(*names: str) -> Schedule[int]:
        return Schedule(lambda i, rng: i, len(names), 8, 1, names, length=lambda sample: 1)

    one = named("a", "b")
    assert one.fingerprint() == named("a", "b").fingerprint()
    assert one.fingerprint() != named("a", "c").fingerprint()
    assert one.fingerprint() != named("a", "b", "c").fingerprint()
    assert one.fingerprint() != one.grouped(2).fingerprint()
