"""What the controls of the page do: open, look, ask, stop. It knows the engine, not the layout.

Each action changes a case and returns what changes on the page (`PageUpdate`). Pictures are decoded
by the sandbox's processes and drawn in a thread, so that the event loop is free meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np

from medmoe.data.images import Picture, open_picture
from medmoe.data.intake.decode import Decoded
from medmoe.data.intake.display import Plane
from medmoe.errors import MedMoeError
from medmoe.inference.case import Exchange
from medmoe.serving.chat_engine import late
from medmoe.serving.page.cases import CaseStore, OpenCase
from medmoe.serving.page.views import cells_of, described, packed
from medmoe.serving.problems import ProblemError
from medmoe.serving.service import Service

#: Example -> what the button says, and a question to begin with. The pictures are made up.
EXAMPLES: dict[str, tuple[str, str]] = {
    "ct": ("CT", "Is there any nodule?"),
    "mri": ("MRI", "What organ is shown in the image?"),
    "pathology": ("Pathology", "What is the modality of the image?"),
    "xray": ("X-ray", "Which side is the finding on?"),
}
MAX_QUESTION = 2000
MAX_EXCHANGES = 50
ENDED = "This case has ended: it was idle, or its page was closed. Open the picture again."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PageUpdate:
    """What changes on the page; None leaves a part as it is.

    Attributes:
        notice: One line about what went wrong with a question, empty where nothing did.
        picture_notice: The same of a picture.
        picture: What is known of the picture as the model sees it; empty for none.
        exchanges: How many questions stand in the conversation; the page forgets later ones.
        exchange: One of them, or what is new of it, with its number from 0.
        pending: What is still being worked out, in words.
    """

    notice: str = ""
    handle: str | None = None
    picture: dict[str, Any] | None = None
    exchanges: int | None = None
    exchange: dict[str, Any] | None = None
    pending: str = ""
    question: str | None = None
    busy: bool | None = None
    picture_notice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what the page's script puts into its places."""
        return {f.name: each for f in fields(self) if (each := getattr(self, f.name)) is not None}


