"""Predictions, their pairing with the truth by id, and their file.

Our own file is JSON Lines and holds the truth beside each prediction, so that it serves as both the
prediction and the truth file of ``medmoe score``; others' may be JSON arrays or CSV too. It holds
no question and no pixels. The paper's released code pairs by position and cuts the longer list
silently; here that is an error.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.files.json_lines import Id, Number, Text, checked, named, read_rows

#: How thoughts begin and end; the last pair is MedGemma's.
_BEGIN = r"<(?:think(?:ing)?|thought|reasoning)>|<unused94>"
_END = r"</(?:think(?:ing)?|thought|reasoning)>|<unused95>"
_THOUGHTS = tuple(
    re.compile(pattern, re.DOTALL | re.IGNORECASE)
    for pattern in (rf"(?:{_BEGIN}).*?(?:{_END})", rf"^.*(?:{_END})", rf"(?:{_BEGIN}).*")
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer to one record.

    Attributes:
        confidence: From 0 to 1, None where the system gives none.
        option_scores: Summed label log-likelihood of each of the record's options, in their order.
        routing: The router's ``domain`` and ``domain_probability`` for the image, and for each of
            ``further``; scores need none.
        cut: Whether the longest answer ended it, not the system.
        failed: Why the system gave no answer, None where it gave one.
    """

    id: Id
    text: Annotated[Text, Field(validation_alias="prediction")]
    confidence: Number | None = None
    option_scores: tuple[Number, ...] | None = None
    routing: Mapping[str, Any] | None = field(default=None, compare=False)
    cut: bool = False
    failed: str | None = None


_PREDICTION = TypeAdapter(Prediction)


def by_image(records: Sequence[Record]) -> list[Record]:
    """Return the records with all of an image together, in the order of the images' first ones.

    A record of several goes by its first. They are asked and stand in files in this order;
    intervals draw images in it.
    """
    place = {name: number for number, name in enumerate(dict.fromkeys(r.image.id for r in records))}
    return sorted(records, key=lambda record: place[record.image.id])


def pair(
    records: Sequence[Record], predictions: Sequence[Prediction]
) -> list[tuple[Record, Prediction]]:
    """Return each record with its prediction, in the order of `by_image`.

    So a run and the file that it wrote give the same draws, hence the same intervals.

    Raises:
        DataError: An id is missing, stands twice or is unknown; the message names it.
    """
    for ids, what in (
        ([r.id for r in records], "records"),
        ([p.id for p in predictions], "predictions"),
    ):
        twice = [i for i, count in Counter(ids).items() if count > 1]
        if twice:
            raise DataError(f"{what} with a duplicate id: {named(twice)}; keep one of each")
    by_id = {p.id: p for p in predictions}
    known = {r.id for r in records}
    missing = [r.id for r in records if r.id not in by_id]
    unknown = [i for i in by_id if i not in known]
    if missing and len(missing) == len(records) and unknown:
        raise DataError(
            f"no id in common: the predictions have {named(unknown[:1])}, the records "
            f"{named(missing[:1])}; give predictions and truth of the same task"
        )
    if missing:
        raise DataError(f"missing predictions for: {named(missing)}; predict every record once")
    if unknown:
        raise DataError(f"unknown prediction ids: {named(unknown)}; score the split they are from")
    return [(record, by_id[record.id]) for record in by_image(records)]


def prediction_row(record: Record, prediction: Prediction) -> dict[str, Any]:
    """Return one line of a prediction file: a prediction with its truth.

    Raises:
        DataError: A confidence or option score is not finite.
    """
    row: dict[str, Any] = {"id": record.id, "prediction": prediction.text}
    if not all(map(math.isfinite, (prediction.confidence or 0, *(prediction.option_scores or ())))):
        raise DataError(f"{record.id}: a confidence or option score is not finite")
    if prediction.confidence is not None:
        row["confidence"] = prediction.confidence
    if prediction.option_scores is not None:
        # Unrounded: a tie made by rounding would change the AUC when the file is scored again.
        row["option_scores"] = list(prediction.option_scores)
        row["options"] = list(record.options)
    if prediction.routing is not None:
        row["routing"] = dict(prediction.routing)
    if prediction.cut:
        row["cut"] = True
    if prediction.failed is not None:
        row["failed"] = prediction.failed
    row |= {"answer": record.answer, "answer_type": record.answer_type}
    if record.references:
        row["references"] = list(record.references)
    return row | {"image": record.image.id, "subset": record.question_type}


def read_predictions(path: Path) -> list[Prediction]:
    """Return the predictions of a file; keys that scoring does not need are ignored.

    An empty answer is a prediction: it is scored, and wrong.

    Raises:
        DataError: The file cannot be read or is empty, or a line is not a prediction; the message
            names it.
    """
    return [checked(_PREDICTION, row, where) for where, row in read_rows(path, "predictions")]


def without_thinking(text: str) -> str:
    """Return an answer without what a model thought first, from ``<think>`` to ``</think>``.

    Thoughts that begin in the prompt reach from the start, those that were cut off to the end.
    """
    for thought in _THOUGHTS:
        text = thought.sub("", text)
    return text.strip()
