"""What becomes of a request and its connection whatever a client does, and what is written down."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from tests.serving.support import Inside, Running, png, question

from medmoe.inference.chat import ChatChunk
from medmoe.inference.engine import MedMoe
from medmoe.serving.app import create_app
from medmoe.serving.audit import verify
from medmoe.serving.chat_engine import busy, late
from medmoe.serving.local_engine import LocalEngine
from medmoe.serving.server import _Protocol
from medmoe.serving.service import CHAT_PATH
from medmoe.serving.settings import ServerSettings
from medmoe.serving.transport import SMALL_BODY

LEFT = {"type": "http.disconnect"}


def part(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def asked(**more: object) -> dict[str, Any]:
    return part(json.dumps(question(image=png()) | more).encode())


def length(message: dict[str, Any]) -> str:
    return str(len(message["body"]))


def test_who_leaves_between_the_first_word_and_the_first_event_is_written_down(
    inside: Inside,
) -> None:
    body = asked(stream=True, max_tokens=200)
    inside.exchange("POST", CHAT_PATH, body, LEFT, content_length=length(body))
    assert inside.written() == [(499, "client_left")]
    assert inside.app.state.service.under_way == 0  # not only once it is collected


async def _failing(*_: object, **__: object) -> AsyncIterator[ChatChunk]:
    yield ChatChunk("yes")
    raise late()


async def _broken(*_: object, **__: object) -> AsyncIterator[ChatChunk]:
    yield ChatChunk("yes")
    raise RuntimeError


@pytest.mark.parametrize(
    ("messages", "engine", "line"),
    [
        ([asked()], None, (200, None)),
        ([asked(stream=True)], None, (200, None)),
        ([asked(), LEFT], None, (499, "client_left")),
        ([part(b"{", more=True), LEFT], None, (499, "client_left")),
        ([part(b"{", more=True)], None, (408, "too_slow")),
        ([part(b"{")], None, (400, "bad_json")),
        ([part(b"{" * 2**20, more=True)] * 65, None, (413, "request_too_large")),
        ([asked(model="other")], None, (404, "model_not_found")),
        ([asked(stream=True)], _failing, (504, "deadline_passed")),
        ([asked()], _failing, (504, "deadline_passed")),
        ([asked(stream=True)], _broken, (500, "internal_error")),
        ([asked()], _broken, (500, "internal_error")),
    ],
)
def test_a_request_that_was_let_in_leaves_exactly_one_line(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, messages: list[Any], engine: Any, line: Any
) -> None:
    if engine is not None:
        monkeypatch.setattr(LocalEngine, "stream", engine)
    inside.exchange("POST", CHAT_PATH, *messages, transfer_encoding="chunked")
    assert inside.written() == [line]
    assert verify(inside.log).fault is None


def test_a_body_of_another_type_is_written_down_too(inside: Inside) -> None:
    inside.exchange("POST", CHAT_PATH, asked(), content_type="text/plain", content_length="9")
    assert inside.written() == [(415, "unsupported_media_type")]


def test_who_is_refused_at_the_gate_is_counted_and_not_written_down(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise busy(1)

    monkeypatch.setattr(LocalEngine, "check_room", full)
    for _ in range(3):
        status, headers, _ = inside.exchange("POST", CHAT_PATH, asked(), content_length="9")
        assert (status, headers["retry-after"]) == (429, "1")
    assert inside.written() == []
    text = inside.exchange("GET", "/metrics", part(b""))[2].decode()
    assert f'medmoe_requests_total{{route="{CHAT_PATH}",status="429"}} 3.0' in text


@pytest.mark.parametrize(
    ("messages", "headers", "kept"),
    [
        ([part(b"x" * 9)], {"content_length": "9"}, True),
        ([part(b"x" * 5, more=True), part(b"x" * 4)], {"content_length": "9"}, True),
        ([part(b"x", more=True), part(b"")], {"transfer_encoding": "chunked"}, True),
        ([part(b"")], {}, True),
        ([part(b"x", more=True)], {"content_length": "9"}, False),  # the rest never comes
        ([part(b"", more=True)], {"content_length": str(SMALL_BODY + 1)}, False),
        ([part(b"x" * 2**20, more=True)] * 9, {"transfer_encoding": "chunked"}, False),
        ([part(b"", more=True)], {"content_length": "9", "expect": "100-continue"}, False),
    ],
)
def test_who_is_refused_keeps_the_connection_if_all_was_said(
    inside: Inside, messages: list[Any], headers: dict[str, str], kept: bool
) -> None:
    status, found, _ = inside.exchange("POST", "/v1/nowhere", *messages, **headers)
    assert status == 404
    assert (found.get("connection") != "close") == kept


def test_a_slow_call_of_the_page_is_the_clients_fault(tiny_model: Path, tiny: MedMoe) -> None:
    engine = LocalEngine(tiny_model, load_model=lambda: tiny)
    loop = asyncio.new_event_loop()
    page = Inside(create_app(engine, ServerSettings(body_seconds=0.2)), loop, Path())
    for path in ("/page/ask", "/page/export"):
        status, headers, body = page.exchange(
            "POST", path, part(b"{", more=True), transfer_encoding="chunked"
        )
        assert (status, headers["connection"]) == (408, "close")
        assert json.loads(body)["error"]["code"] == "too_slow"
    for method, path, expected in (
        ("GET", CHAT_PATH, (405, "POST")),
        ("PUT", "/metrics", (405, "GET")),
        ("OPTIONS", "/v1/models", (405, "GET")),
        ("POST", "/health/ready", (405, "GET, HEAD")),
        ("POST", CHAT_PATH + "/", (404, None)),
        ("GET", "/v1/nowhere", (404, None)),
    ):
        status, headers, body = page.exchange(method, path, part(b""))
        assert (status, headers.get("allow")) == expected, (method, path)
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    loop.close()


@pytest.mark.parametrize("path", [CHAT_PATH + "/", "/" + CHAT_PATH, CHAT_PATH.upper()])
def test_another_spelling_of_the_address_is_no_way_around_the_gate(
    inside: Inside, path: str
) -> None:
    assert inside.exchange("POST", path, asked(), transfer_encoding="chunked")[0] == 404
    assert inside.written() == []


def test_a_prefix_in_front_of_all_addresses_changes_nothing(inside: Inside) -> None:
    body = asked()
    for path, method in ((CHAT_PATH, "POST"), ("/health/live", "GET")):
        reply = inside.exchange(method, "/a" + path, body, root="/a", content_length=length(body))
        assert reply[0] == 200
    assert inside.written() == [(200, None)]
    text = inside.exchange("GET", "/metrics", part(b""))[2].decode()
    assert f'medmoe_requests_total{{route="{CHAT_PATH}",status="200"}} 1.0' in text


def test_load_balancers_may_ask_with_head(server: Running) -> None:
    for path in ("/health/live", "/health/ready"):
        reply = httpx.head(server.address + path)
        assert (reply.status_code, reply.content) == (200, b"")


def said(server: Running, *parts: bytes) -> bytes:
    """Say one part after the other, each once something came back, and return all that came."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as wire:
        found = b""
        for each in parts:
            wire.sendall(each)
            found += wire.recv(65536)
        wire.settimeout(3)
        try:
            while more := wire.recv(65536):
                found += more
        except TimeoutError:
            return found + b"<open>"
        return found


HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n"


def test_a_client_that_waits_to_be_told_is_told_to_go_on_or_refused_at_once(
    server: Running,
) -> None:
    body = json.dumps(question()).encode()
    waits = HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    good = said(
        server, b"POST %b HTTP/1.1\r\nConnection: close\r\n" % CHAT_PATH.encode() + waits, body
    )
    assert good.startswith(b"HTTP/1.1 100")
    assert b"HTTP/1.1 200" in good
    # The next request on this connection would be taken for the body: so it ends.
    bad = said(server, b"POST /v1/nowhere HTTP/1.1\r\n" + waits)
    assert bad.startswith(b"HTTP/1.1 404")
    assert b"HTTP/1.1 100" not in bad
    assert not bad.endswith(b"<open>")


def test_after_a_refused_body_the_next_request_is_understood(server: Running) -> None:
    first = b"POST /v1/nowhere HTTP/1.1\r\n" + HEAD + b"Content-Length: 40\r\n\r\n" + b"G" * 40
    found = said(server, first, b"GET /health/live HTTP/1.1\r\n" + HEAD + b"\r\n")
    assert found.count(b"HTTP/1.1 404") == found.count(b'{"status":"live"}') == 1
    assert found.endswith(b"<open>")


def test_who_never_ends_a_refused_body_is_hung_up_on(server: Running) -> None:
    endless = b"POST /v1/nowhere HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    found = said(server, endless + b"1\r\nx\r\n")
    assert found.startswith(b"HTTP/1.1 404")
    assert not found.endswith(b"<open>")


def test_a_body_whose_length_is_said_twice_is_answered_and_the_connection_ends(
    server: Running,
) -> None:
    """A proxy in front may have believed the other length (RFC 9112, 6.1)."""
    body = json.dumps(question()).encode()
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    twice = HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked
    found = said(server, b"POST %b HTTP/1.1\r\n" % CHAT_PATH.encode() + twice)
    assert found.startswith(b"HTTP/1.1 200")
    assert not found.endswith(b"<open>")


class _Wire(asyncio.Transport):
    """A connection whose end is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.ended, self.waiting = False, 0

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended

    def write(self, data: Any) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self.waiting


WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("half", [b"", WHOLE[:9], WHOLE[:-2] + b"Content-Length: 9\r\n\r\na"])
def test_who_sends_halves_for_longest_makes_room_for_a_new_connection(
    monkeypatch: pytest.MonkeyPatch, half: bytes
) -> None:
    monkeypatch.setattr(_Protocol, "_most", 3)

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    async def crowd() -> None:
        config, state = uvicorn.Config(never), uvicorn.server.ServerState()
        config.load()

        def connect(data: bytes) -> _Wire:
            connection, wire = _Protocol(config, state, {}), _Wire()
            connection.connection_made(wire)
            if data:
                connection.data_received(data)
            return wire

        asked = connect(WHOLE)  # whole: it is being answered
        halves = [connect(half) for _ in range(5)]
        assert [wire.ended for wire in halves] == [True, True, True, False, False]
        assert not asked.ended
        assert len(state.connections) == 3
        whole = [connect(WHOLE) for _ in range(4)]
        assert all(wire.ended for wire in halves)
        # All that are left are being answered: the new ones are turned away.
        assert [wire.ended for wire in whole] == [False, False, True, True]
        for task in state.tasks:
            task.cancel()

    asyncio.run(crowd())


def test_who_takes_nothing_of_a_reply_is_hung_up_on_and_who_reads_slowly_is_not() -> None:
    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    async def story() -> None:
        config, wire = uvicorn.Config(never), _Wire()
        config.load()
        connection = _Protocol(config, uvicorn.server.ServerState(), {})
        connection.connection_made(wire)
        wire.waiting = 9
        connection.pause_writing()
        assert connection._unread is not None
        for wire.waiting in (8, 3):
            connection._unread._callback(*connection._unread._args)  # its time has come
            assert not wire.ended
        connection.resume_writing()
        assert connection._unread is None
        connection.pause_writing()
        connection._unread._callback(*connection._unread._args)
        assert wire.ended

    asyncio.run(story())
