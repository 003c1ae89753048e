"""What can be reached of the page: little of Gradio, nothing from outside, no way to leave a file.

Whole requests through the real app; what a browser does with them is tested in `test_browser`.
"""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.routing import Mount
from tests.data.samples import dicom
from tests.serving.page.support import served

from medmoe.serving.page.cases import CaseStore
from medmoe.serving.page.gradio_filter import ALLOWED, clean_page
from medmoe.serving.page.views import data_uri

BYTES = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def store() -> CaseStore:
    return CaseStore()


@pytest.fixture(scope="module")
def client(store: CaseStore) -> Iterator[TestClient]:
    with TestClient(served(store), base_url="http://127.0.0.1") as client:
        yield client


def gradio_routes(client: TestClient) -> list[tuple[str, str]]:
    """Return method and a path of every route of Gradio's app, with words for its parameters."""
    app: Any = client.app
    (mounted,) = (route for route in app.routes if isinstance(route, Mount))
    waiting, found = list(mounted.routes), []
    while waiting:
        route: Any = waiting.pop()
        if hasattr(route, "original_router"):  # FastAPI includes routers late
            waiting += route.original_router.routes
            continue
        path = re.sub(r"\{[^}]+\}", "word", route.path)
        found += [(method, path) for method in sorted(getattr(route, "methods", None) or {"GET"})]
    return found


def test_of_gradios_routes_only_those_of_the_list_are_reached(client: TestClient) -> None:
    routes = gradio_routes(client)
    assert len(routes) > 60  # a new Gradio that hides them from here must be looked at
    assert ("POST", "/gradio_api/upload") in routes
    for method, path in routes:
        verb = "GET" if method == "HEAD" else method
        if any(verb == known and pattern.fullmatch(path) for known, pattern in ALLOWED):
            continue
        reply = client.request(method, path)
        assert reply.status_code in (404, 405), (method, path)
        assert "traceback" not in reply.text.lower()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=https://example.org/"),
        ("GET", "/file=/etc/passwd"),
        ("GET", "/gradio_api/info"),
        ("GET", "/monitoring"),
        ("POST", "/gradio_api/run/predict"),
        ("GET", "/gradio_api/deep_link"),
        ("POST", "/login"),
        ("GET", "/assets/../../../routes.py"),
        ("GET", "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py"),
        ("GET", "/page/mount.py"),
        ("GET", "/page/..%2fmount.py"),
    ],
)
def test_files_proxies_uploads_and_direct_calls_are_shut(
    client: TestClient, method: str, path: str
) -> None:
    assert client.request(method, path).status_code == 404


def test_the_page_names_no_other_host_and_every_script_has_the_policys_nonce(
    client: TestClient,
) -> None:
    reply = client.get("/")
    assert reply.status_code == 200
    page, policy = reply.text, reply.headers["content-security-policy"]
    config = re.search(r"window\.gradio_config = (\{.*?\});</script>", page)
    assert config is not None
    markup = page.replace(config.group(), "")  # data: no address of it is followed
    assert not re.findall(r"""(?:src|href|content)=["'](?:https?:)?//[^"']+""", markup)
    (nonce,) = re.findall(r"'nonce-([\w-]{22})'", policy)
    scripts = re.findall(r"<script[^>]*>", page)
    assert len(scripts) >= 4
    assert all(f'nonce="{nonce}"' in tag for tag in scripts)
    assert "unsafe-eval" not in policy
    assert "script-src 'self' 'nonce-" in policy
    assert "default-src 'none'" in policy
    assert nonce not in client.get("/").text
    assert "Research use only, not a medical device" in page


def test_the_page_uses_no_component_that_keeps_files_and_no_telemetry(client: TestClient) -> None:
    config = client.get("/config").json()
    kinds = {component["type"] for component in config["components"]}
    assert kinds <= {
        "markdown", "textbox", "row", "column", "button", "group", "form", "dropdown", "slider",
        "chatbot", "checkbox",
    }  # fmt: skip
    assert config["analytics_enabled"] is False
    theme = client.get("/theme.css").text
    assert set(re.findall(r"https?://[^'\")]+", theme)) <= {"http://www.w3.org/2000/svg"}  # a name


