"""The argument parser of every verb: wrong use is one line with a hint, never a usage dump."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from medmoe.errors import ConfigError

FOOTER = "Research use only, not a medical device."


class Parser(argparse.ArgumentParser):
    """An `argparse` parser that raises `ConfigError` instead of printing its usage and exiting."""

    def __init__(self, *, prog: str, description: str = "") -> None:
        super().__init__(prog=prog, description=description, epilog=FOOTER, allow_abbrev=False)

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
