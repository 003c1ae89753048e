"""Asking a task: chunks, answer files that survive being cut off, controls, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.model.tiny import moe_model, processor

from medmoe.data.exchange import write_jsonl
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import Record, turns_of
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.errors import ConfigError, DataError
from medmoe.evaluation.ask import asker as module
from medmoe.evaluation.ask.answers import AnswerFile, chunks_by_image
from medmoe.evaluation.ask.controls import CONTROLS, controlled
from medmoe.evaluation.ask.plan import EvalPlan, longest_answer
from medmoe.evaluation.ask.records import task_records
from medmoe.evaluation.evaluate import evaluate
from medmoe.evaluation.files.predictions import Prediction, by_image, read_predictions
from medmoe.evaluation.tasks import task_spec
from medmoe.model.checkpoint import save_model

Make = Callable[..., Record]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asking") / "model"
    save_model(moe_model("stablelm"), processor(), folder, {})
    return folder


def plan_of(model: Path, out: Path, **changes: Any) -> EvalPlan:
    out.mkdir(parents=True, exist_ok=True)
    names = ("phantom_vqa", "phantom_classification")
    tasks = [task_records(task_spec(n), None, split=None, limit=12, seed=3) for n in names]
    # Chunks of four batches of one: several chunks, so that a run can be cut off between them.
    fixed = {"tasks": tasks, "seed": 3, "batch_size": 1, "max_new_tokens": 3}
    return EvalPlan(model, out, **(fixed | changes))


def silent(name: str, done: int, total: int) -> None:
    """Show nothing."""


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never cut off."""
    out = tmp_path_factory.mktemp("whole")
    evaluate(plan_of(model, out, controls=("blank",)), silent)
    return out


def test_every_turn_of_a_conversation_is_asked_with_the_true_turns_before_it(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [r for r in read_phantom("test", 2, seed=3) if r.task == "vqa"][:2]
    talk = replace(records[0], further=(("Where is it?", "left"),))
    path = write_jsonl([talk, records[1]], tmp_path / "own", "talks")
    task = task_records(task_spec(str(path)), None, split="test", limit=None, seed=3)
    said = "talks: 1 questions are later turns of conversations, asked with the true turns before"
    assert [note for note in task.notes if note.startswith(said)]
    first, later, other = task.records
    assert (later.question, later.answer, later.answer_type) == ("Where is it?", "left", "open")
    assert later.earlier == turns_of(records[0])
    assert (first.earlier, first.further, other.earlier) == ((), (), ())
    asked: list[tuple[tuple[str, str], ...]] = []
    conversation = ConversationTokenizer.conversation

    def listening(self: Any, turns: Any, **flags: Any) -> tuple[int, ...]:
        asked.append(tuple(turns))
        return conversation(self, turns, **flags)

    monkeypatch.setattr(ConversationTokenizer, "conversation", listening)
    summary = evaluate(plan_of(model, tmp_path / "out", tasks=[task]), silent)
    assert [note for note in summary["notes"] if note.startswith(said)]
    rows = [json.loads(line) for line in (tmp_path / "out/talks/predictions.jsonl").open()]
    assert [row["answer"] for row in rows] == [first.answer, "left", other.answer]
    question, answer = turns_of(records[0])[0]
    assert (("user", question), ("assistant", answer), ("user", "Where is it?")) in asked


def test_classes_beside_questions_are_said_not_to_be_asked(tmp_path: Path) -> None:
    records = read_phantom("test", 2, seed=3)
    classes = sum(record.task == "classification" for record in records)
    path = write_jsonl([r for r in records if r.task != "caption"], tmp_path / "own", "mixed")
    task = task_records(task_spec(str(path)), None, split="test", limit=None, seed=3)
    assert {record.task for record in task.records} == {"vqa"}
    assert [note for note in task.notes if note.startswith(f"mixed: {classes} records of classes")]


def test_a_chunk_holds_all_questions_about_its_images(make_record: Make) -> None:
    records = [make_record(id=f"q{i}", image=f"i{i % 3}") for i in range(7)]
    found = chunks_by_image(records, lambda record: record.image.id, 3)
    ids = [[r.id for r in chunk] for chunk in found]
    assert ids == [["q0", "q3", "q6"], ["q1", "q4", "q2", "q5"]]
    assert [record for chunk in found for record in chunk] == by_image(records)
    assert chunks_by_image([], str, 3) == []


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        (lambda lines: lines[:3], 1),  # half of the second chunk
        (lambda lines: [*lines[:3], lines[3][:9]], 1),  # a torn line
        (lambda lines: [*lines[:2], b"\0" * 40 + b"\n"], 1),  # a block the disk never got
        (lambda lines: [], 0),
        (lambda lines: lines, 2),
    ],
)
def test_what_follows_the_last_whole_chunk_is_cut_off(
    tmp_path: Path, make_record: Make, cut: Callable[[list[bytes]], list[bytes]], kept: int
) -> None:
    chunks = [[make_record(id=f"q{2 * c + i}") for i in range(2)] for c in range(2)]
    path = tmp_path / "task" / "predictions.jsonl"
    file = AnswerFile(path, chunks)
    assert file.resume() == 0
    for chunk in chunks:
        file.append(chunk, [Prediction(r.id, "ja\u2028nein", 0.5) for r in chunk])
    full = path.read_bytes()
    path.write_bytes(b"".join(cut(full.splitlines(keepends=True))))
    assert file.resume() == kept
    for chunk in chunks[kept:]:
        file.append(chunk, [Prediction(r.id, "ja\u2028nein", 0.5) for r in chunk])
    assert path.read_bytes() == full


