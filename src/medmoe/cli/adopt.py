"""`medmoe adopt DIR`: a folder that another program saved becomes a model folder of ours."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.console import tell
from medmoe.cli.parser import FOOTER, Parser


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `adopt`."""
    parser.add_value(
        "source DIR", "folder that save_pretrained, the Trainer or PEFT has left, or a hub id"
    )
    parser.add_value(
        "--out DIR",
        "model folder to write (default: DIR itself; an adapter and a hub id need one)",
        Path,
    )
    parser.add_value("--processor MODEL", "take the processor of this model, if DIR has none")
    parser.add_value(
        "--base MODEL",
        "of an adapter: the model it was trained on (default: what adapter_config.json names)",
    )
    parser.add_shared("--json")


def run(args: argparse.Namespace) -> int:
    """Adopt, and print what was checked, left out and written."""
    from medmoe.model.adopt import adopt

    done = adopt(args.source, args.out, processor=args.processor, base=args.base)
    kind = f"a Med-MoE of {', '.join(done.domains)}" if done.domains else "a dense model"
    tell(f"checked: {kind}, {done.tensors} tensors, none missing and none left over")
    tell(f"processor: {done.processor}")
    if done.base is not None:
        tell(f"merged onto: {done.base}")
    tell(f"removed: {', '.join(done.removed) or 'nothing'}")
    tell(f"written: {done.folder} ({', '.join(done.added)})")
    tell(FOOTER)
    flags.write_json(args.json, asdict(done) | {"note": FOOTER})
    return 0
