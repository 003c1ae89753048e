"""`POST /v1/dicomweb`: a question about an instance of the operator's DICOMweb server.

A request names UIDs, in its body, so that no log of addresses has them. Where it says ``write``,
the answer goes back: a Structured Report and a Secondary Capture of the evidence card.
"""

from __future__ import annotations

import asyncio
import re
import textwrap
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Annotated, Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image, ImageColor, ImageDraw, ImageFont
from pydantic import Field

from medmoe import __version__
from medmoe.data.intake.limits import Limits
from medmoe.data.intake.sandbox import DecoderPool, told
from medmoe.errors import ImageError
from medmoe.inference.case import Case, Exchange, case_to_text
from medmoe.numbers import probability
from medmoe.serving.aside import Aside
from medmoe.serving.chat_engine import no_evidence
from medmoe.serving.chat_route import unless_left
from medmoe.serving.dicomweb.client import DicomWeb, failed
from medmoe.serving.page.mount import read_call
from medmoe.serving.page.views import cells_of
from medmoe.serving.schema import Options
from medmoe.serving.service import DICOMWEB_PATH, Service
from medmoe.serving.settings import NOTICE

_UID = r"^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+$"
Uid = Annotated[str, Field(pattern=_UID, max_length=64)]
MOST_INSTANCES = 5000
_FILES = 'multipart/related; type="application/dicom"'
_LIST = "application/dicom+json"
#: Of the card, in pixels: its picture's longest side, margins, lines, their width; their letters.
_SIDE, _MARGIN, _LINE, _WIDTH, _LETTERS = 640, 16, 24, 560, 56


class Asked(Options):
    """The body; by default the middle instance of the series, and nothing is written back."""

    study: Uid
    series: Uid
    instance: Uid | None = None
    question: Annotated[str, Field(pattern=r"\S", max_length=2000)]
    write: bool = False


def mount_dicomweb(app: FastAPI, service: Service, url: str) -> None:
    """Put the route into the server's app, or raise `ConfigError` of the address."""
    server = DicomWeb(url, service.settings.dicomweb_login)
    limits = Limits(max_file_bytes=2 * Limits().max_file_bytes)  # a card before the file
    pool = DecoderPool(1, limits, ["medmoe.serving.dicomweb.objects"])
    aside = Aside(4, 16, "medmoe-dicomweb")
    body = {"content": {"application/json": {"schema": Asked.model_json_schema()}}}

    @app.post(DICOMWEB_PATH, openapi_extra={"requestBody": body | {"required": True}})
    async def ask(request: Request) -> Response:
        """Answer a question about an instance of the DICOMweb server."""
        asked = await read_call(request, Asked)
        if asked.evidence and not service.engine.explains:
            raise no_evidence()
        reply = JSONResponse(await unless_left(request, answer(asked, request.state)))
        request.state.record.answered()
        return reply

    async def answer(asked: Asked, state: Any) -> dict[str, Any]:
        started = time.perf_counter()
        ends = time.monotonic() + state.ends - asyncio.get_running_loop().time()
        found, file = await aside.run(partial(_fetch, server, pool, asked, ends))
        picture = await service.decoding.open(file, hint="dicom", **asked.view())
        exchange, request = Case(picture).ask(asked.question, service.settings.usual_new_tokens)
        state.record.image = service.image_hash(request.images)
        stream = service.stream(request, started, ends - time.monotonic())
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                exchange.take(chunk)
        if asked.evidence:
            exchange.evidence = await service.explain(picture.image, asked.question)
        model = service.engine.facts
        reply = {"notice": NOTICE, "model": model.id, **found, **exchange.to_json()}
        if asked.write:
            lines, facts = _lines(model.id, exchange), picture.facts
            card = await asyncio.to_thread(_card, picture.image, lines, exchange.evidence)
            boundary, uids = uuid4().hex, [f"2.25.{uuid4().int}" for _ in range(4)]
            values = {
                "size": card.size, "frame": facts.frame if facts.frames > 1 else None,
                "lines": lines, "uids": uids, "boundary": boundary,
                "model": [f"2.25.{int(model.sha256[:32], 16)}", model.id[:64], __version__],
            }  # fmt: skip
            data = card.tobytes() + file
            _, objects = await aside.run(partial(pool.do, "report", data, values, told))
            path, kind = f"/studies/{asked.study}", f"{_FILES}; boundary={boundary}"
            await aside.run(partial(server.ask, path, _LIST, ends, bytes(objects), kind))
            reply["written"] = {"report": uids[1], "card": uids[3]}
        return reply


