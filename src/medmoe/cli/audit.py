"""`medmoe audit verify LOG`: is the server's audit log whole? `head`: what to note elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.console import tell
from medmoe.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `audit`."""
    parser.add_choice(
        "action",
        ("verify", "head"),
        "verify the log, or also print its last line's number and MAC, an anchor",
        default=None,
    )
    parser.add_value("log LOG", "file given to serve --audit-log", Path)
    parser.add_value(
        "--anchor NUMBER:MAC",
        "what `head` printed earlier and was noted elsewhere: the log must still hold that "
        "line, so that an earlier state that was put back is found",
    )
    parser.add_shared("--json")


def run(args: argparse.Namespace) -> int:
    """Verify the log; with `head`, print its anchor.

    Returns:
        0 where every line is as it was written, 1 where a line was edited, removed or moved.

    Raises:
        DataError: The log or its key cannot be read.
        ConfigError: The anchor is none.
    """
    from medmoe.serving.audit import anchor_of, verify

    verdict = verify(args.log, args.anchor)
    anchor = None if verdict.fault else anchor_of(verdict)
    result = {"lines": verdict.lines, "first": verdict.first, "fault": verdict.fault}
    flags.write_json(args.json, {**result, "anchor": anchor})
    if verdict.fault is not None:
        tell(f"altered: {verdict.fault}; {verdict.lines} lines before it are good")
        return 1
    if args.action == "head":
        print(anchor)
        return 0
    older = f", from line {verdict.first} on: older ones are in files moved away"
    tell(f"whole: {verdict.lines} lines{older if verdict.first > 1 else ''}")
    return 0
