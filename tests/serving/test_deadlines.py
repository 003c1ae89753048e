"""Everything that a request costs has a bounded share and one deadline, from its arrival."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving.support import Inside, png, question
from tests.serving.test_local_engine import IMAGES, QUESTIONS, request, run, whole

from medmoe.data.images import open_picture
from medmoe.errors import ImageError
from medmoe.inference.engine import MedMoe
from medmoe.inference.evidence import explain
from medmoe.serving import evidence_thread, pictures
from medmoe.serving.app import create_app
from medmoe.serving.aside import Aside
from medmoe.serving.audit import AuditLog
from medmoe.serving.chat_engine import EngineError
from medmoe.serving.local_engine import LocalEngine
from medmoe.serving.pictures import UploadStore
from medmoe.serving.service import CHAT_PATH
from medmoe.serving.settings import ServerSettings


def part(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def asked(**more: Any) -> dict[str, Any]:
    return part(json.dumps(question(**more)).encode())


class Clock:
    """The time of an event loop, which can be put forward."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._time, self._ahead = loop, loop.time, 0.0
        loop.time = lambda: self._time() + self._ahead  # type: ignore[method-assign]

    def put_forward(self) -> None:
        """Let all deadlines pass, from any thread."""
        self._ahead = 100.0
        self._loop.call_soon_threadsafe(lambda: None)


@pytest.fixture
def clock(inside: Inside) -> Clock:
    return Clock(inside.loop)


