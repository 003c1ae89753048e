"""`medmoe ask MODEL IMAGE QUESTION`: answer a question about images with a trained model."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medmoe.cli import flags
from medmoe.cli.console import tell, tell_answer
from medmoe.cli.parser import FOOTER, Parser
from medmoe.cli.typed import pictures_amid
from medmoe.errors import ConfigError


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `ask`."""
    parser.add_shared("model", "--site")
    parser.add_shared(
        "image", type=str, help="picture; or the question, with the paths of pictures in it"
    )
    parser.add_shared("question", nargs="?")
    parser.add_shared("--further", *flags.VIEW, "--dtype")
    parser.add_shared("--max-new-tokens", help="longest answer, in tokens (default: 512)")
    parser.add_shared("--json")


def run(args: argparse.Namespace) -> int:
    """Print the answer, its confidence, the router's domain and what is known of the image."""
    from concurrent.futures import ThreadPoolExecutor

    from medmoe.data.images import open_picture

    paths, question = _asked(args)
    view = flags.view_of(args)
    with ThreadPoolExecutor(1) as beside:  # the decoder's process starts while torch is imported
        opened = [beside.submit(open_picture, p, **view) for p in paths]
        from medmoe.inference.answer import all_warnings, told_confidence
        from medmoe.inference.engine import LONG_ANSWER, MedMoe
        from medmoe.model.locate import find_seeing
    pictures = [one.result() for one in opened]
    longest = args.max_new_tokens or LONG_ANSWER
    engine = MedMoe.load(find_seeing(args.model), dtype=args.dtype, max_new_tokens=longest)
    shown = [picture.image for picture in pictures]
    answer = engine.answer(shown, question, evidence=True)
    facts = [picture.facts for picture in pictures]
    warnings = all_warnings(facts, [answer.routing, *answer.further])
    tell(answer.text)
    if answer.cut:
        tell(f"cut at the longest answer, {longest} tokens at most (--max-new-tokens)")
    confidence = told_confidence(answer.confidence, *facts)
    tell_answer(confidence, answer.routing, further=answer.further)
    for one in facts:
        if one.format in ("dicom", "nifti"):
            tell(f"image: {one.description()}")
    for line in warnings:
        tell(f"warning: {line}")
    tell(FOOTER)
    image = asdict(facts[0]) | {"warnings": warnings}
    result: dict[str, Any] = {
        "question": question,
        "confidence": confidence,
        "image": image,
        "note": FOOTER,
    }
    if others := facts[1:]:
        result["further_images"] = [asdict(one) for one in others]
    said = asdict(answer)
    del said["options"]  # it was not chosen among some
    flags.write_json(args.json, said | result)
    return 0


def _asked(args: argparse.Namespace) -> tuple[list[Path], str]:
    """Return the pictures and the question, in words of their own or the ones amid the other."""
    pictures, question = [Path(args.image)], args.question
    if question is None:
        if os.path.exists(args.image) or " " not in args.image:
            raise ConfigError(
                "no question is given; write it behind the picture, in quotes; see "
                "`medmoe ask --help`"
            )
        pictures, question = pictures_amid(args.image)
        if not pictures:
            raise ConfigError("the question names no picture that is there; give one before it")
    if not question.strip():
        raise ConfigError("the question is empty; give one in quotes")
    return [*pictures, *args.further], question
