"""What is trained on and what is scored: no picture on both sides but by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.experiments import miniature
from tests.experiments.micro import TEST_IMAGES, TRAIN_IMAGES, micro_spec, micro_steps

from medmoe.config.load import check, recipe
from medmoe.config.schema import DemoSpec
from medmoe.data import registry
from medmoe.data.phantom import read_phantom
from medmoe.data.phantom.plan import plan_image
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError
from medmoe.experiments import corpus as corpus_module
from medmoe.experiments.demo_corpus import (
    SPLITS,
    Corpus,
    EvalTask,
    SplitName,
    phantom_corpus,
    unique_images,
)
from medmoe.experiments.real_corpus import _shared_images, limited, real_corpus

RAD = "vqa_rad"
MED = "vqa_med_2019"


@pytest.fixture(scope="module")
def spec() -> DemoSpec:
    return micro_spec(check(DemoSpec, recipe("experiments", "demo_real"), "demo_real"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def corpora(root: Path, spec: DemoSpec) -> dict[SplitName, Corpus]:
    return {split: real_corpus(root, split, spec, seed=7) for split in SPLITS}


def image_ids(records: list[Record] | tuple[Record, ...], dataset: str = "") -> set[str]:
    return {r.image.id for r in records if r.dataset.startswith(dataset)}


def task(corpus: Corpus, name: str) -> EvalTask:
    (found,) = [task for task in corpus.tasks if task.name == name]
    return found


def rad(numbers: range) -> set[str]:
    return {f"vqa_rad/{miniature.rad_name(n)}" for n in numbers}


def test_phantom_train_and_test_share_neither_image_nor_anatomy() -> None:
    corpus = phantom_corpus(micro_steps(), "standard", 7, 32)
    train = image_ids(list(corpus.train))
    test = {r.image.id for t in corpus.tasks for r in t.records}
    assert (len(train), len(test)) == (TRAIN_IMAGES, TEST_IMAGES)
    assert not train & test
    anatomies = [
        {plan_image(s, int(name.split("/")[2]), 7).anatomy.id for name in names}
        for s, names in (("train", train), ("test", test))
    ]
    assert not anatomies[0] & anatomies[1]


def test_a_phantom_that_looks_like_a_scored_one_is_counted_in_every_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def with_twin(split: Any, count: int, **values: Any) -> list[Record]:
        records = read_phantom(split, count, **values)
        if split != "train":
            return records
        scored = read_phantom("test", 1, **values)[0].image.source
        assert isinstance(scored, np.ndarray)
        twin = replace(records[0].image, source=np.minimum(scored, 250) + np.uint8(2))
        return [replace(r, image=twin) if r.image.id == twin.id else r for r in records]

    monkeypatch.setattr(corpus_module, "read_phantom", with_twin)
    corpus = phantom_corpus(micro_steps(), "standard", 7, 32)
    assert [found.shared_images for found in corpus.tasks] == [1, 1]
    assert f"1 of {TEST_IMAGES} scored pictures nearly equal a training one" in corpus.notes[1]


def test_phantom_tasks_hold_their_kind_and_their_baselines_the_same() -> None:
    corpus = phantom_corpus(micro_steps(), "standard", 7, 32)
    kinds = {"phantom_vqa": {"vqa"}, "phantom_classification": {"classification"}}
    assert {t.name for t in corpus.tasks} == set(kinds)
    for found in corpus.tasks:
        assert {r.task for r in found.records} == kinds[found.name]
        assert {r.task for r in found.train_records} == kinds[found.name]
        assert {r.split for r in found.records} == {"test"}
        assert {r.split for r in found.train_records} == {"train"}
    assert {r.task for r in corpus.train} == {"caption", "vqa", "classification"}
    assert {image.id for image in corpus.router_test} == {
        r.image.id for t in corpus.tasks for r in t.records
    }


def test_images_come_once_each_in_order_of_appearance() -> None:
    corpus = phantom_corpus(micro_steps(), "standard", 7, 32)
    ids = [image.id for image in corpus.images()]
    assert len(ids) == len(set(ids)) == TRAIN_IMAGES + TEST_IMAGES
    assert ids[:TRAIN_IMAGES] == [f"phantom/train/{n:06d}" for n in range(TRAIN_IMAGES)]
    first = corpus.images()[0]
    assert unique_images([], [first, first]) == [first]


def test_standard_split_shares_its_images_and_says_so(corpora: dict[SplitName, Corpus]) -> None:
    corpus = corpora["standard"]
    scored = image_ids(list(task(corpus, RAD).records))
    assert len(scored) == miniature.RAD_TEST_IMAGES
    assert scored <= image_ids(list(corpus.train), RAD)
    (note,) = [note for note in corpus.notes if "shared images" in note]
    assert "standard split" in note
    assert "--split disjoint" in note


@pytest.mark.parametrize("split", SPLITS)
def test_what_the_named_exception_shares_is_counted_for_every_score(
    corpora: dict[SplitName, Corpus], split: SplitName
) -> None:
    shared = {t.name: t.shared_images for t in corpora[split].tasks if t.shared_images}
    assert shared == ({RAD: miniature.RAD_TEST_IMAGES} if split == "standard" else {})


def test_a_training_picture_that_were_left_in_is_refused(
    root: Path, spec: DemoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line of defence: as if the recipe dropped nothing."""
    monkeypatch.setattr(
        "medmoe.experiments.real_corpus.drop_near_duplicates", lambda train, *_: (train, 0)
    )
    copies = miniature.write_all(root.parent / "leaky", {"train/3": "rad/16"})
    with pytest.raises(DataError, match=r"synpic3\.jpg' nearly equals test image .*--allow-leak"):
        real_corpus(copies, "standard", spec, seed=7)


