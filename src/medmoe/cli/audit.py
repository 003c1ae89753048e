"""`medmoe audit verify LOG`: is the server's audit log whole and unaltered?"""

from __future__ import annotations

import argparse

from medmoe.cli import flags
from medmoe.cli.console import tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `audit`."""
    parser.add_argument("action", choices=("verify",), help="what to do with the log")
    flags.add_path(parser, "log", "LOG", "file given to serve --audit-log")
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Verify the log.

    Returns:
        0 where every line is as it was written, 1 where a line was edited, removed or moved.

    Raises:
        DataError: The log or its key cannot be read.
    """
    from medmoe.serving.audit import verify

    verdict = verify(args.log)
    flags.write_json(args.json, {"lines": verdict.lines, "fault": verdict.fault})
    if verdict.fault is not None:
        tell(f"altered: {verdict.fault}; {verdict.lines} lines before it are good")
        return 1
    tell(f"whole: {verdict.lines} lines")
    return 0
