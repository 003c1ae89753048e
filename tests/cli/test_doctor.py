"""`medmoe doctor`: what it finds, what it misses, and how it says so."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from medmoe.cli import doctor, machine
from medmoe.cli.machine import Check
from medmoe.cli.main import main
from medmoe.data.registry import DEMO_SETS, READERS


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDMOE_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def report(path: Path, *words: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Run `doctor` and return its exit code and the rows of its JSON by name."""
    code = main(["doctor", "--json", str(path), *words])
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["usable"] is (code == 0)
    return code, {row["name"]: row for row in content["checks"]}


def test_this_environment_is_usable_and_every_dependency_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = report(tmp_path / "doctor.json")
    assert code == 0
    for name in ("python", "medmoe", "torch", "transformers", "accelerate", "cores", "memory"):
        assert rows[name]["status"] == "ok"
    assert rows["torch"]["value"] == metadata.version("torch")
    assert "CPU capability" in rows["torch build"]["value"]
    assert "embedded phantom" in rows["data"]["value"]
    assert "Ready" in capsys.readouterr().out


def test_a_missing_package_ends_with_1_and_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = machine.version

    def version(name: str) -> str:
        if name == "accelerate":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(machine, "version", version)
    code, rows = report(tmp_path / "doctor.json")
    assert code == 1
    assert rows["accelerate"]["status"] == "missing"
    assert rows["accelerate"]["value"] == "not installed"
    assert rows["accelerate"]["fix"].startswith("pip install 'accelerate>=")
    assert "Not ready" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ("4.57.1", "missing"),
        ("5.17.0", "ok"),
        (f"{machine.NEWEST_TRIED['transformers']}.3", "ok"),
        ("5.999.0", "note"),
        ("6.0.0", "missing"),
    ],
)
def test_a_version_outside_the_declared_range_is_missing_and_an_untried_one_a_note(
    monkeypatch: pytest.MonkeyPatch, found: str, status: str
) -> None:
    real = machine.version
    monkeypatch.setattr(
        machine, "version", lambda name: found if name == "transformers" else real(name)
    )
    row = next(check for check in machine.check_packages() if check.name == "transformers")
    assert row.status == status
    assert found in row.value


def test_an_absent_extra_is_a_note_and_not_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.version

    def version(name: str) -> str:
        if name == "openvino":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(machine, "version", version)
    row = next(check for check in machine.check_packages() if check.name == "extra export")
    missing = row.value.removeprefix("without ").split(", ")
    assert "openvino" in missing
    assert row == Check("extra export", row.value, "note", "pip install 'medmoe[export]'")


def test_what_is_missing_is_shown_first_and_notes_before_what_is_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    statuses = ["ok", "note", "missing", "ok", "note"]
    doctor.show([Check(f"row{k}", "", status) for k, status in enumerate(statuses)], usable=False)  # type: ignore[arg-type]
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "row" in line]
    assert shown == ["row2", "row1", "row4", "row0", "row3"]


def test_a_package_that_is_not_installed_itself_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", version)
    assert machine.check_packages() == [
        Check("medmoe", "not installed", "missing", "pip install -e .")
    ]


def test_a_torch_that_cannot_be_imported_is_a_row_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (row,) = machine.check_torch()
    assert row.status == "missing"
    assert row.value.startswith("cannot be imported: ")