class PageActions:
    """The actions of the page."""

    def __init__(self, service: Service, cases: CaseStore) -> None:
        self.service, self.cases = service, cases

    async def receive(self, data: bytes) -> OpenCase:
        """Open a case about a file.

        Raises:
            ImageError: It cannot be used; nothing of it is kept.
            EngineError: Too many wait, or it took too long.
        """
        picture = await self.service.decoding.open(data)
        kept = picture.facts.format in ("dicom", "nifti")  # there are other ways to look at it
        return self.cases.open(data if kept else None, picture)

    def show(self, handle: str) -> PageUpdate:
        """Show a case that was just opened."""
        case = self.cases.get(handle)
        if case is None or case.picture is None:
            return PageUpdate("", "", {}, 0, busy=False, picture_notice=ENDED)
        return PageUpdate("", handle, told(case.picture), 0, busy=False)

    async def example(self, name: str) -> PageUpdate:
        """Open a made-up picture and propose a question."""
        pixels = await asyncio.to_thread(_example, name)
        case = self.cases.open(picture=open_picture(pixels))
        return replace(self.show(case.handle), question=EXAMPLES[name][1])

    async def pixels(self, handle: str, frame: int | None, plane: Plane | None) -> bytes:
        """Return a frame for the viewer, as `packed` says.

        Raises:
            ProblemError: The case has ended.
            ImageError, EngineError: It cannot be shown.
        """
        case = self.cases.get(handle)
        if case is None or case.picture is None:
            raise ProblemError(404, "no_case", ENDED)
        if case.data is None:
            shown = Decoded(np.asarray(case.picture.image), case.picture.facts)
        else:
            shown = await self.service.decoding.values(case.data, frame=frame, plane=plane)
        return await asyncio.to_thread(packed, shown)

    async def look(self, handle: str, **changed: Any) -> PageUpdate:
        """Show the picture otherwise.

        Args:
            changed: One or more of window (None: the file's own), frame or slice, and plane.
        """
        case = self.cases.get(handle)
        if case is None or case.data is None:
            return PageUpdate(picture_notice=ENDED)
        async with case.looking:
            view = {"window": case.window, "frame": case.frame, "plane": case.plane} | changed
            try:
                picture = await self.service.decoding.open(case.data, **view)
            except MedMoeError as error:
                return PageUpdate(picture_notice=sentence(error))
            case.picture = picture
            case.window, case.frame, case.plane = view["window"], view["frame"], view["plane"]
            self.cases.touch(case)
        return PageUpdate(picture=told(picture))

    async def ask(
        self, question: str, handle: str, explain: bool, again: bool = False
    ) -> AsyncGenerator[PageUpdate]:
        """Answer a question, word by word, and then say what is behind the answer.

        Args:
            again: The last question instead of a new one; its answer is forgotten.
        """
        known = self.cases.get(handle) if again else None
        if known is not None and known.exchanges:
            question = known.exchanges.pop().question
        question = " ".join(question.split())
        case = self._case_for(question, handle)
        if isinstance(case, PageUpdate):
            yield case
            return
        picture, settings = case.picture, self.service.settings
        ends = asyncio.get_running_loop().time() + settings.deadline_seconds
        exchange, request = case.ask(question, settings.usual_new_tokens)
        number = len(case.exchanges) - 1
        yield PageUpdate("", case.handle, None, number, _whole(case), "Answering …", "", busy=True)
        try:
            stream = self.service.page_stream(request)
            async with aclosing(stream) as chunks:  # a page that is left frees the engine
                async for chunk in chunks:
                    exchange.take(chunk)
                    new = {"number": number, "answer": exchange.answer}
                    yield PageUpdate(exchange=new, pending="Answering …")
        except Exception as error:
            yield PageUpdate(_failure(error), exchange=_whole(case), busy=False)
            return
        if picture is None or not (explain and self.service.engine.explains):
            yield PageUpdate(exchange=_whole(case), busy=False)
            return
        yield PageUpdate(exchange=_whole(case), pending="Looking at regions and alternatives …")
        yield await self._explained(case, exchange, picture, ends)

    def anew(self, handle: str) -> PageUpdate:
        """Forget the conversation and keep the picture."""
        case = self.cases.get(handle)
        if case is not None:
            case.exchanges.clear()
        return PageUpdate(exchanges=0, busy=False)

    def stopped(self, handle: str) -> PageUpdate:
        """Show what there is of an answer that was stopped."""
        case = self.cases.get(handle)
        if case is None or not case.exchanges:
            return PageUpdate(busy=False)
        return PageUpdate("Stopped.", exchange=_whole(case), busy=False)

    def _case_for(self, question: str, handle: str) -> OpenCase | PageUpdate:
        """Return the case of a question, or why it cannot be asked."""
        case = self.cases.get(handle) if handle else None
        if not question:
            return PageUpdate("Type a question first.")
        if len(question) > MAX_QUESTION:
            return PageUpdate(f"The question is too long: at most {MAX_QUESTION} characters.")
        if handle and case is None:
            return PageUpdate(ENDED)
        if case is None:
            case = self.cases.open()
        if len(case.exchanges) >= MAX_EXCHANGES:
            return PageUpdate("This conversation is full: open the picture again.")
        return case

    async def _explained(
        self, case: OpenCase, exchange: Exchange, picture: Picture, ends: float
    ) -> PageUpdate:
        said = ""
        try:
            async with asyncio.timeout_at(ends):
                exchange.evidence = await self.service.explain(picture.image, exchange.question)
        except Exception as error:
            said = _failure(error)
        return PageUpdate(said, exchange=_whole(case, picture), busy=False)


def told(picture: Picture) -> dict[str, Any]:
    """Return what the page tells of a picture, in words and as `ImageFacts`."""
    facts = picture.facts
    return {
        "caption": described(facts), "warnings": facts.sentences(), "facts": asdict(facts),
    }  # fmt: skip


def _whole(case: OpenCase, picture: Picture | None = None) -> dict[str, Any]:
    """Return all of the last exchange of a case, with its regions over a picture."""
    exchange = case.exchanges[-1]
    whole = {"number": len(case.exchanges) - 1, **exchange.to_json()}
    if picture is not None and exchange.evidence:
        size = picture.image.size
        cells = cells_of(exchange.evidence, size, size)
        whole["regions"] = {"size": size, "cells": [asdict(cell) for cell in cells]}
    return whole


def sentence(error: MedMoeError) -> str:
    """Return an error as a line for the page."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _failure(error: Exception) -> str:
    """Return why the engine gave nothing, as a line for the page; the log has no words of it."""
    if isinstance(error, TimeoutError):
        error = late()
    if isinstance(error, MedMoeError):
        return sentence(error)
    _log.error("the engine failed: %s", type(error).__name__)
    return "The server could not answer; ask again, or tell who runs it."


@cache
def _example(name: str) -> Any:
    from medmoe.data.phantom import read_phantom

    for record in read_phantom("test", 24, seed=7):
        if record.image.modality == name and record.image.labels.get("finding") == "nodule":
            return np.asarray(record.image.source)
    raise AssertionError(name)
