"""Shows what medmoe logs (what a phase trains, which rows a reader leaves out) above live views."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def log_to(console: Console) -> Iterator[None]:
    """Print the package's log on a console for as long as the context lasts."""
    logger, handler = logging.getLogger("medmoe"), _ConsoleHandler(console)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
