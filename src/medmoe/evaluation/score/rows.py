"""What a score table says in files: rows of ``summary.json``, and the object of `score --json`.

A row is one line of a run's summary, a cell of the object ``{value, low, high, n}``; both in
percent. Nothing is computed here: `medmoe.evaluation.score.table` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.protocols import LABEL_SCORE, REPORT
from medmoe.evaluation.score.breakdowns import Belongs
from medmoe.evaluation.score.measures import Place
from medmoe.evaluation.score.table import Cell, ScoreTable, score_table
from medmoe.evaluation.tasks import TASKS

_HEADLINE = ("strict", "reference")
#: Keys of a row that stand in the file only where they say something.
_OPTIONAL = ("constant_chosen_on", "note")
#: One score with all that is needed to judge it, as `rows_of` returns it.
ScoreRow = dict[str, Any]


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
    twin: Sequence[Prediction] | None = None,
    protocols: Sequence[str] = _HEADLINE,
    subsets: Mapping[str, Belongs] | None = None,
) -> list[ScoreRow]:
    """Return the score rows of one system on one task.

    VQA: closed, open, all (``strict`` only: the share of questions answered right) and each
    question type, under each protocol. Classification: accuracy and AUC under ``label_score``,
    for each question type too where there are several. A subset without records gives no row.

    Args:
        records: The truth, all of one kind (``vqa`` or ``classification``).
        train_records: The training records of the same task, for the baselines; may be empty.
        twin: What the blind twin answers; None where there is none.
        subsets: Further subsets by name, e.g. those of `medmoe.evaluation.score.breakdowns`.

    Raises:
        DataError: The ids do not pair, the records are of several kinds or captions, or option
            scores are missing or not one per option.
        ConfigError: A protocol is unknown.
    """
    kinds = sorted({record.task for record in records})
    if kinds not in ([], ["vqa"], ["classification"]) and protocols != [REPORT]:
        raise DataError(
            f"task {task!r} holds records of {', '.join(kinds)}; score vqa and classification "
            "records apart, and no captions but reports"
        )
    table = score_table(
        records,
        predictions,
        train=[record for record in train_records if record.task in kinds],
        twin=twin,
        wanted=(LABEL_SCORE,) if kinds == ["classification"] else protocols,
        places=("summary",),
        subsets=subsets,
        multi_label=task in TASKS and TASKS[task].kind == "multi_label",
        seed=seed,
    )
    return rows_of(table, system=system, task=task, split=split, control=control)


def rows_of(
    table: ScoreTable,
    *,
    system: str,
    task: str,
    split: str,
    control: str | None = None,
    places: Sequence[Place] = ("summary",),
) -> list[ScoreRow]:
    """Return the cells of a table as rows of ``summary.json``; numbers in percent.

    Args:
        control: None, or what was done to the images: a name of `CONTROLS`.
        places: The cells to return, by the place of their measure.

    Returns:
        ``system``, ``task``, ``split``, ``control``, and of each `Cell` ``subset``, ``protocol``,
        ``metric``, ``value``, ``low``, ``high``, ``n`` and ``blind_twin``;
        ``constant_baseline``: the best constant answer as chosen on the training records;
        ``question_only_baseline``: the most frequent training answer to the question's words;
        ``share``: ``{value, low, high}`` of the score − its twin's, None as ``blind_twin``. Only
        where they say something: ``note``, why a value is not defined, and
        ``constant_chosen_on``, ``scored answers`` where there were no training answers of the
        subset: the constant baseline is then an upper bound.
    """
    rows: list[ScoreRow] = [
        {
            "system": system,
            "task": task,
            "split": split,
            "subset": cell.subset,
            "protocol": cell.measure.protocol,
            "metric": cell.measure.metric,
            "value": cell.value,
            "low": cell.low,
            "high": cell.high,
            "n": cell.n,
            "constant_baseline": None if cell.constant is None else cell.constants[cell.constant],
            "question_only_baseline": cell.question_only,
            "blind_twin": cell.blind_twin,
            "share": _share(cell),
            "control": control,
            "constant_chosen_on": None if cell.on_train else "scored answers",
            "note": cell.note,
        }
        for cell in table.cells
        if cell.measure.place in places
    ]
    return [{k: v for k, v in row.items() if v is not None or k not in _OPTIONAL} for row in rows]


def cells_of(table: ScoreTable) -> dict[str, Any]:
    """Return a table as the object of `score --json`.

    Returns:
        ``protocols``: protocol → subset → metric → ``{value, low, high, n}``, percent, with a blind
        twin also ``blind_twin`` and ``share``; ends are None where there is one image only.
        ``baselines``: ``always_yes``, ``always_no``, ``most_frequent_per_type`` and
        ``question_only`` → the same cells with value and n; ``constant``, the one that counts as
        the baseline, also with its ``answer`` and what it was ``chosen_on``. ``n``, ``images`` and
        ``notes`` in plain words.
    """
    scores: dict[str, Any] = {}
    blind: dict[str, Any] = {}
    for cell in table.cells:
        content = {"value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n}
        seen = {"blind_twin": cell.blind_twin, "share": _share(cell)}
        _put(scores, cell, content | {k: v for k, v in seen.items() if v is not None})
        if cell.constant is None:
            continue
        known = dict(cell.constants)
        if cell.question_only is not None:
            known["question_only"] = cell.question_only
        for name, value in known.items():
            _put(blind.setdefault(name, {}), cell, {"value": value, "n": cell.n})
        chosen = {"value": cell.constants[cell.constant], "n": cell.n, "answer": cell.constant}
        chosen["chosen_on"] = "training answers" if cell.on_train else "scored answers"
        _put(blind.setdefault("constant", {}), cell, chosen)
    return {
        "n": table.n,
        "images": table.images,
        "protocols": scores,
        "baselines": blind,
        "notes": list(table.notes),
    }


def _share(cell: Cell) -> dict[str, float | None] | None:
    return cell.share and dict(zip(("value", "low", "high"), cell.share, strict=True))


def _put(cells: dict[str, Any], cell: Cell, content: dict[str, Any]) -> None:
    by_subset = cells.setdefault(cell.measure.protocol, {})
    by_subset.setdefault(cell.subset, {})[cell.measure.metric] = content
