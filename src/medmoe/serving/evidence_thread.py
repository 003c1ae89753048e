"""Evidence beside conversations: a thread of its own that lets them go first.

`explain` asks the model some hundred times. Here it asks a second set of modules that shares every
weight with the first, so that what it forces and records does not touch the conversations. Before
each small part of its work it waits while conversations are under way, but for a bounded share of
the time, so that it comes to an end beside them too.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from PIL import Image

from medmoe.inference.engine import MedMoe
from medmoe.inference.evidence import explain

#: Of the time of conversations, and how much of it may be saved up, in seconds.
SHARE, SAVED = 0.25, 0.1


class LeftError(Exception):
    """Nobody waits for this evidence any more."""


@dataclass(eq=False, slots=True)
class Question:
    """What is to be explained; it is given up at the next part once it was left."""

    image: Image.Image
    text: str
    left: bool = False


class EvidenceThread:
    """Explains answers in a thread, beside the one that answers.

    Args:
        engine: Whose weights are used; it goes on answering meanwhile, but not while this is made.
    """

    def __init__(self, engine: MedMoe) -> None:
        self._own = self._sharing_weights(engine) if engine.explains else engine
        self._changed = threading.Condition()
        self._busy, self._saved, self._since = False, 0.0, 0.0
        self._question: Question | None = None
        self._ended = False

    def work_out(self, question: Question) -> dict[str, Any]:
        """Return the evidence on an answer; called in a thread, one call after the other.

        Raises:
            LeftError: It was left.
            MedMoeError: As `explain` says.
        """
        self._question, self._since = question, time.perf_counter()
        self._let_others_first()
        return explain(self._own, question.image, question.text).to_dict()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Hold evidence back from now on, also afterwards; what it may take meanwhile is saved."""
        with self._changed:
            self._busy = True
        begun = time.perf_counter()
        yield
        with self._changed:
            self._saved = min(self._saved + SHARE * (time.perf_counter() - begun), SAVED)
            self._changed.notify_all()

    def go_on(self) -> None:
        """Let evidence go on: nobody else is to be answered."""
        with self._changed:
            self._busy, self._saved = False, 0.0
            self._changed.notify_all()

    def leave(self, question: Question) -> None:
        """Give up what nobody waits for."""
        with self._changed:
            question.left = True
            self._changed.notify_all()

    def end(self) -> None:
        """Give up everything."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _let_others_first(self, *_: object) -> None:
        assert self._question is not None
        with self._changed:
            if self._busy:
                self._saved -= time.perf_counter() - self._since
            while not (self._ended or self._question.left) and self._busy and self._saved <= 0:
                self._changed.wait()
            if self._ended or self._question.left:
                raise LeftError
            self._since = time.perf_counter()

    def _sharing_weights(self, engine: MedMoe) -> MedMoe:
        shared = [engine.processor, *chain(engine.model.parameters(), engine.model.buffers())]
        own = copy.deepcopy(engine, {id(each): each for each in shared})
        for module in own.model.modules():
            if next(module.children(), None) is None:
                module.register_forward_pre_hook(self._let_others_first)
        return own
