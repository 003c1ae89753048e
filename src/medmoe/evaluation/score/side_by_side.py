"""Every protocol side by side, with n, intervals and constants: the object of `score --json`.

For predictions of any model, paired with their truth by id. A cell is ``{value, low, high, n}`` in
percent, its interval a bootstrap clustered on the image; all metrics of the same questions share
one set of draws. The paper's tables give the value alone. No two protocols are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmoe.data.schema import Record
from medmoe.errors import ConfigError, DataError, one_of
from medmoe.evaluation import protocols
from medmoe.evaluation.files.predictions import Prediction, named, pair
from medmoe.evaluation.files.truth import names_an_image
from medmoe.evaluation.score import baselines
from medmoe.evaluation.score.label_scores import label_score_rows
from medmoe.evaluation.score.rows import ScoreRow, intervals, percent, type_label
from medmoe.evaluation.score.scores import record_scores
from medmoe.evaluation.statistics import Floats

LABEL_SCORE = "label_score"
#: What `score_files` takes: the protocols of answers in words, and that of scored options.
ALL_PROTOCOLS: tuple[str, ...] = (*protocols.PROTOCOLS, LABEL_SCORE)
RESAMPLES = 2000

Column = tuple[str, str, str]  # protocol, metric, key of `score_pair`
Cell = dict[str, Any]
Subsets = dict[str, dict[str, Cell]]  # subset → metric → cell
Cells = dict[str, Subsets]  # by protocol

_OVERLAP = ("exact_match", "f1", "precision", "recall")
_BLEU = ("bleu1", "bleu2", "bleu3")
_PUBLISHED = ("reference", "llava_med")
_CLOSED: tuple[Column, ...] = (
    ("strict", "accuracy", "accuracy"),
    # Under both names: that of the tables, and that of `score_pair`.
    *((p, name, "closed_correct") for p in _PUBLISHED for name in ("accuracy", "closed_correct")),
    ("token_f1", "accuracy", "accuracy"),
)
_CLOSED_WORDS: tuple[Column, ...] = (
    *((protocol, key, key) for protocol in _PUBLISHED for key in _OVERLAP),
    ("token_f1", "f1", "f1"),
)
_OPEN: tuple[Column, ...] = (
    *(("strict", key, key) for key in ("exact_match", "f1", "recall")),
    *((protocol, key, key) for protocol in _PUBLISHED for key in (*_OVERLAP, *_BLEU)),
    ("token_f1", "f1", "f1"),
)
#: The share of questions answered right: closed by accuracy, open by exact match.
_RIGHT: tuple[Column, ...] = (("strict", "accuracy", "right"),)


@dataclass(frozen=True, slots=True)
class _Group:
    """Metrics that are scored on the same records of a subset."""

    subset: str
    chosen: list[int]
    columns: tuple[Column, ...]


def score_records(
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    *,
    train: Sequence[Record] = (),
    wanted: Sequence[str] = ALL_PROTOCOLS,
    multi_label: bool = False,
    seed: int = 7,
) -> dict[str, Any]:
    """Score predictions under several protocols.

    Subsets are ``closed``, ``open``, ``all`` and each question type; one without records is left
    out. ``all`` and the question types have strict accuracy (the share of questions answered
    right); a question type's other metrics count its closed or its open questions only.
    ``label_score`` needs option scores and covers the records that have options.

    Args:
        train: Training records to choose the constant answer on; without them it is chosen on the
            truth itself, an upper bound.
        wanted: Names of `ALL_PROTOCOLS`.
        multi_label: Whether an image has several labels at once, with one record for each
            (ChestMNIST): the AUC of all is then the mean of theirs.
        seed: Of the bootstrap.

    Returns:
        ``protocols``: protocol → subset → metric → ``{value, low, high, n}``, percent; ``low`` and
        ``high`` are None where there is one image only. ``baselines``: name → the same cells with
        value and n. ``n``, ``images`` and ``notes`` in plain words.

    Raises:
        DataError: No records, ids that do not pair, or option scores that do not fit the options.
        ConfigError: A protocol is unknown.
    """
    for name in wanted:
        if name not in ALL_PROTOCOLS:
            raise ConfigError(one_of(name, ALL_PROTOCOLS, "protocol"))
    pairs = pair(records, predictions)
    if not pairs:
        raise DataError("no records to score; give a truth file with at least one line")
    notes = list(_notes(pairs, bool(train)))
    groups = list(_groups(records, wanted))
    answers = {p.id: p.text for p in predictions}
    cells = _scored(groups, records, answers, seed)
    blind = _baselines(groups, records, train)
    if LABEL_SCORE in wanted:
        found, constants, more = _label_scores(pairs, train, seed, multi_label)
        notes += more
        if found:
            cells[LABEL_SCORE] = found
            blind["best_option"] = {LABEL_SCORE: constants}
    return {
        "n": len(records),
        "images": len({record.image.id for record in records}),
        "protocols": {name: cells[name] for name in wanted if name in cells},
        "baselines": blind,
        "notes": notes,
    }


def _notes(pairs: Sequence[tuple[Record, Prediction]], trained: bool) -> Iterator[str]:
    empty = [prediction.id for _, prediction in pairs if not prediction.text.strip()]
    if empty:
        yield f"{len(empty)} empty predictions, scored as they are: {named(empty)}"
    own = sum(not names_an_image(record) for record, _ in pairs)
    if own:
        yield (
            f"{own} of {len(pairs)} records name no image, so each counts as its own: intervals "
            "are too narrow where several questions share one"
        )
    if not trained:
        yield "the most frequent answer is chosen on the truth itself, so it is an upper bound"


def _groups(records: Sequence[Record], wanted: Sequence[str]) -> Iterator[_Group]:
    every = range(len(records))
    closed = [i for i in every if records[i].answer_type == "closed"]
    opened = [i for i in every if records[i].answer_type == "open"]
    parts = [
        _Group("closed", closed, _CLOSED + _CLOSED_WORDS),
        _Group("open", opened, _OPEN),
        _Group("all", list(every), _RIGHT + _CLOSED_WORDS),
    ]
    for name in sorted({record.question_type for record in records} - {""}):
        own = [i for i in every if records[i].question_type == name]
        label = type_label(name)
        parts += [
            _Group(label, own, _RIGHT),
            _Group(label, [i for i in own if records[i].answer_type == "closed"], _CLOSED[1:]),
            _Group(label, [i for i in own if records[i].answer_type == "open"], _OPEN),
        ]
    for part in parts:
        columns = tuple(column for column in part.columns if column[0] in wanted)
        if part.chosen and columns:
            yield _Group(part.subset, part.chosen, columns)


class _Values:
    """Each record's value of each metric, computed once; NaN where the metric is not defined."""

    def __init__(self, records: Sequence[Record], answers: Mapping[str, str]) -> None:
        self._records = records
        self._answers = [answers[record.id] for record in records]
        self._scores: dict[str, list[Mapping[str, float]]] = {}
        self._columns: dict[tuple[str, str], Floats] = {}

    def of(self, group: _Group) -> Floats:
        """Return the values (records, columns) of a group."""
        columns = [self._column(protocol, key) for protocol, _, key in group.columns]
        return np.stack([column[group.chosen] for column in columns], axis=1)

    def _column(self, protocol: str, key: str) -> Floats:
        # BLEU is the same under both published protocols, and the dearest.
        name = ("", key) if key in _BLEU else (protocol, key)
        if name not in self._columns:
            if key in _BLEU:
                self._add_bleu()
            elif key == "right":
                kinds = {"closed": "accuracy", "open": "exact_match"}
                keys = [kinds[record.answer_type] for record in self._records]
                pairs = zip(self._of_protocol(protocol), keys, strict=True)
                self._columns[name] = np.asarray([scores[key] for scores, key in pairs])
            else:
                values = [scores.get(key, np.nan) for scores in self._of_protocol(protocol)]
                self._columns[name] = np.asarray(values, dtype=np.float64)
        return self._columns[name]

    def _of_protocol(self, protocol: str) -> list[Mapping[str, float]]:
        if protocol not in self._scores:
            pairs = zip(self._records, self._answers, strict=True)
            self._scores[protocol] = [record_scores(protocol, r, text) for r, text in pairs]
        return self._scores[protocol]

    def _add_bleu(self) -> None:
        """Score the open questions only: no table has BLEU of the closed ones."""
        values = np.full((len(self._records), len(_BLEU)), np.nan)
        for i, (record, text) in enumerate(zip(self._records, self._answers, strict=True)):
            if record.answer_type == "open":
                values[i] = protocols.bleu_scores(text, record.answer)
        self._columns |= {("", key): values[:, j] for j, key in enumerate(_BLEU)}


