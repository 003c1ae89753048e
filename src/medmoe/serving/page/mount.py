"""Mounts the page into the server's app at `/`: Gradio behind a filter, and two routes of our own.

``POST /page/picture`` takes the bytes of a picture and gives the handle of a case; ``POST
/page/export`` gives a case back as JSON, HTML or text. Neither knows the name of a file.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect

from medmoe.data.intake.limits import Limits
from medmoe.errors import ConfigError, ImageError
from medmoe.inference.case import case_to_json, case_to_text
from medmoe.serving.chat_engine import AnsweringEngine
from medmoe.serving.page.actions import PageActions, sentence
from medmoe.serving.page.cases import CaseStore, OpenCase
from medmoe.serving.page.gradio_filter import GradioFilter
from medmoe.serving.page.views import asset, data_uri, export_html
from medmoe.serving.problems import ProblemError, check_type

TITLE = "medmoe: research use only, not a medical device"
UPLOAD_SECONDS = 60.0
#: Files of the largest size that may be under way at once.
UPLOADS = 4
_ASSETS = {"style.css": "text/css", "script.js": "text/javascript"}


class Export(BaseModel):
    """What `POST /page/export` takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    handle: str
    format: Literal["json", "html", "txt"]
    picture: bool = False


def check_gradio() -> None:
    """Refuse a page that cannot be, before anything is loaded.

    Raises:
        ConfigError: Gradio (extra ``serve``) is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise _missing("gradio")


def _missing(module: str | None) -> ConfigError:
    return ConfigError(
        f"{module} is not installed, which the page needs; run pip install 'medmoe[serve]', or "
        "serve without a page: --no-page"
    )


def mount_page(
    app: FastAPI,
    engine: AnsweringEngine,
    *,
    max_new_tokens: int = 64,
    cases: CaseStore | None = None,
) -> None:
    """Mount the page at `/`, behind all other routes of the app.

    Args:
        app: The server's; its own middleware (sign-in, limits, headers) holds for the page too.
        cases: The open ones; by default a store with the default bounds.

    Raises:
        ConfigError: Gradio (extra ``serve``), or a part of it, is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import: nothing leaves the host
    try:
        import gradio as gr

        from medmoe.serving.page.layout import Layout, forget_sessions, theme
    except ImportError as error:
        raise _missing(error.name) from None

    actions = PageActions(engine, cases if cases is not None else CaseStore(), max_new_tokens)
    model = engine.describe().id
    _own_routes(app, actions, model)
    blocks = Layout(actions, model).blocks
    blocks.queue(max_size=256, default_concurrency_limit=None, api_open=False)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        app_kwargs={
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
            "middleware": [Middleware(GradioFilter, title=TITLE)],
        },
    )
    forget_sessions(app, blocks)


class _Uploads:
    """Receives pictures in memory, all that are under way within one bound."""

    def __init__(self, limit: int) -> None:
        self._limit, self._under_way = limit, 0

    async def receive(self, request: Request) -> bytes:
        """Return the bytes.

        Raises:
            ProblemError: They are too many, too slow, or cut off.
        """
        data = bytearray()
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                async for part in request.stream():
                    data += part
                    self._under_way += len(part)
                    if len(data) > self._limit:
                        reason = f"At most {self._limit // 2**20} MiB a file are accepted."
                        raise ProblemError(413, "image_too_large", reason)
                    if self._under_way > UPLOADS * self._limit:
                        reason = "Too many pictures come in; try again."
                        raise ProblemError(429, "busy", reason, retry_after=2)
        except TimeoutError:
            reason = "The picture came in too slowly; try again."
            raise ProblemError(408, "too_slow", reason) from None
        except ClientDisconnect:
            raise ProblemError(400, "cut_off", "The picture was cut off.") from None
        finally:
            self._under_way -= len(data)
        return bytes(data)


def _own_routes(app: FastAPI, actions: PageActions, model: str) -> None:
    uploads = _Uploads(Limits().max_file_bytes)

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
            case = await actions.receive(await uploads.receive(request))
        except ImageError as error:
            raise ProblemError(error.status, error.code, sentence(error)) from None
        return JSONResponse({"handle": case.handle})

    @app.post("/page/export", include_in_schema=False)
    async def export(request: Request) -> Response:
        check_type(request, "application/json")
        try:
            wanted = Export.model_validate_json(await request.body())
        except ValidationError:
            reason = "handle, format (json, html, txt) and picture"
            raise ProblemError(400, "bad_request", reason) from None
        case = actions.cases.get(wanted.handle)
        if case is None or not case.exchanges:
            raise ProblemError(404, "no_case", "There is no answer to save yet.")
        return await asyncio.to_thread(_exported, case, model, wanted)


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
