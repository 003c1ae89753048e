"""`medmoe score`: any model's answers under every protocol, or one line that names the fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import refused_by

from medmoe.cli.main import main

TRUTH: list[dict[str, Any]] = [
    {"id": "1", "answer": "Yes", "answer_type": "closed", "image": "a", "subset": "presence"},
    {"id": "2", "answer": "no", "answer_type": "closed", "image": "a", "subset": "presence"},
    {"id": "3", "answer": "left lung", "answer_type": "open", "image": "b", "subset": "place"},
]
SAID = ["yes, there is", "I do not know", "lung left"]
ROWS: list[dict[str, Any]] = [
    {"id": row["id"], "prediction": text} for row, text in zip(TRUTH, SAID, strict=True)
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return written(tmp_path / "truth.jsonl", TRUTH)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    return written(tmp_path / "pred.jsonl", ROWS)


refused = refused_by("score")


def test_json_has_the_shape_of_the_contract(
    predictions: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "score.json"
    words = ["--json", str(out), "--protocol", "all"]
    assert main(["score", str(predictions), str(truth), *words]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    for subsets in found["protocols"].values():
        for metrics in subsets.values():
            for cell in metrics.values():
                assert set(cell) == {"value", "low", "high", "n"}
    closed = {name: cells["closed"]["accuracy"] for name, cells in found["protocols"].items()}
    # "I do not know" holds "no": right for the published scorers, wrong for strict.
    assert {name: (cell["value"], cell["n"]) for name, cell in closed.items()} == {
        "strict": (50.0, 2),
        "reference": (100.0, 2),
        "llava_med": (100.0, 2),
        "token_f1": (50.0, 2),
    }
    opened = found["protocols"]["reference"]["open"]
    assert (opened["exact_match"]["value"], opened["recall"]["value"]) == (100.0, 100.0)
    assert found["protocols"]["strict"]["open"]["exact_match"]["value"] == 0.0
    assert found["baselines"]["always_yes"]["strict"]["closed"]["accuracy"]["value"] == 50.0
    assert (found["n"], found["images"], found["use"]) == (
        3, 2, "Research use only, not a medical device."
    )  # fmt: skip
    capsys.readouterr()


def test_table_shows_every_protocol_with_n_in_80_columns(
    predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(predictions), str(truth), "--task", "vqa_rad"]) == 0
    out = capsys.readouterr().out
    tables = [line for line in out.splitlines() if not line.startswith("  - ")]
    assert max(map(len, tables)) <= 80
    for word in ("strict", "reference", "llava_med", "token_f1", "3 records, 2 images", "presence"):
        assert word in out
    assert "Med-MoE (Phi-2)" in out
    assert "82.72" in out
    assert "it does not show that the picture was used" in out
    assert out.rstrip().endswith("Research use only, not a medical device.")


def test_same_seed_gives_the_same_numbers_and_order_does_not_matter(
    predictions: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shuffled = written(tmp_path / "shuffled.jsonl", ROWS[::-1])
    found = []
    for number, path in enumerate((predictions, predictions, shuffled)):
        out = tmp_path / f"{number}.json"
        assert main(["score", str(path), str(truth), "--json", str(out)]) == 0
        found.append(json.loads(out.read_text(encoding="utf-8"))["protocols"])
    assert found[0] == found[1] == found[2]
    capsys.readouterr()


def test_one_protocol_can_be_chosen_and_a_report_written(
    predictions: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, out = tmp_path / "r" / "report.html", tmp_path / "s.json"
    words = ["--protocol", "reference", "--report", str(page), "--json", str(out)]
    assert main(["score", str(predictions), str(truth), *words]) == 0
    assert list(json.loads(out.read_text(encoding="utf-8"))["protocols"]) == ["reference"]
    html = page.read_text(encoding="utf-8")
    assert "closed accuracy (reference)" in html
    assert "Research use only, not a medical device" in html
    assert "script-src 'sha256-" in html
    capsys.readouterr()


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_only_one_type_of_question_is_no_fault(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [row for row in TRUTH if row["answer_type"] == kind]
    path = written(tmp_path / "t.jsonl", chosen)
    rows = [{"id": row["id"], "prediction": ""} for row in chosen]
    assert main(["score", str(written(tmp_path / "p.jsonl", rows)), str(path)]) == 0
    assert f"{len(chosen)} empty predictions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:2], "missing predictions for: '3'"),
        ([*ROWS, ROWS[0]], "predictions with a duplicate id: '1'"),
        ([*ROWS, {"id": "9", "prediction": "x"}], "unknown prediction ids: '9'"),
        ([{"id": f"x{i}", "prediction": "x"} for i in range(3)], "no id in common"),
        ([*ROWS[:2], {"id": "3"}], "pred.jsonl row 3: prediction is missing"),
        (
            [*ROWS[:2], ROWS[2] | {"confidence": float("nan")}],
            "pred.jsonl row 3: confidence holds nan; it should be a finite number",
        ),
        ([*ROWS[:2], ROWS[2] | {"answer": "right"}], "made for another truth: the answers of '3'"),
        ([*ROWS[:2], ROWS[2] | {"option_scores": [0, 1]}], "without options in the truth: '3'"),
    ],
)
def test_bad_predictions_are_one_line(
    tmp_path: Path,
    truth: Path,
    rows: list[dict[str, Any]],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refused(capsys, written(tmp_path / "pred.jsonl", rows), truth)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no predictions"),
        (b'{"id": "1", "prediction": "ja"}\n{"id": "2", "predic', "pred.jsonl row 2: not JSON"),
        (b'{"id": "1", "prediction": "\xfc\xc3\xa9"}\n', "pred.jsonl row 1: not UTF-8"),
        (b"\xff\xfe\x7b\x00", "pred.jsonl row 1: not JSON"),
    ],
)
def test_unreadable_predictions_are_one_line(
    tmp_path: Path,
    truth: Path,
    content: bytes,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "pred.jsonl").write_bytes(content)
    assert message in refused(capsys, tmp_path / "pred.jsonl", truth)


def test_a_byte_order_mark_is_no_fault(
    tmp_path: Path, predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (predictions, truth):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert main(["score", str(predictions), str(truth)]) == 0
    assert "3 records" in capsys.readouterr().out


def test_other_programs_files_score_as_our_own(
    tmp_path: Path, predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(predictions), str(truth)]) == 0
    told = capsys.readouterr().out.replace(predictions.name, "P").replace(truth.name, "T")
    table = "id,prediction\n" + "".join(f'{row["id"]},"{row["prediction"]}"\n' for row in ROWS)
    numbered = [row | {"id": int(row["id"])} for row in ROWS]
    for name, text in (("p.csv", table), ("p.json", json.dumps(numbered))):
        (tmp_path / name).write_text(text)
        assert main(["score", str(tmp_path / name), str(truth)]) == 0
        out = capsys.readouterr().out
        assert out.replace(name, "P").replace(truth.name, "T") == told


def test_thinking_counts_unless_it_is_left_out(
    tmp_path: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, out = written(tmp_path / "plain.jsonl", ROWS), tmp_path / "o.json"
    thought = [row | {"prediction": f"<think>no yes</think>{row['prediction']}"} for row in ROWS]
    path = written(tmp_path / "p.jsonl", thought)
    found = []
    for words in ([path], [path, "--without-thinking"], [plain]):
        assert main(["score", *map(str, words), str(truth), "--json", str(out)]) == 0
        found.append(json.loads(out.read_text(encoding="utf-8")))
    assert "3 answers hold thinking, such as <think>, which counts" in found[0]["notes"][-1]
    assert "3 answers hold thinking, such as <think>, which is left out" in found[1]["notes"][-1]
    assert found[0]["protocols"] != found[1]["protocols"] == found[2]["protocols"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": ""}, "truth.jsonl row 2: answer of '2' is empty"),
        ({"answer_type": "maybe"}, "truth.jsonl row 2: answer_type holds 'maybe'"),
        ({"id": "1"}, "records with a duplicate id: '1'"),
    ],
)
def test_bad_truth_is_one_line(
    tmp_path: Path,
    predictions: Path,
    change: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [TRUTH[0], TRUTH[1] | change, TRUTH[2]]
    assert message in refused(capsys, predictions, written(tmp_path / "truth.jsonl", rows))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "strickt"], "unknown protocol 'strickt'"),
        (["--task", "vqarad"], "did you mean 'vqa_rad'"),
        (["--train", "none.jsonl"], "none.jsonl: No such file"),
        (["--seed", "-1"], "is not a whole number"),
    ],
)
def test_wrong_use_is_one_line(
    predictions: Path,
    truth: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refused(capsys, predictions, truth, *words)


def test_a_missing_file_is_one_line(truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.jsonl: No such file" in refused(capsys, "none.jsonl", truth)


def own(rows: list[dict[str, Any]], *, split: str = "test") -> list[dict[str, Any]]:
    """Return answers with their truth and a confidence, as medmoe writes them."""
    return [
        {**answer, **row, "image": f"{split}/{row['image']}", "confidence": 0.9}
        for row, answer in zip(TRUTH, rows, strict=True)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of `eval` with two tasks."""
    for name in ("one", "two"):
        (tmp_path / "run" / name / "controls").mkdir(parents=True)
        written(tmp_path / "run" / name / "predictions.jsonl", own(ROWS))
        written(tmp_path / "run" / name / "controls" / "blank.jsonl", own(ROWS))
    return tmp_path / "run"


