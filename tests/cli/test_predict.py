"""`medmoe predict`: a table without truth is answered; what cannot be read is one reported row."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.running import refused_by
from tests.experiments.miniature import PNEUMONIA, write_arrays
from tests.experiments.own_set import write_classes, write_pictures

from medmoe.cli.main import main
from medmoe.data import registry
from medmoe.evaluation.ask import asker as module
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.predict_set import _table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table without an answer column, of which one picture is none."""
    write_pictures(tmp_path / "ward", range(4))
    (tmp_path / "ward" / "002.png").write_bytes(b"no picture")
    rows = [f"{n:03d}.png,is there a mass?,ct" for n in range(4)]
    path = tmp_path / "ward" / "questions.csv"
    path.write_text("\n".join(["image,question,modality", *rows]) + "\n")
    return path


refused = refused_by("predict")


def test_a_table_keeps_its_columns_and_gets_prediction_and_confidence(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.csv"
    words = ["predict", str(model), str(table), "--out", str(out), "--max-new-tokens", "2"]
    assert main([*words, "--json", str(tmp_path / "done.json")]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "question", "modality", "prediction", "confidence"]
    assert [row["image"] for row in rows] == ["000.png", "001.png", "002.png", "003.png"]
    for row in rows:
        if row["image"] == "002.png":
            assert (row["prediction"], row["confidence"]) == ("", "")
        else:
            assert 0 <= float(row["confidence"]) <= 1
    done = json.loads((tmp_path / "done.json").read_text())
    assert (done["answered"], done["cut_answers"]) == (3, 3)
    (reason,) = done["bad_rows"]
    assert "questions.csv row 4: unreadable image" in reason
    printed = capsys.readouterr().out
    assert reason in printed
    assert "cut at the longest answer (--max-new-tokens): 3 answers" in printed
    assert not (tmp_path / "answers.csv.part").exists()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_answer_to_a_flat_picture_has_no_confidence(
    model: Path, table: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (40, 40), "white").save(table.parent / "001.png")
    out = tmp_path / f"answers.{suffix}"
    words = ["predict", str(model), str(table), "--out", str(out)]
    assert main([*words, "--json", str(tmp_path / "done.json")]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file)) if suffix == "csv" else [json.loads(x) for x in file]
    told = [row["confidence"] for row in rows]
    assert [bool(one) for one in told] == [True, False] + [False] * (suffix == "csv") + [True]
    assert "flat pictures, without a confidence: 1 questions" in capsys.readouterr().out
    assert json.loads((tmp_path / "done.json").read_text())["flat_pictures"] == 1


def test_json_lines_hold_predictions_without_a_truth(
    model: Path, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    assert main(["predict", str(model), str(table), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["questions/2", "questions/3", "questions/5"]
    keys = {"id", "prediction", "confidence", "routing"}
    assert all(set(row) - {"cut"} == keys for row in rows)


def test_every_question_of_a_conversation_is_answered(model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "ward", range(2))
    said = ["Is there a mass?", "no", "Which organ is this?", "lung"]
    turns = [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(said)]
    rows = [{"messages": turns[: 4 - 2 * n], "images": [f"{n:03d}.png"]} for n in range(2)]
    path = tmp_path / "ward" / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, table = tmp_path / "answers.jsonl", tmp_path / "answers.csv"
    assert main(["predict", str(model), str(path), "--out", str(out)]) == 0
    answers = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in answers] == ["talks/1", "talks/1#2", "talks/2"]
    assert main(["predict", str(model), str(path), "--out", str(table)]) == 0
    with table.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["prediction"] for line in lines] == [row["prediction"] for row in answers]
    assert [line["images"] for line in lines] == ['["000.png"]'] * 2 + ['["001.png"]']


def test_each_picture_of_an_array_has_its_own_answer_in_the_table(tmp_path: Path) -> None:
    """Such pictures are rows of no file, told apart by their ids alone."""
    write_arrays(tmp_path)
    reader = registry.READERS["pneumoniamnist"]
    records = reader.read(tmp_path, "test")
    predictions = [Prediction(r.id, f"answer {n}", 0.5) for n, r in enumerate(records)]
    rows = list(csv.DictReader(_table(reader, records, predictions).splitlines()))
    assert [row["prediction"] for row in rows] == [p.text for p in predictions]
    assert [row["id"] for row in rows] == [r.id for r in records]
    assert len(rows) == PNEUMONIA["test"]


def test_classes_are_chosen_and_their_confidence_is_a_share(model: Path, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "tiles", count=4)
    out = tmp_path / "answers.csv"
    assert main(["predict", str(model), f"{folder}", "--out", str(out)]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {row["prediction"] for row in rows} <= {"benign", "malignant tumour"}
    assert all(0.5 <= float(row["confidence"]) <= 1 for row in rows)


def test_a_run_that_was_cut_off_is_taken_up_and_gives_the_same_file(
    model: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (table.parent / "002.png").unlink()
    write_pictures(table.parent, range(24))
    rows = [f"{n:03d}.png,is there a mass?,ct" for n in range(24)]
    table.write_text("\n".join(["image,question,modality", *rows]) + "\n")
    words = ["predict", str(model), str(table), "--batch-size", "2"]
    assert main([*words, "--out", str(tmp_path / "whole.csv")]) == 0
    asked, ask = 0, module.ask_chunk

    def killed(*given: object) -> object:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise KeyboardInterrupt
        return ask(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "ask_chunk", killed)
    assert main([*words, "--out", str(tmp_path / "cut.csv")]) == 130
    assert not (tmp_path / "cut.csv").exists()
    assert main([*words, "--out", str(tmp_path / "cut.csv")]) == 0
    assert asked == 4  # of three chunks the first is not asked again
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_bad_use_is_one_line_and_writes_nothing(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, model, table, "--out", tmp_path / "answers.txt")
    assert "answers go into a file .csv or .jsonl" in line
    line = refused(capsys, model, table, "--out", tmp_path / "a.csv", "--on-bad-row", "fail")
    assert "questions.csv row 4: unreadable image" in line
    (tmp_path / "there.csv").touch()
    assert "is there already" in refused(capsys, model, table, "--out", tmp_path / "there.csv")
    assert not (tmp_path / "a.csv.part").exists()


def test_a_question_longer_than_the_model_reads_is_a_reported_row(
    model: Path, table: Path, tmp_path: Path
) -> None:
    lines = table.read_text().splitlines()
    lines[1] = f"000.png,{'is there a mass? ' * 600},ct"
    table.write_text("\n".join(lines) + "\n")
    out, done = tmp_path / "answers.csv", tmp_path / "done.json"
    assert main(["predict", str(model), str(table), "--out", str(out), "--json", str(done)]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["confidence"]) for row in rows] == [False, True, False, True]
    reasons = json.loads(done.read_text())["bad_rows"]
    assert any("questions.csv row 2: the conversation and its answer need" in r for r in reasons)
