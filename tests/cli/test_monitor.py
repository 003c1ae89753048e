"""`medmoe monitor`: a reference of validation pictures, and the report of the days."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.running import in_a_process, refused_by

from medmoe.cli.main import main
from medmoe.model.checkpoint import identity
from medmoe.serving.drift import Tally, seen
from medmoe.serving.monitor import by_utc, read_watch

refused = refused_by("monitor")


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("reference") / "drift.json"
    words = ["reference", model, "--task", "phantom_vqa", "--out", file]
    assert main(["monitor", *map(str, words)]) == 0
    return file.read_text()


@pytest.fixture
def file(reference: str, tmp_path: Path) -> Path:
    """A watch with a day like the reference, one of black pictures, one of few, and today."""
    path = tmp_path / "drift.json"
    path.write_text(reference)
    watch = read_watch(path)
    today = by_utc()
    for back, black, count in ((3, False, 80), (2, True, 80), (1, True, 2), (0, True, 1)):
        day = watch.days[today - timedelta(back)] = Tally()
        if not black:
            day.mix = dict(watch.reference.mix)
            day.cells = {name: dict(cells) for name, cells in watch.reference.cells.items()}
            continue
        _, numbers = seen(Image.new("RGB", (64, 64)), None, 0.5)
        for _ in range(count):
            watch.add(day, (max(watch.edges, key=lambda name: len(watch.edges[name])), numbers))
    path.write_text(watch.model_dump_json())
    return path


def test_the_reference_is_of_the_model_and_of_each_picture_once(
    reference: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "drift.json"
    path.write_text(reference)
    watch = read_watch(path)
    assert watch.model == identity(model)
    assert set(watch.edges) == {"ct", "mri", "pathology", "xray"}
    assert sum(watch.reference.mix.values()) == 200
    assert any("brightness" in edges for edges in watch.edges.values())
    assert watch.days == {}


def test_the_report_says_in_words_what_moved_and_is_a_gate_where_asked(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    assert main(["monitor", "report", str(file), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "no alarm" in text
    assert "too few" in text
    assert "not over yet" in text
    assert "mean brightness fell from 0." in text
    assert "to 0.000 (PSI" in text
    assert "at most 1 day a year" in text
    told = json.loads(out.read_text())
    days = {day["day"]: day for day in told["days"]}
    today = by_utc()
    first, second, third, last = (days[f"{today - timedelta(n)}"] for n in (3, 2, 1, 0))
    assert first["alarms"] == []
    assert any("brightness" in line for line in second["alarms"])
    assert "alarms" not in last
    assert {"PSI", "KS"} == set(first["compared"][0]["statistics"])
    # The day of two pictures is judged together with the one before it: the alarm still stands.
    assert told["alarm"] == bool(third["alarms"]) is True
    assert main(["monitor", "report", str(file), "--fail-on-alarm"]) == 1


def test_without_an_alarm_the_gate_is_open(file: Path) -> None:
    watch = read_watch(file)
    watch.days = {
        day: tally for day, tally in watch.days.items() if tally.mix == watch.reference.mix
    }
    file.write_text(watch.model_dump_json())
    assert main(["monitor", "report", str(file), "--fail-on-alarm"]) == 0
    watch.days = {}
    file.write_text(watch.model_dump_json())
    assert main(["monitor", "report", str(file), "--fail-on-alarm"]) == 0


def test_a_report_needs_no_server_and_no_model(file: Path) -> None:
    done = in_a_process("monitor", "report", file, "--format", "csv")
    assert done.returncode == 0
    assert done.stdout.startswith("Day,Pictures,Found,Left out\n")


def test_bad_input_is_one_line(
    file: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"a": 1}')
    assert "is no monitor file" in refused(capsys, "report", other)
    assert "is no monitor file" in refused(capsys, "report", model / "model.safetensors")
    assert "No such file" in refused(capsys, "report", tmp_path / "nowhere.json")
    task = ("--task", "phantom_vqa", "--limit", "4")
    there = refused(capsys, "reference", model, *task, "--out", file)
    assert "is there already; give another --out" in there
    below = refused(capsys, "reference", model, *task, "--out", file / "x.json")
    assert "give another folder by --out DIR" in below
    new = tmp_path / "new.json"
    assert "unknown task" in refused(capsys, "reference", model, "--task", "x", "--out", new)
    assert not new.exists()
