"""What `medmoe train` measures while a phase trains: which questions, and how they are scored.

Training knows no scoring and scoring no training; here they meet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from medmoe.data.readers.common import hash_share
from medmoe.data.schema import Record
from medmoe.evaluation.ask.asker import predict, unfit
from medmoe.evaluation.ask.records import turn_by_turn
from medmoe.evaluation.score.measures import is_right
from medmoe.inference.engine import MedMoe
from medmoe.training.load_balance import BalancedMoe


def spread(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Return at most so many records, on as many pictures as there are; the seed draws them."""
    by_image: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: hash_share(f"{r.dataset}/{r.id}", seed)):
        by_image[record.image.id].append(record)
    images = sorted(by_image, key=lambda name: hash_share(name, seed))
    most = max(map(len, by_image.values()), default=0)
    turns = (by_image[name][turn : turn + 1] for turn in range(most) for name in images)
    return [record for turn in turns for record in turn][:count]


def strict_score(
    processor: Any, records: Sequence[Record], features: Tensor, rows: Mapping[str, int]
) -> Callable[[nn.Module], float]:
    """Return what asks a model the questions and gives the percentage answered right.

    Of a conversation every question is asked, with the true turns before it. What is longer than
    the model can read is not asked, and counts as wrong.

    Args:
        features: (N, P, D_vision) of the pictures.
        rows: Row of each image id in ``features``.
    """
    # Ids are unique within their set only.
    asked = [turn for record in records for turn in turn_by_turn(record)]
    numbered = [replace(record, id=str(number)) for number, record in enumerate(asked)]

    def score(model: nn.Module) -> float:
        whole: Any = model.model if isinstance(model, BalancedMoe) else model
        engine = MedMoe(whole, processor)
        refused = {record.id for record, _ in unfit(engine, numbered)}
        fitting = [record for record in numbered if record.id not in refused]
        answers = predict(engine, fitting, features, dict(rows))
        return 100 * sum(map(is_right, fitting, answers)) / len(numbered)

    return score
