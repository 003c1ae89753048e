"""Scores of a prediction file or a whole run folder, and how far their confidences can be trusted.

One object per file: that of `cells_of`, with what was read. Nothing is asked of a model here,
so whatever wrote the answers can be scored. Several files are shown as the summary of one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.files.json_lines import named
from medmoe.evaluation.files.predictions import Prediction, read_predictions, without_thinking
from medmoe.evaluation.files.run_files import read_side
from medmoe.evaluation.files.truth import check_apart, check_same_truth, own_truth, read_truth
from medmoe.evaluation.judge import Judge
from medmoe.evaluation.pages.report import ReportData, write_report
from medmoe.evaluation.pages.run_report import sections_of
from medmoe.evaluation.protocols import ALL_PROTOCOLS
from medmoe.evaluation.reliability.measure import answered_by_kind, reliability
from medmoe.evaluation.score.rows import ScoreRow, cells_of, rows_of
from medmoe.evaluation.score.table import score_table
from medmoe.evaluation.tasks import TASKS, paper_rows, task_spec

_SYSTEMS = ("moe", "sft", "dense", "blind_twin")


@dataclass(frozen=True, slots=True)
class Answers:
    """A prediction file and the truth of it, None where the file holds both.

    Attributes:
        without_thinking: Leave out what the model thought before its answer.
    """

    predictions: Path
    truth: Path | None = None
    without_thinking: bool = False

    def read(self) -> list[Prediction]:
        """Return the predictions."""
        read = read_predictions(self.predictions)
        if not self.without_thinking:
            return read
        return [replace(each, text=without_thinking(each.text)) for each in read]

    def notes(self) -> list[str]:
        """Return what is to be said of the predictions."""
        texts = [each.text.strip() for each in read_predictions(self.predictions)]
        count = sum(without_thinking(text) != text for text in texts)
        what = "is left out" if self.without_thinking else "counts (see --without-thinking)"
        return [f"{count} answers hold thinking, such as <think>, which {what}"] if count else []

    def records(self) -> list[Record]:
        """Return the records, after a check that the file's own truth, if any, is the same."""
        if self.truth is None:
            return own_truth(self.predictions, by="a second file")
        records = read_truth(self.truth)
        check_same_truth(self.predictions, records)
        return records


def answers_of(
    path: Path, truth: Path | None, *, without_thinking: bool = False
) -> dict[str, Answers]:
    """Return the answers that stand in a file (name ``""``) or in a run folder, by name.

    Raises:
        DataError: The folder holds no predictions, or several files for one truth.
    """
    if not path.is_dir():
        return {"": Answers(path, truth, without_thinking)}
    files = read_side(str(path)).runs[0]
    if truth is not None and len(files) > 1:
        raise DataError(
            f"{path} holds {len(files)} prediction files ({named(files)}) and one truth is given; "
            "score one of the files, or leave the truth out"
        )
    return {name: Answers(file, truth, without_thinking) for name, file in files.items()}


def score_answers(
    answers: Answers,
    *,
    name: str = "",
    task: str | None = None,
    train: Sequence[Record] = (),
    twin: Sequence[Prediction] | None = None,
    wanted: Sequence[str] = ALL_PROTOCOLS,
    seed: int = 7,
    judged: bool = False,
    judge: Judge | None = None,
    calibration: Answers | None = None,
    target: float = 0.1,
) -> tuple[dict[str, Any], list[ScoreRow]]:
    """Return the scores of one prediction file: the object of `score --json`, and what is shown.

    Args:
        name: As a run folder names it: the task, or ``<system>-<task>``.
        task: What was answered; the paper's rows of it are added.
        train: Of `score_table`, as ``twin`` and ``wanted``.
        judged: Also add ``reliability``, as a run's ``summary.json`` has it for one task.
        judge: A model that also judges the answers.
        calibration: Other answers, for what is chosen on them to reach the ``target``.

    Raises:
        DataError: A file cannot be used; or an answer has no confidence, and one is asked for.
        ConfigError: A protocol or the task is unknown, or the calibration is what is reported.
    """
    system, named_task = _system_and_task(name)
    task = task or (named_task if named_task in TASKS else None)
    records, predictions = answers.records(), answers.read()
    table = score_table(
        records,
        predictions,
        train=train,
        twin=twin,
        wanted=wanted,
        multi_label=task is not None and task_spec(task).kind == "multi_label",
        seed=seed,
    )
    truth = (answers.truth or answers.predictions).name
    paper = paper_rows(task) if task else []
    result: dict[str, Any] = {
        "version": 1,
        "predictions": name or answers.predictions.name,
        "truth": truth,
        "task": task,
        "seed": seed,
        **cells_of(table),
        "paper": [asdict(row) | {"our_protocol": row.our_protocol} for row in paper],
    }
    result["notes"] += answers.notes()
    if judged:
        reported, chosen = answered_by_kind(records, predictions), _chosen_on(calibration, records)
        result["reliability"] = reliability(reported, chosen, target=target, seed=seed)
    called = task or named_task or truth
    shown = rows_of(table, system=system, task=called, split="", places=("summary", "table"))
    if judge is not None:
        shown += _judged_rows(judge.scores(records, predictions, seed), result, system, called)
    return result, shown


