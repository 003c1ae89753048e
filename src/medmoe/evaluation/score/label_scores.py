"""Score rows of image classification by label score: accuracy and AUC with their baselines.

The option with the largest summed log-likelihood is the answer (the paper's table 3 gives accuracy
only). AUC needs one list of options shared by all records of a subset. How accuracy and AUC are
computed stands in `medmoe.evaluation.score.classification`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.files.predictions import Prediction, named
from medmoe.evaluation.score import baselines, classification
from medmoe.evaluation.score.rows import ScoreRow, filled, percent, type_label


def label_score_rows(
    blank: ScoreRow,
    pairs: Sequence[tuple[Record, Prediction]],
    train: Sequence[Record],
    seed: int,
    *,
    multi_label: bool = False,
    subsets: Mapping[str, Callable[[Record], bool]] | None = None,
) -> Iterator[ScoreRow]:
    """Yield accuracy and AUC over all records, and of each question type where there are several.

    With several labels at once there is one record per image and label, whose question type is the
    label and whose options are absent and present, in this order: the AUC of all is then the mean
    of the labels' own.

    Args:
        blank: A row with system, task, split and control.
        pairs: Classification records with their predictions.
        train: Training records of the same task, for the baselines; may be empty.
        seed: Of the bootstrap.
        multi_label: Whether an image has several labels at once.
        subsets: Further subsets by name.

    Raises:
        DataError: Option scores are missing, not finite or not one per option, or an answer is
            not among its options.
    """
    _check_options(pairs)
    types = sorted({record.question_type for record, _ in pairs})
    blank = replace(blank, protocol="label_score")
    groups = {"all": list(pairs)} if pairs else {}
    if len(types) > 1:
        groups |= {
            type_label(name): [p for p in pairs if p[0].question_type == name] for name in types
        }
    for name, belongs in (subsets or {}).items():
        inside = [pair for pair in pairs if belongs(pair[0])]
        groups |= {name: inside} if inside else {}
    for subset, group in groups.items():
        chosen = [record for record, _ in group]
        right = [
            float(record.options[int(np.argmax(prediction.option_scores or ()))] == record.answer)
            for record, prediction in group
        ]
        constant, question_only = _blind_accuracies(train, chosen)
        yield filled(
            replace(blank, subset=subset, metric="accuracy"),
            right,
            chosen,
            seed,
            constant=constant,
            question_only=question_only,
        )
        row = replace(blank, subset=subset, metric="auc", n=len(group))
        several = multi_label and subset == "all" and len(types) > 1
        yield (_mean_auc_row if several else _auc_row)(row, group, seed)


def _check_options(pairs: Sequence[tuple[Record, Prediction]]) -> None:
    wrong = [r.id for r, p in pairs if len(p.option_scores or ()) != len(r.options)]
    if wrong:
        raise DataError(f"option scores missing or not one per option: {named(wrong)}; score each")
    few = [r.id for r, _ in pairs if len(r.options) < 2 or r.answer not in r.options]
    if few:
        raise DataError(f"answer not among two or more options: {named(few)}; mend the reader")
    lost = [r.id for r, p in pairs if not np.isfinite(p.option_scores or ()).all()]
    if lost:
        raise DataError(f"option scores that are not finite: {named(lost)}; check the model")


def _blind_accuracies(
    train: Sequence[Record], test: Sequence[Record]
) -> tuple[float, float | None]:
    def share(answers: Mapping[str, str]) -> float:
        return sum(answers[r.id] == r.answer for r in test) / len(test)

    if not train:
        options = sorted({option for r in test for option in r.options})
        return max(share(baselines.always(option, test)) for option in options), None
    constant = baselines.most_frequent_per_type(train, test)
    return share(constant), share(baselines.question_only(train, test))


def _auc_row(row: ScoreRow, group: Sequence[tuple[Record, Prediction]], seed: int) -> ScoreRow:
    if len({record.options for record, _ in group}) > 1:
        return replace(row, note="the records do not share one list of options: no common AUC")
    probabilities = classification.label_probabilities([p.option_scores or () for _, p in group])
    found = classification.auc_with_interval(
        [record.options.index(record.answer) for record, _ in group],
        probabilities,
        [record.image.id for record, _ in group],
        seed=seed,
    )
    return _with_auc(row, found)


def _mean_auc_row(row: ScoreRow, group: Sequence[tuple[Record, Prediction]], seed: int) -> ScoreRow:
    """Arrange records of one image and one label each as images by labels, and score those."""
    images = list(dict.fromkeys(record.image.id for record, _ in group))
    labels = sorted({record.question_type for record, _ in group})
    place = {(record.image.id, record.question_type): i for i, (record, _) in enumerate(group)}
    if len(place) != len(group) or len(group) != len(images) * len(labels):
        return replace(row, note="not one record per image and label: no common AUC")
    order = np.asarray([[place[image, label] for label in labels] for image in images])
    scores = classification.label_probabilities([p.option_scores or () for _, p in group])
    present = np.asarray([record.options.index(record.answer) for record, _ in group])
    return _with_auc(
        row,
        classification.multi_label_auc(present[order], scores[:, -1][order], images, seed=seed),
    )


def _with_auc(row: ScoreRow, found: classification.Auc) -> ScoreRow:
    # A score that ignores the image ranks at random.
    chance = None if found.value is None else 50.0
    return replace(
        row,
        value=percent(found.value),
        low=percent(found.low),
        high=percent(found.high),
        constant_baseline=chance,
        question_only_baseline=chance,
        note=found.reason,
    )