def test_answers_of_other_records_are_refused(tmp_path: Path, make_record: Make) -> None:
    path = tmp_path / "predictions.jsonl"
    chunk = [make_record(id="a"), make_record(id="b")]
    AnswerFile(path, [chunk]).append(chunk, [Prediction("a", "x"), Prediction("b", "x")])
    with pytest.raises(DataError, match="line 2 does not answer 'c'"):
        AnswerFile(path, [[chunk[0], make_record(id="c")]]).resume()
    with pytest.raises(DataError, match="more lines than records"):
        AnswerFile(path, [chunk[:1]]).resume()


def test_a_resumed_run_equals_an_uninterrupted_one(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    ask = module.ask_chunk

    def killed(engine: Any, records: Any, change: Any) -> list[Prediction]:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise KeyboardInterrupt
        return ask(engine, records, change)

    monkeypatch.setattr(module, "ask_chunk", killed)
    plan = plan_of(model, tmp_path, controls=("blank",))
    with pytest.raises(KeyboardInterrupt):
        evaluate(plan, silent)
    assert not (tmp_path / "summary.json").exists()
    path = tmp_path / "phantom_vqa" / "predictions.jsonl"
    with path.open("ab") as file:
        file.write(b'{"id": "phan')
    summary = evaluate(plan, silent)
    uninterrupted = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    assert 0 < summary["asked"] < uninterrupted["asked"]
    assert summary["scores"] == uninterrupted["scores"]
    for file_of in whole.glob("*/**/*.jsonl"):
        assert (tmp_path / file_of.relative_to(whole)).read_bytes() == file_of.read_bytes()


def test_a_finished_run_is_scored_anew_without_its_model(
    model: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(module.MedMoe, "load", None)  # loading would fail
    again = evaluate(plan_of(model, whole, controls=("blank",)), silent)
    assert again["asked"] == 0
    assert (again["scores"], again["parameters"]) == (before["scores"], before["parameters"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seed": 4}, "its seed: 3; now: 4"), ({"batch_size": 2}, "its batch_size: 1; now: 2")],
)
def test_another_run_in_the_folder_is_refused(
    model: Path, whole: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(plan_of(model, whole, **changes), silent)


def test_the_longest_answer_follows_from_what_the_model_was_trained_on(
    tmp_path: Path, make_record: Make
) -> None:
    asked = [make_record(dataset="slake")]
    cases = {None: 32, "slake/train, vqa_rad/train": 32, "vqa_rad/train, slake_zh/train": 512}
    for number, (sets, longest) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        training = {} if sets is None else {"data": sets}
        (folder / "medmoe.json").write_text(json.dumps({"training": training}))
        assert longest_answer(EvalPlan(folder, tmp_path, []), asked) == longest
        assert longest_answer(EvalPlan(folder, tmp_path, [], max_new_tokens=5), asked) == 5
    caption = [make_record(dataset="slake", task="caption")]
    assert longest_answer(EvalPlan(tmp_path / "0", tmp_path, []), caption) == 512


def test_cut_answers_are_counted_and_said(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    lines = (whole / "phantom_vqa" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    cut = sum("cut" in json.loads(line) for line in lines)
    assert summary["cut_answers"] == {"phantom_vqa": cut, "phantom_classification": 0}
    note = f"phantom_vqa, moe: {cut} of 12 answers were cut at 3 tokens"
    assert cut > 0
    assert any(line.startswith(note) for line in summary["notes"])
    assert note in (whole / "report.html").read_text(encoding="utf-8")
    assert sum(p.cut for p in read_predictions(whole / "phantom_vqa" / "predictions.jsonl")) == cut


def test_a_run_with_another_longest_answer_is_gone_on_with_or_refused(
    model: Path, whole: Path
) -> None:
    again = evaluate(plan_of(model, whole, max_new_tokens=None, controls=("blank",)), silent)
    assert again["asked"] == 0
    with pytest.raises(ConfigError, match="its max_new_tokens: 3; now: 4"):
        evaluate(plan_of(model, whole, max_new_tokens=4), silent)


def test_another_model_is_refused(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    save_model(moe_model("phi"), processor(), other, {})
    with pytest.raises(ConfigError, match="its model:"):
        evaluate(plan_of(other, whole), silent)


def test_a_folder_with_other_files_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other files \(thesis.txt\)"):
        evaluate(plan_of(model, tmp_path), silent)


def test_files_hold_predictions_truth_confidence_and_routing(whole: Path) -> None:
    lines = (whole / "phantom_vqa" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    for line in map(json.loads, lines):
        assert {"id", "prediction", "confidence", "answer", "answer_type", "image"} <= set(line)
        assert line["routing"]["domain"] in ("ct", "mri", "pathology", "xray")
        assert 0.25 <= line["routing"]["domain_probability"] <= 1.0
    labels = (whole / "phantom_classification" / "predictions.jsonl").read_text(encoding="utf-8")
    assert all("routing" in json.loads(line) for line in labels.splitlines())


def test_summary_has_every_protocol_breakdowns_baselines_and_the_control(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    rows = summary["scores"]
    plain = [row for row in rows if row["control"] is None]
    assert {row["protocol"] for row in plain} == {
        "strict", "reference", "llava_med", "token_f1", "label_score"
    }  # fmt: skip
    assert any(row["subset"].startswith("modality:") for row in plain)
    assert any(row["subset"].startswith("answer_length:") for row in plain)
    assert all(row["constant_baseline"] is not None for row in plain if row["value"] is not None)
    assert {row["control"] for row in rows} == {None, "blank"}
    assert summary["router"]["n"] == len(
        {json.loads(line)["image"] for path in whole.glob("*/predictions.jsonl")
         for line in path.read_text(encoding="utf-8").splitlines()}
    )  # fmt: skip
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "blank image" in page
    assert "not a medical device" in page


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_changes_pictures_only_and_is_repeated_by_its_seed(control: str) -> None:
    records = [r for r in read_phantom("test", 4, seed=3, size=32) if r.task == "vqa"]
    found, again = (controlled(records, control, seed=5) for _ in range(2))
    for new, old, same in zip(found, records, again, strict=True):
        assert (new.id, new.question, new.answer, new.image.id) == (
            old.id, old.question, old.answer, old.image.id
        )  # fmt: skip
        assert not np.array_equal(new.image.source, old.image.source)
        assert np.array_equal(new.image.source, same.image.source)
    if control == "shuffled":
        used = {np.asarray(r.image.source).tobytes() for r in found}
        assert used == {np.asarray(r.image.source).tobytes() for r in records}
    if control == "noise":
        assert len({np.asarray(r.image.source).tobytes() for r in found}) == 4


def test_one_image_cannot_be_shuffled(make_record: Make) -> None:
    with pytest.raises(DataError, match="nothing to shuffle"):
        controlled([make_record(id="a")], "shuffled", 1)


def test_limit_draws_by_the_seed_and_keeps_the_order(shared: Path) -> None:
    spec = task_spec("vqa_rad")
    one, same, other = (
        [r.id for r in task_records(spec, shared / "data", split=None, limit=40, seed=s).records]
        for s in (3, 3, 4)
    )
    every = [
        r.id for r in task_records(spec, shared / "data", split=None, limit=None, seed=3).records
    ]
    assert one == same
    assert len(one) == len(other) == 40
    assert set(one) != set(other)
    assert one == [i for i in every if i in set(one)]
    assert len(every) == 451


def test_a_task_without_a_fitting_protocol_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not scored under label_score; add --protocol strict"):
        evaluate(plan_of(model, tmp_path, protocols=("label_score",)), silent)
    assert list(tmp_path.iterdir()) == []


def test_pictures_a_model_was_trained_on_stand_in_every_score_and_on_the_page(
    tmp_path: Path,
) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    save_model(
        moe_model("stablelm"), processor(), folder, {"shared_images": {"phantom/test": 3, "x/y": 1}}
    )
    summary = evaluate(plan_of(folder, out, controls=("blank",)), silent)
    assert {row["shared_images"] for row in summary["scores"]} == {3}
    assert summary["shared_images"] == {"phantom/test": 3, "x/y": 1}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "at least 3 pictures that nearly equal pictures of phantom/test" in page


def test_a_split_that_training_did_not_touch_has_no_shared_images(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(moe_model("stablelm"), processor(), folder, {"shared_images": {"phantom/x": 3}})
    summary = evaluate(plan_of(folder, tmp_path / "out"), silent)
    assert not any("shared_images" in row for row in summary["scores"])
    assert any("phantom/x" in note for note in summary["notes"])
