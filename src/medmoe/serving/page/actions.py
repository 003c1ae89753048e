"""What the controls of the page do: open, look, ask, stop. It knows the engine, not the layout.

Each action changes a case and returns what changes on the page (`PageUpdate`). Pictures are decoded
by the sandbox's processes and drawn in a thread, so that the event loop is free meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from medmoe.data.images import Picture, open_picture
from medmoe.data.intake.display import WINDOW_PRESETS
from medmoe.errors import MedMoeError
from medmoe.inference.case import Exchange
from medmoe.serving.chat_engine import late
from medmoe.serving.page.cases import CaseStore, OpenCase
from medmoe.serving.page.views import card_html, evidence_html, picture_html
from medmoe.serving.service import Service

#: Example -> what the button says, and a question to begin with. The pictures are made up.
EXAMPLES: dict[str, tuple[str, str]] = {
    "ct": ("CT", "Is there any nodule?"),
    "mri": ("MRI", "What organ is shown in the image?"),
    "pathology": ("Pathology", "What is the modality of the image?"),
    "xray": ("X-ray", "Which side is the finding on?"),
}
AS_FILE, OWN = "as the file says", "own"
#: Center and width that the sliders reach for CT, in Hounsfield units.
CT_CENTER, CT_WIDTH = (-1200.0, 3000.0), (1.0, 4000.0)
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
        picture, evidence: HTML; empty for none.
        messages: The conversation, as ``{"role", "content"}``.
        controls: Of a picture that was just opened: its windows and frames, each None for none,
            and whether it has planes; of one in another plane its frames alone.
        window: Center and width that it is shown in.
    """

    notice: str = ""
    handle: str | None = None
    picture: str | None = None
    evidence: str | None = None
    messages: list[dict[str, str]] | None = None
    question: str | None = None
    busy: bool | None = None
    picture_notice: str = ""
    controls: dict[str, Any] | None = None
    window: tuple[float, float] | None = None

    def to_json(self, explains: bool) -> dict[str, Any]:
        """Return what the page's script puts into its places.

        Args:
            explains: Whether the card has evidence.
        """
        parts = {name: value for name, value in asdict(self).items() if value is not None}
        if self.evidence is not None:
            parts["evidence"] = card_html(explains, self.evidence)
        return parts


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

    async def show(self, handle: str) -> PageUpdate:
        """Show a case that was just opened."""
        case = self.cases.get(handle)
        if case is None or case.picture is None:
            return PageUpdate("", "", "", "", [], busy=False, picture_notice=ENDED)
        return PageUpdate(
            "", handle, await self._drawn(case), "", [], busy=False, controls=controls_of(case)
        )

    async def example(self, name: str) -> PageUpdate:
        """Open a made-up picture and propose a question."""
        pixels = await asyncio.to_thread(_example, name)
        case = self.cases.open(picture=open_picture(pixels))
        return replace(await self.show(case.handle), question=EXAMPLES[name][1])

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
        shown = picture.facts.window
        values = (shown.center, shown.width) if shown else None
        # Each plane has slices of its own.
        controls = {"frame": controls_of(case)["frame"]} if "plane" in changed else None
        return PageUpdate(picture=await self._drawn(case), window=values, controls=controls)

    async def ask(self, question: str, handle: str, explain: bool) -> AsyncGenerator[PageUpdate]:
        """Answer a question, word by word, and then say what is behind the answer."""
        question = " ".join(question.split())
        case = self._case_for(question, handle)
        if isinstance(case, PageUpdate):
            yield case
            return
        picture, settings = case.picture, self.service.settings
        ends = asyncio.get_running_loop().time() + settings.deadline_seconds
        exchange, request = case.ask(question, settings.usual_new_tokens)
        pending = evidence_html(exchange, "Answering …")
        yield PageUpdate("", case.handle, None, pending, _messages(case), "", busy=True)
        try:
            stream = self.service.page_stream(request)
            async with aclosing(stream) as chunks:  # a page that is left frees the engine
                async for chunk in chunks:
                    exchange.take(chunk)
                    yield PageUpdate(messages=_messages(case))
        except Exception as error:
            yield PageUpdate(_failure(error), evidence=evidence_html(exchange), busy=False)
            return
        if picture is None or not (explain and self.service.engine.explains):
            yield PageUpdate(evidence=evidence_html(exchange), busy=False)
            return
        yield PageUpdate(evidence=evidence_html(exchange, "Looking at regions and alternatives …"))
        yield await self._explained(case, exchange, picture, ends)

    async def anew(self, handle: str) -> PageUpdate:
        """Forget the conversation and keep the picture."""
        case = self.cases.get(handle)
        if case is None:
            return PageUpdate(evidence="", messages=[], busy=False)
        case.exchanges.clear()
        drawn = await self._drawn(case) if case.picture else None
        return PageUpdate(picture=drawn, evidence="", messages=[], busy=False)

    def stopped(self, handle: str) -> PageUpdate:
        """Show what there is of an answer that was stopped."""
        case = self.cases.get(handle)
        if case is None or not case.exchanges:
            return PageUpdate(busy=False)
        return PageUpdate(
            "Stopped.",
            evidence=evidence_html(case.exchanges[-1]),
            messages=_messages(case),
            busy=False,
        )

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

    async def _drawn(self, case: OpenCase) -> str:
        """Return the picture, with the last answer's regions if they are of this very view."""
        picture = case.picture
        assert picture is not None
        last = case.exchanges[-1] if case.exchanges else None
        evidence = last.evidence if last is not None and last.picture == picture.facts else None
        return await asyncio.to_thread(picture_html, picture, evidence)

    async def _explained(
        self, case: OpenCase, exchange: Exchange, picture: Picture, ends: float
    ) -> PageUpdate:
        said = ""
        try:
            async with asyncio.timeout_at(ends):
                exchange.evidence = await self.service.explain(picture.image, exchange.question)
        except Exception as error:
            said = _failure(error)
        card = evidence_html(exchange, said)
        return PageUpdate(picture=await self._drawn(case), evidence=card, busy=False)


