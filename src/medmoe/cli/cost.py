"""`medmoe cost MODEL`: parameters, memory and FLOPs, beside the dense twin and LLaVA-Med-7B."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.parser import Parser
from medmoe.errors import ConfigError

REPEATS = 5


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `cost`."""
    parser.add_value("model MODEL", "name of a model recipe, e.g. phi2_2_7b, or a model folder")
    parser.add_value(
        "--top-k K", "domain experts per token (default: the model's own)", flags.positive_int
    )
    parser.add_shared(
        "--dtype",
        help="of weights and states (default: bfloat16; of a folder the one it was saved in)",
    )
    parser.add_count("--batch", 1, "prompts at once, and conversations per training step")
    parser.add_value(
        "--context N",
        "tokens of prompt and answer, the image's too (default: 2048, or the model's longest)",
        flags.positive_int,
    )
    parser.add_value(
        "--measure REPEATS",
        f"also load a model folder as it was saved, and time it (default: {REPEATS} repeats)",
        flags.positive_int,
        nargs="?",
        const=REPEATS,
    )
    parser.add_shared("--format", "--json")


def run(args: argparse.Namespace) -> int:
    """Print the report and write `--json`."""
    from medmoe.cli.cost_display import show
    from medmoe.experiments.cost import cost_report
    from medmoe.experiments.measure import measure

    folder = Path(args.model)
    if args.measure and not folder.is_dir():
        raise ConfigError(
            f"--measure needs the folder of a trained model, and {args.model!r} is none; "
            "leave --measure out to count a recipe"
        )
    measured = measure(folder, args.measure) if args.measure else None
    report = cost_report(
        args.model, top_k=args.top_k, dtype=args.dtype, batch=args.batch, context=args.context
    )
    show(report, measured)
    result = report.to_dict() | {"measured": asdict(measured) if measured else None}
    flags.write_json(args.json, result)
    return 0
