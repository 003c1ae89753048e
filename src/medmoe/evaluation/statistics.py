"""Intervals and tests for scores: how far a number can be trusted.

Questions about one image are not independent, so intervals come from a bootstrap that resamples
images (clusters). The paper reports no intervals; some of its wins are one question of 416. No
correction for multiple comparisons is made here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
#: Decimals of a percentage in files.
DECIMALS = 6
#: Cells of a resampling block that are held in memory at once.
_BLOCK = 1 << 18


def cluster_indices(clusters: Sequence[Hashable]) -> tuple[Indices, int]:
    """Return each item's cluster number, counted by first appearance, and how many there are."""
    seen: dict[Hashable, int] = {}
    numbers = [seen.setdefault(name, len(seen)) for name in clusters]
    return np.asarray(numbers, dtype=np.int64), len(seen)


def drawn_counts(count: int, *, seed: int, resamples: int) -> Iterator[Floats]:
    """Yield how often each of ``count`` clusters is drawn with replacement: blocks (R, count)."""
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // max(count, 1))
    for start in range(0, resamples, step):
        drawn = rng.integers(0, count, size=(rows := min(step, resamples - start), count))
        # One flat count over all rows: a loop over resamples would take most of the time.
        flat = (drawn + np.arange(rows)[:, None] * count).ravel()
        times = np.bincount(flat, minlength=rows * count).reshape(rows, count)
        yield times.astype(np.float64)


def clustered_bootstrap(
    values: npt.ArrayLike,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
    statistic: Callable[[Floats, Floats], Floats] = lambda sums, sizes: sums / sizes[:, None],
) -> Floats:
    """Return the interval (2,) of the mean of ``values`` (items,), or (M, 2) of M columns of them.

    Clusters are drawn with replacement and each resample's mean is the sum of its values ÷ their
    number, so clusters of unequal size are treated as they are. Fewer than two clusters tell
    nothing about the spread: the interval is then (nan, nan). The columns share their draws, so M
    metrics of the same items cost little more than one.

    Args:
        clusters: The cluster of each item, e.g. its image.
        seed: Of the draws; the same seed gives the same interval.
        resamples: How many resamples are drawn.
        confidence: The share of resamples between the two ends.
        statistic: Of R resamples, from the sums (R, M) of their values and their sizes (R,).
    """
    data = np.asarray(values, dtype=np.float64)
    table = data.reshape(len(data), -1)
    index, count = cluster_indices(clusters)
    sums = np.zeros((count, table.shape[1]))
    np.add.at(sums, index, table)
    sizes = np.bincount(index, minlength=count).astype(np.float64)
    draws = drawn_counts(count, seed=seed, resamples=resamples)
    samples = np.concatenate([statistic(times @ sums, times @ sizes) for times in draws])
    tail = (1.0 - confidence) / 2.0
    ends = np.quantile(samples if count > 1 else samples * math.nan, [tail, 1.0 - tail], axis=0).T
    return ends[0] if data.ndim == 1 else ends


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of independent trials (e.g. router accuracy)."""
    from scipy.stats import binomtest  # half a second to import

    ends = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def accuracy_of(right: int, n: int) -> dict[str, float | int]:
    """Return ``accuracy`` with ``low`` and ``high`` in percent, and ``n``, as summaries hold it."""
    low, high = wilson(right, n)
    return {"accuracy": 100 * right / n, "low": 100 * low, "high": 100 * high, "n": n}


def intervals(
    values: Floats, images: Sequence[str], seed: int
) -> list[tuple[float | None, float | None]]:
    """Return the interval of the mean of each column of values (items, M); they share their draws.

    A clustered bootstrap; where a column is all right (1) or all wrong (0) that has no width, and
    three right answers of three would claim certainty: it then is Wilson's over the images. (None,
    None) where there is one image only.
    """
    count = len(set(images))
    ends: list[tuple[float | None, float | None]] = []
    for column, (low, high) in zip(
        values.T, clustered_bootstrap(values, images, seed=seed), strict=True
    ):
        if column[0] in (0.0, 1.0) and (column == column[0]).all():
            ends.append(wilson(count if column[0] == 1.0 else 0, count))
        else:
            ends.append((None, None) if math.isnan(low) else (float(low), float(high)))
    return ends


def shares_of(values: Floats, images: Sequence[str], seed: int) -> list[dict[str, float | None]]:
    """Return the mean of each column with its `intervals`: ``value, low, high`` in percent."""
    columns = zip(values.mean(axis=0).tolist(), intervals(values, images, seed), strict=True)
    return [
        {"value": in_percent(mean), "low": in_percent(low), "high": in_percent(high)}
        for mean, (low, high) in columns
    ]


def difference_interval(
    differences: Floats, images: Sequence[str], seed: int
) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the mean paired difference, clustered on the image.

    Where all records differ alike, a bootstrap has no width: three of three lost would claim
    certainty. The share of images that went this way then has Wilson's interval.
    """
    count = len(set(images))
    if count < 2:
        return None, None
    first = float(differences[0])
    if first != 0.0 and (differences == first).all():
        share, _ = wilson(count, count)
        low, high = sorted((first, first * (2 * share - 1)))
        return low, high
    low, high = clustered_bootstrap(differences, images, seed=seed).tolist()
    return low, high


def finite(number: float | Floats) -> float | None:
    """Return a number as JSON has it: None for what is not defined."""
    return float(number) if math.isfinite(number) else None


def in_percent(share: float | None) -> float | None:
    """Return a share in percent, rounded so that files stay readable."""
    return None if share is None else round(100.0 * share, DECIMALS)


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the exact two-sided p-value of McNemar's test between two systems' right answers.

    Only items that one system has right and the other wrong count; under the null hypothesis
    each of them favours either system with probability one half. Questions are taken as
    independent: with several per image, look at the interval of the difference as well.

    Args:
        a: 1 where the first system is right, else 0, item by item.
        b: The same of the second system.
    """
    first, second = np.asarray(a), np.asarray(b)
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue)
