from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medmoe.cli import main as cli
from medmoe.errors import ConfigError, DataError
from medmoe.serving import audit as audit_module
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


@pytest.mark.parametrize("change", [{"n": "7"}, {"n": None}, {"prev": 7}])
def test_a_signed_line_without_its_place_is_none(log: Path, change: dict[str, object]) -> None:
    key = log.with_name(f"{log.name}.key").read_bytes()
    content = {"n": LINES + 1, "prev": json.loads(lines(log)[-1])["mac"], **change}
    line = json.dumps(content | {"mac": audit_module._mac(key, content)}, separators=(",", ":"))
    log.write_bytes(log.read_bytes() + line.encode() + b"\n")
    assert verify(log).fault == f"line {LINES + 1}: no line of an audit log, or edited"


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
    assert verify(log).lines == LINES + 2
    (piece,) = log.parent.glob("*.torn-*")
    assert piece.read_bytes() == b'{"n":7,"time":"20'
    assert piece.stat().st_mode & 0o777 == 0o600
    said = json.loads(lines(log)[LINES])
    assert (said["event"], said["bytes"]) == ("recovered", 17)


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
    said = json.loads((log.parent / "out.json").read_text())
    assert (said["lines"], said["first"], said["fault"]) == (LINES, 1, None)
    log.write_bytes(b"".join(lines(log)[:-1]))
    assert cli.main(["audit", "verify", str(log)]) == 1
    assert "line 6: removed" in capsys.readouterr().out


def test_a_log_without_its_key_is_refused(log: Path) -> None:
    log.with_name("audit.jsonl.key").unlink()
    with pytest.raises(DataError, match=r"needs its \.key"):
        verify(log)


def head_of(log: Path) -> Path:
    return log.with_name("audit.jsonl.head")


def test_the_four_ways_to_cut_a_log_are_told_apart(log: Path) -> None:
    whole, head = log.read_bytes(), head_of(log).read_bytes()
    log.write_bytes(b"".join(lines(log)[:-2]))
    assert verify(log).fault == f"line {LINES - 1}: removed (the log ended with line {LINES})"
    log.write_bytes(b"")
    assert "emptied, as copytruncate does" in str(verify(log).fault)
    head_of(log).write_bytes(b"")
    assert "log and head are both missing or empty" in str(verify(log).fault)
    log.unlink()
    head_of(log).unlink()
    assert "log and head are both missing or empty" in str(verify(log).fault)
    with pytest.raises(ConfigError, match="both missing"):
        AuditLog(log)
    log.write_bytes(whole)
    head_of(log).write_bytes(head)
    assert verify(log).fault is None


def test_a_head_cannot_be_made_without_the_key(log: Path) -> None:
    """Cut the log to five lines and say in the head that the fifth is the last."""
    kept = lines(log)[:5]
    log.write_bytes(b"".join(kept))
    number, mac = 5, json.loads(kept[-1])["mac"]
    for text in (f"{number:012d} {mac}\n", f"{number:012d} {mac} {mac}\n"):
        head_of(log).write_text(text)
        assert "the head file was cut or edited" in str(verify(log).fault)


def test_copytruncate_under_a_writing_server_is_refused_and_said(log: Path) -> None:
    audit = AuditLog(log)
    log.write_bytes(b"")
    with pytest.raises(OSError, match="another program cut the audit log"):
        audit.append("chat", request="req-x", status=200)
    audit.close()
    assert "copytruncate" in str(verify(log).fault)


def test_a_log_that_begins_with_a_later_line_is_said_to_be_cut_at_its_beginning(log: Path) -> None:
    log.write_bytes(b"".join(lines(log)[3:]))
    assert "line 1: out of place (it says that it is line 4): the beginning" in str(
        verify(log).fault
    )


@pytest.mark.parametrize("size", [0, 5, 33])
def test_a_key_that_is_not_whole_is_none(log: Path, size: int) -> None:
    key = log.with_name("audit.jsonl.key")
    key.write_bytes(bytes(size))
    with pytest.raises(ConfigError, match=f"has {size} bytes, not 32"):
        AuditLog(log)
    assert key.read_bytes() == bytes(size)


