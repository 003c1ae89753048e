"""Downloads from a server that drops connections, lacks files and sends damaged ones."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medmoe.data import download, fetch
from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.common import Source
from medmoe.data.readers.llava_med import ALIGNMENT
from medmoe.errors import DataError


@dataclass
class Server:
    """What a local server has and does.

    Attributes:
        files: Content by path.
        drops: After how many bytes a connection to a path is closed, for each of the next ones.
        spoilt: How many of the next replies for a path are not what their checksum says.
        asked: Path and ``Range`` of every request.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    drops: dict[str, list[int]] = field(default_factory=dict)
    spoilt: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, wanted = self.path, self.headers["Range"]
            state.asked.append((path, wanted))
            if path not in state.files:
                self.send_error(404)
                return
            whole = state.files[path]
            begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(whole) - begin))
            md5 = base64.b64encode(hashlib.md5(whole).digest()).decode()
            self.send_header("x-ms-blob-content-md5", md5)
            self.end_headers()
            content = whole[begin:]
            if state.spoilt.get(path, 0):
                state.spoilt[path] -= 1
                content = bytes([content[0] ^ 1]) + content[1:]
            if state.drops.get(path):
                content = content[: state.drops[path].pop(0)]
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield state
    served.shutdown()
    served.server_close()


NOISE = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(100))


def archive(**pictures: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as content:
        for name, data in pictures.items():
            member = tarfile.TarInfo(f"PMC1/{name}.jpg")
            member.size = len(data)
            content.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_a_broken_off_download_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = bytes(range(200)) * 50
    server.drops["/f"] = [4000, 3000]
    download.download(f"{server.address}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == server.files["/f"]
    assert server.asked == [("/f", None), ("/f", "bytes=4000-"), ("/f", "bytes=7000-")]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_a_killed_program_left_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = b"0123456789"
    (tmp_path / "f.part").write_bytes(b"01234")
    download.download(f"{server.address}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"0123456789"
    assert server.asked == [("/f", "bytes=5-")]


def test_a_damaged_download_is_begun_anew_and_never_kept(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = b"0123456789"
    server.spoilt["/f"] = 1
    download.download(f"{server.address}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"0123456789"
    assert server.asked == [("/f", None)] * 2
    server.spoilt["/f"] = 10**6
    with pytest.raises(DataError, match=r"cannot be fetched \(its md5 is not [0-9a-f]{32}\)"):
        download.download(f"{server.address}/f", tmp_path / "g")
    server.spoilt.clear()
    with pytest.raises(DataError, match=r"its sha256 is not abab"):
        download.download(f"{server.address}/f", tmp_path / "g", "abab")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_only_web_addresses_are_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a web address"):
        download.download("file:///etc/hostname", tmp_path / "f")


def listed(server: Server, *rows: tuple[str, str, str]) -> bytes:
    keys = ("pair_id", "pmc_tar_url", "image_file_path")
    lines = [(name, f"{server.address}{path}", f"PMC1/{file}.jpg") for name, path, file in rows]
    return "".join(json.dumps(dict(zip(keys, line, strict=True))) + "\n" for line in lines).encode()


def test_llava_med_comes_with_the_pictures_that_are_to_be_had(
    server: Server, tmp_path: Path
) -> None:
    turns = [{"from": "human", "value": "Describe.\n<image>"}, {"from": "gpt", "value": "A CT."}]
    rows = [{"id": f"{n}", "image": f"{n}.jpg", "conversatons": turns} for n in range(1, 8)]
    server.files |= {
        "/alignment/llava_med_alignment_500k.json": json.dumps(rows).encode(),
        "/a.tar.gz": archive(one=b"1", two=b"2", other=b"never taken"),
        "/b.tar.gz": archive(three=b"3"),
        "/d.tar.gz": archive(five=b"5", noise=NOISE)[:-9],  # its pictures are whole, its end is not
        "/urls.jsonl": listed(
            server,
            *(("1", "/a.tar.gz", "one"), ("2", "/a.tar.gz", "two"), ("3", "/b.tar.gz", "three")),
            *(("4", "/gone.tar.gz", "four"), ("5", "/d.tar.gz", "five")),
            *(("6", "/a.tar.gz", "six"), ("../7", "/a.tar.gz", "one"), ("9", "/c.tar.gz", "x")),
        ),
    }
    server.drops["/b.tar.gz"] = [50]
    source = Source(
        "https://home",
        "llava-med",
        files=("alignment/llava_med_alignment_500k.json",),
        web=f"{server.address}/",
        pictures="urls.jsonl",
    )
    bad = BadRows()
    folder = fetch.fetch("llava_med_alignment", source, tmp_path, bad)
    images = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    assert images == {"1.jpg": b"1", "2.jpg": b"2", "3.jpg": b"3"}
    missing = json.loads((folder / "missing.json").read_text())
    assert missing.pop("5.jpg").startswith("its archive is damaged")
    assert missing == {
        "4.jpg": "its archive is gone",
        "6.jpg": "not in its archive",
        "7.jpg": "not in the list of pictures",
    }
    assert sum(bad.known_faults.values()) == 4
    assert "/c.tar.gz" not in server.paths()  # no row asks for its picture
    assert server.paths().count("/a.tar.gz") == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        *("alignment", "images", "missing.json", "urls.jsonl"),
    ]
    assert [r.image.id for r in ALIGNMENT.read(tmp_path, "train")] == [
        f"llava_med/{n}.jpg" for n in (1, 2, 3)
    ]

    server.asked.clear()  # again: what is there is not asked for, what was damaged is
    server.files["/d.tar.gz"] = archive(five=b"5", noise=NOISE)
    fetch.fetch("llava_med_alignment", source, tmp_path, BadRows())
    assert sorted(set(server.paths())) == ["/a.tar.gz", "/d.tar.gz", "/gone.tar.gz"]
    assert (folder / "images" / "5.jpg").read_bytes() == b"5"


def test_a_network_that_is_gone_ends_it_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_TRIES", 1)
    monkeypatch.setattr(download, "_GIVE_UP", 3)
    nowhere = Server("http://127.0.0.1:9")
    rows = [(str(n), f"/{n}.tar.gz", "one") for n in range(50)]
    (tmp_path / "list.jsonl").write_bytes(listed(nowhere, *rows))
    wanted = [f"{n}.jpg" for n in range(50)]
    with pytest.raises(DataError, match="run it again to go on"):
        download.fetch_pictures(tmp_path / "list.jsonl", wanted, tmp_path / "images")