def test_disjoint_split_trains_on_no_image_it_scores(corpora: dict[SplitName, Corpus]) -> None:
    corpus = corpora["disjoint"]
    scored = image_ids(list(task(corpus, "vqa_rad_disjoint").records))
    assert scored == rad(miniature.RAD_PARTS["test"])
    assert image_ids(list(corpus.train), RAD) == rad(miniature.RAD_PARTS["train"])
    assert not any("shared images" in note for note in corpus.notes)


@pytest.mark.parametrize("split", SPLITS)
def test_only_the_standard_split_scores_a_training_image(
    corpora: dict[SplitName, Corpus], split: SplitName
) -> None:
    corpus = corpora[split]
    train = image_ids(list(corpus.train))
    shared = {t.name for t in corpus.tasks if image_ids(list(t.records)) & train}
    assert shared == ({RAD} if split == "standard" else set())


@pytest.mark.parametrize("split", SPLITS)
def test_no_scored_question_is_trained_on(
    corpora: dict[SplitName, Corpus], split: SplitName
) -> None:
    corpus = corpora[split]
    trained = {(r.image.id, r.question) for r in corpus.train}
    assert not [
        r.id for t in corpus.tasks for r in t.records if (r.image.id, r.question) in trained
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_router_is_not_scored_on_its_training_images(
    corpora: dict[SplitName, Corpus], split: SplitName
) -> None:
    corpus = corpora[split]
    assert not {i.id for i in corpus.router_test} & image_ids(list(corpus.train))
    assert all(image.modality for image in corpus.router_test)
    assert {i.id.split("/")[0] for i in corpus.router_test} == {MED, "mednist", "lc25000"}


def test_validation_scores_no_row_of_a_test_set(
    corpora: dict[SplitName, Corpus], root: Path
) -> None:
    corpus = corpora["validation"]
    assert [(t.name, t.split) for t in corpus.tasks] == [
        (RAD, "held-out"),
        (MED, "held-out"),
        ("pneumoniamnist", "validation"),
    ]
    scored = {r.id for t in corpus.tasks for r in t.records}
    assert scored
    for name, split in ((RAD, "test"), (MED, "validation"), ("pneumoniamnist", "test")):
        assert not scored & {r.id for r in registry.read(name, root, split)}


def test_validation_scores_no_image_of_the_disjoint_test(
    corpora: dict[SplitName, Corpus],
) -> None:
    """What the hyperparameters are chosen on must not stand in the test set reported later."""
    corpus = corpora["validation"]
    scored = image_ids(list(task(corpus, RAD).records))
    assert scored
    assert scored <= rad(miniature.RAD_PARTS["val"])


def test_validation_scores_the_router_on_no_test_image(
    corpora: dict[SplitName, Corpus], root: Path
) -> None:
    routed = {image.id for image in corpora["validation"].router_test}
    for name in ("mednist", "lc25000"):
        assert not routed & image_ids(registry.read(name, root, "test"))


@pytest.mark.parametrize("split", ["standard", "disjoint"])
def test_reported_splits_score_the_official_sets(
    corpora: dict[SplitName, Corpus], root: Path, split: SplitName
) -> None:
    corpus = corpora[split]
    name = RAD if split == "standard" else "vqa_rad_disjoint"
    assert [(t.name, t.split) for t in corpus.tasks] == [
        (name, "test"),
        (MED, "validation"),
        ("pneumoniamnist", "test"),
    ]
    rad_test = registry.read(RAD, root, "test" if split == "standard" else "disjoint_test")
    assert [r.id for r in corpus.tasks[0].records] == [r.id for r in rad_test]
    assert len(corpus.tasks[2].records) == miniature.PNEUMONIA["test"]


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_of_vqa_rad_are_never_read_from_vqa_med(
    corpora: dict[SplitName, Corpus], split: SplitName
) -> None:
    names = {Path(image.id).stem for image in corpora[split].images() if image.id.startswith(MED)}
    assert names
    banned = (miniature.MED_BANNED_TRAIN, miniature.MED_BANNED_VALIDATION)
    assert not names & {f"synpic{number}" for number in banned}


@pytest.mark.parametrize("split", ["standard", "disjoint"])
@pytest.mark.parametrize("scored", ["val/21", "rad/16"])
def test_a_training_picture_that_nearly_equals_a_scored_one_is_dropped(
    tmp_path: Path, spec: DemoSpec, split: SplitName, scored: str
) -> None:
    root = miniature.write_all(tmp_path, {"train/3": scored})
    corpus = real_corpus(root, split, spec, seed=7)
    names = {Path(name).stem for name in image_ids(list(corpus.train), MED)}
    kept = {f"synpic{n}" for n in miniature.MED_TRAIN} - {f"synpic{miniature.MED_BANNED_TRAIN}"}
    assert names == kept - {"synpic3"}
    # four questions and one caption on the picture
    assert any(note.endswith("0 of VQA-RAD, 5 of VQA-Med-2019.") for note in corpus.notes)


@pytest.mark.parametrize(
    "split",
    [
        "standard",
        "disjoint",
    ],
)
def test_a_vqa_rad_training_picture_that_nearly_equals_a_scored_one_of_vqa_med_is_dropped(
    tmp_path: Path, spec: DemoSpec, split: SplitName
) -> None:
    root = miniature.write_all(tmp_path, {"rad/3": "val/22"})
    corpus = real_corpus(root, split, spec, seed=7)
    assert rad(range(3, 4)) & image_ids(list(corpus.train), RAD) == set()


def test_disjoint_split_drops_a_copy_of_its_own_test_picture(
    tmp_path: Path, spec: DemoSpec
) -> None:
    root = miniature.write_all(tmp_path, {"rad/2": "rad/17"})
    corpus = real_corpus(root, "disjoint", spec, seed=7)
    assert image_ids(list(corpus.train), RAD) == rad(range(14)) - rad(range(2, 3))


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_is_dropped_where_no_two_pictures_are_alike(
    corpora: dict[SplitName, Corpus], split: SplitName
) -> None:
    (dropped,) = [note for note in corpora[split].notes if "nearly equals" in note]
    assert dropped.endswith("0 of VQA-RAD, 0 of VQA-Med-2019.")


def test_limits_count_images_and_keep_all_records_of_those_kept(root: Path, spec: DemoSpec) -> None:
    limited = spec.model_copy(update={"limits": {"mednist": 5, "pneumoniamnist": 3}})
    whole = spec.model_copy(update={"limits": {}})
    small, full = (real_corpus(root, "standard", s, seed=7) for s in (limited, whole))
    counts = {
        name: len(image_ids(list(small.train), name))
        for name in ("mednist", "pneumoniamnist", RAD, MED)
    }
    assert counts["mednist"] == 5
    assert counts["pneumoniamnist"] == 3
    for name in (RAD, MED, "lc25000"):
        assert image_ids(list(small.train), name) == image_ids(list(full.train), name)
    per_image = Counter(r.image.id for r in full.train)
    assert all(per_image[name] == n for name, n in Counter(r.image.id for r in small.train).items())


def test_a_limit_keeps_every_class_of_a_file_sorted_by_class() -> None:
    images = [ImageRecord(f"set/{n}", np.zeros((8, 8), np.uint8)) for n in range(400)]
    records = [
        Record(
            f"r{n}",
            image,
            "?",
            str(n // 100),
            "closed",
            "kind",
            "classification",
            "set",
            "train",
            "x",
        )
        for n, image in enumerate(images)
    ]
    kept = Counter(r.answer for r in limited(records, {"set": 80}, seed=7))
    assert sum(kept.values()) == 80
    # four classes of 100; a draw of 80 leaves each about 20, a cut of the file one class only
    assert sorted(kept) == ["0", "1", "2", "3"]
    assert min(kept.values()) >= 10


def test_the_standard_splits_note_counts_what_is_shared(root: Path, spec: DemoSpec) -> None:
    train = registry.read(RAD, root, "train")
    test = registry.read(RAD, root, "test")
    copied = replace(train[0], id="copy", split="test")
    note = _shared_images(train, [*test, copied])
    known = {r.image.id for r in train}
    images = {r.image.id for r in [*test, copied]}
    assert f"{len(images & known)} of its {len(images)} test pictures" in note
    assert f"1 of {len(test) + 1} test rows" in note


def test_phantom_validation_scores_validation_pictures() -> None:
    corpus = phantom_corpus(micro_steps(), "validation", 7, 32)
    assert {r.split for t in corpus.tasks for r in t.records} == {"validation"}
    assert {t.split for t in corpus.tasks} == {"validation"}


def test_hashes_change_with_any_question_and_not_with_the_order(
    corpora: dict[SplitName, Corpus],
) -> None:
    corpus = corpora["disjoint"]
    backwards = replace(corpus, train=list(reversed(corpus.train)))
    assert backwards.hashes() == corpus.hashes()
    changed = replace(corpus, train=[replace(corpus.train[0], question="?"), *corpus.train[1:]])
    differing = {k for k, v in changed.hashes().items() if v != corpus.hashes()[k]}
    assert differing == {f"train/{corpus.train[0].dataset}"}


def test_repeats_are_those_of_the_recipe(corpora: dict[SplitName, Corpus], spec: DemoSpec) -> None:
    assert corpora["standard"].repeats == spec.repeats
    assert set(spec.repeats) <= {r.dataset for r in corpora["standard"].train}


def test_validation_choice_is_the_seeds(root: Path, spec: DemoSpec) -> None:
    one, two = (
        [t.records[0].image.id for t in real_corpus(root, "validation", spec, seed=7).tasks]
        for _ in range(2)
    )
    assert one == two


def test_a_missing_set_is_named_with_the_file_looked_for(tmp_path: Path, spec: DemoSpec) -> None:
    root = miniature.write_all(tmp_path)
    (root / "mednist-6k.npz").unlink()
    with pytest.raises(DataError, match=r"mednist: no mednist-6k\.npz under"):
        real_corpus(root, "standard", spec, seed=7)


def test_every_picture_of_the_miniature_opens(root: Path, spec: DemoSpec) -> None:
    from medmoe.data.images import open_image

    corpus = real_corpus(root, "standard", spec, seed=7)
    sizes = {open_image(image.source).size for image in corpus.images()}
    assert all(np.prod(size) > 0 for size in sizes)
    modalities = {image.modality for image in corpus.images()}
    assert {"ct", "mri", "pathology", "xray"} <= modalities