def test_a_full_disk_at_the_first_start_leaves_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    with monkeypatch.context() as full:
        real = os.fsync
        calls = iter([real])  # the log's own, then no more

        def fsync(file: int) -> None:
            try:
                next(calls)(file)
            except StopIteration:
                raise OSError(28, "No space left on device") from None

        full.setattr(os, "fsync", fsync)
        with pytest.raises(ConfigError, match="No space left"):
            AuditLog(path)
    assert list(tmp_path.glob("*key*")) == []
    AuditLog(path).close()
    assert verify(path).fault is None


def test_a_key_that_is_gone_is_not_replaced_by_a_new_one(log: Path) -> None:
    log.with_name("audit.jsonl.key").unlink()
    with pytest.raises(ConfigError, match=r"needs its \.key"):
        AuditLog(log)
    assert not log.with_name("audit.jsonl.key").exists()


def test_a_line_is_on_the_disk_before_the_head_names_it(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a loss of power leaves a head that is behind, which is no fault, never ahead."""
    done: list[str] = []
    real_sync, real_write = os.fsync, os.pwrite
    audit = AuditLog(log, each_line=True)
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), real_sync(file))[1])
    monkeypatch.setattr(os, "pwrite", lambda *a: (done.append("head"), real_write(*a))[1])
    audit.append("chat", request="req-x", status=200)
    assert done == ["sync", "head"]
    monkeypatch.undo()
    audit.close()


def test_a_head_that_is_some_lines_behind_is_whole(log: Path) -> None:
    before = head_of(log).read_bytes()
    audit = AuditLog(log)
    for _ in range(3):
        audit.append("chat", request="req-x", status=200)
    audit.close()
    head_of(log).write_bytes(before)
    assert verify(log).fault is None


def test_full_files_are_put_aside_and_the_chain_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    audit = AuditLog(log, max_bytes=1000)
    for number in range(20):
        audit.append("chat", request=f"req-{number}", status=200)
    audit.close()
    full = sorted(tmp_path.glob("audit.jsonl.0*"))
    assert len(full) > 2
    assert max(file.stat().st_size for file in full) < 1400
    verdict = verify(log)
    assert (verdict.fault, verdict.first, verdict.lines) == (None, 1, 20 + len(full))
    AuditLog(log, max_bytes=1000).close()
    full[0].rename(tmp_path / "elsewhere")
    moved = verify(log)
    assert moved.fault is None
    assert moved.first == int(full[0].name.rpartition(".")[2]) + 1
    full[2].unlink()
    assert "lines were removed or moved" in str(verify(log).fault), "a gap in the middle"


def test_a_kill_while_a_new_file_is_begun_loses_nothing(log: Path) -> None:
    log.rename(log.with_name(f"audit.jsonl.{LINES:012d}"))
    assert verify(log).fault is None
    AuditLog(log).close()
    assert json.loads(log.read_text())["event"] == "rotated"
    assert verify(log).lines == LINES + 1


def test_an_earlier_true_state_is_found_by_an_anchor_alone(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {path: path.read_bytes() for path in (log, head_of(log))}
    audit = AuditLog(log)
    audit.append("chat", request="req-x", status=200)
    audit.close()
    assert cli.main(["audit", "head", str(log)]) == 0
    anchor = capsys.readouterr().out.strip()
    assert anchor.startswith(f"{LINES + 1}:")
    assert cli.main(["audit", "verify", str(log), "--anchor", anchor]) == 0
    for path, data in old.items():
        path.write_bytes(data)
    assert cli.main(["audit", "verify", str(log)]) == 0
    assert cli.main(["audit", "verify", str(log), "--anchor", anchor]) == 1
    assert "an earlier state" in capsys.readouterr().out
    wrong = f"{LINES}:{anchor.partition(':')[2]}"
    assert "not that of the anchor" in str(verify(log, wrong).fault)
    assert cli.main(["audit", "verify", str(log), "--anchor", "7"]) == 2
