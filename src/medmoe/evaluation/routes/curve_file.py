"""Reads the label-count curve that `medmoe train` writes (paper, figure 6), CSV or JSON."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from medmoe.errors import DataError

_WHOLE, _PERCENT = ("labels", "images", "n"), ("accuracy", "low", "high")


def read_label_curve(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a label curve in order of ``labels``.

    Args:
        path: ``label_curve.csv`` or ``label_curve.json``, or a folder that holds one.

    Raises:
        DataError: The file cannot be read, or a row is no point of a curve; the row is named.
    """
    if path.is_dir():
        path = path / "label_curve.json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = (
            json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.split("\n")))
        )
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the label_curve.csv or .json that "
            "`medmoe train …_label_curve` writes"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON or UTF-8 text; write it again") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: holds no rows; give a label_curve.csv or .json with one at least")
    return sorted((_row(path, i, row) for i, row in enumerate(rows, 1)), key=lambda r: r["labels"])


def _row(path: Path, number: int, row: Any) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for name in (*_WHOLE, *_PERCENT):
        value = row.get(name) if isinstance(row, dict) else None
        try:
            parsed = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            parsed = math.nan
        top = 100.0 if name in _PERCENT else math.inf
        whole = name in _PERCENT or parsed.is_integer()
        if not (0 <= parsed <= top and whole) or math.isinf(parsed):
            kind = "a percent from 0 to 100" if name in _PERCENT else "a whole number"
            raise DataError(f"{path}: row {number}: {name} is {value!r}, not {kind}")
        point[name] = int(parsed) if name in _WHOLE else parsed
    return point
