"""The data of a training run: sets by name, steps by epochs, and what keeps training apart."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from tests.experiments.micro_train import micro_plan, micro_recipe, silent
from tests.experiments.miniature import picture, write_all

from medmoe.config.train_schema import TrainPhaseSpec
from medmoe.data.bad_rows import BadRows
from medmoe.errors import ConfigError, DataError
from medmoe.experiments.data import read_data, read_sets, steps_of
from medmoe.experiments.recipe import load_recipe
from medmoe.experiments.run import run_train


def phase(**values: object) -> TrainPhaseSpec:
    fixed = {
        "data": ("phantom/train",),
        "learning_rate": 1e-3,
        "batch_size": 8,
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    return TrainPhaseSpec.model_validate(fixed | values)


@pytest.mark.parametrize(
    ("values", "samples", "steps"),
    [({"steps": 5}, 100, 5), ({"epochs": 1}, 100, 13), ({"epochs": 3}, 100, 38)],
)
def test_steps_are_given_or_follow_from_epochs(
    values: dict[str, int], samples: int, steps: int
) -> None:
    assert steps_of(phase(**values), samples) == steps


def test_samples_are_images_with_their_repeats() -> None:
    recipe = micro_recipe("data.repeats={phantom: 3}")
    data = read_data(recipe.spec, list(recipe.spec.phases), None, 7)
    assert data.samples("phase1_alignment") == 3 * 24
    assert data.samples("phase0_language") == len(data.records("phase0_language"))


def test_a_phase_whose_sets_have_none_of_its_tasks_is_refused() -> None:
    data = read_data(micro_recipe().spec, ["phase3_moe"], None, 7)
    data.sets["phantom/train"] = [r for r in data.sets["phantom/train"] if r.task == "caption"]
    message = "phase3_moe: no training record of task vqa or classification in phantom/train; name"
    with pytest.raises(DataError, match=message):
        data.check(["phase3_moe"], (), 7)


def test_a_recipe_may_name_a_phases_tasks() -> None:
    recipe = micro_recipe("phases.phase2_instruction.tasks=[vqa]")
    data = read_data(recipe.spec, ["phase2_instruction", "phase3_moe"], None, 7)
    assert {record.task for record in data.records("phase2_instruction")} == {"vqa"}
    assert {record.task for record in data.records("phase3_moe")} == {"vqa", "classification"}
    with pytest.raises(ConfigError, match="must name at least one task, and each once"):
        micro_recipe("phases.phase3_moe.tasks=[]")


def test_answers_are_taught_in_lower_case_and_scored_as_they_are_written(tmp_path: Path) -> None:
    root, sets = write_all(tmp_path), "[vqa_rad/train, mednist/train]"
    trained = f"phases.phase1_alignment.data={sets}", "phases.phase1_alignment.tasks=[caption, vqa]"
    plain, folded = (
        read_data(micro_recipe(*trained, *more).spec, ["phase1_alignment"], root, 7)
        for more in ((), ("data.lower_case=true",))
    )
    pairs = [*zip(*(d.records("phase1_alignment") for d in (plain, folded)), strict=True)]
    assert {before.task for before, _ in pairs} == {"caption", "vqa"}
    assert any(a.answer != b.answer for a, b in pairs)
    for before, after in pairs:
        taught = before.answer.lower() if before.task == "vqa" else before.answer
        assert (after.id, after.question, after.answer) == (before.id, before.question, taught)
    scored = read_sets(micro_recipe("data.lower_case=true").spec, ["vqa_rad/test"], root, 7)
    assert any(r.answer != r.answer.lower() for r in scored["vqa_rad/test"])


def test_without_captions_phase_1_aligns_on_the_questions_and_says_so(tmp_path: Path) -> None:
    root = write_all(tmp_path)
    recipe = micro_recipe("phases.phase1_alignment.data=[pneumoniamnist/train]")
    data = read_data(recipe.spec, ["phase1_alignment"], root, 7)
    notes = data.check(["phase1_alignment"], (), 7)
    assert notes == {
        "phase1_alignment": "The data hold no captions: phase 1 aligned on the questions."
    }
    assert data.samples("phase1_alignment") == 12
    captioned = micro_recipe("phases.phase1_alignment.data=[pneumoniamnist/train, mednist/train]")
    data = read_data(captioned.spec, ["phase1_alignment"], root, 7)
    assert data.check(["phase1_alignment"], (), 7) == {}
    assert data.tasks("phase1_alignment") == ("caption",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phantom/dev", "unknown phantom split 'dev'; choose one of: test, train, validation"),
        ("vqa_rat/train", "unknown data set 'vqa_rat'; .* did you mean 'vqa_rad'"),
    ],
)
def test_an_unknown_set_or_split_is_one_line(name: str, message: str, tmp_path: Path) -> None:
    recipe = micro_recipe(f"phases.phase1_alignment.data=[{name}]")
    with pytest.raises(DataError, match=message):
        read_data(recipe.spec, ["phase1_alignment"], write_all(tmp_path), 7)


def test_pictures_that_nearly_equal_scored_ones_are_dropped_and_counted(tmp_path: Path) -> None:
    """VQA-Med's picture 5 is a copy of one in VQA-RAD's image-disjoint test split."""
    root = write_all(tmp_path, {"train/5": "rad/17"})
    settings = [
        "phases.phase1_alignment.data=[vqa_med_2019/train]",
        "data.apart_from=[vqa_rad/disjoint_test]",
    ]
    spec = micro_recipe(*settings).spec
    data = read_data(spec, ["phase1_alignment"], root, 7)
    names = {record.image.id for record in data.records("phase1_alignment")}
    kept = read_data(spec, ["phase1_alignment"], root, 7, clean=False)
    assert {r.image.id for r in kept.records("phase1_alignment")} - names == {
        "vqa_med_2019/train/synpic5.jpg"
    }
    assert sum(data.dropped.values()) == len(kept.sets["vqa_med_2019/train"]) - len(
        data.sets["vqa_med_2019/train"]
    )


def test_hashes_change_with_a_word_or_a_pixel(tmp_path: Path) -> None:
    root = write_all(tmp_path)
    spec = micro_recipe("phases.phase1_alignment.data=[vqa_med_2019/train]").spec

    def digest() -> str:
        data = read_data(spec, ["phase1_alignment"], root, 7)
        return data.hashes("phase1_alignment")["vqa_med_2019/train"]

    before = digest()
    assert digest() == before
    picture = root / "vqa-med-2019" / "train" / "images" / "synpic3.jpg"
    original = picture.read_bytes()
    picture.write_bytes(original + b"\0")
    assert digest() != before
    picture.write_bytes(original)
    assert digest() == before


def test_the_twin_on_real_pictures_reads_every_set(tmp_path: Path) -> None:
    root = write_all(tmp_path)
    spec = load_recipe("tiny_real", ["router.labels=8"]).spec
    data = read_data(spec, list(spec.phases), root, 7)
    data.check(list(spec.phases), (), 7)
    found = Counter(record.dataset for record in data.records("phase2_instruction"))
    assert set(found) == {"vqa_rad", "vqa_med_2019", "pneumoniamnist", "mednist", "lc25000"}
    scored = {image.id for image in data.router_test()}
    assert scored
    assert not scored & {record.image.id for record in data.records("phase2_router")}


def test_the_real_sets_are_read(shared: Path) -> None:
    spec = load_recipe("tiny_real").spec
    data = read_data(spec, list(spec.phases), shared / "data", 7, clean=False)
    data.check(list(spec.phases), (), 7)
    assert len({r.image.id for r in data.sets["vqa_rad/disjoint_train"]}) == 220
    assert len(data.router_test()) == 230


# Rows and pictures that cannot be used


@pytest.mark.parametrize("scored", ["[]", "[vqa_rad/disjoint_test]"])
def test_a_picture_that_cannot_be_read_is_refused_or_left_out_and_counted(
    tmp_path: Path, scored: str
) -> None:
    root = write_all(tmp_path)
    settings = (
        "phases.phase1_alignment.data=[vqa_med_2019/train]",
        f"data.apart_from={scored}",
        "scored={}",
    )
    spec = micro_recipe(*settings).spec
    whole = read_data(spec, ["phase1_alignment"], root, 7).sets["vqa_med_2019/train"]
    (root / "vqa-med-2019" / "train" / "images" / "synpic5.jpg").write_bytes(b"cut off")
    if scored != "[]":
        with pytest.raises(DataError, match=r"unreadable image: .*synpic5.* --on-bad-row skip"):
            read_data(spec, ["phase1_alignment"], root, 7)
    bad = BadRows("skip")
    data = read_data(spec, ["phase1_alignment"], root, 7, bad=bad)
    lost = [r for r in whole if r.image.id.endswith("synpic5.jpg")]
    kept = [r.id for r in whole if r not in lost]
    assert [r.id for r in data.sets["vqa_med_2019/train"]] == kept
    assert len(bad.reasons) == len(lost) == 5  # four questions and a caption
    assert all("unreadable image" in reason for reason in bad.reasons)


def test_a_run_says_what_it_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "set").mkdir()
    for number in range(6):
        Image.fromarray(picture(number)).save(tmp_path / "set" / f"{number}.png")
    (tmp_path / "set" / "5.png").write_bytes(b"cut off")
    rows = [f"{n}.png,Is it large?,{('yes', 'no')[n % 2]},ct,train" for n in range(6)]
    header = "image,question,answer,modality,split"
    (tmp_path / "set" / "data.csv").write_text("\n".join([header, *rows]) + "\n")
    data = f"[{tmp_path / 'set' / 'data.csv'}]"
    plan = micro_plan(
        tmp_path / "run",
        f"phases.phase0_language.data={data}",
        "data.apart_from=[]",
        "scored={}",
        phases=("phase0_language",),
        on_bad_row="skip",
    )
    run_train(plan, silent, None)
    facts = json.loads((tmp_path / "run" / "phase0_language" / "run.json").read_text())
    (reason,) = facts["data"]["bad_rows"]
    assert "row 7: unreadable image" in reason
    assert "left out: 1 rows" in caplog.text
