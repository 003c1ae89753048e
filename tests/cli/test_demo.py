"""`medmoe demo`: what it prints, where it writes, and every bad input in one line."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.cli.running import refused_by
from tests.experiments.micro import PHASES, SETTINGS, micro_plan

from medmoe.cli import demo_display, tables
from medmoe.cli.demo_display import plain_words
from medmoe.cli.main import main
from medmoe.data.registry import READERS


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MEDMOE_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)  # the default of --out is a relative path


MICRO = [word for setting in SETTINGS for word in ("--set", setting)]


refused = refused_by("demo")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "ten", ""])
def test_minutes_must_be_a_whole_number_of_at_least_1(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, f"--minutes={value}")
    assert f"argument --minutes: {value!r} is not a whole number of at least 1" in line


def test_minutes_below_the_shortest_preset_name_the_presets(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "--data", shared / "data", "--minutes", "1")
    assert "--minutes 1 is shorter than the shortest preset of demo_real (2)" in line


def test_a_missing_data_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--data", tmp_path / "gone")
    assert f"--data {tmp_path / 'gone'}: no such folder" in line


def test_a_wrong_data_folder_names_the_files_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "--data", tmp_path)
    for reader in READERS.values():
        assert reader.MARKERS[0] in line


def test_a_wrong_folder_of_the_environment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDMOE_DATA", str(tmp_path / "gone"))
    assert f"$MEDMOE_DATA {tmp_path / 'gone'}: no such folder" in refused(capsys)


def test_an_incomplete_data_folder_names_the_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / READERS["pneumoniamnist"].MARKERS[0]
    marker.write_bytes(b"")
    words = ["demo", "--data", str(tmp_path), "--minutes", "2", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"no {READERS['vqa_rad'].MARKERS[0]} under" in err


def test_a_disjoint_split_without_data_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--split", "disjoint")
    assert "--split disjoint: demo_phantom knows standard, validation; other data are" in line


def test_a_setting_of_an_unknown_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'model'" in refused(capsys, "--set", "modle.router_layers=2")


def test_an_unknown_split_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--split", "train")
    for name in ("standard", "disjoint", "validation"):
        assert name in line


def test_out_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert "give another folder by --out DIR" in refused(capsys, "--out", tmp_path / "file")


def test_nothing_is_written_on_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, "--minutes", "0")
    refused(capsys, "--split", "disjoint")
    refused(capsys, "--data", tmp_path / "gone")
    assert os.listdir(tmp_path) == []


def test_a_run_prints_preset_scores_paths_and_next_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    words = ["demo", "--minutes", "1", "--seed", "3", "--json", str(result), *MICRO]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "on the embedded phantom, seed 3" in out
    assert "Preset for 1 minutes" in out
    for phase in PHASES:
        assert phase in out
    for words_said in ("domain_experts", "phantom_vqa", "blank", "runs/demo/report.html"):
        assert words_said in out
    assert "medmoe ask runs/demo/model" in out
    assert out.rstrip().endswith("Research use only, not a medical device.")
    summary = json.loads((tmp_path / "runs/demo/summary.json").read_text(encoding="utf-8"))
    assert json.loads(result.read_text(encoding="utf-8")) == summary
    assert summary["seed"] == 3
    line = refused(capsys, "--minutes", "1", "--seed", "4", *MICRO)
    assert "runs/demo/phase0_encoder was trained with other values (seed: 3 then, 4 now)" in line


def test_a_run_that_diverges_ends_with_3_and_leaves_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["--set", "phases.phase0_language.learning_rate=1e38"]
    assert main(["demo", "--minutes", "1", "--out", str(tmp_path / "out"), *MICRO, *wild]) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    # The loss, or a weight that the step before has spoilt: whichever is seen first.
    assert err.startswith("medmoe: error: phase0_language: ")
    assert "not finite" in err or "the loss is nan" in err
    assert "lower the phase's learning_rate" in err
    assert not {"summary.json", "report.html", "model"} & set(os.listdir(tmp_path / "out"))


def row(**changes: Any) -> dict[str, Any]:
    fields = {
        "system": "moe", "task": "t", "split": "test", "subset": "closed", "protocol": "strict",
        "metric": "accuracy", "value": 91.25, "low": 90.0, "high": 92.0, "n": 17,
        "constant_baseline": 50.5, "question_only_baseline": None, "control": None,
    }  # fmt: skip
    return fields | changes


def closing(seconds: float, monkeypatch: pytest.MonkeyPatch, *scores: dict[str, Any]) -> str:
    buffer = io.StringIO()
    for module in (demo_display, tables):
        monkeypatch.setattr(module, "Console", lambda: Console(file=buffer, width=200))
    summary = {
        "scores": scores or [row()],
        "router": {"accuracy": 99.5, "low": 98.0, "high": 100.0, "n": 8},
        "notes": ["Pictures are drawn."],
        "parameters": {"total": 6812416, "activated": 4051200},
    }
    demo_display.closing(micro_plan(Path("runs/[x]")), summary, seconds)
    return buffer.getvalue()


def test_scores_stand_beside_their_baselines_and_those_without_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = closing(
        30, monkeypatch, row(), row(control="blank", value=33.5), row(system="sft", value=88.1)
    )
    assert "Our protocol: t test" in text
    for part in ("closed accuracy (strict)", "91.2", "(90.0–92.0)", "88.1", "17", "50.5", "33.5"):
        assert part in text
    weak = closing(30, monkeypatch, row(low=40.0))
    assert "▽ 91.2" in weak
    assert "  - ▽" in weak  # what the mark means stands below
    other = row(protocol="reference", value=12.5)
    assert "12.5" not in closing(30, monkeypatch, row(), other)


def test_overrun_is_only_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "done in 2.0 minutes, over the preset's 1 minutes" in closing(120, monkeypatch)
    assert "over the preset" not in closing(59, monkeypatch)


def test_closing_says_router_sizes_and_next_steps_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = closing(30, monkeypatch)
    assert "Router: accuracy 99.5 % (98.0–100.0, n = 8)." in text
    assert "Pictures are drawn." in text
    assert "6,812,416 in all, 4,051,200 activated per token" in text
    assert "  - Ask: medmoe ask runs/[x]/model" in text


def test_scores_that_do_not_clear_their_baselines_are_named() -> None:
    summary = {"notes": [], "scores": [row(low=40.0), row(task="u", low=90.0)]}
    (line,) = plain_words(summary)
    assert "t test closed accuracy (strict)" in line
    assert "u test" not in line


def test_markup_in_a_path_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "runs/[x]/report.html" in closing(30, monkeypatch)
