"""`medmoe compare A B`: two models' answers to the same questions, paired; exit code for CI."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmoe.cli import flags
from medmoe.cli.parser import FOOTER, Parser

if TYPE_CHECKING:
    from medmoe.evaluation.compare import Comparison, Flip

WORSE = 1


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `compare`."""
    parser.add_value(
        "a A", "the baseline: a prediction file or run folder; several seeds parted by commas"
    )
    parser.add_value("b B", "what is held against it, given in the same way")
    parser.add_value(
        "--truth FILE", "truth of the predictions (default: what A's own files hold)", Path
    )
    parser.add_switch(
        "--fail-if-worse", "end with 1 if the interval of B − A lies below zero in a deciding row"
    )
    parser.add_value("--report FILE", "write a page with the flipped answers", Path)
    parser.add_value("--images DIR", "pictures of the page, by their image names", Path)
    parser.add_shared("--data", "--seed", "--format", "--json")


def run(args: argparse.Namespace) -> int:
    """Print the differences, write the page, and return 1 if B is worse and that was asked."""
    from dataclasses import asdict

    from medmoe.cli.tables import Screen
    from medmoe.data.registry import find_data
    from medmoe.evaluation.files.run_files import matched, read_side
    from medmoe.evaluation.pages.compare_page import (
        difference_table,
        losses,
        sentences,
        verdict,
        wins_table,
        write_compare_page,
    )

    a, b = read_side(args.a), read_side(args.b)
    shared, notes = matched(a, b)
    root = find_data(args.data) if args.report else None
    found = [_compare(name, left, right, args) for name, left, right in shared]
    differences = [row for comparison in found for row in comparison.differences]
    screen = Screen()
    for letter, side in (("A", a), ("B", b)):
        screen.line(f"{letter}: {side.name}")
    for comparison in found:
        screen.table(difference_table(comparison))
        screen.table(wins_table(comparison))
    screen.line(verdict(differences))
    screen.lines((*sentences(differences), *notes))
    print(FOOTER)
    if args.report:
        write_compare_page(
            args.report,
            (a.name, b.name),
            found,
            root=root,
            images=args.images,
            phantom_seed=next((s for s in (a.seed, b.seed) if s is not None), args.seed),
        )
        print(f"page: {args.report}")
    worse = bool(losses(differences))
    result: dict[str, Any] = {
        "version": 1,
        "a": a.name,
        "b": b.name,
        "seed": args.seed,
        "verdict": verdict(differences),
        "worse": worse,
        "differences": [row.to_dict() for row in differences],
        "wins": [asdict(row) for comparison in found for row in comparison.wins],
        "flips": [_flip(row) for comparison in found for row in comparison.flips],
        "notes": notes,
        "use": FOOTER,
    }
    flags.write_json(args.json, result)
    return WORSE if worse and args.fail_if_worse else 0


def _flip(row: Flip) -> dict[str, Any]:
    known = {"name": row.name, "id": row.record.id, "answer": row.record.answer}
    return known | {"a": list(row.a), "b": list(row.b), "change": row.change}


def _compare(
    name: str, a: Sequence[Path], b: Sequence[Path], args: argparse.Namespace
) -> Comparison:
    from medmoe.evaluation.compare import compare_runs
    from medmoe.evaluation.files.predictions import read_predictions
    from medmoe.evaluation.files.truth import check_same_truth, own_truth, read_truth

    records = read_truth(args.truth) if args.truth else own_truth(a[0])
    for path in (*a, *b):
        check_same_truth(path, records)
    left, right = ([read_predictions(path) for path in side] for side in (a, b))
    return compare_runs(name, records, left, right, seed=args.seed)
