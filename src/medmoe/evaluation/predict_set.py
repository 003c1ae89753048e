"""`medmoe predict` without its printing: answers every row of a set whose truth need not be known.

The answers so far stand in a folder beside the file, ``<file>.part``, as an evaluation keeps them:
a run that was cut off is taken up there, and the folder goes when the file is whole. A row or
picture that cannot be read has no answer and is reported.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from medmoe.data import registry
from medmoe.data.bad_rows import BadRows, readable
from medmoe.data.readers.own import Own
from medmoe.data.readers.own_set import OwnSet
from medmoe.data.schema import Record
from medmoe.errors import ConfigError, DataError
from medmoe.evaluation.ask.asker import Asker, Progress
from medmoe.evaluation.ask.plan import EvalPlan, hold_settings
from medmoe.evaluation.ask.records import TaskRecords, turn_by_turn
from medmoe.evaluation.files.json_lines import read_rows
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.reliability.measure import confidence_of
from medmoe.evaluation.tasks import TaskSpec
from medmoe.files import write_text
from medmoe.processes import from_main, is_main

SUFFIXES = (".csv", ".jsonl")
_KEPT = ("id", "prediction", "confidence", "option_scores", "options", "routing", "cut")


def predict_set(
    model: Path,
    name: str,
    out: Path,
    progress: Progress,
    *,
    root: Path | None = None,
    allow_outside: bool = False,
    bad: BadRows | None = None,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
) -> dict[str, Any]:
    """Answer every row of a set and write the answers; return what was done as one JSON object.

    Args:
        name: The set by name or path, with or without a split.
        out: A ``.jsonl`` file, a prediction a line, or a ``.csv`` file: a table's own columns with
            ``prediction`` and ``confidence`` behind them, empty where a row could not be read, the
            confidence also where the picture is flat. Of a conversation every question is answered,
            with the turns before it as the set has them.
        bad: Receives what cannot be read or asked; without it the first is an error.
        max_new_tokens: Longest answer, None as `longest_answer` says.

    Raises:
        ConfigError: The file is there already or has another suffix, or another run has begun it.
        DataError: The set is not there or has no row that can be read.
    """
    _check_out(out)
    bad = BadRows() if bad is None else bad
    reader, split = registry.parse_set(name, allow_outside=allow_outside)
    if isinstance(reader, Own):
        reader = replace(reader, needs_answers=False)
    flat_images: set[str] = set()
    known = readable(_records(reader, split, root, bad), bad, flat_images)
    records = [turn for record in known for turn in turn_by_turn(record)]
    part = out.with_name(f"{out.name}.part")
    plan = EvalPlan(model, part, [], batch_size=batch_size, max_new_tokens=max_new_tokens)
    records = _that_fit(asker := Asker(plan, progress), records, bad)
    flat = {r.id for r in records if any(image.id in flat_images for image in r.images)}
    bad.settle()
    if not records:
        raise DataError(f"{name}: no row that can be answered: {bad.first_reasons()}")
    part.mkdir(parents=True, exist_ok=True)
    task = TaskRecords(TaskSpec(reader.NAME, reader.NAME), split or "all", None, records, ())
    from_main(lambda: hold_settings(replace(plan, tasks=[task])))
    predictions = asker.ask(reader.NAME, records, part / "predictions.jsonl")
    if is_main():
        _put(out, part, reader, records, predictions, flat)
    return {
        "version": 1,
        "model": str(model),
        "set": reader.NAME,
        "out": str(out),
        "answered": len(records),
        "asked": asker.asked,
        "flat_pictures": len(flat),
        "cut_answers": sum(prediction.cut for prediction in predictions),
        "bad_rows": bad.reasons,
    }


def _put(
    out: Path,
    part: Path,
    reader: registry.Reader,
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    flat: Collection[str],
) -> None:
    is_table = out.suffix.lower() == ".csv"
    text = _table(reader, records, predictions, flat) if is_table else _lines(part, flat)
    write_text(out, text)
    shutil.rmtree(part)


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{out}: answers go into a file {' or '.join(SUFFIXES)}; name one")
    if out.exists():
        raise ConfigError(f"{out} is there already; give another --out, or delete it")


def _that_fit(asker: Asker, records: list[Record], bad: BadRows) -> list[Record]:
    """Return the records that the model can read; the others are bad rows."""
    refused = asker.unfit(records) if records else []
    bad.reasons += [f"{record.place or record.id}: {reason}" for record, reason in refused]
    return [r for r in records if all(r is not record for record, _ in refused)]


def _lines(part: Path, flat: Collection[str]) -> str:
    """Return the answers as a prediction file of JSON lines; those to ``flat`` are not sure."""
    rows = (row for _, row in read_rows(part / "predictions.jsonl", "predictions"))
    told = (row | {"confidence": None} if row["id"] in flat else row for row in rows)
    kept = ({key: row[key] for key in _KEPT if key in row} for row in told)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)


def _records(
    reader: registry.Reader, split: str | None, root: Path | None, bad: BadRows
) -> list[Record]:
    """Return the records of one split or of all rows; a table's in the order of its rows."""
    if split is None and isinstance(reader, OwnSet):
        return reader.content(bad).records
    parts = registry.read_splits(reader, split, root, bad)
    return [record for records in parts.values() for record in records if record.task != "caption"]


def _table(
    reader: registry.Reader,
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    flat: Collection[str] = (),
) -> str:
    """Return the rows of a table with their answers, as CSV; of another set what identifies one."""
    rows: list[tuple[Mapping[str, Any], list[Prediction]]] = [
        ({"id": r.id, "image": r.image.id, "question": r.question}, [prediction])
        for r, prediction in zip(records, predictions, strict=True)
    ]
    if isinstance(reader, Own):
        answered: dict[str, list[Prediction]] = defaultdict(list)
        for record, prediction in zip(records, predictions, strict=True):
            answered[record.place].append(prediction)
        rows = [(row, answered[place]) for place, row in reader.rows(BadRows(quiet=True))]
    columns = dict.fromkeys(key for row, _ in rows for key in row)
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*columns, "prediction", "confidence"])
    for row, given in rows:
        cells = [_cell(row.get(column)) for column in columns]
        said = [[p.text, "" if p.id in flat else f"{confidence_of(p):.6f}"] for p in given]
        writer.writerows([*cells, *answer] for answer in said or [["", ""]])
    return buffer.getvalue()


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
