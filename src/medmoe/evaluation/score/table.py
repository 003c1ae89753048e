"""The score table: every answer measured once, each subset's means with interval and baselines.

Score rows of ``summary.json``, the object of `score --json`, pages and terminal are projections of
it (`medmoe.evaluation.score.rows`). Percent; intervals by a bootstrap clustered on the image; all
measures of the same records share one set of draws. The paper's tables give the value alone. No two
protocols are averaged.

One rule for the baselines, which see no picture: the constant answer (always yes, always no, or the
most frequent of the question type) is the one that is best on the training answers of the subset.
Where there are none it is chosen on the scored answers, an upper bound, and the cell says so.
Answers by the question's words alone need training answers. The blind twin, the same training
without pictures, reads far more from questions than these rules do: the score − its twin's is what
the pictures gave, the picture's share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmoe.data.schema import Record
from medmoe.errors import ConfigError, DataError, one_of
from medmoe.evaluation.files.json_lines import named
from medmoe.evaluation.files.predictions import Prediction, pair
from medmoe.evaluation.files.truth import names_an_image
from medmoe.evaluation.protocols import ALL_PROTOCOLS, LABEL_SCORE
from medmoe.evaluation.score import baselines
from medmoe.evaluation.score.auc import label_auc
from medmoe.evaluation.score.breakdowns import Belongs, question_types
from medmoe.evaluation.score.measures import (
    BY_LABEL,
    Kinds,
    Mask,
    Measure,
    Place,
    Values,
    best_option,
    measures,
)
from medmoe.evaluation.statistics import DECIMALS, difference_interval, in_percent, intervals

Pairs = Sequence[tuple[Record, Prediction]]
Rows = NDArray[np.intp]
#: The constant that a score by rank is held against: all alike, so a rank at random.
_ALL_ALIKE = "most_frequent_per_type"
_AUC = Measure(LABEL_SCORE, "auc")


@dataclass(frozen=True, slots=True)
class Cell:
    """One measure of one subset; numbers in percent.

    Attributes:
        value: None where it is not defined; ``note`` then says why.
        low: Lower end of the interval, ``high`` the upper one; None where there is none.
        constants: What each constant answer scores, by its name in `baselines.CONSTANTS`.
        constant: The name of the one that is the baseline; None where none was scored.
        on_train: Whether it was chosen on training answers.
        question_only: What the questions' words alone score; None where that is not known.
        blind_twin: What the same training without pictures scores; None where it was not asked.
        share: The picture's share: the score − its twin's, paired, with the ends of its interval.
    """

    subset: str
    measure: Measure
    value: float | None
    low: float | None
    high: float | None
    n: int
    constants: Mapping[str, float]
    constant: str | None
    on_train: bool
    question_only: float | None
    note: str | None = None
    blind_twin: float | None = None
    share: tuple[float, float | None, float | None] | None = None


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """What a system's answers to ``n`` records score, and what must be known to read that."""

    cells: Sequence[Cell]
    n: int
    images: int
    notes: Sequence[str]


def score_table(
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    *,
    train: Sequence[Record] = (),
    twin: Sequence[Prediction] | None = None,
    wanted: Sequence[str] = ALL_PROTOCOLS,
    places: Sequence[Place] = ("summary", "table", "json"),
    subsets: Mapping[str, Belongs] | None = None,
    multi_label: bool = False,
    seed: int = 7,
) -> ScoreTable:
    """Measure all answers.

    Subsets are ``closed``, ``open``, ``all`` and each question type; one without records is left
    out. ``label_score`` covers the records that have options, and their question types where there
    are several.

    Args:
        train: Training records of the same task, for the baselines.
        twin: What the blind twin answers to the same records; None where there is none.
        subsets: Further subsets by name, e.g. those of `medmoe.evaluation.score.breakdowns`.
        multi_label: Whether an image has several labels at once, with one record for each
            (ChestMNIST): the AUC of all is then the mean of theirs.

    Raises:
        DataError: Ids do not pair, or option scores do not fit.
        ConfigError: A protocol is unknown.
    """
    for name in wanted:
        if name not in ALL_PROTOCOLS:
            raise ConfigError(one_of(name, ALL_PROTOCOLS, "protocol"))
    pairs = pair(records, predictions)
    notes = list(_notes(pairs, bool(train)))
    by_label, reason = _scored_options(pairs, wanted)
    notes += reason
    if twin is not None:
        _scored_options(pair(records, twin), wanted)
    scorer = _Scorer(pairs, train, twin, by_label=by_label, seed=seed)
    several = len({record.question_type for record in records if record.options}) > 1
    types = question_types(records)
    cells: list[Cell] = []
    for subset, belongs in {**_KINDS, **types, **(subsets or {})}.items():
        own = measures(subset, wanted, places)
        if by_label and subset not in ("closed", "open") and (several or subset not in types):
            own.append(BY_LABEL)
        whole = multi_label and subset == "all" and several
        cells += scorer.cells(subset, belongs, own, multi_label=whole)
    notes += [
        f"{LABEL_SCORE} {cell.subset} {cell.measure.metric}: {cell.note}"
        for cell in cells
        if cell.note and cell.measure.protocol == LABEL_SCORE
    ]
    return ScoreTable(cells, len(records), len({record.image.id for record in records}), notes)


