"""`medmoe ask MODEL IMAGE QUESTION`: answer a question about an image with a trained model."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.parser import FOOTER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ask`."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="model folder, e.g. runs/demo/model"
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="PNG or JPEG file")
    parser.add_argument("question", metavar="QUESTION", help="the question, in quotes")
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the answer, its confidence and the router's domain.

    Raises:
        CheckpointError: The model folder is incomplete or altered.
        ImageError: The image cannot be used.
    """
    from transformers.utils.logging import disable_progress_bar

    from medmoe.data.images import open_image
    from medmoe.errors import ConfigError
    from medmoe.inference.engine import MedMoe

    if not args.question.strip():
        raise ConfigError("the question is empty; give one in quotes")
    disable_progress_bar()
    picture = open_image(args.image)
    answer = MedMoe.load(args.model).answer(picture, args.question, evidence=True)
    print(answer.text)
    print(f"confidence {100 * answer.confidence:.0f} % (not calibrated)")
    if answer.routing is not None:
        print(f"router: {answer.routing.domain} ({100 * answer.routing.domain_probability:.0f} %)")
    print(FOOTER)
    flags.write_json(args.json, asdict(answer) | {"question": args.question, "note": FOOTER})
    return 0
