from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medmoe.cli import main as cli
from medmoe.errors import ConfigError, DataError
from medmoe.serving.audit import AuditLog, verify

LINES = 6


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    for number in range(LINES):
        audit.append("chat", request=f"req-{number}", status=200, image=audit.image_hash(b"pixels"))
    audit.close()
    return path


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_a_log_as_it_was_written_is_whole(log: Path) -> None:
    assert verify(log).lines == LINES
    assert verify(log).fault is None


@pytest.mark.parametrize("line", range(LINES))
def test_a_removed_line_is_found(log: Path, line: int) -> None:
    kept = lines(log)
    del kept[line]
    log.write_bytes(b"".join(kept))
    assert f"line {line + 1}:" in str(verify(log).fault)


@pytest.mark.parametrize("line", range(LINES - 1))
def test_two_lines_that_changed_places_are_found(log: Path, line: int) -> None:
    kept = lines(log)
    kept[line], kept[line + 1] = kept[line + 1], kept[line]
    log.write_bytes(b"".join(kept))
    assert f"line {line + 1}:" in str(verify(log).fault)


def test_any_changed_byte_is_found(log: Path) -> None:
    whole = log.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        log.write_bytes(bytes(changed))
        assert verify(log).fault is not None, place


def test_a_cut_tail_is_found_also_in_the_middle_of_a_line(log: Path) -> None:
    whole = log.read_bytes()
    for length in range(len(whole)):
        log.write_bytes(whole[:length])
        assert verify(log).fault is not None, length


def test_an_emptied_log_and_a_missing_head_are_found(log: Path) -> None:
    whole = log.read_bytes()
    log.write_bytes(b"")
    assert "removed" in str(verify(log).fault)
    log.write_bytes(whole)
    log.with_name("audit.jsonl.head").unlink()
    assert "head" in str(verify(log).fault)


def test_a_line_made_with_another_key_is_found(log: Path, tmp_path: Path) -> None:
    other = AuditLog(tmp_path / "other.jsonl")
    other.append("chat", request="req-x", status=200)
    other.close()
    log.write_bytes(log.read_bytes() + (tmp_path / "other.jsonl").read_bytes())
    assert f"line {LINES + 1}: edited" in str(verify(log).fault)


def test_equal_pictures_have_equal_hashes_and_the_key_is_needed(tmp_path: Path) -> None:
    one, two = AuditLog(tmp_path / "one"), AuditLog(tmp_path / "two")
    assert one.image_hash(b"x") == one.image_hash(b"x") != one.image_hash(b"y")
    assert one.image_hash(b"x") != two.image_hash(b"x")
    assert (tmp_path / "one.key").stat().st_mode & 0o777 == 0o600


def test_it_goes_on_after_a_kill_in_the_middle_of_a_line(log: Path) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"n":7,"time":"20')
    audit = AuditLog(log)
    audit.append("chat", request="req-after", status=200)
    audit.close()
    assert verify(log).fault is None
    assert verify(log).lines == LINES + 1
    assert [p.read_bytes() for p in log.parent.glob("*.torn-*")] == [b'{"n":7,"time":"20']


def test_a_kill_between_line_and_head_loses_nothing(log: Path) -> None:
    head = log.with_name("audit.jsonl.head")
    before = head.read_bytes()
    audit = AuditLog(log)
    audit.append("chat", request="req-after", status=200)
    audit.close()
    head.write_bytes(before)
    assert verify(log).fault is None
    AuditLog(log).close()
    assert head.read_bytes() != before


def test_killed_writers_leave_a_log_that_verifies(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from medmoe.serving.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1])); print('go', flush=True)\n"
        "while True: log.append('chat', request='r', status=200)"
    )
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            writer.kill()
        AuditLog(tmp_path / "log").close()
        assert verify(tmp_path / "log").fault is None


def test_two_servers_cannot_write_one_log(log: Path) -> None:
    first = AuditLog(log)
    with pytest.raises(ConfigError, match="another server writes"):
        AuditLog(log)
    first.close()


def test_an_altered_log_is_not_gone_on_with(log: Path) -> None:
    log.write_bytes(b"".join(lines(log)[1:]))
    with pytest.raises(ConfigError, match="keep it as it is"):
        AuditLog(log)


def test_a_full_disk_leaves_the_log_whole(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = AuditLog(log)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    with pytest.raises(OSError, match="part of a line"):
        audit.append("chat", request="req-x", status=200)
    monkeypatch.undo()
    audit.append("chat", request="req-y", status=200)
    audit.close()
    assert verify(log).fault is None


def test_the_verb_says_what_it_found(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", "verify", str(log), "--json", str(log.parent / "out.json")]) == 0
    assert json.loads((log.parent / "out.json").read_text()) == {"lines": LINES, "fault": None}
    log.write_bytes(b"".join(lines(log)[:-1]))
    assert cli.main(["audit", "verify", str(log)]) == 1
    assert "line 6: removed" in capsys.readouterr().out


def test_a_log_without_its_key_is_refused(log: Path) -> None:
    log.with_name("audit.jsonl.key").unlink()
    with pytest.raises(DataError, match=r"needs its \.key"):
        verify(log)
