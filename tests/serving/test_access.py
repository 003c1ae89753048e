from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import BaseRoute
from tests.serving.support import TOKEN

from medmoe.cli.main import main
from medmoe.errors import ConfigError
from medmoe.serving.access import OPEN
from medmoe.serving.app import create_app
from medmoe.serving.local_engine import LocalEngine
from medmoe.serving.settings import ServerSettings


@pytest.fixture(scope="module")
def app(tiny_model: Path) -> Any:
    """With its page, whose routes count too."""
    return create_app(LocalEngine(tiny_model), ServerSettings(token=TOKEN))


def call(app: Any, method: str, path: str, **more: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as client:
            return await client.request(method, path, **more)

    return asyncio.run(send())


def paths(routes: list[BaseRoute], before: str = "") -> set[str]:
    found: set[str] = set()
    for route in routes:
        path = before + getattr(route, "path", "").rstrip("/")
        found.add(path or "/")
        inner = getattr(getattr(route, "app", None), "routes", None)
        found |= paths(inner, path) if inner else set()
    return found


def test_every_route_but_health_and_the_form_wants_the_token(app: Any) -> None:
    known = {
        path.replace("{", "").replace("}", "").replace(":path", "") for path in paths(app.routes)
    }
    assert {"/metrics", "/openapi.json", "/v1/models", "/page/ask", "/page/picture"} <= known
    known |= {"/nowhere"}
    for path in sorted(known - OPEN):
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"):
            assert call(app, method, path).status_code == 401, (method, path)


@pytest.mark.parametrize("path", sorted(OPEN))
def test_health_and_the_form_want_none(app: Any, path: str) -> None:
    assert call(app, "GET", path).status_code in {200, 503}


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN],
)
def test_only_the_whole_token_passes(app: Any, header: str) -> None:
    headers = {"Authorization": header}
    assert call(app, "GET", "/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_token_passes(app: Any, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    assert call(app, "GET", "/v1/models", headers=headers).status_code == 200


def test_a_browser_signs_in_once_and_out_again(app: Any) -> None:
    seen = call(app, "GET", "/", headers={"Accept": "text/html"})
    assert seen.status_code == 401
    assert "<form" in seen.text
    assert call(app, "POST", "/login", data={"token": "wrong"}).status_code == 401
    reply = call(app, "POST", "/login", data={"token": TOKEN})
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    session = {"Cookie": cookie.partition(";")[0]}
    assert call(app, "GET", "/v1/models", headers=session).status_code == 200
    other = session | {"Origin": "http://elsewhere"}
    assert call(app, "POST", "/v1/chat/completions", headers=other).status_code == 403
    call(app, "POST", "/logout", headers=session)
    assert call(app, "GET", "/v1/models", headers=session).status_code == 401


@pytest.mark.parametrize(
    ("header", "passes"),
    [
        ("medmoe_session={}", True),
        ("a=b; medmoe_session={} ; c=d", True),
        ("medmoe_session=x; medmoe_session={}", False),
        ('medmoe_session="{}"', False),
        ("xmedmoe_session={}", False),
        ("medmoe_session", False),
        ("=;;=", False),
        ('medmoe_session="' + '\\"' * 15_000, False),
    ],
)
def test_the_cookie_is_read_as_it_was_set(app: Any, header: str, passes: bool) -> None:
    reply = call(app, "POST", "/login", data={"token": TOKEN})
    session = reply.headers["set-cookie"].partition(";")[0].partition("=")[2]
    sent = {"Cookie": header.replace("{}", session)}
    assert call(app, "GET", "/v1/models", headers=sent).status_code == (200 if passes else 401)


@pytest.mark.parametrize(
    ("headers", "secure"),
    [
        ({}, False),
        ({"X-Forwarded-Proto": "https"}, True),
        ({"X-Forwarded-Proto": "HTTPS, http"}, True),
        ({"X-Forwarded-Proto": "http"}, False),
        ({"Origin": "https://clinic"}, True),
        ({"Origin": "http://clinic"}, False),
    ],
)
def test_a_session_over_tls_is_never_sent_without_also_behind_a_proxy(
    app: Any, headers: dict[str, str], secure: bool
) -> None:
    reply = call(app, "POST", "/login", data={"token": TOKEN}, headers=headers)
    assert reply.status_code == 303
    assert ("Secure" in reply.headers["set-cookie"]) == secure


def test_a_form_of_many_fields_is_the_clients_fault(app: Any) -> None:
    reply = call(app, "POST", "/login", data={str(n): "x" for n in range(9)})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_form")


def test_tokens_are_compared_in_constant_time(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    from medmoe.serving import access

    def watched(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(access.hmac, "compare_digest", watched)
    call(app, "GET", "/v1/models", headers={"Authorization": "Bearer x"})
    call(app, "GET", "/v1/models", headers={"Authorization": f"Bearer {TOKEN}"})
    assert [len(one) == len(other) for one, other in compared] == [True, True]


@pytest.mark.parametrize(
    ("host", "token", "part"),
    [("0.0.0.0", None, "give a token"), ("::", None, "give a token"),
     ("clinic.example", None, "give a token"), ("127.0.0.1", "short", "at least 16"),
     ("0.0.0.0", "ä" * 20, "ASCII")],
)  # fmt: skip
def test_unsafe_settings_are_refused(host: str, token: str | None, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        ServerSettings(host=host, token=token)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_without_a_token_only_loopback_names_are_answered(talk: Any, host: str) -> None:
    reply = talk("GET", "/v1/models", headers={"Host": host})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "wrong_host")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://127.0.0.1:3000", "http://localhost", "null", "http://[", "x",
     "http://127.0.0.1.evil.example", "http://" + "[" * 9000],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/"), ("GET", "/config")],
)
def test_a_page_of_another_site_can_neither_ask_nor_read(
    talk: Any, method: str, path: str, origin: str
) -> None:
    """Also not that of another program on this machine, which a browser takes for the same site."""
    reply = talk(method, path, headers={"Origin": origin})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site")
    assert "access-control-allow-origin" not in reply.headers


def test_other_names_and_sites_are_the_operators_word_alone(tiny_model: Path) -> None:
    site, name = "https://chat.example:3000", "host.docker.internal"
    settings = ServerSettings(allow_hosts=(name,), cors_origins=(site,))
    app = create_app(LocalEngine(tiny_model), settings, page=False)

    def status(path: str = "/v1/models", method: str = "GET", **headers: str) -> httpx.Response:
        more = {k.replace("_", "-"): v for k, v in headers.items()}
        return call(app, method, path, headers={"host": f"{name}:8000"} | more)

    assert status().status_code == 200
    assert status(host=f"x.{name}").json()["error"]["code"] == "wrong_host"
    reply = status(origin=site)
    assert reply.headers["access-control-allow-origin"] == site
    assert "access-control-allow-credentials" not in reply.headers
    assert "x-medmoe-warning" in reply.headers["access-control-expose-headers"]
    before = {"access_control_request_method": "POST",
              "access_control_request_headers": "authorization,x-stainless-os"}  # fmt: skip
    asked = status("/v1/chat/completions", "OPTIONS", origin=site, **before)
    assert asked.status_code == 200
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
    for other in ("https://chat.example", f"{site}0", "http://chat.example:3000", "null"):
        refused = [status(origin=other), status(method="OPTIONS", origin=other, **before)]
        assert [one.status_code for one in refused] == [403, 400]
        assert all("access-control-allow-origin" not in one.headers for one in refused)
    # The page's own routes, the form, the numbers and DICOMweb stay closed to it.
    for path in ("/", "/page/ask", "/login", "/metrics", "/v1/dicomweb", "/v1/dicomweb/series"):
        assert status(path, origin=site).json()["error"]["code"] == "cross_site"


def test_an_allowed_site_needs_the_token_all_the_same(tiny_model: Path) -> None:
    site = "https://chat.example"
    settings = ServerSettings(token=TOKEN, cors_origins=(site,))
    app = create_app(LocalEngine(tiny_model), settings, page=False)
    told = call(app, "GET", "/v1/models", headers={"Origin": site})
    assert (told.status_code, told.headers["access-control-allow-origin"]) == (401, site)
    headers = {"Origin": site, "Authorization": f"Bearer {TOKEN}"}
    assert call(app, "GET", "/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--cors-origin", "*"), ("--cors-origin", "chat.example"), ("--cors-origin", "null"),
     ("--cors-origin", "https://*.example"), ("--cors-origin", "https://chat.example/"),
     ("--allow-host", "*"), ("--allow-host", "http://x"), ("--allow-host", "x:8000")],
)  # fmt: skip
def test_a_name_or_site_that_is_none_is_refused(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "model", flag, value]) == 2
    assert f"{value!r} is not " in capsys.readouterr().err


def test_a_page_of_ours_may_read(talk: Any) -> None:
    assert talk("GET", "/v1/models", headers={"Origin": "http://127.0.0.1"}).status_code == 200
