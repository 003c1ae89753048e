"""The drift watch of a server: numbers of each picture go into the bins of its day, in one file.

A thread of its own does it, behind a short queue: no answer waits for it or fails by it. What the
queue has no room for is counted as left out; a file that cannot be written is told of once and
tried again. It is written whole every few seconds. A picture that comes again on the same day is
known by its numbers and not counted, unless it is flat.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from medmoe.errors import ConfigError, DataError, MedMoeError
from medmoe.files import lock, refused, write_text
from medmoe.inference.answer import Answer, Routing
from medmoe.inference.chat import ChatRequest
from medmoe.serving.drift import QUANTITIES, Tally, Verdict, Watch, judge, seen

_log = logging.getLogger(__name__)
_SAVE_SECONDS, _FLAT = 5.0, 0.01
#: Pictures that may wait, and days that are kept.
MOST_WAITING, MOST_DAYS = 16, 400


def read_watch(path: Path) -> Watch:
    """Return what a monitor file holds.

    Raises:
        DataError: It cannot be read, or is none.
    """
    make = "make one by `medmoe monitor reference MODEL --task T --out FILE`"
    try:
        return Watch.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r} ({error.strerror}); {make}") from None
    except ValueError:
        raise DataError(f"{str(path)!r} is no monitor file, or was altered; {make}") from None


def by_utc() -> date:
    """Return the day."""
    return datetime.now(UTC).date()


class Monitor:
    """The watch of one server.

    Args:
        path: What `medmoe monitor reference` has written; the days are added to it.
        model: SHA-256 of the model that is served.
        clock: Returns the day.

    Attributes:
        verdict: On the last day that is over and had pictures.
        unwritten: Whether the file could not be written at the last try.

    Raises:
        MedMoeError: It is no monitor file, that of another model, in use, or cannot be written.
    """

    def __init__(self, path: Path, model: str, clock: Callable[[], date] = by_utc) -> None:
        self._path, self._clock, self._watch = path, clock, read_watch(path)
        if self._watch.model != model:
            raise ConfigError(
                f"the reference in {str(path)!r} is of another model; make one of this model by "
                "`medmoe monitor reference`, or serve that one"
            )
        beside = path.with_name(f"{path.name}.lock")  # the file itself is replaced
        try:
            self._lock = beside.open("a")
            lock(self._lock.fileno())
        except OSError as error:
            what = f"keep other servers from {str(path)!r}"
            raise refused(error, what, "file by --monitor FILE") from None
        write_text(path, self._watch.model_dump_json(), "file by --monitor FILE")
        self.verdict: Verdict | None = None
        self.unwritten = self._told = self._changed = False
        self._left_out, self._day = 0, date.min
        self._known: set[tuple[float, ...]] = set()
        self._queue: queue.Queue[tuple[Image.Image, Routing | None, float | None] | None]
        self._queue = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="medmoe-monitor", daemon=True)
        self._thread.start()

    def see(self, request: ChatRequest, answer: Answer) -> None:
        """Have the pictures of an answered conversation counted; returns at once."""
        alone = len(request.turns) == len(request.images) == 1
        whole = not (request.options or request.stop or answer.cut)
        confidence = answer.confidence if alone and whole else None
        for image, routing in zip(request.images, (answer.routing, *answer.further), strict=False):
            try:
                self._queue.put_nowait((image, routing, confidence))
            except queue.Full:
                self._left_out += 1

    def close(self) -> None:
        """Count what waits, and write the file."""
        self._queue.put(None)
        self._thread.join()
        self._lock.close()

    def standing(self) -> dict[str, Any] | None:
        """Return day and alarms of the verdict, for the page; None where it has no alarm."""
        if self.verdict is None or not self.verdict.alarms:
            return None
        alarms = [[one.domain, QUANTITIES[one.quantity]] for one in self.verdict.alarms]
        return {"day": f"{self.verdict.day}", "alarms": alarms}

    def _run(self) -> None:
        saved, ended = time.monotonic(), False
        while not ended:
            item = None
            with suppress(queue.Empty):
                item = self._queue.get(timeout=1.0)
                ended = item is None
            try:
                self._turn()
                if item is not None:
                    self._take(*item)
            except Exception as error:  # a fault of ours must not end the watch
                _log.error("counting a picture failed: %s", type(error).__name__)
            if self._changed and (ended or time.monotonic() - saved >= _SAVE_SECONDS):
                self._save()
                saved = time.monotonic()

    def _turn(self) -> None:
        """At the start, and where a day is over, judge the last one."""
        today = self._clock()
        if today == self._day:
            return
        self._day, days = today, self._watch.days
        self._known.clear()
        for old in sorted(days)[:-MOST_DAYS]:
            del days[old]
        over = [day for day, tally in days.items() if day < today and tally.mix]
        self.verdict = judge(self._watch, max(over)) if over else None

    def _take(self, image: Image.Image, routing: Routing | None, confidence: float | None) -> None:
        domain, numbers = seen(image, routing, confidence)
        known = tuple(numbers[name] for name in ("brightness", "contrast", "black", "sharpness"))
        if known in self._known and numbers["contrast"] > _FLAT:
            return
        self._known.add(known)
        tally = self._watch.days.setdefault(self._day, Tally())
        self._watch.add(tally, (domain, numbers))
        new, self._left_out = self._left_out, 0
        tally.left_out, self._changed = tally.left_out + new, True

    def _save(self) -> None:
        try:
            write_text(self._path, self._watch.model_dump_json())
            self.unwritten = self._changed = False
        except MedMoeError as error:
            if not self._told:
                _log.error("the drift watch goes on in memory: %s", error)
            self.unwritten = self._told = True