def test_a_deep_link_and_other_queries_change_nothing(client: TestClient) -> None:
    plain, asked = client.get("/").text, client.get("/?deep_link=x&__theme=dark&view=api").text
    nonce = r'nonce="[\w-]+"'
    assert re.sub(nonce, "", plain) == re.sub(nonce, "", asked)


def test_the_cleaner_cuts_what_points_outside() -> None:
    found = clean_page(
        '<head><meta property="og:image" content="https://x.org/a.jpg"/>'
        '<link rel="preconnect" href="https://fonts.example"/><script>1</script></head>'
        "<body><gradio-app></gradio-app></body>",
        "N",
        "a <title>",
    )
    assert "https://" not in found
    assert '<script nonce="N">1</script>' in found
    assert "a &lt;title&gt;" in found


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"data": null}', b'{"fn_index": 999, "data": []}',
        b'{"fn_index": -1, "data": [], "session_hash": "a"}',
        b'{"fn_index": 0, "data": {}, "session_hash": "a"}',
        b'{"fn_index": "x", "session_hash": []}', b'{"data": [], "session_hash": "a"}',
        b'{"fn_index": 0, "data": [1,2,3,4,5,6,7,8,9], "session_hash": {"a": 1}}',
        b"\xff\xfe", b"[" * 10_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/cancel"])
def test_a_call_that_is_none_is_refused_without_a_traceback(
    client: TestClient, path: str, body: bytes
) -> None:
    reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert 400 <= reply.status_code < 500
    assert "Traceback" not in reply.text
    assert ".py" not in reply.text


def test_a_call_of_a_control_has_a_bound(client: TestClient) -> None:
    body = b'{"data": ["' + b"x" * 2**20 + b'"]}'
    reply = client.post("/gradio_api/queue/join", content=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def test_a_picture_comes_in_as_bytes_and_gets_a_handle(
    client: TestClient, store: CaseStore
) -> None:
    reply = client.post("/page/picture", content=dicom(), headers=BYTES)
    case = store.get(reply.json()["handle"])
    assert case is not None
    assert case.data == dicom()
    assert case.picture is not None


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty_or_malformed_image"),
        (b"MZ not a picture", 415, "unsupported_image_type"),
        (dicom()[:-100], 422, "undecodable"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), 400, "empty_or_malformed_image"),
    ],
)
def test_a_bad_picture_is_one_line_with_a_stable_code(
    client: TestClient, store: CaseStore, data: bytes, status: int, code: str
) -> None:
    before = len(store)
    reply = client.post("/page/picture", content=data, headers=BYTES)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code)
    assert "\n" not in error["message"]
    assert len(store) == before


def call(client: TestClient, control: str, event: str, data: list[object]) -> list[dict[str, Any]]:
    """Do what the page does when a control is used; return what Gradio sends."""
    config = client.get("/config").json()
    (number,) = (
        each["id"]
        for each in config["dependencies"]
        for target, name in each["targets"]
        if name == event
        and each["outputs"]  # the others only end an answer
        and any(
            part["id"] == target and part["props"].get("elem_id") == control
            for part in config["components"]
        )
    )
    body = {"data": data, "fn_index": number, "session_hash": "page1"}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    found = []
    with client.stream("GET", "/gradio_api/queue/data?session_hash=page1") as reply:
        for line in reply.iter_lines():
            if line.startswith("data:"):
                found.append(json.loads(line[5:]))
                if found[-1]["msg"] == "close_stream":
                    break
    return found


def held(needle: str) -> list[str]:
    """Return the strings of this process that hold a text."""
    gc.collect()
    seen = (each for each in gc.get_objects() for each in gc.get_referents(each))
    return [
        text for text in seen if isinstance(text, str) and needle in text and text is not needle
    ]


