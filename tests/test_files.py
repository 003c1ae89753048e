"""A text file is whole or not there, whatever stops its writing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from medmoe.errors import ConfigError, GuardError
from medmoe.files import write_json, write_text


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "error", "fix"),
    [(errno.ENOSPC, GuardError, "free some space"), (errno.EACCES, ConfigError, "another place")],
)
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    error: type[Exception],
    fix: str,
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(error, match=f"cannot write .*a.txt.*{fix}"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_a_link_stays_one(tmp_path: Path) -> None:
    path, link = tmp_path / "new" / "a.txt", tmp_path / "link"
    write_text(path, "a\n")
    link.symlink_to(path)
    write_text(link, "ü\n")
    assert link.is_symlink()
    assert path.read_bytes() == "ü\n".encode()


def test_what_is_no_file_is_written_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "through")
        assert os.read(reader, 20) == b"through"
    finally:
        os.close(reader)


def test_json_is_refused_before_anything_is_written_where_a_number_is_not_finite(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_utf_8_is_written_as_json_escapes_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"out": "Gr\udcf6\udcdfe é"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "out": "Gr\udcf6\udcdfe é"
    }
