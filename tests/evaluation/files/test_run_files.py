"""Which prediction files a word of the command line means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmoe.errors import DataError
from medmoe.evaluation.files.run_files import matched, read_side


def run(folder: Path, *files: str, seed: int | None = None) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"id": "a", "prediction": "yes"}\n')
    if seed is not None:
        (folder / "summary.json").write_text(json.dumps({"seed": seed}))
    return folder


DEMO = ("predictions/moe-vqa_rad.jsonl", "predictions/sft-vqa_rad.jsonl")


def test_a_run_folder_gives_its_answers_without_controls_and_routing(tmp_path: Path) -> None:
    aside = ("predictions/moe-vqa_rad-blank.jsonl", "predictions/moe-router.jsonl")
    side = read_side(str(run(tmp_path / "a", *DEMO, *aside, seed=11)))
    assert [sorted(files) for files in side.runs] == [["moe-vqa_rad", "sft-vqa_rad"]]
    assert side.seed == 11


@pytest.mark.parametrize(
    ("file", "name"),
    [("predictions.jsonl", "predictions"), ("vqa_rad/predictions.jsonl", "vqa_rad")],
)
def test_other_layouts_of_a_run(tmp_path: Path, file: str, name: str) -> None:
    assert list(read_side(str(run(tmp_path / "a", file))).runs[0]) == [name]


def test_several_seeds_are_parted_by_commas(tmp_path: Path) -> None:
    paths = [str(run(tmp_path / name, *DEMO)) for name in ("s1", "s2", "s3")]
    assert len(read_side(",".join(paths)).runs) == 3
    # A folder with a comma in its name is itself.
    assert len(read_side(str(run(tmp_path / "a,b", *DEMO))).runs) == 1


def test_two_files_are_compared_whatever_their_names(tmp_path: Path) -> None:
    run(tmp_path, "one.jsonl", "two.jsonl")
    a, b = read_side(str(tmp_path / "one.jsonl")), read_side(str(tmp_path / "two.jsonl"))
    shared, notes = matched(a, b)
    assert shared == [("", [tmp_path / "one.jsonl"], [tmp_path / "two.jsonl"])]
    assert notes == []


def test_what_only_one_side_holds_is_said(tmp_path: Path) -> None:
    a = read_side(str(run(tmp_path / "a", *DEMO)))
    b = read_side(str(run(tmp_path / "b", *DEMO, "predictions/moe-slake.jsonl")))
    shared, notes = matched(a, b)
    assert [name for name, _, _ in shared] == ["moe-vqa_rad", "sft-vqa_rad"]
    assert notes == [f"only {tmp_path / 'b'} holds 'moe-slake': not compared"]


def test_runs_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    a = read_side(str(run(tmp_path / "a", *DEMO)))
    b = read_side(str(run(tmp_path / "b", "predictions/x-y.jsonl", "predictions/x-z.jsonl")))
    with pytest.raises(DataError, match=r"nothing to compare: .*'moe-vqa_rad'.*'x-y'"):
        matched(a, b)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("none", "no such file or folder: '.*none'"),
        ("empty", "holds no predictions; looked for predictions.jsonl"),
        ("a,a", "a run stands twice"),
        ("a,c", "do not hold predictions of the same names"),
        ("a,none", "no such file or folder: '.*none'"),
    ],
)
def test_a_word_that_names_no_runs_is_refused(tmp_path: Path, word: str, message: str) -> None:
    run(tmp_path / "a", *DEMO)
    run(tmp_path / "c", "predictions/moe-slake.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        read_side(",".join(str(tmp_path / part) for part in word.split(",")))