def test_when_a_case_has_ended_nothing_in_memory_holds_its_question_or_picture(
    client: TestClient, store: CaseStore
) -> None:
    """Gradio itself would keep both, for every page, without end."""
    buffer = BytesIO()
    Image.fromarray(np.arange(900, dtype=np.uint8).reshape(30, 30)).save(buffer, "PNG")
    handle = client.post("/page/picture", content=buffer.getvalue(), headers=BYTES).json()["handle"]
    case = store.get(handle)
    assert case is not None
    assert case.picture is not None
    drawn, asked = data_uri(case.picture.image)[30:], "-".join(("Is", "it", "normal?"))
    del case
    shown = call(client, "case-handle", "submit", [handle])
    assert any(drawn in json.dumps(message) for message in shown)
    shown = call(client, "ask", "click", [asked, handle, False])
    assert any(asked in json.dumps(message) for message in shown)
    assert held(asked)
    del shown
    store.close(handle)
    end = time.monotonic() + 60  # the server's threads may still be at their last step
    while True:
        # Gradio's queue and each of its idle threads hold their last call, and no other.
        call(client, "case-handle", "submit", ["gone"])
        if not (held(asked) or held(drawn)) or time.monotonic() > end:
            break
        time.sleep(0.2)
    assert held(asked) == []
    assert held(drawn) == []


def test_a_form_of_another_site_cannot_send_a_picture_or_ask_for_a_case(client: TestClient) -> None:
    for kind in ("multipart/form-data; boundary=x", "text/plain", "application/x-www-form"):
        for path in ("/page/picture", "/page/export"):
            reply = client.post(path, content=b"x", headers={"Content-Type": kind})
            assert reply.status_code == 415


def test_a_file_over_the_limit_is_refused_while_it_comes(client: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(65):
            yield bytes(2**20)

    reply = client.post("/page/picture", content=parts(), headers=BYTES)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "image_too_large")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"handle": "unknown", "format": "json"}, 404),
        ({"handle": "unknown", "format": "pdf"}, 400),
        ({"handle": 1, "format": "json"}, 400),
        ({"handle": "a", "format": "json", "path": "/etc"}, 400),
        ([], 400),
    ],
)
def test_an_export_of_nothing_is_refused(client: TestClient, body: object, status: int) -> None:
    reply = client.post("/page/export", json=body)
    assert reply.status_code == status
    assert reply.json()["error"]["code"] in ("no_case", "bad_request")


def test_own_files_are_served_and_only_they(client: TestClient) -> None:
    for name, kind in (("style.css", "text/css"), ("script.js", "text/javascript")):
        reply = client.get(f"/page/{name}")
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith(kind)
        assert not re.search(r"https?://", reply.text)
    assert client.get("/page/picture.html.j2").status_code == 404


def test_nothing_is_written_by_all_of_this(client: TestClient, tmp_path: Path) -> None:
    """Gradio's folder for files stays empty: no name and no byte of an upload is in it."""
    import gradio.utils

    folder = Path(gradio.utils.get_upload_folder())
    marked = b"SMITH^JOHN" + bytes(100)
    client.post("/page/picture", content=marked, headers=BYTES)
    client.post("/gradio_api/upload", files={"files": ("SMITH^JOHN.png", marked)})
    assert [path for path in folder.rglob("*") if b"SMITH" in str(path).encode()] == []
    assert json.dumps(client.get("/config").json()).find("SMITH") == -1


def test_without_evidence_to_show_the_page_has_no_evidence_card_and_offers_none() -> None:
    def shown(explains: bool) -> tuple[bool, bool, bool]:
        app = served(CaseStore(), explains=explains)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            parts = client.get("/config").json()["components"]
        (box,) = (p for p in parts if str(p["props"].get("label")).startswith("Show regions"))
        (card,) = (p for p in parts if p["props"].get("elem_id") == "evidence")
        title = "<h2>Evidence</h2>" in card["props"]["value"]
        return title, box["props"]["visible"], box["props"]["value"]

    assert shown(True) == (True, True, True)
    assert shown(False) == (False, False, False)
