"""Multiple choice: asked once by the options' likelihood, once by letter, and named as such."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.readers.test_pmc_vqa import FIRST, write
from tests.model.tiny import moe_model, processor

from medmoe.cli.main import main
from medmoe.data.schema import Record, lettered
from medmoe.evaluation.ask.plan import EvalPlan, Other, parts_of
from medmoe.evaluation.ask.records import by_letter, task_records
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.metrics import option_letter
from medmoe.evaluation.protocols import score_pair
from medmoe.evaluation.score.rows import cells_of
from medmoe.evaluation.score.table import score_table
from medmoe.evaluation.tasks import task_spec
from medmoe.model.checkpoint import save_model

Make = Callable[..., Record]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PMC-VQA with two pictures and questions whose options differ."""
    root = tmp_path_factory.mktemp("choice")
    rows = [
        FIRST | {"Question": f"What is arrow {n}?", "Choice A": f"A: Edema {n}"} for n in range(3)
    ]
    rows[2]["Figure_path"] = "PMC2_Fig1.jpg"
    for name in ("train", "test"):
        write(root, f"{name}.csv", rows)
    for n, row in enumerate(rows[1:]):
        picture = Image.fromarray(np.full((40, 40, 3), 60 + 90 * n, np.uint8))
        picture.save(root / "pmc-vqa" / "images" / row["Figure_path"], "PNG")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked") / "model"
    save_model(moe_model("stablelm"), processor(), folder, {})
    return folder


def asked(model: Path, data: Path, out: Path, *more: str) -> dict[str, Any]:
    words = ("eval", str(model), "--task", "pmc_vqa", "--data", str(data), "--out", str(out), *more)
    assert main([*words]) == 0
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return summary


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_both_protocols_are_asked_scored_and_named(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = asked(model, data, tmp_path / "out", "--control", "blank")
    rows = [r for r in summary["scores"] if r["subset"] == "all" and r["control"] is None]
    assert [(r["task"], r["protocol"], r["metric"], r["n"]) for r in rows] == [
        ("pmc_vqa", "label_score", "accuracy", 3),
        ("pmc_vqa", "letter", "accuracy", 3),
    ]
    assert {r["control"] for r in summary["scores"] if r["protocol"] == "letter"} == {None, "blank"}
    # Always B is right here, and is what training says.
    assert rows[1]["constant_baseline"] == 100.0
    labels = lines(tmp_path / "out/pmc_vqa/predictions.jsonl")
    letters = lines(tmp_path / "out/pmc_vqa_letters/predictions.jsonl")
    best = [row["options"][int(np.argmax(row["option_scores"]))] for row in labels]
    assert [row["prediction"] for row in labels] == best
    assert {row["answer"] for row in labels} == {"Focal uptake"}
    assert all("option_scores" not in row for row in letters)
    assert {(r["answer"], *r["references"]) for r in letters} == {("B", "Focal uptake")}
    screen = capsys.readouterr().out
    assert "accuracy (label_score)" in screen
    assert "all accuracy (letter)" in screen
    assert not [note for note in summary["notes"] if "AUC" in note]


def test_one_protocol_asks_its_own_questions_and_the_other_may_be_added(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = asked(model, data, out, "--protocol", "letter")
    assert first["asked"] == 3
    assert not (out / "pmc_vqa").exists()
    assert {r["protocol"] for r in first["scores"]} == {"letter"}
    both = asked(model, data, out)
    assert both["asked"] == 3
    assert {r["protocol"] for r in both["scores"]} == {"letter", "label_score"}
    assert (
        main([*f"eval {model} --task pmc_vqa --protocol strict".split(), "--data", str(data)]) == 2
    )


def test_the_letter_prompt_is_frozen(make_record: Make) -> None:
    record = lettered(make_record(answer="MRI", question="Which is it?", options=("CT", "MRI")))
    assert record.question == (
        "Which is it?\nA. CT\nB. MRI\nAnswer with the option's letter from the given choices "
        "directly."
    )
    assert (record.answer, record.references, record.options) == ("B", ("MRI",), ())


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (B) ", "B"),
        ("**B**", "B"),
        ("B. Focal uptake", "B"),
        ("B) Focal uptake", "B"),
        ("The answer is B.", "B"),
        ("Answer: (C)", "C"),
        ("Option D is right", "D"),
        ("The correct option is **D**.", "D"),
        (r"so \boxed{E}", "E"),
        ("I take (B) here", "B"),
        ("A lesion in the lung", None),
        ("A or B", None),
        ("(A) and (B)", None),
        ("The answer is a mass", None),
        ("Because A is", None),
        ("", None),
    ],
)
def test_a_letter_is_read_where_the_answer_names_one(said: str, letter: str | None) -> None:
    assert option_letter(said) == letter
    assert score_pair("letter", said, "B", "closed") == {"accuracy": float(letter == "B")}


def test_the_text_of_the_right_option_counts_as_its_letter(make_record: Make) -> None:
    options = {"answer": "MRI", "options": ("CT", "MRI", "PET")}
    records = [lettered(make_record(id=i, image=i, **options)) for i in "abcd"]
    said = ["B", "mri", "PET", "A. MRI"]
    answers = [Prediction(r.id, text) for r, text in zip(records, said, strict=True)]
    cells = cells_of(score_table(records, answers))["protocols"]["letter"]
    assert cells["all"]["accuracy"]["value"] == 50.0
    assert cells["all"]["accuracy"]["n"] == 4


def test_records_without_a_letter_have_no_such_score(make_record: Make) -> None:
    records = [make_record("a"), make_record("b", "B", answer_type="open")]
    table = score_table(records, [Prediction("a", "yes"), Prediction("b", "B")])
    assert "letter" not in cells_of(table)["protocols"]


def test_what_a_set_has_is_asked_and_what_it_lacks_said_with_its_scores(tmp_path: Path) -> None:
    from tests.data.readers.test_choice_sets import medxpert, medxpert_row, omnimed

    root = medxpert(tmp_path, medxpert_row(id="MM-1", images=["MM-26-a.jpeg", "MM-26-a.jpeg"]))
    task = task_records(task_spec("medxpertqa_mm"), root, split=None, limit=None, seed=7)
    assert {record.task for record in task.records} == {"classification"}
    assert [len(record.images) for record in task.records] == [1, 2]
    assert [len(record.images) for record in by_letter(task).records] == [1, 2]
    assert not [note for note in task.notes if note.startswith("Left out")]
    task = task_records(task_spec("omnimed_vqa"), omnimed(tmp_path), split=None, limit=None, seed=7)
    assert any("no training answers (the set is for testing only)" in note for note in task.notes)


def test_what_gives_no_likelihoods_is_asked_by_letter_only(data: Path, tmp_path: Path) -> None:
    task = task_records(task_spec("pmc_vqa"), data, split=None, limit=None, seed=1)
    plan = EvalPlan(tmp_path, tmp_path, [task], other=Other("name", "name", lambda: None))
    assert [part.spec.name for part in parts_of(plan)] == ["pmc_vqa_letters"]
