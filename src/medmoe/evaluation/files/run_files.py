"""Finds the prediction files of one side of a comparison: files, run folders, or several of each.

A side is one path, or several parted by commas: the same configuration trained with other seeds.
A run folder holds ``predictions.jsonl``, ``predictions/<system>-<task>.jsonl`` or
``<task>/predictions.jsonl``; controls and routing decisions are no answers to compare. Nothing is
parsed here but a run's seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medmoe.errors import DataError
from medmoe.evaluation.files.json_lines import named
from medmoe.files import json_object

_LOOKED_FOR = "predictions.jsonl, predictions/*.jsonl or */predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison.

    Attributes:
        runs: Per run, the prediction files by name; a file given by itself has the name ``""``.
        seed: The seed of the first run whose summary says it, None where none does.
    """

    name: str
    runs: tuple[Mapping[str, Path], ...]
    seed: int | None = None


def read_side(text: str) -> Side:
    """Return the side that a command-line word names.

    Raises:
        DataError: A path does not exist, holds no predictions, or the runs' files differ in name.
    """
    words = [text] if Path(text).exists() else [word for word in text.split(",") if word]
    paths = [Path(word) for word in words]
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        raise DataError(
            f"no such file or folder: {named(missing or [text])}; give prediction files or run "
            "folders, several seeds parted by commas"
        )
    if len({path.resolve() for path in paths}) < len(paths):
        raise DataError(f"a run stands twice in {text!r}; give each seed once")
    runs = tuple(_files(path) for path in paths)
    for path, run in zip(paths, runs, strict=True):
        if set(run) != set(runs[0]):
            other = sorted(set(run) ^ set(runs[0]))
            raise DataError(
                f"{path} and {paths[0]} do not hold predictions of the same names ({named(other)} "
                "in one only); give runs of the same tasks"
            )
    seeds = [seed for path in paths if (seed := _seed(path)) is not None]
    return Side(text, runs, seeds[0] if seeds else None)


def matched(a: Side, b: Side) -> tuple[list[tuple[str, list[Path], list[Path]]], list[str]]:
    """Return name, A's files and B's files of what both sides hold, and notes on what only one has.

    Raises:
        DataError: The sides have nothing in common.
    """
    left, right = a.runs, b.runs
    if len(left[0]) == len(right[0]) == 1:
        # One file each: these two are meant, under whatever names.
        (name, other) = (*left[0], *right[0])
        left = tuple({name or other: file} for run in left for file in run.values())
        right = tuple({name or other: file} for run in right for file in run.values())
    shared = [name for name in left[0] if name in right[0]]
    if not shared:
        raise DataError(
            f"nothing to compare: {a.name} holds {_names(a)}, {b.name} holds {_names(b)}; give two "
            "files, or two runs of the same tasks"
        )
    notes = [
        f"only {side.name} holds {named(names)}: not compared"
        for side, run in ((a, left[0]), (b, right[0]))
        if (names := sorted(set(run) - set(shared)))
    ]
    return [
        (name, [run[name] for run in left], [run[name] for run in right]) for name in shared
    ], notes


def _names(side: Side) -> str:
    names = sorted(side.runs[0])
    return "one prediction file" if names == [""] else named(names)


def _files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"": path}
    files = {file.stem: file for file in [path / "predictions.jsonl"] if file.is_file()}
    files |= {
        file.stem: file
        for file in sorted((path / "predictions").glob("*.jsonl"))
        # A control's answers, or routing decisions, are no answers to compare.
        if file.stem.count("-") < 2 and file.stem.rpartition("-")[2] != "router"
    }
    files |= {file.parent.name: file for file in sorted(path.glob("*/predictions.jsonl"))}
    if not files:
        raise DataError(f"{path} holds no predictions; looked for {_LOOKED_FOR}")
    return files


def _seed(path: Path) -> int | None:
    folder = path if path.is_dir() else path.parent.parent
    # A help for showing pictures, nothing that scores need.
    seed = (json_object(folder / "summary.json") or {}).get("seed")
    return seed if isinstance(seed, int) else None