def _fetch(
    server: DicomWeb, pool: DecoderPool, asked: Asked, ends: float
) -> tuple[dict[str, Any], bytes]:
    """Return the UIDs of the instance, and its file."""
    found = asked.model_dump(include={"study", "series", "instance"})
    path = f"/studies/{asked.study}/series/{asked.series}/instances"
    try:
        if asked.instance is None:
            query = f"{path}?includefield=00200013&limit={MOST_INSTANCES + 1}"
            listed = server.ask(query, _LIST, ends)
            found |= pool.do("choose", listed, {"most": MOST_INSTANCES}, told)[0]
            if not re.fullmatch(_UID, found["instance"]):
                raise failed("has no such series", 404)
        sent = server.ask(f"{path}/{found['instance']}", f"{_FILES}; transfer-syntax=*", ends)
        uids = [found[name] for name in ("study", "series", "instance")]
        return found, bytes(pool.do("unpack", sent, {"uids": uids}, told)[1])
    except ImageError as error:
        raise error if error.status == 413 else failed(str(error)) from None


def _lines(model: str, exchange: Exchange) -> list[str]:
    """Return what report and card say, the notice first."""
    evidence, routing = exchange.evidence, exchange.routing
    said = replace(exchange, question=_line(exchange.question), answer=_line(exchange.answer))
    lines = case_to_text(model, [said]).splitlines()
    if routing is not None:
        lines.append(f"Domain: {routing.domain}, {probability(routing.domain_probability)}")
    if evidence is not None:
        for one in evidence["alternatives"]:
            lines.append(f"Possible answer: {one['text']}, {probability(one['probability'])}")
        for one in evidence["counterfactuals"]:
            lines.append(f"With {one['change']}: {one['answer']}, {probability(one['confidence'])}")
        passed = "passed" if evidence["attribution"]["deletion"]["passed"] else "not passed"
        lines.append(f"Regions: orange for the answer, blue against; deletion test {passed}")
    lines.append("Left and right: the patient's, in a usual axial slice left is the viewer's right")
    return [_line(line) for line in lines if line]


def _line(text: str) -> str:
    """Return a text in one line, without what neither a report nor a card can show."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:2000]


def _card(image: Image.Image, lines: Sequence[str], evidence: dict[str, Any] | None) -> Image.Image:
    """Return the picture with its regions, and beside it all lines."""
    scale = _SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    text = [part for line in lines for part in textwrap.wrap(line, _LETTERS)]
    height = max(size[1], _LINE * len(text)) + 2 * _MARGIN
    card = Image.new("RGB", (size[0] + _WIDTH + 3 * _MARGIN, height))
    card.paste(image.resize(size), (_MARGIN, _MARGIN))
    draw, font = ImageDraw.Draw(card, "RGBA"), ImageFont.load_default(18)
    for cell in cells_of(evidence, image.size, size) if evidence else ():
        x, y = cell.x + _MARGIN, cell.y + _MARGIN
        fill = (*ImageColor.getrgb(cell.colour)[:3], round(255 * cell.opacity))
        box = (x, y, x + cell.width - 1, y + cell.height - 1)
        draw.rectangle(box, fill, "white" if cell.rank else None)
        draw.text((x + 4, y + 2), str(cell.rank or ""), "white", font)
    for number, line in enumerate(text):
        draw.text((size[0] + 2 * _MARGIN, _MARGIN + _LINE * number), line, "white", font)
    return card
