"""From records and predictions to score rows: subsets, intervals and baselines in one place.

Each row is one line of a run's ``summary.json``, in percent. Beside the value stand n, a 95 %
interval by a bootstrap clustered on the image, and two baselines that see no picture, scored with
the same protocol on the same records. The paper's tables give the value alone. Answers are
generated elsewhere; two systems are compared by `medmoe.evaluation.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from medmoe.data.schema import Record
from medmoe.errors import ConfigError, DataError, one_of
from medmoe.evaluation.files.predictions import (
    Prediction,
    named,
    pair,
    read_predictions,
    write_predictions,
)
from medmoe.evaluation.protocols import PROTOCOLS, word_scores
from medmoe.evaluation.score import baselines
from medmoe.evaluation.score.label_scores import label_score_rows
from medmoe.evaluation.score.rows import ScoreRow, clears_baselines, filled, type_label
from medmoe.evaluation.tasks import TASKS

__all__ = [
    "Prediction",
    "ScoreRow",
    "clears_baselines",
    "pair",
    "read_predictions",
    "record_scores",
    "score_task",
    "write_predictions",
]

_CONTROLS = ("blank", "noise", "shuffled")
_HEADLINE = ("strict", "reference")


def score_task(
    *,
    system: str,
    task: str,
    split: str,
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    train_records: Sequence[Record],
    seed: int,
    control: str | None = None,
    protocols: Sequence[str] = _HEADLINE,
    subsets: Mapping[str, Callable[[Record], bool]] | None = None,
) -> list[ScoreRow]:
    """Return the score rows of one system on one task.

    VQA: closed, open, all (``strict`` only: the share of questions answered right) and each
    question type, under each protocol. Classification: accuracy and AUC under ``label_score``,
    for each question type too where there are several. A subset without records gives no row.

    Args:
        system: Name of the system, e.g. ``moe``.
        task: Name of the task, e.g. ``vqa_rad``.
        split: Name of the split that is scored.
        records: The truth, all of one kind (``vqa`` or ``classification``).
        predictions: One per record, paired by id.
        train_records: The training records of the same task, for the baselines; may be empty:
            baselines that need training answers are then left out, and constant answers are
            chosen on ``records`` (an upper bound).
        seed: Of the bootstrap.
        control: None, ``blank``, ``noise`` or ``shuffled``.
        protocols: The VQA protocols to score under.
        subsets: Further subsets by name, e.g. those of `medmoe.evaluation.score.breakdowns`.

    Raises:
        DataError: The ids do not pair, training ids are mixed up, the records are of several
            kinds or captions, or option scores are missing or not one per option.
        ConfigError: A protocol or the control is unknown.
    """
    _check_names(protocols, control)
    pairs = pair(records, predictions)
    kinds = sorted({record.task for record in records})
    if kinds not in ([], ["vqa"], ["classification"]):
        raise DataError(
            f"task {task!r} holds records of {', '.join(kinds)}; score vqa and classification "
            "records apart, and no captions"
        )
    train = [record for record in train_records if record.task in kinds]
    _check_one_per_id(train)
    blank = ScoreRow(system, task, split, "", "", "", None, None, None, 0, control=control)
    if kinds == ["vqa"]:
        return list(_vqa_rows(blank, pairs, train, seed, protocols, subsets or {}))
    several = task in TASKS and TASKS[task].kind == "multi_label"
    further = subsets or {}
    return list(label_score_rows(blank, pairs, train, seed, multi_label=several, subsets=further))


def _check_names(protocols: Sequence[str], control: str | None) -> None:
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ConfigError(one_of(protocol, PROTOCOLS, "protocol"))
    if control is not None and control not in _CONTROLS:
        raise ConfigError(one_of(control, _CONTROLS, "control"))


def _check_one_per_id(train: Sequence[Record]) -> None:
    """Records may repeat (oversampling); two data sets' records under one id would be mixed up."""
    first: dict[str, Record] = {}
    mixed = [
        r.id
        for r in train
        if (other := first.setdefault(r.id, r)) is not r
        and (other.question, other.answer, other.answer_type, other.question_type)
        != (r.question, r.answer, r.answer_type, r.question_type)
    ]
    if mixed:
        raise DataError(
            f"training records that differ under one id: {named(mixed)}; give those of one data set"
        )


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric: which key of `score_pair` is read for each answer type; others are left out."""

    protocol: str
    metric: str
    keys: Mapping[str, str]


#: protocol -> metric -> key of `score_pair`.
_CLOSED: Mapping[str, Mapping[str, str]] = {
    "strict": {"accuracy": "accuracy"},
    "reference": {"accuracy": "closed_correct"},
    "llava_med": {"accuracy": "closed_correct"},
    "token_f1": {"accuracy": "accuracy"},
}
_OPEN: Mapping[str, Mapping[str, str]] = {
    "strict": {"exact_match": "exact_match", "f1": "f1", "recall": "recall"},
    "reference": {"recall": "recall", "f1": "f1"},
    "llava_med": {"recall": "recall", "f1": "f1"},
    "token_f1": {"f1": "f1"},
}
_RIGHT = Measure("strict", "accuracy", {"closed": "accuracy", "open": "exact_match"})


def measures(subset: str, protocols: Sequence[str]) -> Iterator[Measure]:
    for protocol in protocols:
        if subset not in ("closed", "open") and protocol == "strict":
            yield _RIGHT
            continue
        if subset not in ("open", "all"):
            for metric, key in _CLOSED[protocol].items():
                yield Measure(protocol, metric, {"closed": key})
        if subset not in ("closed", "all"):
            for metric, key in _OPEN[protocol].items():
                yield Measure(protocol, metric, {"open": key})


def record_scores(protocol: str, record: Record, answer: str) -> Mapping[str, float]:
    """Return what `score_pair` returns for a record, BLEU excepted, each from 0 to 1.

    ``strict`` takes the best over the record's answer and its further ``references``; the
    published protocols know one true answer only.
    """
    kind = record.answer_type
    if protocol != "strict" or not record.references:
        return word_scores(protocol, answer, record.answer, kind)
    each = [word_scores(protocol, answer, t, kind) for t in (record.answer, *record.references)]
    return {key: max(scores[key] for scores in each) for key in each[0]}


class _Answers:
    """One predictor's answers to all records of a split, each scored once per protocol."""

    def __init__(self, records: Sequence[Record], answers: Mapping[str, str]) -> None:
        self._records = records
        self._answers = answers
        self._scores: dict[str, dict[str, Mapping[str, float]]] = {}

    def values(self, chosen: Sequence[Record], measure: Measure) -> list[float]:
        """Return the measure's value for each chosen record."""
        if measure.protocol not in self._scores:
            self._scores[measure.protocol] = {
                r.id: record_scores(measure.protocol, r, self._answers[r.id]) for r in self._records
            }
        scores, keys = self._scores[measure.protocol], measure.keys
        return [scores[r.id][keys[r.answer_type]] for r in chosen]

    def mean(self, chosen: Sequence[Record], measure: Measure) -> float:
        """Return the mean of the measure over the chosen records."""
        return math.fsum(self.values(chosen, measure)) / len(chosen)


