"""Pictures that are trained on and scored: dropped by the recipe, refused, or said everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.experiments.micro_train import micro_plan, micro_recipe, silent
from tests.experiments.miniature import write_all

from medmoe.config.train_schema import TrainSpec
from medmoe.errors import DataError
from medmoe.experiments.data import TrainData, read_data
from medmoe.experiments.recipe import load_recipe
from medmoe.experiments.run import run_train
from medmoe.model.card import CARD
from medmoe.model.checkpoint import provenance

COPY = {"train/5": "rad/17"}
SCORED = "data.apart_from=[vqa_rad/disjoint_test]"
PHASE = "phase1_alignment"


def spec_of(*data: str, settings: tuple[str, ...] = ()) -> TrainSpec:
    return micro_recipe(f"phases.{PHASE}.data=[{','.join(data)}]", SCORED, *settings).spec


def read(spec: TrainSpec, root: Path, *, allow_leak: bool = False) -> TrainData:
    return read_data(spec, [PHASE], root, 7, allow_leak=allow_leak)


def test_what_the_recipe_drops_is_no_leak(tmp_path: Path) -> None:
    data = read(spec_of("vqa_med_2019/train"), write_all(tmp_path, COPY))
    assert data.dropped == {"vqa_med_2019/train": 5}  # four questions and a caption
    assert data.leaks == data.shared_images(PHASE) == {}


def test_a_copy_of_a_scored_picture_that_is_not_dropped_is_refused(tmp_path: Path) -> None:
    root = write_all(tmp_path, COPY)
    spec = spec_of("vqa_med_2019/train", settings=("data.drop_near_duplicates=false",))
    message = r"'vqa_med_2019/train/synpic5\.jpg' nearly equals test image .*--allow-leak"
    with pytest.raises(DataError, match=message):
        read(spec, root)
    data = read(spec, root, allow_leak=True)
    assert data.dropped == {}
    assert data.shared_images(PHASE) == {"vqa_rad/disjoint_test": 1}


def test_as_in_the_literature_every_row_is_trained_on_and_what_is_scored_is_counted(
    tmp_path: Path,
) -> None:
    root = write_all(tmp_path, COPY)
    kept = read(spec_of("vqa_med_2019/train"), root)
    data = read(spec_of("vqa_med_2019/train", settings=("data.literature=true",)), root)
    assert data.dropped == {}
    assert len(data.sets["vqa_med_2019/train"]) == len(kept.sets["vqa_med_2019/train"]) + 5
    assert data.shared_images(PHASE) == {"vqa_rad/disjoint_test": 1}
    assert str(data.leaks["vqa_rad/disjoint_test"]) == "1 of 4 test pictures are also trained on"


def test_a_set_that_is_trained_on_and_scored_is_refused_not_dropped(tmp_path: Path) -> None:
    root = write_all(tmp_path, COPY)
    spec = spec_of("vqa_med_2019/train", "vqa_rad/disjoint_test")
    with pytest.raises(DataError, match=r"equals test image .*--allow-leak"):
        read(spec, root)
    data = read(spec, root, allow_leak=True)
    assert data.dropped == {"vqa_med_2019/train": 5, "vqa_rad/disjoint_test": 0}
    assert data.shared_images(PHASE) == {"vqa_rad/disjoint_test": 4}


def test_a_picture_with_a_label_only_is_compared_too(tmp_path: Path) -> None:
    spec = micro_recipe(
        "phases.phase2_router.data=[pneumoniamnist/train,pneumoniamnist/test]",
        "router.test=[pneumoniamnist/test]",
    ).spec
    with pytest.raises(DataError, match=r"'pneumoniamnist/test/.* equals test image"):
        read_data(spec, ["phase2_router"], write_all(tmp_path), 7)


def test_pictures_count_from_the_first_phase_that_sees_them(tmp_path: Path) -> None:
    settings = ("phases.phase2_instruction.data=[vqa_rad/disjoint_test]",)
    spec = spec_of("vqa_med_2019/train", settings=settings)
    phases = (PHASE, "phase2_instruction")
    data = read_data(spec, phases, write_all(tmp_path), 7, allow_leak=True)
    assert data.shared_images(PHASE) == {}
    assert data.shared_images("phase2_instruction") == {"vqa_rad/disjoint_test": 4}


def test_the_embedded_pictures_of_the_tiny_twin_are_kept_apart() -> None:
    """Of 1,500 made-up pictures a few come out alike: without the recipe's drop it is refused."""
    phases = ["phase1_alignment", "phase2_router"]
    data = read_data(load_recipe("tiny_phantom").spec, phases, None, 7)
    assert data.dropped["phantom/train"] > 0
    assert data.leaks == {}
    with pytest.raises(DataError, match=r"'phantom/train/\d+' nearly equals test image 'phantom/"):
        read_data(load_recipe("tiny_phantom", ["data.apart_from=[]"]).spec, phases, None, 7)


def test_an_allowed_leak_stands_in_run_models_card_and_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leaky = "phases.phase2_instruction.data=[phantom/train,phantom/test]"
    with pytest.raises(DataError, match="--allow-leak"):
        run_train(micro_plan(tmp_path / "refused", leaky), silent, None)
    assert not (tmp_path / "refused").exists()

    out = tmp_path / "run"
    summary = run_train(micro_plan(out, leaky, allow_leak=True, label_counts=(0, 4)), silent, None)
    assert "phantom/test: 12 of 12 test pictures are also trained on" in caplog.text
    shared = {"phantom/test": 12}
    seen = {p: provenance(out / p / "model")["shared_images"] for p in summary["phases"]}
    clean = ("phase0_encoder", "phase0_language", "phase1_alignment")
    assert seen == {phase: {} if phase in clean else shared for phase in seen}
    for phase, found in seen.items():
        run = json.loads((out / phase / "run.json").read_text())
        assert run["data"]["allow_leak"] is True
        assert run["data"]["shared_images"] == found
    assert summary["router"]["shared_images"] == 12
    curve = json.loads((out / "phase2_router" / "label_curve.json").read_text())
    assert [row["shared_images"] for row in curve] == [12, 12]
    said = "at least 12 of phantom/test"
    assert said in (out / "phase3_moe" / "model" / CARD).read_text()
    assert said not in (out / "phase1_alignment" / "model" / CARD).read_text()

    # Trained in a call of its own, on clean pictures, phase 3 still knows what phase 2 has seen.
    alone = tmp_path / "alone"
    starts = [f"starts.{p}={out / p}" for p in ("phase2_instruction", "phase2_router")]
    run_train(micro_plan(alone, *starts, phases=("phase3_moe",)), silent, None)
    assert provenance(alone / "phase3_moe" / "model")["shared_images"] == shared
