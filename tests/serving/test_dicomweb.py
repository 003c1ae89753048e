"""`POST /v1/dicomweb` against a real Orthanc with its DICOMweb plug-in, from Debian."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, RLELossless
from tests.data import samples
from tests.serving.support import running

from medmoe.cli.main import main
from medmoe.errors import ConfigError
from medmoe.inference.engine import MedMoe
from medmoe.serving.app import create_app
from medmoe.serving.audit import AuditLog
from medmoe.serving.dicomweb.client import DicomWeb
from medmoe.serving.local_engine import LocalEngine
from medmoe.serving.problems import ProblemError
from medmoe.serving.settings import NOTICE, ServerSettings

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
LOGIN = "alice:a-secret-of-orthanc"
READER = "reader:may-not-write"
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.1.1"
NAME, ID, ACCESSION = "Müller^Jörg", "PAT-4711-XQ", "ACC-0815-ZZ"
IDENTIFIERS = ("Müller", "M\\u00fcller", "Jörg", ID, ACCESSION, "19700203")


@dataclass
class Pacs:
    """An Orthanc that runs."""

    address: str

    def ask(self, path: str, **more: Any) -> httpx.Response:
        method = more.pop("method", "GET")
        return httpx.request(
            method, self.address + path, auth=tuple(LOGIN.split(":")), timeout=60, **more
        )

    def instances(self) -> set[str]:
        return set(self.ask("/instances").json())

    def kept(self, uid: str) -> pydicom.Dataset:
        (found,) = self.ask("/tools/lookup", method="POST", content=uid).json()
        return pydicom.dcmread(BytesIO(self.ask(f"/instances/{found['ID']}/file").content))


def instance(number: int, study: str = STUDY, series: str = SERIES, **tags: Any) -> bytes:
    """Return a CT slice of a patient, whose values tell its number."""
    pixels = samples.ramp(top=1000 * number)
    uid = f"{series}.{number}"
    found = samples.dataset(
        pixels, **{
            "StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": uid,
            "InstanceNumber": number, "Modality": "CT", "SpecificCharacterSet": "ISO_IR 100",
            "PatientName": NAME, "PatientID": ID, "PatientBirthDate": "19700203",
            "PatientSex": "M", "AccessionNumber": ACCESSION, "StudyDate": "20260102",
            "StudyTime": "101112", "StudyID": "S1", "SeriesNumber": 3,
            "StudyDescription": "Thorax", "WindowCenter": 500, "WindowWidth": 1000,
        } | tags,
    )  # fmt: skip
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID
    return samples.written(found)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None or not PLUGIN.exists():
        pytest.skip("Orthanc and its DICOMweb plug-in are absent: apt install orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "reader.lua").write_text(
        "function IncomingHttpRequestFilter(method, uri, ip, user, headers)\n"
        "  return not (user == 'reader' and method == 'POST')\nend\n"
    )
    (folder / "orthanc.json").write_text(json.dumps({
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": port, "DicomServerEnabled": False, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True, "LuaScripts": [str(folder / "reader.lua")],
        "RegisteredUsers": dict(login.split(":") for login in (LOGIN, READER)),
        "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }))  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
    pacs = Pacs(f"http://127.0.0.1:{port}")
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                pacs.ask("/system").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.1)
        for number in range(1, 5):
            pacs.ask("/instances", method="POST", content=instance(number)).raise_for_status()
        yield pacs
    finally:
        process.terminate()
        process.wait(30)


@dataclass
class Asking:
    """An app, asked in this process; what it logged is beside it."""

    app: Any
    loop: asyncio.AbstractEventLoop
    log: Path

    def __call__(self, **body: Any) -> httpx.Response:
        return self.send("POST", "/v1/dicomweb", json={
            "study": STUDY, "series": SERIES, "question": "Is there any nodule?",
        } | body)  # fmt: skip

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            address = "http://127.0.0.1"
            async with httpx.AsyncClient(transport=transport, base_url=address) as client:
                return await client.request(method, path, **more)

        return self.loop.run_until_complete(sent())


Serve = Callable[[str, str | None], Asking]


@pytest.fixture(scope="module")
def serve(
    tiny_model: Path, tiny: MedMoe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serve]:
    loop = asyncio.new_event_loop()
    engine = LocalEngine(tiny_model, load_model=lambda: tiny)
    loop.run_until_complete(engine.start())
    logs: list[AuditLog] = []

    def serving(address: str, login: str | None) -> Asking:
        path = tmp_path_factory.mktemp("dicomweb") / "audit.jsonl"
        logs.append(AuditLog(path))
        settings = ServerSettings(
            dicomweb=address, dicomweb_login=login, deadline_seconds=300
        )  # on a busy machine
        app = create_app(engine, settings, audit=logs[-1], page=False)
        return Asking(app, loop, path)

    yield serving
    loop.run_until_complete(engine.stop())
    loop.close()
    for log in logs:
        log.close()


@pytest.fixture(scope="module")
def asking(pacs: Pacs, serve: Serve) -> Asking:
    return serve(f"{pacs.address}/dicom-web/", LOGIN)


def test_a_series_is_asked_about_by_its_middle_instance(asking: Asking) -> None:
    reply = asking()
    assert reply.status_code == 200, reply.text
    told = reply.json()
    assert told["instance"] == f"{SERIES}.2"
    assert told["instances"] == 4
    assert told["picture"]["modality"] == "ct"
    assert told["picture"]["window"] == {"center": 500.0, "width": 1000.0, "origin": "file"}
    assert told["notice"] == NOTICE
    assert set(told["routing"]["probabilities"])
    assert "written" not in told


def test_an_instance_is_asked_about_by_its_own_window(asking: Asking) -> None:
    told = asking(instance=f"{SERIES}.4", window=[100, 200]).json()
    assert told["instance"] == f"{SERIES}.4"
    assert "instances" not in told
    assert told["picture"]["window"] == {"center": 100.0, "width": 200.0, "origin": "given"}


def texts(report: Dataset) -> list[tuple[str, str]]:
    return [
        (item.ConceptNameCodeSequence[0].CodeMeaning, item.TextValue)
        for item in report.ContentSequence
        if item.ValueType == "TEXT" and item.RelationshipType == "CONTAINS"
    ]


def test_report_and_card_are_kept_and_say_what_was_answered(pacs: Pacs, asking: Asking) -> None:
    pytest.importorskip("highdicom", reason="pip install 'medmoe[dicomweb]'")
    before = pacs.instances()
    reply = asking(evidence=True, write=True, instance=f"{SERIES}.3", question="Is it\nlarge?")
    assert reply.status_code == 200, reply.text
    told = reply.json()
    assert len(pacs.instances() - before) == 2
    report, card = (pacs.kept(told["written"][name]) for name in ("report", "card"))
    assert (report.SOPClassUID.name, card.SOPClassUID.name) == (
        "Enhanced SR Storage", "Secondary Capture Image Storage",
    )  # fmt: skip
    for made in (report, card):
        assert made.StudyInstanceUID == STUDY
        assert str(made.PatientName) == NAME
        assert (made.PatientID, made.AccessionNumber, made.PatientBirthDate, made.PatientSex) == (
            ID, ACCESSION, "19700203", "M",
        )  # fmt: skip
        assert (made.StudyDate, made.StudyTime, made.StudyDescription) == (
            "20260102", "101112", "Thorax",
        )  # fmt: skip
        assert NOTICE in made.SeriesDescription
        assert made.SpecificCharacterSet == "ISO_IR 192"
    assert report.SeriesInstanceUID != card.SeriesInstanceUID
    said = texts(report)
    assert said[0] == ("Notice", f"{NOTICE}.")
    assert dict(said)["Left and right"].startswith("the patient's")
    assert ("Question", "Is it large?") in said
    (answer,) = (text for name, text in said if name == "Answer")
    shown = "".join(sign if sign.isprintable() else " " for sign in told["answer"])
    assert answer.split() == shown.split()
    assert [text for name, text in said if name == "Warning"] == told["warnings"]
    assert f"With {told['evidence']['counterfactuals'][0]['change']}" in dict(said)
    assert all(sign.isprintable() for _, text in said for sign in text)
    assert report.VerificationFlag == "UNVERIFIED"
    assert report.PreliminaryFlag == "PRELIMINARY"


def test_report_card_and_source_point_at_each_other(pacs: Pacs, asking: Asking) -> None:
    pytest.importorskip("highdicom", reason="pip install 'medmoe[dicomweb]'")
    told = asking(write=True).json()
    report, card = (pacs.kept(told["written"][name]) for name in ("report", "card"))
    capture, source = (
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in report.ContentSequence
        if item.ValueType == "IMAGE"
    )
    assert (source, capture) == (told["instance"], card.SOPInstanceUID)
    assert card.SourceImageSequence[0].ReferencedSOPInstanceUID == told["instance"]
    evidence = {
        one.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert evidence == {source, capture}


def test_the_card_shows_picture_and_words_and_the_frame_that_was_asked_about(
    pacs: Pacs, asking: Asking
) -> None:
    pytest.importorskip("highdicom", reason="pip install 'medmoe[dicomweb]'")
    series = f"{STUDY}.7"
    frames = np.stack([samples.ramp(top=10), samples.ramp(top=4000)[::-1]])
    found = pydicom.dcmread(BytesIO(instance(1, series=series)))
    found.NumberOfFrames, found.PixelData = 2, frames.tobytes()
    found.compress(RLELossless)
    pacs.ask("/instances", method="POST", content=samples.written(found)).raise_for_status()  # type: ignore[arg-type]
    told = asking(write=True, series=series, frame=2).json()
    assert told["picture"]["frame"] == 2
    card = pacs.kept(told["written"]["card"])
    pixels = card.pixel_array
    shown = pixels[16:-16, 16 : 16 + 640, 0].astype(int)
    rows = shown[: round(640 * 40 / 48)].mean(1)
    assert rows[5] > rows[-5] + 50, "the second frame is bright above, the first one is dark"
    assert (pixels[:, 700:] > 200).any(), "words stand beside it"
    report = pacs.kept(told["written"]["report"])
    (reference,) = (
        item.ReferencedSOPSequence[0].ReferencedFrameNumber
        for item in report.ContentSequence
        if item.ValueType == "IMAGE" and "ReferencedFrameNumber" in item.ReferencedSOPSequence[0]
    )
    assert reference == 2


def test_identifiers_are_in_no_reply_log_line_metric_or_prompt(
    asking: Asking, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(0)
    asked: list[Any] = []
    service = asking.app.state.service
    stream = service.stream
    monkeypatch.setattr(service, "stream", lambda r, *rest: (asked.append(r), stream(r, *rest))[1])
    reply = asking(evidence=True)
    assert reply.status_code == 200
    metrics = asking.send("GET", "/metrics").text
    audit = asking.log.read_text()
    seen = [reply.text, str(reply.headers), metrics, audit, caplog.text, repr(asked[0].turns)]
    assert not [(word, text[:80]) for text in seen for word in IDENTIFIERS if word in text]
    assert all(STUDY not in text for text in seen[1:])
    assert 'route="/v1/dicomweb"' in metrics
    line = json.loads(audit.splitlines()[-1])
    assert (line["event"], line["status"]) == ("chat", 200)
    assert line["image"]


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"study": "1.2.999"}, 404, "dicom_not_found", "no such series"),
        ({"series": "1.2.999"}, 404, "dicom_not_found", "no such series"),
        ({"instance": "1.2.999"}, 404, "dicom_not_found", "nothing of these UIDs"),
        ({"study": "http://169.254.169.254/"}, 400, "bad_request", "study: "),
        ({"study": "../../system"}, 400, "bad_request", "study: "),
        ({"series": "1.2.3/../../4"}, 400, "bad_request", "series: "),
        ({"instance": "1.2.٣"}, 400, "bad_request", "instance: "),
        ({"instance": "1.2.3\n"}, 400, "bad_request", "instance: "),
        ({"instance": "1." * 32 + "1"}, 400, "bad_request", "instance: "),
        ({"instance": "1.02"}, 400, "bad_request", "instance: "),
        ({"url": "http://169.254.169.254/"}, 400, "bad_request", "url: "),
        ({"question": " \n"}, 400, "bad_request", "question: "),
        ({"frame": 9}, 400, "bad_frame", "frame"),
        ({"window": "no-such"}, 400, "bad_window", "window"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(
    asking: Asking, body: dict[str, Any], status: int, code: str, words: str
) -> None:
    reply = asking(**body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code), error
    assert words in error["message"]
    assert "\n" not in error["message"]


def encapsulated(syntax: str) -> dict[str, Any]:
    return {"PixelData": encapsulate([b"no such picture"]), "syntax": syntax}


@pytest.mark.parametrize(
    ("number", "tags", "status", "code"),
    [
        (11, {"PixelData": bytes(10)}, 422, "undecodable"),
        (12, {"Rows": None}, 422, "undecodable"),
        (13, {"PixelData": None}, 422, "no_pixel_data"),
        (14, encapsulated(MPEG2MPML), 415, "unsupported_transfer_syntax"),
        (15, encapsulated(JPEG2000Lossless), 422, "undecodable"),
    ],
)
def test_an_object_that_cannot_be_shown_is_said(
    pacs: Pacs, asking: Asking, number: int, tags: dict[str, Any], status: int, code: str
) -> None:
    data = instance(number, series=(series := f"{STUDY}.{number}"), **tags)
    pacs.ask("/instances", method="POST", content=data).raise_for_status()
    reply = asking(series=series)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert all(word not in reply.text for word in IDENTIFIERS)


def test_a_source_whose_header_fits_into_no_report_is_said_and_nothing_is_kept(
    pacs: Pacs, asking: Asking
) -> None:
    pytest.importorskip("highdicom", reason="pip install 'medmoe[dicomweb]'")
    data = instance(1, series=(series := f"{STUDY}.21"), PatientSex="UNKNOWN")
    pacs.ask("/instances", method="POST", content=data).raise_for_status()
    before = pacs.instances()
    reply = asking(series=series, write=True)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "undecodable")
    assert "header" in reply.json()["error"]["message"]
    assert pacs.instances() == before


def test_a_server_that_keeps_nothing_is_said(pacs: Pacs, serve: Serve) -> None:
    pytest.importorskip("highdicom", reason="pip install 'medmoe[dicomweb]'")
    before = pacs.instances()
    reader = serve(f"{pacs.address}/dicom-web", READER)
    assert reader().status_code == 200
    reply = reader(write=True)
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "dicomweb_failed")
    assert "answers 403: it did not keep the report" in reply.json()["error"]["message"]
    assert pacs.instances() == before


@pytest.mark.parametrize("login", [None, "alice:wrong", "Bearer of-nothing"])
def test_a_login_that_the_server_refuses_is_said(
    pacs: Pacs, serve: Serve, login: str | None
) -> None:
    reply = serve(f"{pacs.address}/dicom-web", login)()
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (502, "dicomweb_failed")
    assert "answers 401" in error["message"]
    assert "--dicomweb-login" in error["message"]


def test_a_server_that_is_down_is_said(serve: Serve) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    error = serve(address, None)().json()["error"]
    assert error["code"] == "dicomweb_failed"
    assert "cannot be reached" in error["message"]


Script = Callable[[str], tuple[int, dict[str, str], Iterable[bytes]]]


@contextmanager
def scripted(script: Script) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Run a server that answers as it is told, and notes each path with its Authorization."""
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = script(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                for piece in body:
                    self.wfile.write(piece)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def in_parts(data: bytes) -> bytes:
    head = b"--x y\r\nContent-Type: application/dicom\r\n\r\n"
    return b"\r\n" + head + data + b"\r\n--x y--\r\n"


def endless() -> Iterator[bytes]:
    while True:
        yield bytes(2**20)


def dripping() -> Iterator[bytes]:
    while True:
        yield b" "
        time.sleep(0.05)


LISTED = [{"00080018": {"vr": "UI", "Value": [f"{SERIES}.1"]}}]


@pytest.mark.parametrize(
    ("listed", "sent", "words"),
    [
        (b"<html>", [b""], "no list of instances"),
        (b'{"a": 1}', [b""], "no list of instances"),
        (b'[{"00080018": {"Value": []}}]', [b""], "no list of instances"),
        (b"[" * 100_000, [b""], "no list of instances"),
        (json.dumps(LISTED * 5001).encode(), [b""], "more than 5,000 instances"),
        (b'[{"00080018": {"Value": ["../../system"]}}]', [b""], "no such series"),
        (json.dumps(LISTED).encode(), [b""], "no DICOM file"),
        (json.dumps(LISTED).encode(), [b"<html>"], "no DICOM file"),
        (json.dumps(LISTED).encode(), [in_parts(b"no DICOM")], "no DICOM file"),
        (json.dumps(LISTED).encode(), [in_parts(instance(1))[:-20]], "no DICOM file"),
        (json.dumps(LISTED).encode(), [in_parts(instance(2))], "another instance"),
        (json.dumps(LISTED).encode(), [instance(1, study="1.2.3")], "another instance"),
    ],
)
def test_a_server_that_sends_something_else_is_said(
    serve: Serve, listed: bytes, sent: list[bytes], words: str
) -> None:
    def script(path: str) -> tuple[int, dict[str, str], Iterable[bytes]]:
        return 200, {}, [listed] if "?" in path else sent

    with scripted(script) as (address, _):
        error = serve(address, None)().json()["error"]
    assert error["code"] == ("dicom_not_found" if "no such" in words else "dicomweb_failed")
    assert words in error["message"]


def test_too_large_a_reply_is_refused_and_too_slow_a_one_given_up(serve: Serve) -> None:
    with scripted(lambda _: (200, {}, endless())) as (address, _):
        reply = serve(address, None)()
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "image_too_large")
    with (
        scripted(lambda _: (200, {}, dripping())) as (address, _),
        pytest.raises(ProblemError, match="not in time"),
    ):
        DicomWeb(address, None).ask("/studies", "*/*", time.monotonic() + 1)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_or_proxy_is_followed_and_the_login_goes_nowhere_else(
    serve: Serve, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        scripted(lambda _: (200, {}, [b"[]"])) as (elsewhere, found),
        scripted(lambda _: (status, {"Location": f"{elsewhere}/x"}, [])) as (address, seen),
    ):
        monkeypatch.setenv("http_proxy", elsewhere)
        monkeypatch.delenv("no_proxy", raising=False)
        error = serve(address, LOGIN)().json()["error"]
    assert f"answers {status}" in error["message"]
    assert not found
    ((path, login),) = seen
    assert path.startswith(f"/studies/{STUDY}/series/{SERIES}/instances?")
    assert login is not None
    assert login.startswith("Basic ")


