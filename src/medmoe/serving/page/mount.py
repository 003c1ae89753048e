"""Puts the page into the server's app: the page itself at `/`, and what its script calls.

``POST /page/picture`` takes the bytes of a picture; ``POST /page/ask`` answers a question, a line
of JSON for each change of the page; ``POST /page/call/…`` does what the other controls say; ``GET
/page/line/…`` stays open as long as the page does; ``POST /page/export`` gives a case back as JSON,
HTML or text. None knows the name of a file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from medmoe.data.intake.display import Plane
from medmoe.data.intake.limits import Limits
from medmoe.errors import MedMoeError
from medmoe.inference.case import case_to_json, case_to_text
from medmoe.serving.page.actions import ENDED, EXAMPLES, PageActions, PageUpdate, sentence
from medmoe.serving.page.cases import CaseStore, OpenCase
from medmoe.serving.page.views import asset, data_uri, export_html, page_html
from medmoe.serving.problems import ProblemError, check_type, problem_of
from medmoe.serving.service import Service
from medmoe.serving.transport import Stream

#: Bytes of one call of a control: a question and some numbers.
MAX_CALL = 2**16
#: Seconds between two signs of life on the line of a page.
_BEAT_SECONDS = 15.0
_ASSETS = {"style.css": "text/css", "script.js": "text/javascript"}
#: Nothing from elsewhere, no script or style but our files, no frame around the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STRICT = ConfigDict(extra="forbid", strict=True)


class Call(BaseModel):
    """What a control of the page says.

    Attributes:
        window: The name of a preset, center and width, or None for the file's own.
    """

    model_config = _STRICT

    handle: str = ""
    question: str = ""
    explain: bool = False
    example: str = ""
    window: str | tuple[float, float] | None = None
    frame: int = 1
    plane: Plane | None = None


class Export(BaseModel):
    """What `POST /page/export` takes."""

    model_config = _STRICT

    handle: str
    format: Literal["json", "html", "txt"]
    picture: bool = False


Body = TypeVar("Body", bound=BaseModel)


def mount_page(app: FastAPI, service: Service, cases: CaseStore) -> None:
    """Put the page at `/`.

    Args:
        app: The server's; its middleware (sign-in, limits, headers) holds for the page too.
    """
    actions, model = PageActions(service, cases), service.engine.facts.id

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        html = page_html(model, EXAMPLES, service.engine.explains)
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})

    @app.get("/page/{name}", include_in_schema=False)
    async def own_file(name: str) -> Response:
        if name not in _ASSETS:
            raise ProblemError(404, "not_found", "there is nothing at this address")
        headers = {"Cache-Control": "no-cache"}
        return Response(asset(name), media_type=_ASSETS[name], headers=headers)

    @app.post("/page/picture", include_in_schema=False)
    async def picture(request: Request) -> Response:
        # A form of another site cannot send this type, and a script of another site may not.
        check_type(request, "application/octet-stream")
        try:
            data = await request.body()
            Limits().check_file(len(data))
            case = await actions.receive(data)
        except MedMoeError as error:
            problem = problem_of(error)
            problem.message = sentence(error)
            raise problem from None
        return _reply(await actions.show(case.handle), actions)

    @app.post("/page/call/{name}", include_in_schema=False)
    async def call(name: str, request: Request) -> Response:
        said = await _read(request, Call)
        return _reply(await _called(name, said, actions), actions)

    @app.post("/page/ask", include_in_schema=False)
    async def ask(request: Request) -> Response:
        said = await _read(request, Call)
        updates = actions.ask(said.question, said.handle, said.explain)
        return Stream(_lines(updates, actions), media_type="application/x-ndjson")

    @app.get("/page/line/{handle}", include_in_schema=False)
    async def line(handle: str) -> Response:
        case = actions.cases.get(handle)
        if case is None:
            raise ProblemError(404, "no_case", ENDED)
        return Stream(_beats(actions.cases, case), media_type="text/event-stream")

    @app.post("/page/export", include_in_schema=False)
    async def export(request: Request) -> Response:
        wanted = await _read(request, Export)
        case = actions.cases.get(wanted.handle)
        if case is None or not case.exchanges:
            raise ProblemError(404, "no_case", "There is no answer to save yet.")
        return await asyncio.to_thread(_exported, case, model, wanted)


async def _called(name: str, said: Call, actions: PageActions) -> PageUpdate:
    """Do what a control says."""
    if name == "example" and said.example in EXAMPLES:
        return await actions.example(said.example)
    if name in ("window", "frame"):
        return await actions.look(said.handle, **{name: getattr(said, name)})
    if name == "plane":
        return await actions.look(said.handle, plane=said.plane, frame=None)
    if name == "anew":
        return await actions.anew(said.handle)
    if name == "stopped":
        return actions.stopped(said.handle)
    raise ProblemError(404, "not_found", "there is nothing at this address")


def _reply(update: PageUpdate, actions: PageActions) -> Response:
    return JSONResponse(update.to_json(actions.service.engine.explains))


async def _lines(
    updates: AsyncGenerator[PageUpdate], actions: PageActions
) -> AsyncGenerator[bytes]:
    async with aclosing(updates):
        async for update in updates:
            yield json.dumps(update.to_json(actions.service.engine.explains)).encode() + b"\n"


async def _beats(cases: CaseStore, case: OpenCase) -> AsyncGenerator[bytes]:
    """Keep a line to the page that shows a case open; when it ends, the page was closed."""
    with cases.shown(case):
        while True:
            yield b":\n\n"
            await asyncio.sleep(_BEAT_SECONDS)


async def _read(request: Request, kind: type[Body]) -> Body:
    """Return the body of a call.

    Raises:
        ProblemError: It is too large, or none.
    """
    check_type(request, "application/json")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_CALL:
            raise ProblemError(413, "request_too_large", "the request is too large")
    try:
        return kind.model_validate_json(bytes(data))
    except ValidationError:
        names = ", ".join(kind.model_fields)
        raise ProblemError(400, "bad_request", f"no object of {names}, of the page's") from None


def _exported(case: OpenCase, model: str, wanted: Export) -> Response:
    shown = case.picture if wanted.picture else None
    if wanted.format == "txt":
        return PlainTextResponse(case_to_text(model, case.exchanges))
    if wanted.format == "html":
        page = export_html(model, case.exchanges, shown)
        # As text to be saved, never as a page of this server.
        return Response(page, media_type="application/octet-stream")
    content: dict[str, Any] = case_to_json(
        model, case.exchanges, data_uri(shown.image) if shown else None
    )
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    return Response(text + "\n", media_type="application/json")
