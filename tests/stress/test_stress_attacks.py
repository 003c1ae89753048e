"""Inputs that once stalled, filled or fooled the server: what they cost now, and whom."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.serving.parsers import PARSERS, reads
from tests.serving.support import TOKEN, Running, png, question, running
from tests.stress import attacks
from tests.stress.ledger import Ledger
from tests.stress.load import percentile

MIB = 2**20
BYTES = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def server(stress_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(stress_model, tmp_path_factory.mktemp("attacked") / "server") as server:
        asyncio.run(attacks.in_a_row(server, 3, **attacks.plain(image=png())))
        asyncio.run(attacks.in_a_row(server, 1, **attacks.with_evidence()))
        yield server


@pytest.mark.parametrize("name", PARSERS)
def test_reading_takes_time_in_proportion(name: str, ledger: Ledger) -> None:
    def seconds(size: int) -> float:
        call, least = PARSERS[name](size), float("inf")
        for _ in range(7):
            begun = time.thread_time()
            for _ in range(10):
                reads(call)
            least = min(least, time.thread_time() - begun)
        return least

    once, four, sixteen = (seconds(times * 6_000) for times in (1, 4, 16))
    ledger.note("parsers", **{name: [round(four / once, 1), round(sixteen / once, 1)]})
    assert four <= 5 * once
    assert sixteen <= 20 * once


@pytest.mark.parametrize(("size", "seconds"), [(66_000, 0.1), (660_000, 0.2)])
def test_quotes_and_backslashes(server: Running, ledger: Ledger, size: int, seconds: float) -> None:
    work = attacks.at_once(server, 1, **attacks.chat(attacks.quotes(size)))
    ((status, took),), seen = asyncio.run(attacks.watched(server, work))
    ledger.note(f"quotes_{size}", seconds=round(took, 3), health=round(max(seen.health), 3))
    assert status == 400
    assert took <= seconds
    assert max(seen.health) <= 0.2


def test_cookies_of_quotes(stress_model: Path, tmp_path: Path, ledger: Ledger) -> None:
    with running(stress_model, tmp_path / "server", "--token", TOKEN) as server:
        sent = {"url": "/v1/models", "headers": {"Cookie": attacks.cookie(31_600)}}
        work = attacks.at_once(server, 5, method="GET", **sent)
        replies, seen = asyncio.run(attacks.watched(server, work))
    slowest = max(took for _, took in replies)
    ledger.note("cookies", seconds=round(slowest, 3), health=round(max(seen.health), 3))
    assert {status for status, _ in replies} == {401}
    assert slowest <= 0.05 * 5  # one after the other: 50 ms each


def test_a_slow_charset(server: Running, ledger: Ledger) -> None:
    headers, body = attacks.odd_charset(MIB - 100)
    sent = {"method": "POST", "url": "/v1/files", "headers": headers, "content": body}
    replies, seen = asyncio.run(attacks.watched(server, attacks.at_once(server, 1, **sent)))
    ledger.note("charset", seconds=round(replies[0][1], 3), health=round(max(seen.health), 3))
    assert replies[0][0] == 415
    assert replies[0][1] <= 0.05


def test_empty_messages_fill_no_memory(server: Running, ledger: Ledger) -> None:
    sent = attacks.chat(attacks.empty_messages(48 * MIB))
    replies, seen = asyncio.run(attacks.watched(server, attacks.at_once(server, 4, **sent)))
    ledger.note("empty_messages", growth_mib=seen.growth // MIB, health=round(max(seen.health), 3))
    assert {status for status, _ in replies} <= {400, 429}
    assert seen.growth <= 400 * MIB


def compared(server: Running, ledger: Ledger, name: str, attack: Any) -> tuple[float, Any]:
    """Return the 95th percentile of a question in words beside an attack over the idle one."""
    idle = asyncio.run(attacks.in_a_row(server, 40, **attacks.plain()))
    beside, replies = asyncio.run(attacks.beside(server, attack, 40, **attacks.plain()))
    ratio = percentile(beside, 0.95) / percentile(idle, 0.95)
    statuses = sorted({status for status, _ in replies})
    ledger.note(name, p95_over_idle=round(ratio, 2), statuses=statuses)
    return ratio, statuses


@pytest.mark.parametrize("path", ["/page/picture", attacks.CHAT])
def test_bad_pictures_beside_a_question_in_words(
    server: Running, ledger: Ledger, path: str
) -> None:
    data = attacks.slow_jpeg()
    page = {"method": "POST", "url": path, "headers": BYTES, "content": data}
    sent = page if path == "/page/picture" else attacks.plain(image=data)
    ratio, statuses = compared(
        server, ledger, f"bad_pictures{path.replace('/', '_')}",
        lambda: attacks.at_once(server, 40, **sent),
    )  # fmt: skip
    assert set(statuses) <= {422, 429, 504}
    assert ratio <= 2


def test_evidence_beside_questions(server: Running, ledger: Ledger) -> None:
    ratio, statuses = compared(
        server, ledger, "evidence", lambda: attacks.at_once(server, 20, **attacks.with_evidence())
    )
    assert set(statuses) <= {200, 429, 504}
    assert 200 in statuses
    assert ratio <= 2


def test_the_deadline_holds_for_evidence(
    stress_model: Path, tmp_path: Path, ledger: Ledger
) -> None:
    with running(stress_model, tmp_path / "server", "--deadline", "1") as server:
        work = attacks.at_once(server, 20, **attacks.with_evidence())
        replies = asyncio.run(work)
    slowest = max(took for _, took in replies)
    ledger.note("deadline_evidence", seconds=round(slowest, 2))
    assert {status for status, _ in replies} <= {200, 429, 504}
    assert slowest <= 2.5


def half_sent(server: Running, count: int, path: str) -> list[socket.socket]:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    wires = []
    for _ in range(count):
        wire = socket.create_connection(("127.0.0.1", server.port), 30)
        wire.sendall(head.encode() + b"Content-Length: 90\r\n\r\n{")
        wires.append(wire)
    return wires


@pytest.mark.parametrize(("count", "path"), [(32, attacks.CHAT), (1100, "/login")])
def test_halves_of_requests_keep_nobody_out(
    stress_model: Path, tmp_path: Path, ledger: Ledger, count: int, path: str
) -> None:
    wrap = ("sh", "-c", 'ulimit -n 1024; exec "$@"', "sh")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with running(stress_model, tmp_path / "server", wrap=wrap) as server:
        wires = half_sent(server, count, path)
        begun = time.monotonic()
        reply = httpx.post(f"{server.address}{attacks.CHAT}", json=question(), timeout=60)
        seconds = time.monotonic() - begun
        for wire in wires:
            wire.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    ledger.note(f"halves_{count}", seconds=round(seconds, 2))
    assert reply.status_code == 200
    assert seconds <= 5


def test_an_upload_needs_no_disk(stress_model: Path, tmp_path: Path) -> None:
    with running(stress_model, tmp_path / "server") as server:
        server.folder.chmod(0)
        files = {"file": ("x", png(1200) + bytes(20 * MIB))}
        reply = httpx.post(f"{server.address}/v1/files", files=files, timeout=60)
        opened = [file.path for file in psutil.Process(server.process.pid).open_files()]
        server.folder.chmod(0o700)
    assert reply.status_code == 200
    assert not [path for path in opened if str(server.folder) in path]


def test_replies_that_nobody_reads_are_let_go(server: Running, ledger: Ledger) -> None:
    """Pictures of a case, asked for again and again; none is read."""
    process = psutil.Process(server.process.pid)
    case = httpx.post(
        f"{server.address}/page/picture", content=png(1100), headers=BYTES, timeout=60
    )
    body = json.dumps({"handle": case.json()["handle"]}).encode()
    head = f"POST /page/call/anew HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    before, wires = (process.num_fds(), process.memory_info().rss), []
    for _ in range(150):
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", server.port))
        wire.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        wires.append(wire)
    end, held = time.monotonic() + 300, 0
    time.sleep(5)
    while process.num_fds() > before[0] + 5 and time.monotonic() < end:
        held = max(held, process.memory_info().rss)
        time.sleep(0.5)
    after = process.num_fds(), process.memory_info().rss
    for wire in wires:
        wire.close()
    facts = [round((now - before[1]) / MIB) for now in (held, after[1])]
    ledger.note("unread", most_mib=facts[0], left_mib=facts[1])
    assert after[0] <= before[0] + 5
    assert facts[1] <= 100