@pytest.mark.parametrize(("status", "kept"), [(200, True), (202, False), (409, False)])
def test_a_report_is_kept_only_where_the_server_says_all_of_it_is(
    serve: Serve, status: int, kept: bool
) -> None:
    pytest.importorskip("highdicom", reason="pip install 'medmoe[dicomweb]'")

    def script(path: str) -> tuple[int, dict[str, str], Iterable[bytes]]:
        return (200, {}, [in_parts(instance(1))]) if "series" in path else (status, {}, [b"{}"])

    with scripted(script) as (address, seen):
        reply = serve(address, None)(instance=f"{SERIES}.1", write=True)
    assert reply.is_success == kept
    assert [path for path, _ in seen][1:] == [f"/studies/{STUDY}"], "both in one request"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8042",
        "ftp://pacs/x",
        "http://",
        "http://a:b@pacs/x",
        "http://pacs/x?y",
        "file:///x",
    ],
)
def test_an_address_that_is_none_is_refused_at_the_start(serve: Serve, url: str) -> None:
    with pytest.raises(ConfigError, match="plain address") as caught:
        serve(url, None)
    assert "b@" not in str(caught.value)


def test_without_an_address_there_is_no_route(talk: Any) -> None:
    assert talk("POST", "/v1/dicomweb", json={}).status_code == 404


