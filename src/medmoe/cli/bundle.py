"""`medmoe bundle make MODEL | verify FILE`: one file for a machine without a network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medmoe.cli import flags
from medmoe.cli.console import tell
from medmoe.cli.parser import FOOTER, Parser
from medmoe.errors import ConfigError


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `bundle`: an action, and behind it those of the action."""
    lines = {
        "make": "Pack wheels, model, documentation, licences and an installer into one file",
        "verify": "Check every file of a bundle, without unpacking it",
    }
    actions = parser.add_actions(lines)
    make, verify = actions["make"], actions["verify"]
    make.add_shared("model")
    make.add_value("--out FILE", "the bundle to write, e.g. medmoe.tar", Path)
    make.add_value(
        "--wheels DIR", "take the wheels from this folder (default: pip fetches them)", Path
    )
    make.add_value(
        "--docs DIR",
        "documentation to carry (default: that of the checkout medmoe runs from)",
        Path,
    )
    verify.add_value("file FILE", "a bundle", Path)
    for inner in actions.values():
        inner.add_shared("--json")


def run(args: argparse.Namespace) -> int:
    """Make or verify a bundle, and print what it is."""
    result = _make(args) if args.action == "make" else _verify(args.file)
    tell(FOOTER)
    flags.write_json(args.json, result | {"note": FOOTER})
    return 0


def _make(args: argparse.Namespace) -> dict[str, Any]:
    from medmoe.bundle.make import make_bundle

    out: Path | None = args.out
    if out is None or out.is_dir():
        raise ConfigError("make writes one file; name it: --out FILE.tar")
    out = out.resolve()  # a link stays one
    with flags.alone_in(out.with_name(f".{out.name}.staging")) as staging:
        facts = make_bundle(args.model, out, staging, args.wheels, args.docs, tell)
    tell(f"written: {args.out}, {facts['files']} files, {facts['bytes'] / 2**20:,.0f} MiB")
    tell(f"for Linux on {facts['machine']} with Python {facts['python']}; sha256 {facts['sha256']}")
    return facts


def _verify(path: Path) -> dict[str, Any]:
    from medmoe.bundle.verify import verify_bundle

    facts = verify_bundle(path)
    tell(f"whole: {facts['files']} files, {facts['bytes'] / 2**20:,.0f} MiB")
    return facts
