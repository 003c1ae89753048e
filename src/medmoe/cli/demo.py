"""`medmoe demo`: train, evaluate and show a tiny Med-MoE, end to end."""

from __future__ import annotations

import argparse
import time
from typing import Any

from medmoe.cli import flags
from medmoe.cli.console import asking_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `demo`."""
    flags.add_data(parser)
    flags.add_own_data(parser)
    flags.add_out(parser, "runs/demo")
    parser.add_argument(
        "--minutes",
        type=flags.positive_int,
        default=10,
        metavar="M",
        help="pick the largest preset for M minutes on two cores (default: 10); never a clock",
    )
    parser.add_argument(
        "--split",
        choices=("standard", "disjoint", "validation"),
        default="standard",
        help="VQA-RAD's split; validation scores held-out training images (default: standard)",
    )
    flags.add_switch(
        parser,
        "--blind",
        "also train the blind twin, which sees no picture, and hold every score against it",
    )
    flags.add_seed(parser)
    flags.add_set(parser)
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration, then print where it went and how it scored."""
    from medmoe.cli.demo_display import closing, opening
    from medmoe.cli.train_display import Display
    from medmoe.data.registry import find_data
    from medmoe.experiments.demo import blind_plan, plan_demo, score_demo, train_demo

    plan = plan_demo(
        find_data(args.data),
        args.out,
        args.split,
        args.minutes,
        args.seed,
        flags.own_settings(args),
        records=args.records,
        allow_outside=args.allow_outside,
    )
    with flags.alone_in(args.out):
        opening(plan)
        start = time.perf_counter()
        for training in (plan, blind_plan(plan)) if args.blind else (plan,):
            display = Display(training)
            with display:
                train_demo(training, display.progress, display.measured)
        with asking_bar() as update:
            summary: dict[str, Any] = score_demo(plan, update)
    closing(plan, summary, time.perf_counter() - start)
    flags.write_json(args.json, summary)
    return 0