def controls_of(case: OpenCase) -> dict[str, Any]:
    """Return the windows, frames and planes of a case's file, as the page's controls show them."""
    facts = case.picture.facts if case.picture is not None else None
    controls: dict[str, Any] = {"window": None, "frame": None, "plane": False}
    if facts is None or case.data is None:
        return controls
    controls["plane"] = facts.format == "nifti"
    if facts.frames > 1:
        label = f"{'Frame' if facts.format == 'dicom' else 'Slice'}, 1 to {facts.frames}"
        controls["frame"] = {"label": label, "slider": _slider((1, facts.frames), facts.frame, 1)}
    if facts.window is not None:
        center, width = facts.window.center, facts.window.width
        centers, widths = (center - width, center + width), (width / 100, 4 * width)
        if facts.modality == "ct":  # all that CT has, else around the first window
            centers = (min(CT_CENTER[0], center), max(CT_CENTER[1], center))
            widths = (min(CT_WIDTH[0], width), max(CT_WIDTH[1], width))
        presets = sorted(WINDOW_PRESETS) if facts.modality in (None, "ct") else []
        controls["window"] = {
            "presets": [AS_FILE, *presets, OWN],
            "center": _slider(centers, center),
            "width": _slider(widths, width),
        }
    return controls


def _slider(
    reach: tuple[float, float], value: float, step: float | None = None
) -> dict[str, float]:
    length = reach[1] - reach[0]
    step = step or (1.0 if length >= 200 else length / 200)
    return {"min": reach[0], "max": reach[1], "step": step, "value": value}


def _messages(case: OpenCase) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    for exchange in case.exchanges:
        messages.append({"role": "user", "content": exchange.question})
        if exchange.answer:
            messages.append({"role": "assistant", "content": exchange.answer.strip()})
    return messages


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
