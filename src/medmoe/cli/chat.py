"""`medmoe chat MODEL [IMAGE]`: ask and follow up in the terminal, or line by line from a pipe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medmoe.cli import flags
from medmoe.cli.console import tell
from medmoe.cli.parser import FOOTER, Parser
from medmoe.errors import ConfigError, MedMoeError

if TYPE_CHECKING:
    from medmoe.cli.chat_session import Session


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `chat`."""
    parser.add_shared("model", "--site")
    parser.add_value(
        "image IMAGE",
        "picture to begin with, as of `ask` (default: none; /image PATH opens one)",
        Path,
        nargs="?",
    )
    parser.add_shared("--further", *flags.VIEW)
    parser.add_count("--max-new-tokens", 64, "longest answer, in tokens")
    parser.add_shared("--json")


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends.

    Returns:
        0; 2 where the input is no terminal and one of its lines could not be carried out.

    Raises:
        CheckpointError: The model folder is incomplete or altered.
        ConfigError: A window or frame is given without a picture.
        ImageError: The picture to begin with cannot be used.
    """
    from medmoe.cli.chat_session import Session
    from medmoe.inference.engine import MedMoe
    from medmoe.model.locate import find_seeing, name_of

    view = flags.view_of(args)
    if args.image is None and (args.further or any(v is not None for v in view.values())):
        raise ConfigError("--window, --frame, --plane and --further need a picture; give IMAGE too")
    model = find_seeing(args.model)
    session = Session(name_of(model), args.max_new_tokens)
    if args.image is not None:
        session.open(args.image, **view)
    for path in args.further:
        session.add(path)
    session.engine = MedMoe.load(model)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    failed = _talk(session, interactive)
    flags.write_json(args.json, session.to_json())
    return 2 if failed and not interactive else 0


def _talk(session: Session, interactive: bool) -> int:
    """Carry out line after line; return how many could not be."""
    if interactive:
        _with_line_editing()
        tell(f"{FOOTER} /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.")
    failed = 0
    while not session.ended:
        line = _line(interactive)
        if line is None:
            break
        try:
            session.take(line)
        except MedMoeError as error:
            failed += 1
            tell(f"medmoe: error: {' '.join(str(error).split())}", sys.stderr)
        except KeyboardInterrupt:
            if not interactive:
                raise
            tell("\n(stopped)")
    tell(FOOTER)
    return failed


def _line(interactive: bool) -> str | None:
    """Return the next line of the input, None at its end."""
    if not interactive:
        line = sys.stdin.readline()
        return line if line else None
    while True:
        try:
            return input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            tell("\n(Ctrl-D or /quit ends)")


def _with_line_editing() -> None:
    """Give the arrow keys their meaning; what was typed is kept in memory only."""
    import contextlib

    with contextlib.suppress(ImportError):  # absent on some systems
        import readline  # noqa: F401
