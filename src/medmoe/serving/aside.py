"""Work that takes long, off the event loop: threads and a bounded queue of its own for each kind.

So one kind cannot take the threads of another. Who leaves while waiting takes the work along; a
thread counts as free when its work has ended, not when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from medmoe.serving.chat_engine import busy

T = TypeVar("T")


class Aside:
    """Threads for work of one kind.

    Args:
        threads: At most so many at once.
        most: Calls that may wait or run.
    """

    def __init__(self, threads: int, most: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._free = asyncio.Semaphore(threads)
        self._most = most
        self.calls = 0

    async def run(self, call: Callable[[], T]) -> T:
        """Return what a call gives.

        Raises:
            EngineError: Too many wait.
        """
        if self.calls >= self._most:
            raise busy(1)
        self.calls += 1
        try:
            await self._free.acquire()
            work = asyncio.get_running_loop().run_in_executor(self._threads, call)
            work.add_done_callback(self._ended)
            return await asyncio.shield(work)
        finally:
            self.calls -= 1

    def _ended(self, work: asyncio.Future[T]) -> None:
        self._free.release()
        if not work.cancelled():
            work.exception()  # or it would be printed where nobody waits for it any more
