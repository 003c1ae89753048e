"""The argument parser of every verb: wrong use is one line with a hint, never a usage dump."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from medmoe.cli.flags import SHARED, positive_int, value
from medmoe.errors import ConfigError
from medmoe.notice import RESEARCH_ONLY

FOOTER = RESEARCH_ONLY


class Parser(argparse.ArgumentParser):
    """An `argparse` parser that raises `ConfigError` instead of printing its usage and exiting."""

    def __init__(self, *, prog: str, description: str = "") -> None:
        super().__init__(prog=prog, description=description, epilog=FOOTER, allow_abbrev=False)

    def add_shared(self, *names: str, **changed: Any) -> None:
        """Add arguments that several verbs share, by name.

        Args:
            changed: What is otherwise here, in argparse's words.
        """
        for name in names:
            self.add_argument(name, **SHARED[name] | changed)

    def add_value(
        self,
        name: str,
        what: str,
        parse: Callable[[str], Any] | None = None,
        *,
        group: argparse._ArgumentGroup | None = None,
        **more: Any,
    ) -> None:
        """Add a flag, or a positional, that takes a value.

        Args:
            name: And what stands for the value, e.g. ``--out DIR``.
            what: The help.
            parse: Reads the value.
            group: Under whose title the help lists it.
            more: In argparse's words.
        """
        flag, _, metavar = name.partition(" ")
        (group or self).add_argument(flag, **value(metavar, what, parse, **more))

    def add_count(self, flag: str, default: int, what: str) -> None:
        """Add a flag that takes a whole number of at least 1."""
        self.add_value(f"{flag} N", f"{what} (default: {default})", positive_int, default=default)

    def add_switch(self, flag: str, what: str) -> None:
        """Add a flag that is given or not."""
        self.add_argument(flag, action="store_true", help=what)

    def add_choice(self, flag: str, choices: Sequence[str], what: str, **more: Any) -> None:
        """Add a flag that takes one of some words, by default the first."""
        self.add_argument(flag, choices=choices, help=what, **{"default": choices[0], **more})

    def add_actions(self, lines: Mapping[str, str]) -> dict[str, Parser]:
        """Add actions, each with a sentence on what it does, and return their parsers by name."""
        actions = self.add_subparsers(
            dest="action", metavar="ACTION", required=True, parser_class=Parser, help="what to do:"
        )
        return {
            name: actions.add_parser(
                name, help=f"{line[0].lower()}{line[1:]}", description=f"{line}."
            )
            for name, line in lines.items()
        }

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `ConfigError` that names the help to read."""
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`; flags may stand before, between and behind positionals.

        Args:
            argv: The words after the verb.

        Returns:
            The values of all flags and positionals.

        Raises:
            ConfigError: A flag is unknown (the nearest one is named), missing or malformed.
        """
        actions = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        for action in actions:  # `data audit`, `data --json FILE audit`: that parser's arguments
            if name := next((word for word in argv if word in action.choices), None):
                rest = list(argv)
                rest.remove(name)
                values: argparse.Namespace = action.choices[name].parse_strictly(rest)
                setattr(values, action.dest, name)
                return values
        parse = self.parse_known_args if actions else self.parse_known_intermixed_args
        values, unknown = parse(argv)
        if unknown:
            self.refuse(unknown)
        return values

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise a `ConfigError` for words that no argument takes; the nearest flag is named."""
        flag = next((word for word in unknown if word.startswith("-")), unknown[0])
        name = flag.split("=", 1)[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.error(f"unexpected argument {name!r}{hint}")
