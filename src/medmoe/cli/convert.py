"""`medmoe convert KIND SRC DST`: a checkpoint of other code becomes a model directory of ours."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from medmoe.cli import flags
from medmoe.cli.console import tell
from medmoe.cli.parser import FOOTER, Parser
from medmoe.errors import ConfigError

if TYPE_CHECKING:
    from medmoe.model.convert.conversion import Conversion

KINDS = ("reference", "llava")


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `convert`."""
    parser.add_argument(
        "kind",
        choices=KINDS,
        metavar="KIND",
        help="reference (the paper's code, stage 2 or 3) or llava (a stock Llava of transformers)",
    )
    parser.add_value("source SRC", "folder of the checkpoint", Path)
    parser.add_value("destination DST", "model folder to write, e.g. runs/x/model", Path)
    parser.add_value(
        "--vision-tower DIR",
        "reference: folder of the CLIP vision tower, where SRC neither holds nor names one",
        Path,
    )
    parser.add_value(
        "--router FILE",
        "reference: router for every MoE layer (.safetensors or .pth); with a stage-2 SRC it "
        "makes the model that stage 3 starts from",
        Path,
    )
    parser.add_value(
        "--top-k K",
        "reference: experts per token beside the meta expert (default: what SRC says)",
        flags.positive_int,
    )
    parser.add_shared("--json")


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was found, filled and dropped."""
    done = convert(args)
    show(done, args.destination)
    more = {"destination": str(args.destination), "note": FOOTER}
    flags.write_json(args.json, asdict(done) | more)
    return 0


def convert(args: argparse.Namespace) -> Conversion:
    """Run the conversion that the arguments ask for."""
    from medmoe.model.convert.llava import convert_llava
    from medmoe.model.convert.reference import convert_reference

    flags_of_reference = {name: getattr(args, name) for name in ("vision_tower", "router", "top_k")}
    if args.kind == "reference":
        return convert_reference(args.source, args.destination, **flags_of_reference)
    for name, value in flags_of_reference.items():
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is for `medmoe convert reference`; leave it out")
    return convert_llava(args.source, args.destination)


def show(done: Conversion, destination: Path) -> None:
    """Print the account of a conversion, one line a fact."""
    tell(f"{done.kind}: {done.tensors} tensors from {', '.join(done.files)}")
    if done.moe_layers:
        tell(
            f"MoE layers {', '.join(map(str, done.moe_layers))}: {len(done.domains)} domain "
            f"experts, top-{done.num_experts_per_tok}, and the meta expert"
        )
    else:
        tell("no MoE layers: a dense model")
    for name in ("vision_tower", "router", "processor"):
        tell(f"{name.replace('_', ' ')}: {getattr(done, name)}")
    for name in ("filled", "dropped"):
        for line in getattr(done, name) or ["nothing"]:
            tell(f"{name}: {line}")
    for note in done.notes:
        tell(f"note: {note}")
    tell(f"written: {destination}")
    tell(FOOTER)
