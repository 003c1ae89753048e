"""What can be reached of the page: nothing from outside, and no way to leave a file.

Whole requests through the real app; what a browser does with them is tested in `test_browser`.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tests.data.samples import dicom
from tests.serving.page.support import served

from medmoe.serving.page.cases import CaseStore

BYTES = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def store() -> CaseStore:
    return CaseStore()


@pytest.fixture(scope="module")
def client(store: CaseStore) -> Iterator[TestClient]:
    with TestClient(served(store), base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/file=/etc/passwd"),
        ("POST", "/login"),
        ("GET", "/page/mount.py"),
        ("GET", "/page/..%2fmount.py"),
        ("GET", "/page/sources.sha256"),
        ("GET", "/page/line/unknown"),
        ("POST", "/page/call/delete"),
        ("POST", "/page/call/example"),
        ("POST", "/page/pixels"),
    ],
)
def test_nothing_else_is_reached(client: TestClient, method: str, path: str) -> None:
    assert client.request(method, path, json={} if method == "POST" else None).status_code == 404


def test_the_page_names_no_other_host_and_runs_only_its_own_script(client: TestClient) -> None:
    reply = client.get("/")
    assert reply.status_code == 200
    page, policy = reply.text, reply.headers["content-security-policy"]
    assert not re.findall(r"https?://", page)
    assert re.findall(r"<script[^>]*>[^<]*</script>", page) == [
        '<script type="module" src="page/page.js"></script>'
    ]
    assert not re.findall(r"<style|style=|onclick=", page)
    assert "unsafe" not in policy
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "Research use only, not a medical device" in page
    assert client.head("/").status_code == 200


def test_a_query_changes_nothing(client: TestClient) -> None:
    assert client.get("/?deep_link=x&__theme=dark&view=api").text == client.get("/").text


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"question": null}', b'{"handle": 1}', b'{"frame": "2"}',
        b'{"handle": "a", "path": "/etc"}', b'{"window": [1]}', b'{"window": [1, "2"]}',
        b"\xff\xfe", b"[" * 10_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/page/ask", "/page/call/look"])
def test_a_call_that_is_none_is_refused_without_a_traceback(
    client: TestClient, path: str, body: bytes
) -> None:
    reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_request")
    assert "Traceback" not in reply.text
    assert ".py" not in reply.text


def test_a_call_of_a_control_has_a_bound(client: TestClient) -> None:
    body = b'{"question": "' + b"x" * 2**20 + b'"}'
    reply = client.post("/page/ask", content=body, headers={"Content-Type": "application/json"})
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


def held(needle: str | bytes) -> list[str | bytes]:
    """Return the strings, or bytes, of this process that hold others."""
    gc.collect()
    seen = (each for each in gc.get_objects() for each in gc.get_referents(each))
    kind = type(needle)
    return [
        text
        for text in seen
        if isinstance(text, kind) and needle in text and text is not needle  # type: ignore[operator]
    ]


def test_when_a_case_has_ended_nothing_in_memory_holds_its_question_or_picture(
    client: TestClient, store: CaseStore
) -> None:
    buffer = BytesIO()
    pixels = np.random.default_rng(5).integers(0, 256, (30, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    shown = client.post("/page/picture", content=buffer.getvalue(), headers=BYTES)
    handle, asked = shown.json()["handle"], "-".join(("Is", "it", "normal?"))
    drawn = pixels.tobytes()[:300]
    seen = client.post("/page/pixels", json={"handle": handle})
    assert drawn in seen.content
    assert held(drawn)
    del seen
    answered = client.post("/page/ask", json={"question": asked, "handle": handle})
    assert asked in answered.text
    assert held(asked)
    del shown, answered
    store.close(handle)
    end = time.monotonic() + 60  # the server's threads may still be at their last step
    while (held(asked) or held(drawn)) and time.monotonic() < end:
        client.post("/page/call/stopped", json={"handle": "gone"})
        time.sleep(0.2)
    assert held(asked) == []
    assert held(drawn) == []


def test_a_form_of_another_site_cannot_send_a_picture_or_ask_for_a_case(client: TestClient) -> None:
    for kind in ("multipart/form-data; boundary=x", "text/plain", "application/x-www-form"):
        for path in ("/page/picture", "/page/export", "/page/ask", "/page/call/look"):
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
        ({"handle": "x" * 2**16, "format": "json"}, 413),
    ],
)
def test_an_export_of_nothing_is_refused(client: TestClient, body: object, status: int) -> None:
    reply = client.post("/page/export", json=body)
    assert reply.status_code == status
    assert reply.json()["error"]["code"] in ("no_case", "bad_request", "request_too_large")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("/", "text/html"), ("/page/page.css", "text/css"), ("/page/page.js", "text/javascript")],
)
def test_own_files_are_sent_packed_and_once(client: TestClient, name: str, kind: str) -> None:
    reply = client.get(name)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith(kind)
    assert reply.headers["content-encoding"] == "gzip"
    plain = client.get(name, headers={"Accept-Encoding": "identity"})
    assert plain.content == reply.content
    assert "content-encoding" not in plain.headers
    again = client.get(name, headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_page_is_told_of_the_server_what_it_shows() -> None:
    for explains in (True, False):
        app = served(CaseStore(), explains=explains)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            about = client.get("/page/about").json()
        assert about["explains"] is explains
        assert about["presets"]["lung"] == [-600, 1500]
        assert about["examples"]["ct"][0] == "CT"