def _chosen_on(calibration: Answers | None, reported: Sequence[Record]) -> Any:
    """Return the answers of a calibration by kind, None without one, once they are seen apart."""
    if calibration is None:
        return None
    others = calibration.records()
    check_apart(reported, others, str(calibration.predictions))
    return answered_by_kind(others, calibration.read())


def _judged_rows(
    judged: tuple[dict[str, Any], dict[str, Any]], result: dict[str, Any], system: str, task: str
) -> list[ScoreRow]:
    """Put what a judge says into a result, and return its rows."""
    cells, result["judge"] = judged
    row = {"system": system, "task": task, "split": "", "protocol": "judge", "control": None}
    result["protocols"]["judge"] = cells
    return [
        row | {"subset": subset, "metric": "accuracy"} | cell["accuracy"]
        for subset, cell in cells.items()
    ]


def _system_and_task(name: str) -> tuple[str, str]:
    """Return whose answers to which task a run folder's file holds."""
    system, _, task = name.partition("-")
    if task and (system in _SYSTEMS or task in TASKS):
        return system, task
    return "answers", name


def calibrations(
    path: Path | None, truth: Path | None, names: Mapping[str, Answers]
) -> dict[str, Answers | None]:
    """Return for each name of what is reported the answers that are chosen on, None without any.

    One file on each side belong together, under whatever names.

    Raises:
        DataError: A name has no answers to choose on.
    """
    if path is None:
        return dict.fromkeys(names)
    others = answers_of(
        path, truth, without_thinking=any(own.without_thinking for own in names.values())
    )
    if len(others) == len(names) == 1:
        return dict(zip(names, others.values(), strict=True))
    missing = sorted(set(names) - set(others))
    if missing:
        raise DataError(
            f"{path} holds no answers for {named(missing)}; give a run of the same tasks on "
            "another split"
        )
    return {name: others[name] for name in names}


def score_summary(results: Sequence[Mapping[str, Any]], rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Return what several prediction files score as the ``summary.json`` of a run has it.

    Args:
        results: What ``score --json`` holds of each file.
        rows: The score rows of all, one system beside the other.
    """
    return {
        "data": ", ".join(dict.fromkeys(str(result["truth"]) for result in results)),
        "seed": results[0]["seed"],
        "scores": list(rows),
        "reliability": {
            str(result["predictions"]): result["reliability"]
            for result in results
            if "reliability" in result
        },
        "judged": {str(r["predictions"]): r["judge"] for r in results if "judge" in r},
        "notes": _notes(results),
    }


def write_score_report(
    path: Path, results: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
    """Write the page of a `score_summary`, as `write_report` does."""
    data = ReportData(
        title=f"Scores of {', '.join(str(result['predictions']) for result in results)}",
        summary=summary,
        sections=sections_of(summary),
        notes=[note[0].upper() + note[1:] + "." for note in summary["notes"]],
    )
    write_report(path, data)


def _notes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each note once; one that is not of every file names those that it is of."""
    of: dict[str, list[str]] = {}
    for result in results:
        for note in result["notes"]:
            of.setdefault(note, []).append(str(result["predictions"]))
    return [
        note if len(names) == len(results) else f"{', '.join(names)}: {note}"
        for note, names in of.items()
    ]