def test_a_run_folder_is_scored_file_by_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "s.json", tmp_path / "s.html"
    assert main(["score", str(run), "--json", str(out), "--report", str(page)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert list(found["files"]) == ["one", "two"]
    single = tmp_path / "one.json"
    path = run / "one" / "predictions.jsonl"
    assert main(["score", str(path), "--json", str(single)]) == 0
    alone = json.loads(single.read_text(encoding="utf-8"))
    assert found["files"]["one"]["protocols"] == alone["protocols"]
    html = page.read_text(encoding="utf-8")
    assert '<th scope="row">one</th>' in html
    assert '<th scope="row">two</th>' in html
    printed = capsys.readouterr().out
    assert "Our protocol: one" in printed
    assert printed.count("Research use only") == 2  # once a command


def test_systems_stand_side_by_side_and_a_note_stands_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / "predictions"
    folder.mkdir(parents=True)
    for system in ("moe", "sft"):
        written(folder / f"{system}-phantom_vqa.jsonl", own(ROWS))
    page = tmp_path / "s.html"
    assert main(["score", str(folder.parent), "--report", str(page)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Our protocol: phantom_vqa") == 1
    assert printed.count("the constant answer is chosen on the scored answers") == 1
    head = next(line for line in printed.splitlines() if line.startswith("Score"))
    assert head.split() == ["Score", "MoE", "SFT", "Constant", "n"]
    (row,) = [line for line in printed.splitlines() if line.startswith("all accuracy")]
    assert row.split("(strict)")[1].split() == ["▽", "33.3", "▽", "33.3", "≤", "66.7", "3"]
    assert '<th scope="col">MoE</th><th scope="col">SFT</th>' in page.read_text(encoding="utf-8")


def test_one_truth_for_several_files_is_refused(
    run: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds 2 prediction files ('one', 'two') and one truth" in refused(capsys, run, truth)
    assert "--task names one task" in refused(capsys, run, "--task", "vqa_rad")
    assert "holds no predictions; looked for" in refused(capsys, run / "one" / "controls")


def test_predictions_without_a_truth_are_one_line(
    predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "row 1 holds no answer: give the truth" in refused(capsys, predictions)


def test_confidences_are_judged_and_a_threshold_chosen_on_other_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 40 images each: one question, right in 30 with confidence 0.9, wrong in 10 with 0.4."""
    paths = []
    for split in ("test", "validation"):
        rows = [
            {
                "id": f"{split}-{i}", "prediction": "yes" if i % 4 else "no", "answer": "yes",
                "answer_type": "closed", "image": f"{split}/{i}",
                "confidence": 0.9 if i % 4 else 0.4,
            }
            for i in range(40)
        ]  # fmt: skip
        paths.append(str(written(tmp_path / f"{split}.jsonl", rows)))
    out, page = tmp_path / "s.json", tmp_path / "s.html"
    words = ["--reliability", "--calibrate", paths[1], "--target-risk", "0.1", "--json", str(out)]
    assert main(["score", paths[0], *words, "--report", str(page)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))["reliability"]["closed"]
    # (30 · 0.1 + 10 · 0.4) ÷ 40
    assert found["before"]["ece"] == pytest.approx(0.175)
    assert (found["abstention"]["threshold"], found["abstention"]["coverage"]) == (0.9, 0.75)
    printed = capsys.readouterr().out
    assert "Calibration: test.jsonl" in printed
    assert "Abstention: test.jsonl" in printed
    assert max(len(line) for line in printed.splitlines() if not line.startswith("  - ")) <= 80
    assert "Reliability diagram of" in page.read_text(encoding="utf-8")


def test_without_calibrate_nothing_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(tmp_path / "p.jsonl", own(ROWS)), tmp_path / "s.json"
    assert main(["score", str(path), "--reliability", "--json", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))["reliability"]
    assert set(found) == {"closed", "open"}
    assert all("temperature" not in entry for entry in found.values())
    assert main(["score", str(path), "--json", str(out)]) == 0
    assert "reliability" not in json.loads(out.read_text(encoding="utf-8"))
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reliability", "--calibrate", "OWN"], "of its images, e.g. 'test/a', are reported on"),
        (["--calibrate", "OWN"], "add --reliability"),
        (["--reliability", "--target-risk", "0.1"], "add --calibrate FILE"),
        (["--reliability", "--calibrate-truth", "OWN"], "add --calibrate FILE"),
        (["--reliability", "--target-risk", "1"], "is not a number between 0 and 1"),
        (["--reliability", "--calibrate", "none.jsonl"], "none.jsonl: No such file"),
    ],
)
def test_what_confidences_cannot_be_judged_on_is_one_line(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(written(tmp_path / "p.jsonl", own(ROWS)))
    assert message in refused(capsys, path, *(path if word == "OWN" else word for word in words))


def test_the_same_records_without_images_are_reported_on_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{k: v for k, v in row.items() if k != "image"} for row in own(ROWS)]
    path, copy = (written(tmp_path / name, rows) for name in ("p.jsonl", "copy.jsonl"))
    words = [path, "--reliability", "--calibrate", copy]
    assert "copy.jsonl: its records are reported on too" in refused(capsys, *words)
    rows[0]["answer"] = "no"  # ids that begin anew in each split
    assert main(["score", *map(str, [path, "--reliability", "--calibrate"]),
                 str(written(copy, rows))]) == 0  # fmt: skip
    capsys.readouterr()


def test_answers_without_confidence_are_named(
    predictions: Path, truth: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, predictions, truth, "--reliability")
    assert "prediction of '1' has no confidence" in message


def test_a_run_on_other_records_is_matched_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    (other / "one").mkdir(parents=True)
    written(other / "one" / "predictions.jsonl", own(ROWS, split="validation"))
    words = ["--reliability", "--calibrate", str(other)]
    assert "holds no answers for 'two'" in refused(capsys, run, *words)
    (other / "two").mkdir()
    written(other / "two" / "predictions.jsonl", own(ROWS, split="validation"))
    out = tmp_path / "s.json"
    assert main(["score", str(run), *words, "--json", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))["files"]
    assert all("temperature" in f["reliability"]["closed"] for f in found.values())
    capsys.readouterr()


def test_recorded_answers_give_the_recorded_scores(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import csv

    results = repository / "results"
    table = list(csv.DictReader((results / "measured.csv").read_text().splitlines()))
    checked = 0
    for config in dict.fromkeys(row["config_sha256"] for row in table):
        wanted = {"config_sha256": config, "control": "", "subset": "closed"}
        rows = [r for r in table if all(r[k] == v for k, v in wanted.items())]
        rows = [row for row in rows if row["system"] in ("moe", "dense")]
        for row in rows:
            if row["metric"] != "accuracy" or row["protocol"] not in ("strict", "reference"):
                continue
            system = "" if row["system"] == "moe" else f"-{row['system']}"
            name = f"{config}-{row['task']}-{row['seed']}{system}.jsonl"
            path = results / "predictions" / name
            out = tmp_path / "score.json"
            # Of a single model on real data the bootstrap's seed is not that of its training.
            seed = row["seed"] if row["plan_minutes"] else "7"
            words = ["score", str(path), str(path), "--seed", seed, "--json", str(out)]
            assert main(words) == 0
            cells = json.loads(out.read_text(encoding="utf-8"))["protocols"][row["protocol"]]
            cell = cells["closed"]["accuracy"]
            # The table keeps four decimals of a percent.
            for name in ("value", "low", "high"):
                assert cell[name] == pytest.approx(float(row[name]), abs=5.1e-5), row
            assert cell["n"] == int(row["n"])
            checked += 1
    assert checked >= 2
    capsys.readouterr()