@pytest.fixture
def stuck(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Decoding and explaining do not end before the test does, and meanwhile deadlines pass."""
    gate = threading.Event()

    def wait(*_: Any, **__: Any) -> Any:
        clock.put_forward()
        gate.wait(60)
        raise RuntimeError

    monkeypatch.setattr(pictures, "open_picture", wait)
    monkeypatch.setattr(evidence_thread, "explain", wait)
    yield gate
    gate.set()


@pytest.mark.usefixtures("stuck")
def test_past_the_deadline_it_is_504_whatever_it_was_doing(inside: Inside) -> None:
    body = asked(image=png())
    status, _, reply = inside.exchange("POST", CHAT_PATH, body, transfer_encoding="chunked")
    assert (status, json.loads(reply)["error"]["code"]) == (504, "deadline_passed")
    assert inside.written() == [(504, "deadline_passed")]


def test_a_body_that_is_not_there_at_the_deadline_is_504(
    tiny_model: Path, tiny: MedMoe, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    settings = ServerSettings(deadline_seconds=50.0, body_seconds=500.0)
    engine = LocalEngine(tiny_model, load_model=lambda: tiny)
    loop = asyncio.new_event_loop()
    clock = Clock(loop)
    loop.run_until_complete(engine.start())
    app = Inside(
        create_app(engine, settings, audit=log, page=False), loop, tmp_path / "audit.jsonl"
    )

    async def later() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        clock.put_forward()

    waiting = loop.create_task(later())
    begun = part(b"{", more=True)
    status, _, reply = app.exchange("POST", CHAT_PATH, begun, transfer_encoding="chunked")
    assert (status, json.loads(reply)["error"]["code"]) == (504, "deadline_passed")
    assert app.written() == [(504, "deadline_passed")]
    assert waiting.done()
    loop.run_until_complete(engine.stop())
    loop.close()
    log.close()


@pytest.mark.usefixtures("stuck")
@pytest.mark.parametrize("stream", [False, True])
def test_evidence_has_the_deadline_of_its_answer(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(pictures, "open_picture", open_picture)
    body = asked(image=png(), medmoe={"evidence": True}, stream=stream)
    status, _, reply = inside.exchange("POST", CHAT_PATH, body, transfer_encoding="chunked")
    assert status == (200 if stream else 504)
    assert b"deadline_passed" in reply
    assert inside.written() == [(504, "deadline_passed")]


def test_pictures_that_hang_leave_questions_in_words_alone(
    inside: Inside, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All decoders are taken and their queue is full: words do not wait for them."""
    gate = threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        gate.wait(60)
        raise ImageError("undecodable", "it hung")

    monkeypatch.setattr(pictures, "open_picture", hang)

    async def beside() -> tuple[httpx.Response, httpx.Response, list[Any]]:
        decoding = inside.app.state.service.decoding
        waiting = [asyncio.ensure_future(decoding.open(png())) for _ in range(40)]
        await asyncio.sleep(0)
        transport = httpx.ASGITransport(app=inside.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            words = await client.post(CHAT_PATH, json=question())
            picture = await client.post(CHAT_PATH, json=question(image=png()))
        clock.put_forward()
        return words, picture, await asyncio.gather(*waiting, return_exceptions=True)

    words, picture, others = inside.loop.run_until_complete(beside())
    gate.set()
    assert words.status_code == 200
    assert (picture.status_code, picture.json()["error"]["code"]) == (429, "queue_full")
    assert {error.code for error in others} == {"queue_full", "deadline_passed"}


def test_who_leaves_the_queue_takes_the_work_along_and_a_thread_is_free_when_it_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate, begun = threading.Event(), list[int]()

    def work(number: int) -> int:
        begun.append(number)
        gate.wait(60)
        if number == 0:
            raise ValueError("of a patient")
        return number

    async def crowd() -> None:
        aside = Aside(1, 3, "test")
        first, second, third = (
            asyncio.ensure_future(aside.run(lambda n=n: work(n)))  # type: ignore[misc]
            for n in range(3)
        )
        while not begun:
            await asyncio.sleep(0.001)
        with pytest.raises(EngineError, match="too many"):
            await aside.run(lambda: work(3))
        for left in (first, second):
            left.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await left
        assert aside.calls == 1
        assert begun == [0]  # the first still has the thread
        gate.set()
        assert await third == 2
        assert begun == [0, 2]

    asyncio.run(crowd())
    gc.collect()
    assert not caplog.records  # what nobody waits for is not told either


def test_a_client_that_sends_slowly_holds_no_place(inside: Inside) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async def crowd() -> int:
        transport = httpx.ASGITransport(app=inside.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            headers = {"Content-Type": "application/json"}
            slowly = [
                asyncio.ensure_future(client.post(CHAT_PATH, content=slow(), headers=headers))
                for _ in range(100)
            ]
            await asyncio.sleep(0.1)
            reply = await client.post(CHAT_PATH, json=question())
            for one in slowly:
                one.cancel()
            await asyncio.gather(*slowly, return_exceptions=True)
            return reply.status_code

    assert inside.loop.run_until_complete(crowd()) == 200


def test_bodies_share_the_memory_and_small_ones_need_none_of_it(inside: Inside) -> None:
    whole_body, small = part(b" " * 64 * 2**20, more=True), asked()

    async def crowd() -> tuple[int, int]:
        held = [asyncio.ensure_future(_begun(inside, whole_body)) for _ in range(4)]
        await asyncio.sleep(0.2)
        last = await _begun(inside, whole_body)
        words = await _begun(inside, small)
        for one in held:
            one.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        assert last is not None
        assert words is not None
        return last, words

    assert inside.loop.run_until_complete(crowd()) == (429, 200)


async def _begun(inside: Inside, message: dict[str, Any]) -> int | None:
    """Send the beginning of a body and return the status of the reply."""
    coming, sent = [message], list[dict[str, Any]]()
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST",
        "http_version": "1.1", "scheme": "http", "path": CHAT_PATH, "raw_path": CHAT_PATH.encode(),
        "root_path": "", "query_string": b"", "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"),
                    (b"transfer-encoding", b"chunked")],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        if coming:
            return coming.pop()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await inside.app(scope, receive, send)
    return sent[0]["status"] if sent else None


def test_evidence_beside_conversations_is_that_of_the_engine_alone(
    tiny_model: Path, tiny: MedMoe
) -> None:
    async def work(engine: LocalEngine) -> list[Any]:
        answers = [whole(engine, request(q, IMAGES[0])) for q in QUESTIONS]
        both = [engine.explain(IMAGES[0], q) for q in QUESTIONS[:2]]
        return await asyncio.gather(*both, *answers)

    found = run(tiny_model, tiny, work)
    for got, asked_ in zip(found, QUESTIONS[:2], strict=False):
        assert got == explain(tiny, IMAGES[0], asked_).to_dict()
    for got, asked_ in zip(found[2:], QUESTIONS, strict=True):
        assert got == tiny.answer(IMAGES[0], asked_).text


def test_evidence_takes_no_memory_for_weights(tiny: MedMoe) -> None:
    own = evidence_thread.EvidenceThread(tiny)._own
    shared = {each.data_ptr() for each in tiny.model.parameters()}
    assert {each.data_ptr() for each in own.model.parameters()} == shared
    assert own.model is not tiny.model


@pytest.mark.parametrize(("share", "goes_on"), [(0.0, False), (10.0, True)])
def test_evidence_waits_while_others_are_answered_but_for_its_share(
    tiny: MedMoe, monkeypatch: pytest.MonkeyPatch, share: float, goes_on: bool
) -> None:
    monkeypatch.setattr(evidence_thread, "SHARE", share)
    thread = evidence_thread.EvidenceThread(tiny)
    asked_ = evidence_thread.Question(IMAGES[0], QUESTIONS[0])
    found: list[Any] = []

    def work() -> None:
        with contextlib.suppress(evidence_thread.LeftError):
            found.append(thread.work_out(asked_))

    with thread.answering():
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
    for _ in range(50_000 if goes_on else 20):
        with thread.answering():
            worker.join(0.02)
        if found:
            break
    assert bool(found) == goes_on
    if not goes_on:
        thread.go_on()  # nobody is answered any more
    worker.join(60)
    assert found


def test_evidence_that_nobody_waits_for_is_given_up(tiny: MedMoe) -> None:
    thread = evidence_thread.EvidenceThread(tiny)
    asked_ = evidence_thread.Question(IMAGES[0], QUESTIONS[0])
    thread.leave(asked_)
    with pytest.raises(evidence_thread.LeftError):
        thread.work_out(asked_)


def test_the_oldest_uploads_make_room_for_new_ones() -> None:
    store = UploadStore(max_bytes=100, max_files=4)
    names = [store.add(b"x").id for _ in range(300)]
    assert [store.get(name).id for name in names[-4:]] == names[-4:]
    big = store.add(b"x" * 99).id
    assert store.get(names[-1]).data == b"x"
    assert store.get(big).data == b"x" * 99
    with pytest.raises(Exception, match="no such upload"):
        store.get(names[-2])
