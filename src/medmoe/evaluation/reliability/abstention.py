"""Abstention: which answers to withhold so that few of those that are given are wrong.

`risk_coverage` says what each threshold of confidence would cost. `choose_threshold` takes the
threshold that conformal risk control allows (Angelopoulos et al., arXiv 2208.02814): on images that
are exchangeable with those it was chosen on, the expected share of an image's questions that are
answered wrongly is at most the target. The guarantee is about new images of the same kind, on
average; another hospital's are not. The paper has no abstention.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medmoe.errors import ConfigError
from medmoe.evaluation.reliability.calibration import Answered
from medmoe.evaluation.statistics import Indices, cluster_indices


def risk_coverage(answered: Answered) -> dict[str, Any]:
    """Return what thresholds would give, the most confident answers first.

    Answers of one confidence are given or withheld together.

    Returns:
        ``coverage``, the shares of the questions that are answered, rising; ``risk``, at each the
        share of the answers that are wrong; ``area`` under the curve (AURC): the mean risk over
        all coverages, 0 (best) to 1.
    """
    order, last = _ranked(answered)
    given = last + 1
    risk = np.cumsum(1 - answered.right[order])[last] / given
    steps = np.diff(given, prepend=0) / len(order)
    coverage = given / len(order)
    area = float((steps * risk).sum())
    return {"coverage": coverage.tolist(), "risk": risk.tolist(), "area": area}


def choose_threshold(answered: Answered, target: float) -> float | None:
    """Return the least confidence from which answers are given; None where no threshold will do.

    Args:
        answered: Records that are not reported on, e.g. of the validation split.
        target: The most that an image's share of wrong answers may be in expectation, above 0 and
            below 1.

    Raises:
        ConfigError: The target is outside.
    """
    if not 0 < target < 1:
        raise ConfigError(f"target risk {target:g} must lie between 0 and 1, e.g. 0.1")
    index, count = cluster_indices(answered.images)
    # One image more, all of whose answers are wrong, stands for the one to come.
    room = target * (count + 1) - 1
    if room < 0:
        return None
    sizes = np.bincount(index, minlength=count)
    order, last = _ranked(answered)
    confidence = answered.confidence[order]
    cost = np.cumsum((1 - answered.right[order]) / sizes[index[order]])
    # Rounding of equal sums must not decide.
    fits = np.flatnonzero(cost[last] <= room + 1e-9)
    return float(confidence[last[fits[-1]]]) if len(fits) else float(np.nextafter(confidence[0], 2))


def at_threshold(answered: Answered, threshold: float) -> dict[str, float | None]:
    """Return what a threshold gives.

    Returns:
        ``wrong``: mean over images of the share of an image's questions that is answered wrongly,
        what the target bounds; ``coverage``: share of the questions that is answered; ``risk``:
        share of the answers that is wrong, None where nothing is answered.
    """
    index, count = cluster_indices(answered.images)
    given = answered.confidence >= threshold
    wrong = given * (1 - answered.right)
    sizes = np.bincount(index, minlength=count)
    share = np.bincount(index, weights=wrong, minlength=count) / sizes
    risk = float(wrong.sum() / given.sum()) if given.any() else None
    return {"wrong": float(share.mean()), "coverage": float(given.mean()), "risk": risk}


def _ranked(answered: Answered) -> tuple[Indices, Indices]:
    """Return the order of falling confidence, and where in it the last of equals stand."""
    order = np.argsort(-answered.confidence, kind="stable")
    steps = np.flatnonzero(np.diff(answered.confidence[order]))
    return order, np.append(steps, len(order) - 1)