class _Blind:
    """The baselines' answers to the test records, and the constants' to their training records."""

    def __init__(self, train: Sequence[Record], test: Sequence[Record]) -> None:
        # Only yes and no can be answered without training answers.
        names = list(baselines.CONSTANTS) if train else ["always_yes", "always_no"]
        # Ids are unique within a split only: training answers are kept apart from the test's.
        self._on_test, self._on_train = (
            {name: _Answers(split, baselines.CONSTANTS[name](train, split)) for name in names}
            for split in (test, train)
        )
        self._question_only = (
            _Answers(test, baselines.question_only(train, test)) if train else None
        )

    def constant(self, train: Sequence[Record], test: Sequence[Record], measure: Measure) -> float:
        """Score the constant that is best on the training records of the subset."""
        chosen_on, answers = (train, self._on_train) if train else (test, self._on_test)
        best = max(answers, key=lambda name: answers[name].mean(chosen_on, measure))
        return self._on_test[best].mean(test, measure)

    def question_only(self, test: Sequence[Record], measure: Measure) -> float | None:
        """Score the answers that the questions' words alone would give."""
        return None if self._question_only is None else self._question_only.mean(test, measure)


def _subsets(records: Sequence[Record]) -> dict[str, Callable[[Record], bool]]:
    chosen: dict[str, Callable[[Record], bool]] = {
        "closed": lambda r: r.answer_type == "closed",
        "open": lambda r: r.answer_type == "open",
        "all": lambda r: True,
    }
    for name in sorted({r.question_type for r in records}):
        chosen[type_label(name)] = _of_type(name)
    return chosen


def _of_type(name: str) -> Callable[[Record], bool]:
    return lambda r: r.question_type == name


def _vqa_rows(
    blank: ScoreRow,
    pairs: Sequence[tuple[Record, Prediction]],
    train: Sequence[Record],
    seed: int,
    protocols: Sequence[str],
    further: Mapping[str, Callable[[Record], bool]],
) -> Iterator[ScoreRow]:
    records = [record for record, _ in pairs]
    answers = _Answers(records, {record.id: prediction.text for record, prediction in pairs})
    blind = _Blind(train, records)
    for subset, belongs in (_subsets(records) | dict(further)).items():
        for measure in measures(subset, protocols):
            chosen = [r for r in records if belongs(r) and r.answer_type in measure.keys]
            if not chosen:
                continue
            learned = [r for r in train if belongs(r) and r.answer_type in measure.keys]
            row = replace(blank, subset=subset, protocol=measure.protocol, metric=measure.metric)
            yield filled(
                row,
                answers.values(chosen, measure),
                chosen,
                seed,
                constant=blind.constant(learned, chosen, measure),
                question_only=blind.question_only(chosen, measure),
            )


def is_right(record: Record, prediction: Prediction) -> bool:
    """Return whether an answer is right: strict protocol, or the best-scored option."""
    if record.task == "classification":
        return prediction.text == record.answer
    key = "accuracy" if record.answer_type == "closed" else "exact_match"
    return bool(record_scores("strict", record, prediction.text)[key] == 1)
