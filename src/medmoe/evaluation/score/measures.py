"""What is measured of an answer: which metric of which protocol counts in which subset.

One list serves everything that is scored; `Measure.place` says how far forward a metric stands. The
paper's tables have the metrics of ``reference`` alone. Means and intervals are made in
`medmoe.evaluation.score.table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medmoe.data.schema import AnswerType, Record
from medmoe.errors import DataError
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.metrics import reference_bleu
from medmoe.evaluation.protocols import BLEU, LABEL_SCORE, LETTER, REPORT, word_scores
from medmoe.evaluation.statistics import Floats

Place = Literal["summary", "table", "json"]
Mask = NDArray[np.bool_]


class Kinds:
    """Of some records, which are closed, have options, are answered by a letter, or a report."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.closed: Mask = np.array([r.answer_type == "closed" for r in records], dtype=bool)
        self.has_options: Mask = np.array([bool(r.options) for r in records], dtype=bool)
        self.reports: Mask = np.array([r.question_type == "report" for r in records], dtype=bool)
        lettered = [r.answer in tuple("ABCDEFGHIJ") for r in records]
        self.by_letter: Mask = self.closed & np.array(lettered, dtype=bool)


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of one protocol.

    Attributes:
        closed: The key of `score_pair` that is read for closed questions; None leaves them out.
        place: ``summary`` stands everywhere, ``table`` in what `score` shows and in its JSON,
            ``json`` only there.
    """

    protocol: str
    metric: str
    closed: str | None = None
    open: str | None = None
    place: Place = "summary"

    def key(self, answer_type: AnswerType) -> str | None:
        """Return the key of `score_pair` for an answer type."""
        return self.closed if answer_type == "closed" else self.open

    def counts(self, kinds: Kinds) -> Mask:
        """Return for each record whether it is measured."""
        if self.protocol == LABEL_SCORE:
            return kinds.has_options
        if self.protocol == LETTER:
            return kinds.by_letter
        if self.protocol == REPORT:
            return ~kinds.closed & kinds.reports
        return (kinds.closed & (self.closed is not None)) | (
            ~kinds.closed & (self.open is not None)
        )

    @property
    def is_bleu(self) -> bool:
        """Whether it is one of BLEU's, which cost the most and have no baselines."""
        return self.metric in BLEU


#: The share of questions answered right: the one definition of right in words.
RIGHT = Measure("strict", "accuracy", closed="accuracy", open="exact_match")
BY_LABEL = Measure(LABEL_SCORE, "accuracy")
_BY_LETTER = Measure(LETTER, "accuracy", closed="accuracy")
_PUBLISHED = ("reference", "llava_med")


def _open(protocol: str, metric: str, place: Place = "summary") -> Measure:
    return Measure(protocol, metric, open=metric, place=place)


_CLOSED = (
    Measure("strict", "accuracy", closed="accuracy"),
    *(Measure(p, "accuracy", closed="closed_correct") for p in _PUBLISHED),
    # Under both names: that of the tables, and that of `score_pair`.
    *(Measure(p, "closed_correct", closed="closed_correct", place="json") for p in _PUBLISHED),
    Measure("token_f1", "accuracy", closed="accuracy"),
)
#: Overlap of words, whatever the answer type.
_WORDS = (
    *(
        Measure(protocol, key, key, key, "json")
        for protocol in _PUBLISHED
        for key in ("exact_match", "f1", "precision", "recall")
    ),
    Measure("token_f1", "f1", "f1", "f1", "table"),
)
_OPEN = (
    *(_open("strict", key) for key in ("exact_match", "f1", "recall")),
    *(_open(protocol, key) for protocol in _PUBLISHED for key in ("recall", "f1")),
    *(_open("reference", key, "table") for key in ("exact_match", *BLEU)),
    *(_open("llava_med", key, "json") for key in ("exact_match", *BLEU)),
    *(_open(protocol, "precision", "json") for protocol in _PUBLISHED),
    _open("token_f1", "f1"),
)
#: Of a part of the questions, e.g. a question type: what is right, and each answer type's metrics.
_PART = (
    RIGHT,
    _BY_LETTER,
    *(measure for measure in _CLOSED if measure.protocol != "strict"),
    *(replace(m, place="json") if m.protocol == "strict" else m for m in _OPEN),
)
_BY_SUBSET: Mapping[str, tuple[Measure, ...]] = {
    "closed": _CLOSED + _WORDS,
    "open": _OPEN,
    "all": (
        *(RIGHT, _BY_LETTER, *_WORDS),
        *(_open(REPORT, key) for key in ("rouge_l", "f1", "finding_f1")),
    ),
}
#: The subsets that every task may have; every other one is a part of the questions.
MAIN_SUBSETS = tuple(_BY_SUBSET)


