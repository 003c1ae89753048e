"""What the demo's recipes train on and what they score: no picture on both sides but by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.experiments import miniature
from tests.experiments.micro import PHASES, SETTINGS, TEST_IMAGES, TRAIN_IMAGES

from medmoe.data import registry
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import ImageRecord, Record, images_of
from medmoe.errors import DataError
from medmoe.experiments import data as data_module
from medmoe.experiments.data import TrainData, limited, read_data
from medmoe.experiments.recipe import load_recipe

RAD, MED = "vqa_rad", "vqa_med_2019"
SPLITS = ("standard", "disjoint", "validation")
STANDARD = f"{RAD}/test"


def read(root: Path | None, split: str, *settings: str) -> TrainData:
    name = "demo_phantom" if root is None else "demo_real"
    spec = load_recipe(name, [*SETTINGS, *settings], split=split, minutes=2).spec
    return read_data(spec, PHASES, root, 7)


def ids(records: list[Record]) -> set[str]:
    return {record.image.id for record in records}


def trained(data: TrainData, dataset: str = "") -> set[str]:
    names = {name for phase in data.spec.phases.values() for name in phase.data}
    return {i for name in names if name.startswith(dataset) for i in ids(data.sets[name])}


def rad(numbers: range) -> set[str]:
    return {f"vqa_rad/{miniature.rad_name(n)}" for n in numbers}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def real(root: Path) -> dict[str, TrainData]:
    return {split: read(root, split) for split in SPLITS}


def test_phantom_train_and_test_share_no_image() -> None:
    data = read(None, "standard")
    train, test = trained(data), ids(data.sets["phantom/test"])
    assert (len(train), len(test)) == (TRAIN_IMAGES, TEST_IMAGES)
    assert not train & test


@pytest.mark.parametrize("split", ["standard", "validation"])
def test_a_phantom_that_looks_like_a_scored_one_is_dropped(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_twin(part: Any, count: int, **values: Any) -> list[Record]:
        records = read_phantom(part, count, **values)
        if part != "train":
            return records
        scored = read_phantom("validation" if split == "validation" else "test", 1, **values)
        picture = scored[0].image.source
        assert isinstance(picture, np.ndarray)
        twin = replace(records[0].image, source=np.minimum(picture, 250) + np.uint8(2))
        return [replace(r, image=twin) if r.image.id == twin.id else r for r in records]

    monkeypatch.setattr(data_module, "read_phantom", with_twin)
    data = read(None, split)
    assert "phantom/train/000000" not in trained(data)
    assert len(trained(data)) == TRAIN_IMAGES - 1
    assert data.dropped["phantom/train"] > 0
    assert not data.leaks


def test_a_validation_run_of_the_phantom_scores_and_routes_validation_pictures() -> None:
    spec = load_recipe("demo_phantom", split="validation").spec
    assert spec.router is not None
    assert {*spec.scored.values(), *spec.router.test} == {"phantom/validation"}


@pytest.mark.parametrize("split", SPLITS)
def test_only_the_standard_split_scores_a_training_image_and_counts_it(
    real: dict[str, TrainData], split: str
) -> None:
    data = real[split]
    train = trained(data)
    shared = {
        name: len(ids(data.sets[name]) & train)
        for name in data.spec.scored.values()
        if ids(data.sets[name]) & train
    }
    assert shared == ({STANDARD: miniature.RAD_TEST_IMAGES} if split == "standard" else {})
    assert {name: leak.shared for name, leak in data.leaks.items()} == shared
    assert data.shared_images("sft") == shared
    assert sum(data.dropped.values()) == 0


def test_a_set_of_another_name_is_not_part_of_the_exception(root: Path) -> None:
    """Of VQA-Med-2019 a copy of a scored picture of VQA-RAD is dropped, not counted."""
    copies = miniature.write_all(root.parent / "leaky", {"train/3": "rad/16"})
    data = read(copies, "standard")
    assert "synpic3" not in {Path(name).stem for name in trained(data, MED)}
    assert data.leaks[STANDARD].shared == miniature.RAD_TEST_IMAGES
    with pytest.raises(DataError, match=r"synpic3\.jpg' nearly equals test image .*--allow-leak"):
        read(copies, "standard", "data.drop_near_duplicates=false")


@pytest.mark.parametrize("split", ["standard", "disjoint"])
def test_a_vqa_rad_picture_that_nearly_equals_a_scored_one_of_vqa_med_is_dropped(
    tmp_path: Path, split: str
) -> None:
    data = read(miniature.write_all(tmp_path, {"rad/3": "val/22"}), split)
    assert not rad(range(3, 4)) & trained(data, RAD)


def test_disjoint_split_trains_on_no_image_it_scores(
    real: dict[str, TrainData], tmp_path: Path
) -> None:
    data = real["disjoint"]
    assert ids(data.sets[f"{RAD}/disjoint_test"]) == rad(miniature.RAD_PARTS["test"])
    assert trained(data, RAD) == rad(miniature.RAD_PARTS["train"])
    copied = read(miniature.write_all(tmp_path, {"rad/2": "rad/17"}), "disjoint")
    assert trained(copied, RAD) == rad(range(14)) - rad(range(2, 3))


@pytest.mark.parametrize("split", SPLITS)
def test_router_is_not_scored_on_its_training_images(
    real: dict[str, TrainData], split: str
) -> None:
    images = {image.id for image in real[split].router_test()}
    assert not images & trained(real[split])
    assert {name.split("/")[0] for name in images} == {MED, "mednist", "lc25000"}


def test_validation_looks_at_no_test_set(real: dict[str, TrainData], root: Path) -> None:
    data = real["validation"]
    assert data.spec.scored == {
        "vqa_rad_disjoint": f"{RAD}/disjoint_validation",
        MED: f"{MED}/held_out",
        "pneumoniamnist": "pneumoniamnist/validation",
    }
    looked_at = {i for records in data.sets.values() for i in ids(records)}
    for name, split in (
        (RAD, "disjoint_test"),
        (MED, "validation"),
        *((name, "test") for name in ("pneumoniamnist", "mednist", "lc25000")),
    ):
        assert not looked_at & ids(registry.read(name, root, split))


def test_what_is_held_out_is_not_trained_on_and_is_the_seeds(root: Path) -> None:
    spec = load_recipe("demo_real", split="validation", minutes=2).spec
    names = [f"{MED}/train", f"{MED}/held_out"]
    kept, held = (ids(records) for records in data_module.read_sets(spec, names, root, 7).values())
    assert kept
    assert held
    assert not kept & held
    assert kept | held == ids(registry.read(MED, root, "train"))
    again = data_module.read_sets(spec, names, root, 7)[f"{MED}/held_out"]
    assert ids(again) == held


def test_reported_splits_score_the_official_sets(real: dict[str, TrainData], root: Path) -> None:
    official = [(MED, "validation"), ("pneumoniamnist", "test")]
    for split, first in (("standard", "test"), ("disjoint", "disjoint_test")):
        for name, part in [(RAD, first), *official]:
            records = real[split].sets[f"{name}/{part}"]
            assert [r.id for r in records] == [r.id for r in registry.read(name, root, part)]


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_of_vqa_rad_are_never_read_from_vqa_med(
    real: dict[str, TrainData], split: str
) -> None:
    sets = [records for name, records in real[split].sets.items() if name.startswith(MED)]
    names = {Path(image.id).stem for records in sets for image in images_of(records)}
    assert names
    banned = (miniature.MED_BANNED_TRAIN, miniature.MED_BANNED_VALIDATION)
    assert not names & {f"synpic{number}" for number in banned}


def test_limits_count_images_and_keep_all_records_of_those_kept(
    real: dict[str, TrainData], root: Path
) -> None:
    few = read(root, "standard", "data.limits={mednist: 5, pneumoniamnist: 3}")
    counts = {name: len(trained(few, name)) for name in ("mednist", "pneumoniamnist")}
    assert counts == {"mednist": 5, "pneumoniamnist": 3}
    for name in (RAD, MED, "lc25000"):
        assert trained(few, name) == trained(real["standard"], name)
    whole = Counter(r.image.id for r in real["standard"].sets["mednist/train"])
    kept = Counter(r.image.id for r in few.sets["mednist/train"])
    assert all(whole[name] == n for name, n in kept.items())


def test_a_limit_keeps_every_class_of_a_file_sorted_by_class() -> None:
    images = [ImageRecord(f"set/{n}", np.zeros((8, 8), np.uint8)) for n in range(400)]
    rest = ("closed", "kind", "classification", "set", "train", "x")
    records = [Record(f"r{n}", i, "?", str(n // 100), *rest) for n, i in enumerate(images)]  # type: ignore[arg-type]
    kept = Counter(r.answer for r in limited(records, {"set": 80}, seed=7))
    assert sum(kept.values()) == 80
    # four classes of 100; a draw of 80 leaves each about 20, a cut of the file one class only
    assert sorted(kept) == ["0", "1", "2", "3"]
    assert min(kept.values()) >= 10


def test_a_missing_set_is_named_with_the_file_looked_for(tmp_path: Path) -> None:
    root = miniature.write_all(tmp_path)
    (root / "mednist-6k.npz").unlink()
    with pytest.raises(DataError, match=r"mednist: no mednist-6k\.npz under"):
        read(root, "standard")