def _notes(pairs: Pairs, trained: bool) -> Iterator[str]:
    empty = [p.id for r, p in pairs if not p.text.strip() and p.option_scores is None]
    if empty:
        yield f"{len(empty)} empty predictions, scored as they are: {named(empty)}"
    own = sum(not names_an_image(record) for record, _ in pairs)
    if own:
        yield (
            f"{own} of {len(pairs)} records name no image, so each counts as its own: intervals "
            "are too narrow where several questions share one"
        )
    if not trained:
        yield (
            "no training answers are given, so the constant answer is chosen on the scored "
            "answers: an upper bound"
        )


def _scored_options(pairs: Pairs, wanted: Sequence[str]) -> tuple[bool, list[str]]:
    """Return whether options are scored, and a note where they cannot be.

    Raises:
        DataError: Option scores do not fit the options, or nothing else was asked for.
    """
    if LABEL_SCORE not in wanted:
        return False, []
    loose = [p.id for r, p in pairs if p.option_scores is not None and not r.options]
    if loose:
        raise DataError(f"option scores without options in the truth: {named(loose)}; name them")
    chosen = [(r, p) for r, p in pairs if r.options]
    if not chosen:
        return False, []
    if len(wanted) > 1 and all(prediction.option_scores is None for _, prediction in chosen):
        return False, [f"no {LABEL_SCORE}: the predictions hold no option_scores"]
    wrong = [r.id for r, p in chosen if len(p.option_scores or ()) != len(r.options)]
    if wrong:
        raise DataError(f"option scores missing or not one per option: {named(wrong)}; score each")
    few = [r.id for r, _ in chosen if len(r.options) < 2 or r.answer not in r.options]
    if few:
        raise DataError(f"answer not among two or more options: {named(few)}; mend the reader")
    return True, []


_KINDS: Mapping[str, Belongs] = {
    "closed": lambda record: record.answer_type == "closed",
    "open": lambda record: record.answer_type == "open",
    "all": lambda record: True,
}


def _blind(
    train: Sequence[Record], test: Sequence[Record]
) -> tuple[dict[str, Values], dict[str, Values]]:
    """Return what answers without a picture score on the scored records, and on those for training.

    The constants by name; of the scored ones also ``question_only``, where that is known.
    """

    def values(records: Sequence[Record], make: baselines.Predictor) -> Values:
        return Values(records, make(train or test, records))

    on_test, on_train = (
        {name: values(records, make) for name, make in baselines.CONSTANTS.items() if records}
        for records in (test, train)
    )
    if train and test and all(r.question or r.options for r in (*train, *test)):
        on_test["question_only"] = values(test, baselines.question_only)
    return on_test, on_train


