"""The server's routes, put together; what holds for all of them is `medmoe.serving.transport`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from medmoe import __version__
from medmoe.data.intake.limits import Limits
from medmoe.errors import MedMoeError
from medmoe.serving.access import (
    COOKIE,
    LOGIN_POLICY,
    SESSION_SECONDS,
    Access,
    came_by_tls,
    login_page,
)
from medmoe.serving.audit import AuditLog
from medmoe.serving.chat_engine import ChatEngine
from medmoe.serving.chat_route import complete
from medmoe.serving.monitor import Monitor
from medmoe.serving.problems import ProblemError, check_type, problem_of
from medmoe.serving.responses import events, read_response, whole
from medmoe.serving.schema import ChatBody
from medmoe.serving.service import CHAT_PATH, RESPONSES_PATH, Admission, Service
from medmoe.serving.settings import NOTICE, ServerSettings
from medmoe.serving.transport import Transport

_MAX_FORM = 4096


def create_app(
    engine: ChatEngine,
    settings: ServerSettings,
    *,
    audit: AuditLog | None = None,
    monitor: Monitor | None = None,
    page: bool = True,
    started: Callable[[], None] | None = None,
) -> FastAPI:
    """Return the server as an ASGI app.

    Args:
        engine: Answers; it is not started here.
        audit: None where no log is kept.
        monitor: None where drift is not watched.
        page: Whether the page is mounted at `/`.
        started: Called when the server starts, before anything is answered.
    """
    service = Service(engine, settings, audit, monitor)
    access = Access(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.note("start")
        if started is not None:
            started()
        yield
        service.note("stop")

    app = FastAPI(
        title="medmoe", version=__version__, description=f"{NOTICE}.", lifespan=lifespan,
        docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    _health(app, service)
    _openai(app, service)
    _files(app, service)
    _sign_in(app, access)
    answer_problems(app)
    if settings.dicomweb is not None:
        from medmoe.serving.dicomweb.route import mount_dicomweb

        mount_dicomweb(app, service, settings.dicomweb)
    if page:
        from medmoe.serving.page.cases import CaseStore
        from medmoe.serving.page.mount import mount_page

        mount_page(app, service, CaseStore())
    app.add_middleware(Admission, service=service)
    app.add_middleware(Transport, settings=settings, access=access, metrics=service.metrics)
    if settings.cors_origins:  # outermost: what a browser asks beforehand has no token
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_headers=["*"],
            allow_methods=["GET", "POST", "DELETE"],
            expose_headers=["retry-after", "x-medmoe-notice", "x-medmoe-warning", "x-request-id"],
        )  # fmt: skip
    return app


def _health(app: FastAPI, service: Service) -> None:
    @app.head("/health/live", include_in_schema=False)  # what load balancers ask with
    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Say that the server runs."""
        return {"status": "live"}

    @app.head("/health/ready", include_in_schema=False)
    @app.get("/health/ready")
    async def ready() -> Response:
        """Say whether the model answers: 200 or 503."""
        state = service.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the numbers for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _openai(app: FastAPI, service: Service) -> None:
    place = "#/paths/~1v1~1chat~1completions/post/requestBody/content/application~1json/schema"
    schema = ChatBody.model_json_schema(ref_template=place + "/$defs/{model}")
    body = {"content": {"application/json": {"schema": schema}}, "required": True}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [_described(service.engine)]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        """Return the model."""
        if name != service.engine.facts.id:
            raise ProblemError(404, "model_not_found", "no such model; see /v1/models")
        return _described(service.engine)

    @app.post(CHAT_PATH, openapi_extra={"requestBody": body})
    async def chat(request: Request) -> Response:
        """Answer a conversation about some images."""
        return await complete(service, request)

    @app.post(RESPONSES_PATH)
    async def respond(request: Request) -> Response:
        """Answer a conversation, asked and told as OpenAI's responses are; nothing is kept."""
        return await complete(service, request, read_response, whole, events)


