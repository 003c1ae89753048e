"""`medmoe reproduce NAME`: repeat a table or figure of the paper, and say whether it holds."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.console import asking_bar
from medmoe.cli.parser import FOOTER, Parser


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `reproduce`."""
    parser.add_value("name NAME", "table1 to table13, figure3 to 6, 10 or 11")
    parser.add_choice(
        "--size",
        ("tiny", "small", "paper"),
        "of the models: the stand-ins, Gemma 3 270M, or the paper's own (default: tiny)",
    )
    parser.add_value(
        "--seeds S,S,…",
        "train with each of these seeds, and score them together (default: 1)",
        flags.counts,
        default=(1,),
    )
    parser.add_switch("--dry-run", "say what is there and what would run; run nothing")
    parser.add_switch("--no-train", "only of what is trained already; train nothing")
    parser.add_switch(
        "--rehearse",
        "table1 at the paper's size on copies of its data and backbones, a thousandth as large, "
        "written to OUT/rehearsal: shows that the road is open; its scores mean nothing",
    )
    parser.add_shared("--data")
    parser.add_shared("--out", default=Path("runs"))
    parser.add_shared("--set", "--format", "--json")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, print the table, and say where the result is."""
    from medmoe.cli.tables import Screen
    from medmoe.cli.train import train_shown
    from medmoe.cli.train_display import Display
    from medmoe.data.registry import find_data
    from medmoe.errors import ConfigError, one_of
    from medmoe.experiments.finished import FinishedPhases
    from medmoe.experiments.reproduce import experiments, reproduce
    from medmoe.experiments.verdicts import table_of

    if args.name not in (known := experiments()):
        raise ConfigError(one_of(args.name, known, "table or figure"))
    wanted = ("table1", "paper", None, False)
    if args.rehearse and (args.name, args.size, args.data, args.dry_run) != wanted:
        raise ConfigError(
            "--rehearse brings its own data and is a run: medmoe reproduce table1 --size paper "
            "--rehearse"
        )
    out = args.out if args.dry_run else flags.make_out_dir(args.out)
    if args.rehearse:
        from medmoe.experiments.rehearsal import SETTINGS, rehearse

        out /= "rehearsal"
        args.data = rehearse(out, partial(print, flush=True))
        args.settings, args.size = [*SETTINGS, *args.settings], "rehearsal"
    phases = FinishedPhases(
        out, find_data(args.data), args.settings, lambda plan: train_shown(plan, Display(plan))
    )
    result = reproduce(
        args.name, args.size, args.seeds, phases, asking_bar, args.dry_run, not args.no_train
    )
    Screen().table(table_of(result))
    print(FOOTER)
    flags.write_json(args.json, result)
    return 0
