"""What is measured while a phase trains: loss and strict score on pictures kept apart from it.

It changes nothing of what is trained (`engine` puts the random state back), unless the recipe asks
for the weights of the best step instead of the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from medmoe.data.collate import Packed

#: The Trainer's name of the validation loss, and ours of the score beside it.
LOSS, SCORE = "eval_loss", "eval_strict_score"


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """What is measured, and how often.

    Attributes:
        samples: Give the loss, always the same.
        collate: Makes a batch of them, with the features of their own pictures.
        every: Steps between two measurements; the last step is always measured.
        score: Gives a model's strict score in percent; None measures the loss only.
        keep_best: The phase ends with the weights of the best step.
    """

    samples: Sequence[Packed]
    collate: Callable[[Sequence[Packed]], dict[str, Any]]
    every: int
    score: Callable[[nn.Module], float] | None = None
    keep_best: bool = False


def best_step(history: Iterable[Mapping[str, Any]]) -> int | None:
    """Return the step with the best strict score, of equal scores the lower loss, then the first.

    Args:
        history: The Trainer's log; None where nothing in it was measured.
    """
    measured = [row for row in history if LOSS in row]
    if not measured:
        return None
    best = max(measured, key=lambda row: (row.get(SCORE, 0.0), -row[LOSS]))
    return int(best["step"])
