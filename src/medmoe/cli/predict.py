"""`medmoe predict MODEL SET --out FILE`: answer a set whose truth need not be known."""

from __future__ import annotations

import argparse
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.console import asking_bar
from medmoe.cli.parser import FOOTER, Parser
from medmoe.processes import is_main


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `predict`."""
    parser.add_shared("model", "--site")
    parser.add_value("set SET", "your own table, with or without answers, or any other set")
    parser.add_value(
        "--out FILE",
        "file.csv: your columns with prediction and confidence; or file.jsonl",
        Path,
        required=True,
    )
    parser.add_choice(
        "--on-bad-row",
        ("skip", "fail"),
        "a row or picture that cannot be read has no answer and is reported, or ends all",
    )
    parser.add_shared("--allow-outside")
    parser.add_count("--batch-size", 64, "questions answered together")
    parser.add_shared("--max-new-tokens")
    parser.add_shared("--data", "--json")


def run(args: argparse.Namespace) -> int:
    """Answer, print what could not be read, and say where the answers are."""
    from medmoe.data.bad_rows import BadRows
    from medmoe.data.registry import find_data
    from medmoe.evaluation.predict_set import predict_set
    from medmoe.model.checkpoint import verify
    from medmoe.model.locate import find_seeing

    model = find_seeing(args.model)
    verify(model)
    with asking_bar() as update:
        done = predict_set(
            model,
            args.set,
            args.out,
            update,
            root=find_data(args.data),
            allow_outside=args.allow_outside,
            bad=BadRows(args.on_bad_row),
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
        )
    if not is_main():  # of several processes one speaks
        return 0
    if done["bad_rows"]:
        print(f"without an answer: {len(done['bad_rows']):,} rows")
    for reason in done["bad_rows"][:20]:
        print(f"  {reason}")
    if done["flat_pictures"]:
        print(f"flat pictures, without a confidence: {done['flat_pictures']:,} questions")
    if done["cut_answers"]:
        print(f"cut at the longest answer (--max-new-tokens): {done['cut_answers']:,} answers")
    print(f"{done['out']}: {done['answered']:,} questions answered")
    print(FOOTER)
    flags.write_json(args.json, done)
    return 0
