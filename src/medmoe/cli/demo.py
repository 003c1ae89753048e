"""`medmoe demo`: train, evaluate and show a tiny Med-MoE, end to end."""

from __future__ import annotations

import argparse
import time
from typing import Any

from medmoe.cli import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `demo`."""
    flags.add_data(parser)
    flags.add_out(parser, "runs/demo")
    parser.add_argument(
        "--minutes",
        type=flags.positive_int,
        default=10,
        metavar="M",
        help="pick the largest step plan for M minutes on two cores (default: 10); never a clock",
    )
    parser.add_argument(
        "--split",
        choices=("standard", "disjoint", "validation"),
        default="standard",
        help="VQA-RAD's split; validation scores held-out training images (default: standard)",
    )
    flags.add_seed(parser)
    flags.add_set(parser)
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration, then print where it went and how it scored."""
    from transformers.utils.logging import disable_progress_bar

    from medmoe.cli.demo_display import Display
    from medmoe.data.registry import find_data
    from medmoe.experiments.demo import run_demo
    from medmoe.experiments.demo_plan import plan_demo
    from medmoe.experiments.demo_report import next_steps

    disable_progress_bar()
    root = find_data(args.data)
    plan = plan_demo(root, args.split, args.minutes, args.seed, args.settings)
    out = flags.make_out_dir(args.out)
    display = Display(plan)
    display.opening()
    start = time.perf_counter()
    with display:
        summary: dict[str, Any] = run_demo(plan, out, display.progress)
    display.closing(summary, out, time.perf_counter() - start, next_steps(plan, out))
    flags.write_json(args.json, summary)
    return 0
