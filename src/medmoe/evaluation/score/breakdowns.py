"""Subsets of the records to break scores down by: question type, modality, organ, answer length.

Where a model fails is hidden by an average; the paper's tables give averages only. A breakdown
says where to look, not why: its groups differ in their questions too, and small ones have wide
intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from medmoe.data.schema import Record
from medmoe.evaluation.metrics import words
from medmoe.evaluation.score.measures import MAIN_SUBSETS

Belongs = Callable[[Record], bool]


def question_types(records: Sequence[Record]) -> dict[str, Belongs]:
    """Return the subset of each question type; one called like a main subset is marked."""
    names = sorted({record.question_type for record in records} - {""})
    return {
        f"type:{name}" if name in MAIN_SUBSETS else name: _is(lambda r: r.question_type, name)
        for name in names
    }


def breakdowns(records: Sequence[Record]) -> dict[str, Belongs]:
    """Return the subsets of records by name, for `score_task`'s ``subsets``.

    ``modality:ct``, ``organ:chest`` and, for open questions, ``answer_length:2-3`` (words of the
    true answer). An attribute that all records share, or that none has, gives no subset.
    """
    subsets: dict[str, Belongs] = {}
    for name, value_of in _ATTRIBUTES.items():
        values = {value for record in records if (value := value_of(record)) is not None}
        if len({value_of(record) for record in records}) > 1:
            subsets |= {f"{name}:{value}": _is(value_of, value) for value in sorted(values)}
    return subsets


def _is(value_of: Callable[[Record], str | None], value: str) -> Belongs:
    return lambda record: value_of(record) == value


def _answer_length(record: Record) -> str | None:
    if record.answer_type == "closed":
        return None
    count = len(words(record.answer))
    return "1" if count <= 1 else "2-3" if count <= 3 else "4 or more"


_ATTRIBUTES: Mapping[str, Callable[[Record], str | None]] = {
    "modality": lambda record: record.image.modality,
    "organ": lambda record: record.image.organ,
    "answer_length": _answer_length,
}
