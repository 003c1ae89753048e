"""Lines in the terminal, broken at words, never inside one; the asking bar; and medmoe's log.

In a file or a pipe a line stays one line, for logs and scripts.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from medmoe.numbers import duration, probability
from medmoe.processes import is_main

if TYPE_CHECKING:
    from rich.console import Console

    from medmoe.inference.answer import Routing

#: What a broken line goes on under: its second column, else its beginning and two spaces.
_COLUMN = re.compile(r"\s*\S+\s{2,}(?=\S)")


def tell(text: str, file: TextIO | None = None) -> None:
    """Print a text at once, its lines broken at words where they are longer than the terminal.

    Args:
        file: Standard output by default.
    """
    file = file or sys.stdout
    width = _width(file)
    for line in text.split("\n") if width else [text]:
        column = _COLUMN.match(line)
        indent = column.end() if column else len(line) - len(line.lstrip()) + 2
        if width and len(line) > width:
            line = textwrap.fill(
                line, width, subsequent_indent=" " * min(indent, width // 2),
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
        print(line, file=file, flush=True)


def tell_answer(
    confidence: float | None,
    routing: Routing | None,
    warnings: Iterable[str] = (),
    further: Sequence[Routing | None] = (),
) -> None:
    """Print what stands below an answer: its confidence, the router's domains, and warnings."""
    if confidence is not None:
        tell(f"confidence {probability(confidence)} (not calibrated)")
    for number, told in enumerate((routing, *further), 1):
        if told is not None:
            of = f"router, image {number}" if further else "router"
            tell(f"{of}: {told.domain} ({probability(told.domain_probability)})")
    for warning in warnings:
        tell(f"warning: {warning}")


def tell_pieces(pieces: Iterable[str]) -> None:
    """Print one text as its pieces come; a word is shown when the terminal has room for all of it.

    What has come is printed even where the pieces end in an error.
    """
    width = _width(sys.stdout)
    column, waiting = 0, ""
    try:
        for piece in pieces:
            *words, waiting = re.split(r"(?<=\s)", waiting + piece) if width else (piece, "")
            for word in words:
                column = _put(word, column, width)
    finally:
        _put(waiting, column, width)
        print(flush=True)


def _put(word: str, column: int, width: int) -> int:
    """Print a word on this line or the next, and return the column behind it."""
    begin = width and column and column + len(word.rstrip()) > width
    print(f"\n{word}" if begin else word, end="", flush=True)
    return 0 if word.endswith("\n") else len(word) if begin else column + len(word)


def _width(file: TextIO) -> int:
    """Return the columns of a terminal, 0 for anything else."""
    return shutil.get_terminal_size().columns if file.isatty() else 0


@contextmanager
def asking_bar(in_all: int = 0) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on the terminal's error stream, one line for each task and control.

    Args:
        in_all: Questions of all tasks and controls: once the first are answered a line says, in a
            log too, about how long the others will take; 0 for no such line.

    Yields:
        What is told how many of how many questions of a task are answered.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    lines: dict[str, TaskID] = {}
    answered: dict[str, int] = {}
    since = 0.0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hidden = not (console.is_terminal and is_main())
    with Progress(*columns, console=console, disable=hidden) as progress:

        def update(name: str, done: int, total: int) -> None:
            nonlocal in_all, since
            if name not in lines:
                lines[name] = progress.add_task(name, total=total)
            progress.update(lines[name], completed=done)
            new, answered[name] = done - answered.get(name, done), done
            left, now = in_all - sum(answered.values()), time.perf_counter()
            if new > 0 and left > 0 and is_main():
                seconds = left * (now - since) / new
                text = f"{in_all:,} questions in all: about {duration(seconds)} left"
                console.print(text, highlight=False, soft_wrap=True)
                in_all = 0
            since = now

        yield update


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        whole = not self._console.is_terminal  # a line of a file is not broken
        self._console.print(text, highlight=False, markup=False, soft_wrap=whole)


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
