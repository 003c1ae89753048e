"""What only a whole process shows: signals, raw sockets, the network, and what stays on disk."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from pydicom.data import get_testdata_file
from tests.model.growing import ALL, grown
from tests.serving.support import TOKEN, Running, ask, data_url, png, question, running

from medmoe.cli.main import main
from medmoe.model.checkpoint import identity
from medmoe.serving.audit import verify


def exchange(server: Running, data: bytes, seconds: float = 20) -> bytes:
    """Send bytes and return all that comes back until the server hangs up or time is over."""
    with socket.create_connection(("127.0.0.1", server.port), seconds) as wire:
        found = b""
        try:
            wire.sendall(data)
            while part := wire.recv(65536):
                found += part
        except OSError:
            pass
        return found


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2**20 + b"\r\n\r\n", b" 4"),
        (b"nonsense\r\n\r\n", b" 400"),
        (b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4294967296\r\n\r\n",
         b" 413"),
        (b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n"
         b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n",
         b" 400"),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
         b" 404"),
        (b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
         b" 4"),
    ],
)  # fmt: skip
def test_odd_requests_are_the_clients_fault(server: Running, data: bytes, status: bytes) -> None:
    reply = exchange(server, data)
    assert not reply or reply.split(b"\r\n")[0].startswith(b"HTTP/1.1" + status), reply[:200]
    assert httpx.get(f"{server.address}/health/live").status_code == 200


def test_nothing_stays_on_disk_and_no_name_in_the_log(server: Running) -> None:
    with open(get_testdata_file("CT_small.dcm"), "rb") as file:
        data = file.read()
    secret = "Doe^Jane.dcm"
    reply = httpx.post(f"{server.address}/v1/files", files={"file": (secret, data)})
    assert reply.status_code == 200
    big = png(1200)  # more than a form would keep in memory by itself
    assert (
        httpx.post(f"{server.address}/v1/files", files={"file": (secret, big)}).status_code == 200
    )
    url = data_url(data, "application/dicom")
    ask(server.address, text=secret, image=data)
    assert url is not None
    assert [path for path in server.folder.rglob("*") if path.is_file()] == []
    assert "Doe" not in server.said()


def test_with_a_token_it_answers_only_who_has_it_and_ends_when_it_is_told_to(
    tiny_model: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "token"
    secret.write_text(TOKEN + "\n")
    log = tmp_path / "audit.jsonl"
    flags = ("--token-file", str(secret), "--audit-log", str(log), "--no-page", "--drain", "5")
    with running(tiny_model, tmp_path / "server", *flags) as server:
        assert ask(server.address).status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        body = question("left lung", png(), max_tokens=150)
        replies: list[httpx.Response | Exception] = []

        def client() -> None:
            try:
                url = f"{server.address}/v1/chat/completions"
                replies.append(httpx.post(url, json=body, headers=headers, timeout=60))
            except Exception as error:
                replies.append(error)

        clients = [threading.Thread(target=client) for _ in range(4)]
        for one in clients:
            one.start()
        end = time.monotonic() + 20
        while "medmoe_running 0.0" in httpx.get(f"{server.address}/metrics", headers=headers).text:
            assert time.monotonic() < end
        server.process.send_signal(signal.SIGTERM)
        for one in clients:
            one.join(30)
        found = [getattr(reply, "status_code", reply) for reply in replies]
        assert 200 in found, found  # what was under way is answered
        assert set(found) <= {200, 503}, found  # what came later is refused
        assert server.process.wait(20) == 0
        assert TOKEN not in server.said()
    assert verify(log).fault is None
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert (events[0], events[-1]) == ("start", "stop")


def test_a_token_of_the_environment_is_in_no_environment_of_the_running_server(
    tiny_model: Path, tmp_path: Path
) -> None:
    wrap = ("env", f"MEDMOE_TOKEN={TOKEN}")
    with running(tiny_model, tmp_path / "server", "--no-page", wrap=wrap) as server:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{server.address}/v1/models").status_code == 401
        assert httpx.get(f"{server.address}/v1/models", headers=headers).status_code == 200
        upload = {"file": ("x.png", png())}
        url = f"{server.address}/v1/files"
        assert httpx.post(url, files=upload, headers=headers).status_code == 200
        family = psutil.Process(server.process.pid)
        for process in (family, *family.children(recursive=True)):
            assert TOKEN not in str(process.environ()) + str(process.cmdline())


def test_it_runs_where_there_is_no_network(tiny_model: Path, tmp_path: Path) -> None:
    inside = (
        "unshare",
        "--net",
        "--map-root-user",
        "sh",
        "-c",
        'ip link set lo up; exec "$@"',
        "sh",
    )
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("this machine gives no network namespaces")
    program = (
        "import sys, subprocess, httpx\n"
        "from pathlib import Path\n"
        "from tests.serving.support import running, ask, png\n"
        "with running(Path(sys.argv[1]), Path(sys.argv[2])) as server:\n"
        "    assert ask(server.address, image=png()).status_code == 200\n"
        "    assert httpx.get(server.address).status_code == 200\n"
        "    table = open(f'/proc/{server.process.pid}/net/tcp').read()\n"
        "    rows = [row.split()[2] for row in table.splitlines()[1:]]\n"
        "    assert all(row.startswith(('0100007F', '00000000')) for row in rows), rows\n"
    )
    words = [*inside, sys.executable, "-c", program, str(tiny_model), str(tmp_path / "server")]
    subprocess.run(words, check=True, timeout=120)


def test_without_its_page_it_serves_all_else(tiny_model: Path, tmp_path: Path) -> None:
    with running(tiny_model, tmp_path / "server", "--no-page") as server:
        assert ask(server.address, image=png()).status_code == 200
        upload = httpx.post(f"{server.address}/v1/files", files={"file": ("x.png", png())})
        assert upload.status_code == 200
        assert httpx.get(server.address).status_code == 404


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--host", "0.0.0.0"], "give a token"),
        (["--token", "short"], "at least 16"),
        (["--token", 4097 * "x"], "at most 4,096"),
        (["--token-file", "nowhere"], "cannot read the token file"),
        (["--port", "0"], "not a port"),
    ],
)
def test_unsafe_use_is_one_line(
    tiny_model: Path, flags: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from medmoe.cli import main as cli

    try:
        code = cli.main(["serve", str(tiny_model), *flags])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert part in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(
    tiny_model: Path, server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    from medmoe.cli import main as cli

    assert cli.main(["serve", str(tiny_model), "--port", str(server.port)]) == 2
    assert "cannot bind to 127.0.0.1" in capsys.readouterr().err


def test_an_altered_model_is_not_served(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from medmoe.cli import main as cli

    copy = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert cli.main(["serve", str(copy), "--port", "8999"]) == 2
    assert "config.json: its SHA-256 differs" in capsys.readouterr().err


def test_experts_are_changed_under_load_and_no_request_is_lost(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "tiny" / "model")
    packs = []
    for name in ("ultrasound", "angiography"):
        grown(base, tmp_path / name, ALL, name)
        packs.append(tmp_path / f"{name}.pack")
        words = ["expert", "export", tmp_path / name, name, "--out", packs[-1]]
        assert main([*map(str, words)]) == 0

    def take_in(action: str, *words: object) -> str:
        """Change the site's experts and return the hash of its model."""
        assert main(["expert", action, str(base), *map(str, words), "--site", "north"]) == 0
        return identity(base.parent / "sites" / "north")

    hashes, log = [take_in("import", packs[0])], tmp_path / "audit.jsonl"
    flags = ("--site", "north", "--name", "tiny", "--audit-log", str(log), "--no-page")
    replies: list[httpx.Response] = []
    with running(base, tmp_path / "server", *flags, "--max-waiting", "64") as server:

        def client(number: int) -> None:
            while not ended.is_set():
                long = question(f"left lung {number}", png(seed=number), max_tokens=40)
                url = f"{server.address}/v1/chat/completions"
                replies.append(httpx.post(url, json=long | {"stream": number % 2 == 0}, timeout=60))

        ended = threading.Event()
        clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for one in clients:
            one.start()
        for words in (("import", packs[1]), ("remove", "ultrasound", "--to", "meta")):
            hashes.append(take_in(*words))
            server.process.send_signal(signal.SIGUSR1)
            end = time.monotonic() + 60
            while f"changed to model {hashes[-1]}" not in server.said():
                assert time.monotonic() < end, server.said()
                time.sleep(0.05)
            (listed,) = httpx.get(f"{server.address}/v1/models").json()["data"]
            assert listed["medmoe"]["sha256"] == hashes[-1]
            before = len(replies)
            while len(replies) < before + 8:
                assert time.monotonic() < end
                time.sleep(0.05)
        (base.parent / "sites" / "north" / "config.json").write_text("{}")
        server.process.send_signal(signal.SIGUSR1)
        while "not changed, the model before goes on" not in server.said():
            assert time.monotonic() < end, server.said()
            time.sleep(0.05)
        assert ask(server.address, image=png()).status_code == 200
        ended.set()
        for one in clients:
            one.join(60)
    assert [reply.status_code for reply in replies] == [200] * len(replies)
    assert verify(log).fault is None
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    served = [line["model"] for line in lines if line["event"] == "chat"]
    assert list(dict.fromkeys(served)) == hashes
    assert [line["model"] for line in lines if line["event"] == "changed"] == hashes[1:]
    # What a reply says of its expert is true of the model that the log names.
    whole = [reply.json()["medmoe"] for reply in replies if "json" in reply.headers["content-type"]]
    assert {told["routing"]["domain"] for told in whole} == {"ultrasound", "angiography"}