def test_a_running_server_asks_with_its_login_and_logs_none_of_it(
    pacs: Pacs, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("highdicom", reason="pip install 'medmoe[dicomweb]'")
    (tmp_path / "login").write_text(f"{LOGIN}\n")
    flags = ("--dicomweb", f"{pacs.address}/dicom-web", "--dicomweb-login", str(tmp_path / "login"))
    before = pacs.instances()
    with running(tiny_model, tmp_path / "run", *flags, "--deadline", "300") as server:
        body = {"study": STUDY, "series": SERIES, "question": "What?", "write": True}
        reply = httpx.post(f"{server.address}/v1/dicomweb", json=body, timeout=300)
        assert reply.status_code == 200, reply.text
        known = httpx.get(f"{server.address}/openapi.json", timeout=60).json()["paths"]
        assert "/v1/dicomweb" in known
        said = server.said()
        assert not list(server.folder.iterdir())
    assert len(pacs.instances() - before) == 2
    assert all(word not in said for word in (*IDENTIFIERS, LOGIN, STUDY))


def test_serve_says_what_it_needs_before_it_loads_a_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medmoe.cli.serve.find_spec", lambda _: None)
    assert main(["serve", "no-such-model", "--dicomweb", "http://localhost:8042"]) == 2
    assert "pip install 'medmoe[dicomweb]'" in capsys.readouterr().err
