"""`medmoe score PREDICTIONS TRUTH`: any model's answers under every protocol, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medmoe.cli import flags
from medmoe.cli.parser import FOOTER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `score`."""
    parser.add_argument(
        "predictions",
        type=Path,
        metavar="PREDICTIONS",
        help="JSON lines {id, prediction}; option_scores for label_score",
    )
    parser.add_argument(
        "truth",
        type=Path,
        metavar="TRUTH",
        help="JSON lines {id, answer, answer_type, image, subset}; a file of medmoe is both",
    )
    parser.add_argument(
        "--protocol",
        action="append",
        metavar="NAME",
        help="protocol to score under, may be given more than once (default: all)",
    )
    parser.add_argument(
        "--train",
        type=Path,
        metavar="FILE",
        help="truth of the training split, to choose the constant answers on",
    )
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="what was answered, e.g. vqa_rad: also show what the paper reports on it",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write an HTML report")
    flags.add_seed(parser)
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the scores of all protocols with n, intervals and constant answers.

    Raises:
        DataError: A file or a line cannot be used; the message names it.
        ConfigError: A protocol or the task is unknown.
    """
    from dataclasses import asdict

    from medmoe.cli.score_tables import show
    from medmoe.evaluation.files.predictions import read_predictions
    from medmoe.evaluation.files.truth import check_same_truth, read_truth
    from medmoe.evaluation.scoring.side_by_side import ALL_PROTOCOLS, score_records
    from medmoe.evaluation.tasks import paper_rows, task_spec

    chosen = args.protocol or ["all"]
    task = task_spec(args.task) if args.task else None
    paper = paper_rows(args.task) if args.task else []
    records = read_truth(args.truth)
    predictions = read_predictions(args.predictions)
    check_same_truth(args.predictions, records)
    found = score_records(
        records,
        predictions,
        train=read_truth(args.train) if args.train else (),
        wanted=ALL_PROTOCOLS if "all" in chosen else tuple(dict.fromkeys(chosen)),
        multi_label=task is not None and task.kind == "multi_label",
        seed=args.seed,
    )
    result: dict[str, Any] = {
        "version": 1,
        "predictions": args.predictions.name,
        "truth": args.truth.name,
        "task": args.task,
        "seed": args.seed,
        **found,
        "paper": [asdict(row) | {"our_protocol": row.our_protocol} for row in paper],
        "use": FOOTER,
    }
    show(result)
    if args.report:
        from medmoe.evaluation.pages.score_report import write_score_report

        write_score_report(args.report, result)
    flags.write_json(args.json, result)
    return 0
