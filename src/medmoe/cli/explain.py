"""`medmoe explain MODEL IMAGE QUESTION`: the evidence behind one answer, as a page and as JSON."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.console import asking_bar, tell, tell_answer
from medmoe.cli.parser import FOOTER, Parser
from medmoe.files import write_text


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `explain`."""
    parser.add_shared("model", "--site", "image", "question", *flags.VIEW)
    parser.add_value(
        "--option ANSWER",
        "choose among these answers only; give it once for each (default: a free answer)",
        action="append",
        default=[],
        dest="options",
    )
    parser.add_shared("--out", default=Path("runs/explain"))
    parser.add_shared("--json")


def run(args: argparse.Namespace) -> int:
    """Write ``evidence.html`` and ``evidence.json``, and print what stands first on the card."""
    from medmoe.cli.chat_session import evidence_lines
    from medmoe.data.images import open_picture
    from medmoe.inference.answer import warnings_of
    from medmoe.inference.case import Exchange
    from medmoe.inference.engine import MedMoe
    from medmoe.inference.evidence import check_question, explain
    from medmoe.model.locate import find_seeing, name_of
    from medmoe.serving.page.views import export_html

    check_question(args.question, args.options)
    picture = open_picture(args.image, window=args.window, frame=args.frame, plane=args.plane)
    model = find_seeing(args.model)
    engine = MedMoe.load(model)
    out = flags.make_out_dir(args.out)
    with asking_bar() as update:
        on_progress = partial(update, "changed pictures")
        evidence = explain(engine, picture.image, args.question, args.options, on_progress)
    warnings = warnings_of(picture.facts, evidence.routing)
    exchange = Exchange(
        evidence.question, evidence.answer, True, evidence.confidence, evidence.routing,
        picture.facts, tuple(warnings), evidence.to_dict(),
    )  # fmt: skip
    # Not the model's path: it may name a person.
    write_text(out / "evidence.html", export_html(name_of(model), [exchange], picture))
    image = asdict(picture.facts) | {"warnings": warnings}
    result = {"version": 1, "image": image} | evidence.to_dict()
    flags.write_json(out / "evidence.json", result)
    flags.write_json(args.json, result)
    tell(evidence.answer)
    tell_answer(evidence.confidence, evidence.routing, warnings)
    for line in evidence_lines(evidence, evidence.answer):
        tell(line)
    tell(f"card: {out / 'evidence.html'}")
    tell(FOOTER)
    return 0
