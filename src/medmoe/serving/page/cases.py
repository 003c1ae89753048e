"""The cases that browsers have open: in memory only, few, not for long.

A case is found by an unguessable handle that only the browser which opened it holds. It ends when
its page is closed, when nothing was done for a while, or when newer ones need the room. Nothing of
it is ever written to a disk, and the name of the file never reaches the server.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field

from medmoe.data.images import Picture
from medmoe.inference.case import Case


@dataclass(slots=True, kw_only=True)
class OpenCase(Case):
    """A case that a browser has open.

    Attributes:
        data: The file, kept where another window or frame can be asked of it.
        looking: Held while it is decoded anew: windows and frames are taken one after the other.
        pages: How many pages show it.
    """

    handle: str
    data: bytes | None = None
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    pages: int = 0
    ends_at: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of memory that it holds, roughly."""
        pixels = self.picture.image.width * self.picture.image.height * 3 if self.picture else 0
        return len(self.data or b"") + pixels


class CaseStore:
    """The open cases.

    Args:
        max_cases: The longest untouched one goes first.
        max_bytes: Of all cases together.
        idle_seconds: A case that was not touched for so long ends.
        grace_seconds: The same after its page was closed, or its line was cut.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        *,
        max_cases: int = 64,
        max_bytes: int = 512 * 2**20,
        idle_seconds: float = 1800.0,
        grace_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_cases, self._max_bytes = max_cases, max_bytes
        self._idle, self._grace = idle_seconds, grace_seconds
        self._clock = clock
        self._cases: OrderedDict[str, OpenCase] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._cases)

    def open(self, data: bytes | None = None, picture: Picture | None = None) -> OpenCase:
        """Return a new case."""
        case = OpenCase(picture, handle=secrets.token_urlsafe(24), data=data)
        self._cases[case.handle] = case
        self.touch(case)
        return case

    def get(self, handle: str) -> OpenCase | None:
        """Return the case of a handle, touched, or None where there is none any more."""
        self.sweep()
        case = self._cases.get(handle)
        if case is not None:
            self.touch(case)
        return case

    def touch(self, case: OpenCase) -> None:
        """Count a case as used just now, and make room if it has grown."""
        if case.handle not in self._cases:
            return
        case.ends_at = self._clock() + self._idle
        self._cases.move_to_end(case.handle)
        while len(self._cases) > 1 and (
            len(self._cases) > self._max_cases
            or sum(kept.size for kept in self._cases.values()) > self._max_bytes
        ):
            self._cases.popitem(last=False)
        self._arm()

    def close(self, handle: str) -> None:
        """Forget a case now."""
        self._cases.pop(handle, None)

    @contextmanager
    def shown(self, case: OpenCase) -> Iterator[None]:
        """Count a page that shows a case; when the last one closes, the case ends after a grace."""
        case.pages += 1
        try:
            yield
        finally:
            case.pages -= 1
            if not case.pages:
                case.ends_at = min(case.ends_at, self._clock() + self._grace)
                self._arm()

    def sweep(self) -> None:
        """Forget what has ended."""
        now = self._clock()
        for case in [case for case in self._cases.values() if case.ends_at <= now]:
            del self._cases[case.handle]

    def _arm(self) -> None:
        """Sweep again when the next case ends, even if nobody ever asks again."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # outside a server every call sweeps
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._cases:
            wait = min(case.ends_at for case in self._cases.values()) - self._clock()
            # In an empty context: that of the call would keep its request, and what it asked.
            self._timer = loop.call_later(max(wait, 0.0) + 0.05, self._ring, context=Context())

    def _ring(self) -> None:
        self.sweep()
        self._arm()
