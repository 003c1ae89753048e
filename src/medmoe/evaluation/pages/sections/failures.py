"""The report's part on wrong answers, and on which class was taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medmoe.data.schema import Record
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.pages.report import Figure, Section
from medmoe.evaluation.pages.table import Table
from medmoe.evaluation.score.measures import best_option, is_right
from medmoe.numbers import NONE, count, probability
from medmoe.routing.figures import confusion_matrix

Answered = Mapping[str, Sequence[tuple[Record, Prediction]]]
#: Of more rows a page opens slowly, of more classes no figure can be read, longer texts are cut.
_ROWS, _CLASSES, _LENGTH = 500, 12, 200
_COLUMNS = ("Question", "Truth", "Answer", "Kind", "Task", "Image", "Confidence")


def failures_section(answered: Answered) -> Section | None:
    """Return the part of the report, by task; None where nothing was answered wrongly."""
    wrong = [(t, r, p) for t, pairs in answered.items() for r, p in pairs if not is_right(r, p)]
    if not wrong:
        return None
    wrong.sort(key=lambda row: -(row[2].confidence or 0.0))
    words = f"{count(len(wrong))} answers are not right under the strict protocol"
    words += f"; the {_ROWS} most confident of them are listed" if len(wrong) > _ROWS else ""
    figures = [figure for task, pairs in answered.items() for figure in _confusion(task, pairs)]
    table = Table(_COLUMNS, [_row(*row) for row in wrong[:_ROWS]], text_columns=6)
    words += ", most confident first."
    return Section("failures", "Wrong answers", (words,), [table], figures)


def _row(task: str, record: Record, said: Prediction) -> tuple[str, ...]:
    sure = NONE if said.confidence is None else probability(said.confidence)
    texts = (text[:_LENGTH] for text in (record.question, record.answer, said.text or "(empty)"))
    return (*texts, record.question_type, task, record.image.id, sure)


def _confusion(task: str, pairs: Sequence[tuple[Record, Prediction]]) -> list[Figure]:
    """Return the confusion matrix of a classification; none where options differ or are many."""
    names = pairs[0][0].options if pairs else ()
    if not 1 < len(names) <= _CLASSES or any(record.options != names for record, _ in pairs):
        return []
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for record, said in pairs:
        scores = said.option_scores
        given = said.text if scores is None else best_option(record, scores)
        if given in names:
            counts[names.index(record.answer), names.index(given)] += 1
    of = f"{count(int(counts.sum()))} of {count(len(pairs))} answers"
    caption = f"{task}: true classes (rows), answers (columns), {of}; percent of the row below."
    return [Figure(caption, confusion_matrix(counts, names, task))]
