"""Several processes at one job, as ``torchrun`` or ``accelerate launch`` start them.

The first one writes; work that is shared out comes back to each of them in the order of one process
alone, so that results are equal. Accelerate carries what goes between them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from medmoe.errors import MedMoeError

Item = TypeVar("Item")
Result = TypeVar("Result")


def processes() -> int:
    """Return how many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process() -> int:
    """Return which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Return whether this process is the one that writes and speaks."""
    return process() == 0


def own_gpu() -> str:
    """Return the name of the GPU that is this process's."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def joined() -> Any:
    """Return Accelerate's state of this process, which has joined the others by then."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def from_main(work: Callable[[], Result]) -> Result:
    """Return to every process what the first one's call returns; what it raises, all raise.

    Raises:
        MedMoeError: As the call says.
    """
    if processes() == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    joined()
    said: list[Any] = [None, None]
    if is_main():
        try:
            said[0] = work()
        except MedMoeError as error:
            said[1] = error
    broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    result: Result = said[0]
    return result


def shared_out(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """Yield the result of each item in order, in every process; each process works on its share.

    Every process must go on to the end.
    """
    count = processes()
    if count == 1:
        yield from map(work, items)
        return
    from accelerate.utils import gather_object

    joined()
    for start in range(0, len(items), count):
        mine = items[start + process() : start + process() + 1]
        yield from gather_object([work(item) for item in mine])[: len(items) - start]
