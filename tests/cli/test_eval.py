"""`medmoe eval`: asks, scores, writes; whatever is wrong is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.cli.running import refused_by
from tests.experiments.own_set import write_pictures
from tests.model.tiny import dense_model, processor
from tests.torchrun import in_two_processes

from medmoe.cli.main import main
from medmoe.model.checkpoint import save_model

refused = refused_by("eval")


def test_dense_and_moe_models_are_scored_and_can_be_compared(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = tmp_path / "dense"
    save_model(dense_model("stablelm"), processor(), dense, {})
    found = {}
    for name, folder in (("moe", model), ("dense", dense)):
        out = tmp_path / f"run-{name}"
        words = ["--task", "phantom_vqa", "--limit", "6", "--out", str(out)]
        assert main(["eval", str(folder), *words, "--json", str(tmp_path / f"{name}.json")]) == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert {row["system"] for row in found[name]["scores"]} == {name}
        printed = capsys.readouterr().out
        for word in ("strict", "reference", "llava_med", "token_f1", "Research use only"):
            assert word in printed
    assert found["moe"]["router"]["n"] > 0
    assert found["dense"]["router"] is None
    assert main(["compare", str(tmp_path / "run-dense"), str(tmp_path / "run-moe")]) == 0
    capsys.readouterr()


def test_the_phantom_is_drawn_by_the_models_own_seed_unless_another_is_given(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    save_model(dense_model("stablelm"), processor(), folder, {"seed": 3})
    asked = {}
    for name, words in (("own", []), ("three", ["--seed", "3"]), ("seven", ["--seed", "7"])):
        out = tmp_path / name
        words = ["--task", "phantom_vqa", "--limit", "2", "--out", str(out), *words]
        assert main(["eval", str(folder), *words]) == 0
        settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
        asked[name] = (settings["seed"], settings["tasks"]["phantom_vqa"]["records"])
    assert asked["own"] == asked["three"] != asked["seven"]
    assert asked["seven"][0] == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "phantom_vqua"], "did you mean 'phantom_vqa'"),
        (["--task", "vqa_rad"], "needs the data set 'vqa_rad', and there is no data folder"),
        (["--task", "phantom_vqa", "--limit", "0"], "'0' is not a whole number of at least 1"),
        (["--task", "phantom_vqa", "--protocol", "strickt"], "did you mean 'strict'"),
        (["--task", "phantom_vqa", "--control", "blanc"], "did you mean 'blank'"),
        (["--task", "phantom_vqa", "--pairs", "negate"], "did you mean 'negated'"),
        (["--task", "phantom_vqa", "--split", "tset"], "did you mean 'test'"),
        (["--task", "phantom_vqa", "--calibrate", "test"], "images, e.g."),
        (["--task", "phantom_vqa", "--target-risk", "0.1"], "add --calibrate validation"),
        (["--task", "phantom_vqa", "--target-risk", "1"], "is not a number between 0 and 1"),
        (["--task", "phantom_vqa", "--data", "nowhere"], "no such folder"),
    ],
)
def test_bad_flags_are_one_line_and_write_nothing(
    model: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert message in refused(capsys, model, *words, "--out", out)
    assert not out.exists()


def test_pairs_and_calibration_are_asked_kept_printed_and_shown(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--task", "phantom_vqa", "--task", "phantom_classification", "--limit", "24"]
    words += ["--pairs", "all", "--calibrate", "validation", "--out", str(out)]
    assert main(["eval", str(model), *words]) == 0
    printed, told = capsys.readouterr()
    in_all = sum(
        len(file.read_text(encoding="utf-8").splitlines()) for file in out.rglob("*.jsonl")
    )
    assert told.count("about") == 1
    assert f"{in_all} questions in all: about " in told
    for word in ("negated", "The same in other words", "Calibration: ", "Abstention: "):
        assert word in printed
    prose = ("  - ", "asked ")  # wrapped by the terminal
    assert max(len(line) for line in printed.splitlines() if not line.startswith(prose)) <= 80
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    found = {(row["task"], row["pair"]): row for row in summary["pairs"]}
    assert found["phantom_classification", "swapped_options"]["n"] == 24
    assert found["phantom_classification", "negated"]["of"] == 0
    assert "phantom_classification: none of its questions was asked as negated" in printed
    negated = found["phantom_vqa", "negated"]
    lines = (out / "phantom_vqa" / "pairs" / "negated.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    assert len(rows) == negated["n"] > 0
    asked = json.loads((out / "phantom_vqa" / "predictions.jsonl").read_text().splitlines()[0])
    assert set(rows[0]) == {*asked, "question"}
    assert all(" no " in row["question"] or " not " in row["question"] for row in rows)
    assert "The same questions in other words" in (out / "report.html").read_text(encoding="utf-8")
    before = summary["pairs"]
    assert main(["eval", str(model), *words, "--json", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert (again["asked"], again["pairs"]) == (0, before)
    assert "questions in all" not in capsys.readouterr().err


def test_data_without_the_tasks_file_names_the_file(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mednist-6k.npz").write_bytes(b"")
    words = ["--task", "vqa_rad", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    assert "vqa-rad/trainset.json" in refused(capsys, model, *words)


def test_a_folder_that_is_no_model_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "phantom_vqa", "--out", tmp_path / "out"]
    assert "no MANIFEST.json" in refused(capsys, tmp_path, *words)
    assert "no such model directory" in refused(capsys, tmp_path / "x", *words)


def test_the_folder_of_another_run_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "phantom_vqa", "--out", str(tmp_path / "out")]
    assert main(["eval", str(model), *words, "--limit", "3"]) == 0
    capsys.readouterr()
    assert "holds another run (its tasks: " in refused(capsys, model, *words, "--limit", "4")
    other = refused(capsys, model, *words, "--limit", "3", "--dtype", "bfloat16")
    assert "holds another run (its dtype: None; now: bfloat16)" in other


@pytest.mark.slow
def test_two_processes_answer_and_score_as_one_does(model: Path, tmp_path: Path) -> None:
    words = ["eval", str(model), "--task", "phantom_vqa", "--limit", "30", "--batch-size", "2"]
    words += ["--pairs", "negated", "--out"]
    torch.set_num_threads(1)
    assert main([*words, str(tmp_path / "one")]) == 0
    printed = in_two_processes("-m", "medmoe", *words, str(tmp_path / "two"))
    assert printed.count("Research use only") == 1
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.jsonl"))
    assert len(files) == 2
    for file in files:
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    one, two = (
        json.loads((tmp_path / name / "summary.json").read_text(encoding="utf-8"))
        for name in ("one", "two")
    )
    assert one["asked"] > 30
    for key in ("asked", "scores", "pairs", "config_sha256", "router"):
        assert two[key] == one[key], key


def test_real_questions_stand_beside_the_papers_figures(
    model: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "vqa_rad", "--limit", "8", "--data", str(shared / "data")]
    assert main(["eval", str(model), *words, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "vqa_rad (shared images) test" in out
    assert "8 of 451 questions, drawn by the seed" in out
    assert "82.72" in out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The paper’s figures" in page


def test_questions_longer_than_the_model_reads_are_named_and_none_is_answered(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "ward", range(3))
    table = tmp_path / "ward" / "data.csv"
    rows = [f"{n:03d}.png,{'Is there a mass? ' * (1 if n else 200)},yes,ct,test" for n in range(3)]
    table.write_text("\n".join(["image,question,answer,modality,split", *rows]) + "\n")
    line = refused(capsys, model, "--task", table, "--out", tmp_path / "run")
    assert "1 of 3 questions cannot be asked: 'ward/2'" in line
    assert "the model reads at most 256" in line
    assert not list((tmp_path / "run").rglob("predictions.jsonl"))
