"""`medmoe demo`: train, evaluate and show a tiny Med-MoE, end to end."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from medmoe.cli import flags
from medmoe.cli.console import asking_bar
from medmoe.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    """Add the flags of `demo`."""
    parser.add_shared("--data", *flags.OWN_DATA)
    parser.add_shared("--out", default=Path("runs/demo"))
    parser.add_value(
        "--minutes M",
        "pick the largest preset for M minutes on two cores (default: 10); never a clock",
        flags.positive_int,
        default=10,
    )
    parser.add_choice(
        "--split",
        ("standard", "disjoint", "validation"),
        "VQA-RAD's split; validation scores held-out training images (default: standard)",
    )
    parser.add_switch(
        "--blind",
        "also train the blind twin, which sees no picture, and hold every score against it",
    )
    parser.add_shared("--seed", "--set", "--json")


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
