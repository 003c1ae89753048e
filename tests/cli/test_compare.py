"""`medmoe compare`: is B worse than A, what flipped, and the exit code for CI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmoe.cli.main import main

COUNT = 40


def written(path: Path, right: list[bool], **more: Any) -> Path:
    rows = [
        {
            "id": f"q{i}",
            "prediction": "yes" if ok else "no",
            "answer": "yes",
            "answer_type": "closed",
            "image": f"picture {i // 2}.png",
            "subset": "presence",
        }
        | more
        for i, ok in enumerate(right)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return written(tmp_path / "good.jsonl", [True] * COUNT)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return written(tmp_path / "bad.jsonl", [i % 3 > 0 for i in range(COUNT)])


def test_exit_code_is_1_only_where_b_is_worse_and_that_was_asked(
    good: Path, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(good), str(bad)]) == 0
    assert main(["compare", str(good), str(bad), "--fail-if-worse"]) == 1
    assert main(["compare", str(bad), str(good), "--fail-if-worse"]) == 0
    assert main(["compare", str(good), str(good), "--fail-if-worse"]) == 0
    out = capsys.readouterr().out
    assert "B is worse than A: closed." in out
    assert "B is better than A: closed." in out
    assert "Neither is shown to be better." in out
    assert out.rstrip().endswith("Research use only, not a medical device.")


def test_a_loss_inside_the_noise_is_no_failure(
    tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_lost = written(tmp_path / "one.jsonl", [i > 0 for i in range(COUNT)])
    assert main(["compare", str(good), str(one_lost), "--fail-if-worse"]) == 0
    assert "the interval holds zero" in capsys.readouterr().out


def test_json_holds_rows_wins_and_flips(
    good: Path, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.json"
    assert main(["compare", str(good), str(bad), "--json", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    (row,) = found["differences"]
    assert (row["difference"], row["n"], row["images"], row["verdict"]) == (-35.0, 40, 20, "worse")
    assert row["low"] <= row["difference"] <= row["high"] < 0
    assert 0 < row["p"] < 0.001
    assert found["worse"] is True
    assert [w["only_a"] for w in found["wins"] if w["subset"] == "closed"] == [14]
    assert [flip["id"] for flip in found["flips"]] == [f"q{i}" for i in range(0, COUNT, 3)]
    capsys.readouterr()


def test_page_shows_the_pictures_of_flipped_answers(
    good: Path, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(0, COUNT // 2, 2):
        Image.fromarray(np.full((24, 32), 10 * i, np.uint8)).save(pictures / f"picture {i}.png")
    page = tmp_path / "page.html"
    words = ["--report", str(page), "--images", str(pictures)]
    assert main(["compare", str(good), str(bad), *words]) == 0
    html = page.read_text(encoding="utf-8")
    shown = [i for i in range(0, COUNT, 3) if i // 2 % 2 == 0]
    assert html.count("data:image/png;base64,") == len(shown)
    assert html.count("✗ only A right") == 14
    assert "7 of them have no picture here" in html
    assert "<script" not in html
    assert "default-src 'none'" in html
    assert "All 14 answers" in html
    capsys.readouterr()


def test_text_of_answers_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack = "<script>alert(1)</script>"
    a = written(tmp_path / "a.jsonl", [True] * 4)
    b = written(tmp_path / "b.jsonl", [False] * 4, prediction=attack)
    page = tmp_path / "page.html"
    assert main(["compare", str(a), str(b), "--report", str(page)]) == 0
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    capsys.readouterr()


def test_run_folders_and_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for side, share in (("a", 0.95), ("b", 0.4)):
        for seed in (1, 2):
            for task in ("moe-one", "moe-two"):
                right = list(rng.random(COUNT) < share)
                written(tmp_path / side / str(seed) / "predictions" / f"{task}.jsonl", right)
    words = [",".join(str(tmp_path / side / seed) for seed in "12") for side in "ab"]
    assert main(["compare", *words, "--fail-if-worse", "--json", str(tmp_path / "c.json")]) == 1
    found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in found["differences"]] == ["moe-one", "moe-two"]
    assert all(len(row["a_runs"]) == 2 and row["p"] is None for row in found["differences"])
    assert "values run by run" in capsys.readouterr().out


def test_foreign_predictions_need_a_truth(
    tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(f'{{"id": "q{i}", "prediction": "no"}}\n' for i in range(COUNT)))
    assert main(["compare", str(bare), str(good)]) == 2
    assert "holds no answer: give the truth of the predictions by --truth" in capsys.readouterr()[1]
    assert main(["compare", str(bare), str(good), "--truth", str(good)]) == 0
    assert "B is better" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "left"}, "was made for another truth"),
        ({"id": "q1"}, "predictions with a duplicate id: 'q1'"),
        ({"confidence": float("inf")}, "row 1: confidence holds inf"),
    ],
)
def test_predictions_that_cannot_be_compared_are_one_line(
    tmp_path: Path,
    good: Path,
    change: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = written(tmp_path / "other.jsonl", [True] * COUNT, **change)
    assert main(["compare", str(good), str(other)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_paths_that_do_not_exist_are_one_line(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(good), "none"]) == 2
    assert "no such file or folder: 'none'" in capsys.readouterr().err
