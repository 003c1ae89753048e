"""`medmoe export MODEL --out DIR`: graphs for small machines, weights rounded to 8 or 4 bits."""

from __future__ import annotations

import argparse
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.console import tell
from medmoe.cli.parser import FOOTER, Parser


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `export`."""
    parser.add_shared("model", "--site")
    parser.add_value("--out DIR", "folder to write; ask, chat, eval and serve take it", Path)
    parser.add_argument(
        "--format", choices=("openvino",), default="openvino", help="of the graphs (default)"
    )
    parser.add_argument(
        "--weights",
        choices=("float32", "int8", "int4"),
        default="int8",
        help="what the matrices are rounded to (default: int8; int4 costs answers)",
    )
    parser.add_shared("--json")


def run(args: argparse.Namespace) -> int:
    """Export, and print what was written."""
    from medmoe.errors import ConfigError
    from medmoe.model.export import export_openvino
    from medmoe.model.locate import find_seeing

    if args.out is None:
        raise ConfigError("export writes a folder of its own; name it: --out DIR")
    told = export_openvino(find_seeing(args.model), args.out, args.weights)
    tell(f"written: {args.out}, {told['weights']} weights, {told['bytes'] / 2**20:,.0f} MiB")
    tell("ask it as its model; explain and routes need the model itself")
    tell(FOOTER)
    flags.write_json(args.json, told | {"out": str(args.out), "note": FOOTER})
    return 0
