"""`make advisories`: what advisories say of the pinned packages, and when nothing was checked."""

from __future__ import annotations

import json
import runpy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LOCK = """\
# a comment
left-pad==1.4.0 ; sys_platform == 'linux' \\
    --hash=sha256:00
other==2.0 \\
    --hash=sha256:11
"""


def record(name: str = "left_pad", **affected: Any) -> dict[str, Any]:
    package = {"ecosystem": "PyPI", "name": name}
    return {"id": "TEST-1", "affected": [{"package": package, **affected}]}


def span(*events: tuple[str, str], kind: str = "ECOSYSTEM") -> dict[str, Any]:
    return {"ranges": [{"type": kind, "events": [dict([event]) for event in events]}]}


class Check:
    """The script, called as from the command line: gives exit code, stdout and stderr."""

    def __init__(self, main: Callable[[list[str]], int], folder: Path, output: Any) -> None:
        self.main, self.folder, self.output = main, folder, output

    def __call__(self, *words: object) -> tuple[int, str, str]:
        code = self.main([str(word) for word in words])
        return code, *self.output.readouterr()

    def against(self, content: object, *pins: str) -> tuple[int, str, str]:
        """Write records and the lock, and check them."""
        (self.folder / "some.lock").write_text(LOCK)
        file = self.folder / "records.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return self(file, self.folder / "some.lock", *pins)


@pytest.fixture
def check(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    script = runpy.run_path(str(repository / "scripts" / "advisories.py"))
    return Check(script["main"], tmp_path, capsys)


def test_a_release_in_a_range_is_a_finding(check: Check, tmp_path: Path) -> None:
    known = record(**span(("introduced", "1.2"), ("fixed", "1.4.1"))) | {"aliases": ["CVE-1"]}
    code, out, _ = check.against(known)
    assert code == 1
    line = f"left-pad 1.4.0: TEST-1 (CVE-1), fixed in 1.4.1; pinned by {tmp_path / 'some.lock'}"
    assert out.splitlines()[1:] == [line]


@pytest.mark.parametrize(
    ("events", "covered"),
    [
        ([("introduced", "0")], True),
        ([("introduced", "0"), ("fixed", "1.4")], False),
        ([("introduced", "0"), ("fixed", "1.4.0.post1")], True),
        ([("introduced", "1.4"), ("last_affected", "1.4")], True),
        ([("introduced", "1"), ("last_affected", "1.3.9")], False),
        ([("introduced", "1.5"), ("fixed", "1.6")], False),
        ([("fixed", "1.1"), ("introduced", "1.3"), ("introduced", "0"), ("fixed", "1.10")], True),
        ([("introduced", "0"), ("fixed", "no version at all")], True),
    ],
)
def test_bounds_of_a_range(check: Check, events: list[tuple[str, str]], covered: bool) -> None:
    code, out, _ = check.against(record(**span(*events)))
    assert code == covered
    assert ("left-pad 1.4.0" in out) == covered


@pytest.mark.parametrize(("listed", "code"), [(["1.3", "1.4"], 1), (["1.3", "what?"], 0)])
def test_a_list_of_versions(check: Check, listed: list[str], code: int) -> None:
    got, out, _ = check.against(record(versions=listed))
    assert got == code
    assert ("TEST-1, no fixed version" in out) == bool(code)


def test_commits_are_no_releases(check: Check) -> None:
    assert check.against(record(**span(("introduced", "0"), kind="GIT")))[0] == 0


def test_a_single_pin_and_a_marker_are_read(check: Check) -> None:
    code, out, _ = check.against(record("Torch", versions=["9.1"]), "torch==9.1")
    assert code == 1
    assert "torch 9.1: TEST-1, no fixed version; pinned by torch==9.1" in out


@pytest.mark.parametrize(
    "content",
    [
        [],
        record("unknown", versions=["1.4.0"]),
        record(versions=["1.4.0"]) | {"withdrawn": "2026-01-01T00:00:00Z"},
        {"id": "T", "affected": [{"package": {"ecosystem": "npm", "name": "left-pad"}}]},
    ],
    ids=["empty", "unknown", "withdrawn", "ecosystem"],
)
def test_nothing_checked_is_a_failure(check: Check, content: object) -> None:
    code, out, said = check.against(content)
    assert (code, out) == (2, "")
    assert said.startswith("nothing was checked: none of the ")
    assert said.endswith(" names one of the 2 pinned packages\n")


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"id": "T", "affected": [{}]}', "[" * 100_000, "PK\x03\x04"]
)
def test_a_malformed_file_is_one_line(check: Check, content: str) -> None:
    code, out, said = check.against(content)
    assert (code, out) == (2, "")
    assert "records.json is not in OSV's format" in said
    assert said.count("\n") == 1


def test_a_missing_file_and_no_file_are_one_line(check: Check, tmp_path: Path) -> None:
    for file, why in (("absent.json", "cannot be read"), ("", "make advisories FILE=")):
        code, _, said = check(file and tmp_path / file, "left-pad==1")
        assert code == 2
        assert why in said
        assert said.count("\n") == 1


def test_a_folder_and_a_zip_hold_many_records(check: Check, tmp_path: Path) -> None:
    folder = tmp_path / "osv"
    folder.mkdir()
    for number, version in enumerate(("1.0", "1.4.0")):
        text = json.dumps(record(versions=[version]))
        (folder / f"TEST-{number}.json").write_text(text)
    with zipfile.ZipFile(tmp_path / "osv.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    for source in (folder, tmp_path / "osv.zip"):
        code, out, _ = check(source, "left-pad==1.4.0")
        assert code == 1
        assert "1 pinned packages; 2 of 2 advisories name one" in out


def test_a_malformed_record_of_many_is_named(check: Check, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "osv.zip", "w") as archive:
        archive.writestr("good.json", json.dumps(record(versions=["1"])))
        archive.writestr("bad.json", "{")
    code, _, said = check(tmp_path / "osv.zip", "left-pad==1")
    assert code == 2
    assert said.startswith(f"bad.json in {tmp_path / 'osv.zip'} is not in OSV's format")


def test_a_file_of_pins_that_is_none_is_one_line(check: Check, tmp_path: Path) -> None:
    lock = tmp_path / "bad.lock"
    lock.write_text("left-pad>=1\n")
    (tmp_path / "records.json").write_text(json.dumps(record(versions=["1"])))
    code, _, said = check(tmp_path / "records.json", lock)
    assert code == 2
    assert said.startswith(f"{lock} is no lock file")
    assert said.count("\n") == 1
