"""The bar of `medmoe eval` while it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


@contextmanager
def asking_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on the terminal's error stream, one line for each task and control.

    Yields:
        What is told how many of how many questions of a task are answered.
    """
    console = Console(stderr=True)
    lines: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def update(name: str, done: int, total: int) -> None:
            if name not in lines:
                lines[name] = progress.add_task(name, total=total)
            progress.update(lines[name], completed=done)

        yield update