def _described(engine: ChatEngine) -> dict[str, Any]:
    """Return a model as it is listed."""
    model = engine.facts
    return {
        "id": model.id, "object": "model", "created": 0, "owned_by": "medmoe",
        "medmoe": {
            "sha256": model.sha256, "domains": list(model.domains),
            "evidence": engine.explains, "notice": NOTICE,
        },
    }  # fmt: skip


def _files(app: FastAPI, service: Service) -> None:
    @app.post("/v1/files")
    async def upload(request: Request) -> dict[str, object]:
        """Keep an image for a while, to be asked about by its id."""
        check_type(request, "multipart/form-data")
        data = await _uploaded(request)
        Limits().check_file(len(data))
        return service.uploads.add(data).to_json()

    @app.get("/v1/files/{name}")
    async def one_upload(name: str) -> dict[str, object]:
        """Describe an upload."""
        return service.uploads.get(name).to_json()

    @app.delete("/v1/files/{name}")
    async def forget(name: str) -> dict[str, object]:
        """Forget an upload."""
        service.uploads.delete(name)
        return {"id": name, "object": "file", "deleted": True}


def _sign_in(app: FastAPI, access: Access) -> None:
    def form(failed: bool, status: int) -> Response:
        headers = {"content-security-policy": LOGIN_POLICY}
        return HTMLResponse(login_page(failed), status, headers=headers)

    @app.get("/login", include_in_schema=False)
    async def login() -> Response:
        return form(False, 200)

    @app.post("/login", include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > _MAX_FORM:
                raise ProblemError(413, "request_too_large", "this is no token")
        try:
            fields = parse_qs(data.decode("utf-8", "replace"), max_num_fields=8)
        except ValueError:
            raise ProblemError(400, "bad_form", "send the one field 'token'") from None
        given = fields.get("token", [""])[0]
        session = access.sign_in(given)
        if session is None:
            return form(True, 401)
        reply = RedirectResponse("/", 303)
        reply.set_cookie(
            COOKIE, session, max_age=int(SESSION_SECONDS), httponly=True, samesite="strict",
            secure=came_by_tls(request.url.scheme, request.headers),
        )  # fmt: skip
        return reply

    @app.post("/logout", include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        access.sign_out(request.headers)
        reply = RedirectResponse("/login", 303)
        reply.delete_cookie(COOKIE)
        return reply


def answer_problems(app: FastAPI) -> None:
    """Have whatever a route raises answered as the problem that it is."""

    @app.exception_handler(ProblemError)
    @app.exception_handler(MedMoeError)
    async def refused(request: Request, error: Exception) -> Response:
        if (record := getattr(request.state, "record", None)) is not None:
            record.refused(error)
        return problem_of(error).response()

    @app.exception_handler(HTTPException)
    async def by_routing(request: Request, error: HTTPException) -> Response:
        status = error.status_code if 400 <= error.status_code < 500 else 400
        told = {404: ("not_found", "there is nothing at this address"),
                405: ("method_not_allowed", "not with this method")}  # fmt: skip
        code, message = told.get(status, ("bad_request", "the request is not valid"))
        reply = ProblemError(status, code, message).response()
        if status == 405:  # routing names the methods of the first route at an address
            allowed = {
                method
                for route in app.routes
                if isinstance(route, APIRoute) and route.matches(request.scope)[0] is Match.PARTIAL
                for method in route.methods or ()
            }
            reply.headers["allow"] = ", ".join(sorted(allowed))
        return reply


async def _uploaded(request: Request) -> bytes:
    """Return the bytes of the one file of a form; its name is dropped here.

    Raises:
        ProblemError: It is no such form.
    """
    try:
        parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=8)
        parser.spool_max_size = 0  # no bound: what it keeps stays in memory, and off the disk
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError) as error:
        raise ProblemError(400, "bad_form", "no form with one file in the field 'file'") from error
    try:
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise ProblemError(400, "bad_form", "the form has no file in the field 'file'")
        return await file.read()
    finally:
        await form.close()