def _scored(
    groups: Sequence[_Group], records: Sequence[Record], answers: Mapping[str, str], seed: int
) -> Cells:
    values = _Values(records, answers)
    cells: Cells = {}
    for group in groups:
        data = values.of(group)
        images = [records[i].image.id for i in group.chosen]
        ends = intervals(data, images, seed)
        for (protocol, metric, _), mean, (low, high) in zip(
            group.columns, data.mean(axis=0), ends, strict=True
        ):
            cells.setdefault(protocol, {}).setdefault(group.subset, {})[metric] = {
                "value": percent(float(mean)),
                "low": percent(low),
                "high": percent(high),
                "n": len(group.chosen),
            }
    return cells


def _label_scores(
    pairs: Sequence[tuple[Record, Prediction]],
    train: Sequence[Record],
    seed: int,
    multi_label: bool,
) -> tuple[Subsets, Subsets, list[str]]:
    """Return the cells of the records with options, those of the best constant option, and notes.

    A score that looks at no picture ranks at random, so the constant's AUC is 50.
    """
    chosen = [(r, p) for r, p in pairs if r.options]
    loose = [p.id for r, p in pairs if p.option_scores is not None and not r.options]
    if loose:
        raise DataError(f"option scores without options in the truth: {named(loose)}; name them")
    if not chosen:
        return {}, {}, []
    if all(prediction.option_scores is None for _, prediction in chosen):
        return {}, {}, ["no label_score: the predictions hold no option_scores"]
    blank = ScoreRow("", "", "", "", "", "", None, None, None, 0)
    cells: Subsets = {}
    constants: Subsets = {}
    notes = []
    learned = [record for record in train if record.options]
    for row in label_score_rows(blank, chosen, learned, seed, multi_label=multi_label):
        cell = {"value": row.value, "low": row.low, "high": row.high, "n": row.n}
        cells.setdefault(row.subset, {})[row.metric] = cell
        if row.constant_baseline is not None:
            constant = {"value": row.constant_baseline, "n": row.n}
            constants.setdefault(row.subset, {})[row.metric] = constant
        if row.note is not None:
            notes.append(f"label_score {row.subset} {row.metric}: {row.note}")
    return cells, constants, notes


def _baselines(
    groups: Sequence[_Group], records: Sequence[Record], train: Sequence[Record]
) -> dict[str, Cells]:
    """Score what needs no picture: constant answers, and the question alone where it is known."""
    chosen_on = train or records
    found = {name: make(chosen_on, records) for name, make in baselines.CONSTANTS.items()}
    if train and all(record.question for record in (*train, *records)):
        found["question_only"] = baselines.question_only(train, records)
    scored = [
        _Group(group.subset, group.chosen, tuple(c for c in group.columns if c[2] not in _BLEU))
        for group in groups
    ]
    return {name: _means(scored, records, answers) for name, answers in found.items()}


def _means(
    groups: Sequence[_Group], records: Sequence[Record], answers: Mapping[str, str]
) -> Cells:
    values = _Values(records, answers)
    cells: Cells = {}
    for group in groups:
        means = values.of(group).mean(axis=0)
        for (protocol, metric, _), mean in zip(group.columns, means, strict=True):
            cells.setdefault(protocol, {}).setdefault(group.subset, {})[metric] = {
                "value": percent(float(mean)),
                "n": len(group.chosen),
            }
    return cells
