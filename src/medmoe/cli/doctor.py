"""`medmoe doctor`: versions, hardware and data found, what is missing and how to mend it.

It ends with 0 if the demo can run here and with 1 if something that it needs is missing; where a
data folder was chosen, that is every data set of the demo. Other sets are shown where they are.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.machine import (
    Check,
    check_allocation,
    check_decoder,
    check_hardware,
    check_packages,
    check_torch,
)
from medmoe.cli.parser import Parser
from medmoe.errors import DataError

COLOURS = {"ok": "green", "note": "yellow", "missing": "bold red"}


def add_arguments(parser: Parser) -> None:
    """Add the flags of `doctor`."""
    parser.add_shared("--data", "--format", "--json")


def run(args: argparse.Namespace) -> int:
    """Print the report, write `--json`, and return 1 if something required is missing."""
    python = Check("python", f"{platform.python_version()} ({sys.executable})")
    checks = [*check_data(args.data), python, *check_packages(), *check_torch()]
    checks += [*check_hardware(Path.cwd()), *check_allocation(), check_decoder()]
    usable = not any(check.status == "missing" for check in checks)
    result = {"version": 1, "usable": usable, "checks": [asdict(check) for check in checks]}
    flags.write_json(args.json, result)
    show(checks, usable)
    return 0 if usable else 1


def check_data(explicit: Path | None) -> list[Check]:
    """Return a row on the data folder, and one per data set where there is such a folder.

    Raises:
        DataError: The folder was given by `--data` and cannot be used. One that `$MEDMOE_DATA`
            names is a row of the report instead: finding it is what `doctor` is for.
    """
    from medmoe.data.registry import DEMO_SETS, READERS, available, find_data

    try:
        root = find_data(explicit)
    except DataError as error:
        if explicit is not None:
            raise
        return [Check("data", str(error), "missing", "unset MEDMOE_DATA, or set it to the folder")]
    if root is None:
        return [Check("data", "embedded phantom (for real data: --data DIR or $MEDMOE_DATA)")]
    rows = [Check("data", str(root))]
    for name, there in available(root).items():
        marker = READERS[name].MARKERS[0]
        if not there and name not in DEMO_SETS:
            continue
        rows.append(
            Check(f"data {name}", READERS[name].LICENCE)
            if there
            else Check(
                f"data {name}",
                f"not found: looked for {root / marker}",
                "missing",
                "put it there (`medmoe demo --data` needs all sets), or leave the folder out",
            )
        )
    return rows


def show(checks: list[Check], usable: bool) -> None:
    """Print the report as a table, first what is missing and notes, and the verdict under it."""
    from rich.text import Text

    from medmoe.cli.tables import draw_words

    rows = sorted(checks, key=lambda check: ["missing", "note", "ok"].index(check.status))
    draw_words(
        ("what", "status", "found", "to mend it"),
        [(c.name, Text(c.status, COLOURS[c.status]), c.value, c.fix) for c in rows],
    )
    print("\nReady: try `medmoe demo`." if usable else "\nNot ready: mend what is marked missing.")
