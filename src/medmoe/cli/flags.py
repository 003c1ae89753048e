"""The flags that several verbs share, the types of their values, and writing of `--json`."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from medmoe.errors import ConfigError

MAX_SEED = 2**32 - 1  # what numpy's legacy seeding takes, and therefore transformers' set_seed


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add `--data DIR`, which comes before `$MEDMOE_DATA` and before the embedded phantom."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the data sets (default: $MEDMOE_DATA, else the embedded phantom)",
    )


def add_out(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--out DIR`, the folder that the verb writes to."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(default),
        metavar="DIR",
        help=f"folder to write to (default: {default})",
    )


def add_seed(parser: argparse.ArgumentParser, default: int = 7) -> None:
    """Add `--seed S`; the same seed on the same machine gives the same result."""
    parser.add_argument(
        "--seed",
        type=seed,
        default=default,
        metavar="S",
        help=f"seed of data, weights and order (default: {default})",
    )


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add `--set key=value`, which changes one value of the recipe; may be given more than once."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="change a value of the recipe, e.g. phases.phase3_moe.learning_rate=1e-4",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json FILE`, which receives the verb's result as one JSON object."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")


def seed(text: str) -> int:
    """Read a seed: a whole number from 0 to 4294967295."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {MAX_SEED}")
    return value


def positive_int(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def positive_float(text: str) -> float:
    """Read a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def make_out_dir(path: Path) -> Path:
    """Create the folder of `--out` where it is missing.

    Raises:
        ConfigError: A file stands there, or the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {str(path)!r} ({error.strerror}); give another folder by --out DIR"
        ) from error
    return path


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write the result of a verb to the file of `--json`, if one was given.

    Raises:
        ConfigError: The file cannot be written.
    """
    if path is None:
        return
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write {str(path)!r} ({error.strerror}); give another file by --json FILE"
        ) from error
