"""Words that the TAB key completes, in the shells that argcomplete serves."""

from __future__ import annotations

import argparse
from importlib import import_module

import argcomplete
from argcomplete.completers import FilesCompleter

from medmoe.cli.main import VERBS
from medmoe.cli.parser import Parser
from medmoe.config.load import recipe_names

#: verb -> its first word, and the recipes that may stand there as well as a file.
_RECIPES = {"train": ("config", "experiments"), "cost": ("model", "models")}


def complete() -> None:
    """Print what the line that the shell has in its variables can go on with, and exit."""
    parser = Parser(prog="medmoe")
    verbs = parser.add_subparsers(parser_class=Parser)
    for verb, (module, line) in VERBS.items():
        inner = verbs.add_parser(verb, help=line)
        import_module(module).add_arguments(inner)
        if verb in _RECIPES:
            dest, kind = _RECIPES[verb]
            action = next(action for action in inner._actions if action.dest == dest)
            action.completer = _Recipes(kind)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


class _Recipes:
    """The names of all recipes of a kind, and files."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __call__(self, prefix: str, **_: argparse.Namespace) -> list[str]:
        files: list[str] = FilesCompleter()(prefix)
        return [name for name in recipe_names(self._kind) if name.startswith(prefix)] + files