class _Scorer:
    """All that the cells of one table are made of."""

    def __init__(
        self,
        pairs: Pairs,
        train: Sequence[Record],
        twin: Sequence[Prediction] | None,
        *,
        by_label: bool,
        seed: int,
    ) -> None:
        self._pairs = pairs
        self._records = [record for record, _ in pairs]
        self._train = train
        self._seed = seed
        self._kinds, self._taught = Kinds(self._records), Kinds(train)
        # Options of a multiple-choice question are its own: there is no common AUC.
        lists = {(r.question_type, r.options) for r in self._records if r.options}
        self._ranked = len(lists) == len({question_type for question_type, _ in lists})
        self._answers = _values(pairs, by_label)
        self._twin = None if twin is None else _values(pair(self._records, twin), by_label)
        self._blind_on_test, self._blind_on_train = _blind(train, self._records)

    def cells(
        self, subset: str, belongs: Belongs, wanted: Sequence[Measure], *, multi_label: bool
    ) -> Iterator[Cell]:
        """Yield the cells of one subset; measures of the same records share their draws."""
        chosen, learned = (
            np.fromiter(map(belongs, records), dtype=bool, count=len(records))
            for records in (self._records, self._train)
        )
        groups: dict[bytes, tuple[Rows, list[Measure]]] = {}
        for measure in wanted:
            counted = np.flatnonzero(chosen & measure.counts(self._kinds))
            if len(counted):
                groups.setdefault(counted.tobytes(), (counted, []))[1].append(measure)
        cells = {
            cell.measure: cell
            for counted, group in groups.values()
            for cell in self._of_group(subset, counted, group, learned)
        }
        yield from (cells[measure] for measure in wanted if measure in cells)
        by_label = [
            self._pairs[i] for i in np.flatnonzero(chosen & self._kinds.has_options).tolist()
        ]
        if BY_LABEL in wanted and by_label and self._ranked:
            yield _auc_cell(subset, by_label, self._seed, multi_label=multi_label)

    def _of_group(
        self, subset: str, rows: Rows, group: Sequence[Measure], learned: Mask
    ) -> Iterator[Cell]:
        data = np.stack([self._answers.of(measure)[rows] for measure in group], axis=1)
        images = [self._records[i].image.id for i in rows]
        ends = intervals(data, images, self._seed)
        for measure, mean, (low, high) in zip(group, data.mean(axis=0), ends, strict=True):
            known = np.flatnonzero(learned & measure.counts(self._taught))
            blind = {} if measure.is_bleu else _means(self._blind_on_test, measure, rows)
            question_only = blind.pop("question_only", None)
            judged = _means(self._blind_on_train, measure, known) if len(known) else blind
            # Rounding of equal sums must not decide.
            best = max(judged, key=lambda name: round(judged[name], 12)) if blind else None
            yield Cell(
                subset,
                measure,
                in_percent(float(mean)),
                in_percent(low),
                in_percent(high),
                len(rows),
                {name: round(100 * share, DECIMALS) for name, share in blind.items()},
                best,
                len(known) > 0,
                in_percent(question_only),
                None if low is not None else "one image only: no interval",
                *self._share(measure, rows, images),
            )

    def _share(
        self, measure: Measure, rows: Rows, images: Sequence[str]
    ) -> tuple[float | None, tuple[float, float | None, float | None] | None]:
        """Return the blind twin's score, and the picture's share with its interval."""
        if self._twin is None or measure.is_bleu:
            return None, None
        blind = self._twin.of(measure)[rows]
        gained = self._answers.of(measure)[rows] - blind
        low, high = difference_interval(gained, images, self._seed)
        share = round(100 * float(gained.mean()), DECIMALS)
        return in_percent(float(blind.mean())), (share, in_percent(low), in_percent(high))


def _means(of: Mapping[str, Values], measure: Measure, rows: Rows) -> dict[str, float]:
    return {name: values.mean(measure, rows) for name, values in of.items()}


def _values(pairs: Pairs, by_label: bool) -> Values:
    """Return what answers score; of those by label the best-scored option is the answer."""
    options = (
        [best_option(r, p.option_scores or ()) if r.options else None for r, p in pairs]
        if by_label
        else None
    )
    return Values([record for record, _ in pairs], [p.text for _, p in pairs], options)


def _auc_cell(subset: str, pairs: Pairs, seed: int, *, multi_label: bool) -> Cell:
    """Return the AUC of a subset; a score that looks at no picture ranks at random."""
    auc = label_auc(pairs, seed, multi_label=multi_label)
    chance = None if auc.value is None else 50.0
    return Cell(
        subset,
        _AUC,
        in_percent(auc.value),
        in_percent(auc.low),
        in_percent(auc.high),
        len(pairs),
        {} if chance is None else {_ALL_ALIKE: chance},
        None if chance is None else _ALL_ALIKE,
        True,
        chance,
        auc.reason,
    )