def measures(
    subset: str, wanted: Sequence[str], places: Sequence[Place] = ("summary",)
) -> list[Measure]:
    """Return what is measured of a subset's answers in words, protocol by protocol.

    Args:
        subset: A name of `MAIN_SUBSETS`, or any other for a part of the questions.
        places: The measures to return, by their place.
    """
    known = _BY_SUBSET.get(subset, _PART)
    return [m for name in wanted for m in known if m.protocol == name and m.place in places]


def record_scores(protocol: str, record: Record, answer: str) -> Mapping[str, float]:
    """Return what `score_pair` returns for a record, BLEU excepted, each from 0 to 1.

    ``strict`` and ``letter`` take the best over the record's answer and its further ``references``
    (of a letter: the option's text); the published protocols know one true answer only.
    """
    kind = record.answer_type
    if protocol not in ("strict", LETTER) or not record.references:
        return word_scores(protocol, answer, record.answer, kind)
    each = [word_scores(protocol, answer, t, kind) for t in (record.answer, *record.references)]
    return {key: max(scores[key] for scores in each) for key in each[0]}


def best_option(record: Record, scores: Sequence[float]) -> str:
    """Return the option with the largest score; the first of equals.

    Raises:
        DataError: There is not one score for each option.
    """
    if not scores or len(scores) != len(record.options):
        raise DataError(
            f"option scores missing or not one per option: {record.id!r}; score each option"
        )
    return record.options[int(np.argmax(scores))]


def is_right(record: Record, prediction: Prediction) -> bool:
    """Return whether an answer is right, strictly: the whole answer, or the best-scored option.

    Raises:
        DataError: A classification has scores, but not one for each option.
    """
    if record.task == "classification" and prediction.option_scores is not None:
        return best_option(record, prediction.option_scores) == record.answer
    key = RIGHT.key(record.answer_type)
    return record_scores("strict", record, prediction.text)[str(key)] == 1


class Values:
    """Each record's value of each measure from 0 to 1, computed once; NaN where it does not count.

    Args:
        options: The chosen option of each record, for `BY_LABEL`; by default the texts.
    """

    def __init__(
        self,
        records: Sequence[Record],
        texts: Sequence[str],
        options: Sequence[str | None] | None = None,
    ) -> None:
        self._records = records
        self._texts = texts
        self._options = texts if options is None else options
        self._scores: dict[str, list[Mapping[str, float]]] = {}
        self._columns: dict[tuple[str | None, ...], Floats] = {}

    def of(self, measure: Measure) -> Floats:
        """Return the values (records,) of a measure."""
        # BLEU is the same under both published protocols.
        protocol = "" if measure.is_bleu else measure.protocol
        name = (protocol, measure.closed, measure.open)
        if name not in self._columns:
            if measure.is_bleu:
                self._add_bleu()
            else:
                self._columns[name] = self._column(measure)
        return self._columns[name]

    def mean(self, measure: Measure, chosen: NDArray[np.intp]) -> float:
        """Return the mean over some records."""
        return float(self.of(measure)[chosen].mean())

    def _column(self, measure: Measure) -> Floats:
        if measure.protocol == LABEL_SCORE:
            pairs = zip(self._records, self._options, strict=True)
            return np.array([float(option == record.answer) for record, option in pairs])
        if measure.protocol not in self._scores:
            self._scores[measure.protocol] = [
                record_scores(measure.protocol, record, text)
                for record, text in zip(self._records, self._texts, strict=True)
            ]
        values = [
            scores.get(measure.key(record.answer_type) or "", np.nan)
            for record, scores in zip(self._records, self._scores[measure.protocol], strict=True)
        ]
        return np.array(values, dtype=np.float64)

    def _add_bleu(self) -> None:
        """Score the open questions only: no table has BLEU of the closed ones."""
        values = np.full((len(self._records), len(BLEU)), np.nan)
        for i, (record, text) in enumerate(zip(self._records, self._texts, strict=True)):
            if record.answer_type == "open":
                values[i] = reference_bleu(text, record.answer)
        self._columns |= {("", None, key): values[:, j] for j, key in enumerate(BLEU)}
