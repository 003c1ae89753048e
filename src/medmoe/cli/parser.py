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
        """Parse all of `argv`.

        Args:
            argv: The words after the verb.

        Returns:
            The values of all flags and positionals.

        Raises:
            ConfigError: A flag is unknown (the nearest one is named), missing or malformed.
        """
        values, unknown = self.parse_known_args(argv)
        if not unknown:
            return values
        for action in self._actions:  # the flags of an action (`data audit`) are that parser's
            if isinstance(action, argparse._SubParsersAction):
                action.choices[getattr(values, action.dest)].refuse(unknown)
        self.refuse(unknown)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise a `ConfigError` for words that no argument takes; the nearest flag is named."""
        flag = next((word for word in unknown if word.startswith("-")), unknown[0])
        name = flag.split("=", 1)[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.error(f"unexpected argument {name!r}{hint}")
