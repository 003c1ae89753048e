"""`medmoe ask MODEL IMAGE QUESTION`: answer a question about an image with a trained model."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.parser import FOOTER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ask`."""
    flags.add_model(parser)
    parser.add_argument(
        "image", type=Path, metavar="IMAGE", help="PNG, JPEG, DICOM or NIfTI file, by content"
    )
    parser.add_argument("question", metavar="QUESTION", help="the question, in quotes")
    add_view(parser)
    flags.add_json(parser)


def add_view(parser: argparse.ArgumentParser) -> None:
    """Add `--window C,W` and `--frame K`: how a DICOM or NIfTI file becomes a picture."""
    parser.add_argument(
        "--window",
        type=window,
        metavar="C,W",
        help="center and width of a DICOM or NIfTI picture, e.g. --window=-600,1500, or a CT "
        "preset: abdomen, bone, brain, liver, lung, mediastinum, stroke, subdural; by default that "
        "of the file",
    )
    parser.add_argument(
        "--frame",
        type=flags.positive_int,
        metavar="K",
        help="frame of a DICOM file (default: 1), slice of a NIfTI volume (default: the middle)",
    )


def window(text: str) -> tuple[float, float] | str:
    """Read a window: two numbers with a comma between them, or the name of a preset."""
    if "," not in text:
        return text
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not C,W: two numbers") from None
    return center, width


def run(args: argparse.Namespace) -> int:
    """Print the answer, its confidence, the router's domain and what is known of the image.

    Raises:
        CheckpointError: The model folder is incomplete or altered.
        ImageError: The image cannot be used.
    """
    from transformers.utils.logging import disable_progress_bar

    from medmoe.data.images import open_picture
    from medmoe.errors import ConfigError
    from medmoe.inference.answer import warnings_of
    from medmoe.inference.engine import MedMoe

    if not args.question.strip():
        raise ConfigError("the question is empty; give one in quotes")
    disable_progress_bar()
    picture = open_picture(args.image, window=args.window, frame=args.frame)
    answer = MedMoe.load(args.model).answer(picture.image, args.question, evidence=True)
    warnings = warnings_of(picture.facts, answer.routing)
    print(answer.text)
    print(f"confidence {100 * answer.confidence:.0f} % (not calibrated)")
    if answer.routing is not None:
        print(f"router: {answer.routing.domain} ({100 * answer.routing.domain_probability:.0f} %)")
    if picture.facts.format in ("dicom", "nifti"):
        print(f"image: {picture.facts.description()}")
    for line in warnings:
        print(f"warning: {line}")
    print(FOOTER)
    image = picture.facts.to_json() | {"warnings": warnings}
    result = asdict(answer) | {"question": args.question, "image": image, "note": FOOTER}
    flags.write_json(args.json, result)
    return 0