@pytest.mark.parametrize(
    ("constant", "name"), [("MIN_MEMORY_GIB", "memory"), ("MIN_DISK_GIB", "disk")]
)
def test_too_little_room_is_a_note_with_the_amount(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, constant: str, name: str
) -> None:
    monkeypatch.setattr(machine, constant, 10**6)
    row = next(check for check in machine.check_hardware(tmp_path) if check.name == name)
    assert row.status == "note"
    assert "1000000 GiB" in row.fix


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="GLIBC_TUNABLES is of the GNU C library"
)
def test_small_pages_are_a_note_and_what_it_says_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    (row,) = machine.check_allocation()
    assert row.status == "note"
    name, _, value = row.fix.partition("export ")[2].partition(" ")[0].partition("=")
    monkeypatch.setenv(name, value)
    assert [row.status for row in machine.check_allocation()] == ["ok"]
    # The loader knows all three, and has taken them.
    loader = next(Path("/lib64").glob("ld-linux-*.so.2"), None) or Path(
        "/lib/ld-linux-aarch64.so.1"
    )
    said = subprocess.run([loader, "--list-tunables"], capture_output=True, text=True, check=True)
    found = dict(line.split(": ", 1) for line in said.stdout.splitlines() if ": " in line)
    for name in ("mmap_threshold", "trim_threshold"):
        assert found[f"glibc.malloc.{name}"].split()[0] == hex(4 * 2**30)
    assert found["glibc.malloc.hugetlb"].split()[0] == "0x1"


def test_data_sets_are_found_by_their_marker(tmp_path: Path) -> None:
    there, *absent = DEMO_SETS
    marker = tmp_path / READERS[there].MARKERS[0]
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    rows = {check.name: check for check in doctor.check_data(tmp_path)}
    assert rows[f"data {there}"].status == "ok"
    for name in absent:
        assert rows[f"data {name}"].status == "missing"
        assert str(tmp_path / READERS[name].MARKERS[0]) in rows[f"data {name}"].value
        assert "needs all sets" in rows[f"data {name}"].fix


@pytest.mark.parametrize("origin", ["flag", "environment"])
def test_a_folder_without_one_of_the_sets_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: str
) -> None:
    data = tmp_path / "data"
    absent, *there = DEMO_SETS
    for name in there:
        marker = data / READERS[name].MARKERS[0]
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    monkeypatch.setenv("MEDMOE_DATA", str(data) if origin == "environment" else "")
    words = ["--data", str(data)] if origin == "flag" else []
    code, rows = report(tmp_path / "doctor.json", *words)
    assert code == 1
    assert [name for name, row in rows.items() if row["status"] == "missing"] == [f"data {absent}"]
    (data / READERS[absent].MARKERS[0]).mkdir(parents=True)
    assert report(tmp_path / "doctor.json", *words)[0] == 0


def test_a_set_that_the_demo_does_not_need_is_shown_only_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "pathmnist.npz").touch()
    rows = {check.name: check.status for check in doctor.check_data(tmp_path)}
    assert rows["data pathmnist"] == "ok"
    assert "data chestmnist" not in rows


def test_all_shared_sets_are_found(shared: Path) -> None:
    statuses = {check.name: check.status for check in doctor.check_data(shared / "data")}
    assert statuses == {"data": "ok", **{f"data {name}": "ok" for name in (*DEMO_SETS, "rocov2")}}


def test_a_wrong_folder_of_the_flag_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--data", str(tmp_path / "none")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(tmp_path / "none") in line


def test_a_wrong_folder_of_the_environment_is_what_doctor_finds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDMOE_DATA", str(tmp_path / "none"))
    code, rows = report(tmp_path / "doctor.json")
    assert code == 1
    assert rows["data"]["status"] == "missing"
    assert "unset MEDMOE_DATA" in rows["data"]["fix"]


def test_markup_in_a_path_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show([Check("data", "/a/[bold]b")], usable=True)
    assert "/a/[bold]b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tried", "status", "part"),
    [
        ({"files": True, "network": True}, "ok", "refused to it: files, network"),
        ({"files": True, "network": False}, "note", "not refused: network"),
    ],
)
def test_what_a_decoder_was_not_refused_is_said(
    tried: dict[str, bool], status: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medmoe.data.intake.sandbox.DecoderPool.probe", lambda self: tried)
    row = machine.check_decoder()
    assert row.status == status
    assert part in row.value
    assert ("pip install" in row.fix) == (status == "note")
