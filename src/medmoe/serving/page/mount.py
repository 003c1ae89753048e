"""Puts the page into the server's app: the page itself at `/`, and what its script calls.

The page is built from the sources in ``page/`` of the repository (`make page`). ``POST
/page/picture`` takes the bytes of a picture; ``POST /page/pixels`` gives a frame of it to the
viewer; ``POST /page/ask`` answers a question, a line of JSON for each change of the page; ``POST
/page/call/…`` does what the other controls say; ``GET /page/line/…`` stays open as long as the page
does; ``POST /page/export`` gives a case back as JSON, HTML or text. None knows the name of a file.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cache
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from medmoe.data.intake.display import WINDOW_PRESETS, Plane
from medmoe.data.intake.limits import Limits
from medmoe.errors import MedMoeError
from medmoe.inference.case import case_to_json, case_to_text
from medmoe.serving.page.actions import ENDED, EXAMPLES, PageActions, PageUpdate, sentence
from medmoe.serving.page.cases import CaseStore, OpenCase
from medmoe.serving.page.views import asset, data_uri, export_html
from medmoe.serving.problems import ProblemError, check_type, problem_of
from medmoe.serving.service import Service
from medmoe.serving.transport import Stream

#: Bytes of one call of a control: a question and some numbers.
MAX_CALL = 2**16
#: Seconds between two signs of life on the line of a page.
_BEAT_SECONDS = 15.0
_BUILT = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
#: Nothing from elsewhere, no script or style but our files, no frame around the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_STRICT = ConfigDict(extra="forbid", strict=True)


class Call(BaseModel):
    """What a control of the page says.

    Attributes:
        again: Whether the last question is asked once more.
        window: The name of a preset, center and width, or None for the file's own.
        frame: From 1; None for the default of the format.
    """

    model_config = _STRICT

    handle: str = ""
    question: str = ""
    explain: bool = False
    again: bool = False
    example: str = ""
    window: str | tuple[float, float] | None = None
    frame: int | None = None
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
    _own_files(app, service)

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
        return JSONResponse(actions.show(case.handle).to_json())

    @app.post("/page/pixels", include_in_schema=False)
    async def pixels(request: Request) -> Response:
        said = await read_call(request, Call)
        shown = await actions.pixels(said.handle, said.frame, said.plane)
        return Response(shown, media_type="application/octet-stream")

    @app.post("/page/call/{name}", include_in_schema=False)
    async def call(name: str, request: Request) -> Response:
        said = await read_call(request, Call)
        return JSONResponse((await _called(name, said, actions)).to_json())

    @app.post("/page/ask", include_in_schema=False)
    async def ask(request: Request) -> Response:
        said = await read_call(request, Call)
        updates = actions.ask(said.question, said.handle, said.explain, said.again)
        return Stream(_lines(updates), media_type="application/x-ndjson")

    @app.get("/page/line/{handle}", include_in_schema=False)
    async def line(handle: str) -> Response:
        case = actions.cases.get(handle)
        if case is None:
            raise ProblemError(404, "no_case", ENDED)
        return Stream(_beats(actions.cases, case), media_type="text/event-stream")

    @app.post("/page/export", include_in_schema=False)
    async def export(request: Request) -> Response:
        wanted = await read_call(request, Export)
        case = actions.cases.get(wanted.handle)
        if case is None or not case.exchanges:
            raise ProblemError(404, "no_case", "There is no answer to save yet.")
        return await asyncio.to_thread(_exported, case, model, wanted)


def _own_files(app: FastAPI, service: Service) -> None:
    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return _built("index.html", request)

    @app.get("/page/about", include_in_schema=False)
    async def told() -> Response:
        watch, engine = service.monitor, service.engine
        about = {"model": engine.facts.id, "explains": engine.explains}
        about |= {"presets": WINDOW_PRESETS, "examples": EXAMPLES}
        return JSONResponse(about | {"drift": watch.standing() if watch else None})

    @app.get("/page/{name}", include_in_schema=False)
    async def own_file(name: str, request: Request) -> Response:
        if name not in _BUILT:
            raise ProblemError(404, "not_found", "there is nothing at this address")
        return _built(name, request)


async def _called(name: str, said: Call, actions: PageActions) -> PageUpdate:
    """Do what a control says."""
    if name == "example" and said.example in EXAMPLES:
        return await actions.example(said.example)
    if name == "look":
        wanted = {"window": said.window, "frame": said.frame, "plane": said.plane}
        return await actions.look(said.handle, **wanted)
    if name == "anew":
        return actions.anew(said.handle)
    if name == "stopped":
        return actions.stopped(said.handle)
    raise ProblemError(404, "not_found", "there is nothing at this address")


@cache
def _compressed(name: str) -> tuple[bytes, str]:
    """Return a built file, compressed, and the tag by which a browser knows it."""
    body = asset(f"built/{name}.gz")
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _built(name: str, request: Request) -> Response:
    """Return a file of the page: only its tag where the browser has it already."""
    body, tag = _compressed(name)
    headers = {
        "Cache-Control": "private, no-cache", "ETag": tag, "Content-Encoding": "gzip",
        "Content-Security-Policy": POLICY,
    }  # fmt: skip
    if request.headers.get("if-none-match") == tag:
        return Response(None, 304, headers)
    if "gzip" not in request.headers.get("accept-encoding", ""):
        body = gzip.decompress(body)
        del headers["Content-Encoding"]
    return Response(body, headers=headers, media_type=_BUILT[name])


async def _lines(updates: AsyncGenerator[PageUpdate]) -> AsyncGenerator[bytes]:
    async with aclosing(updates):
        async for update in updates:
            yield json.dumps(update.to_json()).encode() + b"\n"


async def _beats(cases: CaseStore, case: OpenCase) -> AsyncGenerator[bytes]:
    """Keep a line to the page that shows a case open; when it ends, the page was closed."""
    with cases.shown(case):
        while True:
            yield b":\n\n"
            await asyncio.sleep(_BEAT_SECONDS)


async def read_call(request: Request, kind: type[Body]) -> Body:
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
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ascii(fault["loc"][0]).strip("'")[:40] if fault["loc"] else "the body"
        raise ProblemError(400, "bad_request", f"{where}: {fault['msg'][:200].lower()}") from None


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
