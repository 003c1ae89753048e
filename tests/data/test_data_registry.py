"""Where data is looked for, what can be read, and validation images held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medmoe.data import registry
from medmoe.data.bad_rows import BadRows
from medmoe.data.schema import ImageRecord, Record, images_of
from medmoe.errors import DataError


def data_folder(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "pneumoniamnist.npz").write_bytes(b"x")
    return root


def records(images: int, each: int = 3) -> list[Record]:
    pixels = np.zeros((28, 28), np.uint8)
    return [
        Record(
            id=f"{number}/{question}",
            image=ImageRecord(id=f"set/{number}", source=pixels),
            question="?",
            answer="yes",
            answer_type="closed",
            question_type="presence",
            task="vqa",
            dataset="set",
            split="train",
            licence="CC0-1.0",
        )
        for number in range(images)
        for question in range(each)
    ]


def test_every_reader_is_registered_under_its_name() -> None:
    assert all(name == reader.NAME for name, reader in registry.READERS.items())
    named = {"vqa_rad", "slake", "slake_zh", "path_vqa", "vqa_med_2019", "pmc_vqa", "rocov2"}
    assert named | {"llava_med_alignment", "llava_med_instruct"} <= set(registry.READERS)
    assert sum(name.endswith("mnist") for name in registry.READERS) == 12
    assert set(registry.DEMO_SETS) <= set(registry.READERS)


def test_no_revision_is_invented_and_every_set_has_a_home() -> None:
    for reader in registry.READERS.values():
        revision = reader.SOURCE.revision
        assert revision is None or (len(revision) == 40 and int(revision, 16) >= 0)
        assert reader.SOURCE.home.startswith("https://")
        assert reader.LICENCE


def test_flag_goes_before_environment_before_phantom(tmp_path: Path) -> None:
    flag, variable = data_folder(tmp_path / "flag"), data_folder(tmp_path / "variable")
    environ = {"MEDMOE_DATA": str(variable)}
    assert registry.find_data(flag, environ) == flag
    assert registry.find_data(None, environ) == variable
    assert registry.find_data(None, {"MEDMOE_DATA": ""}) is None
    assert registry.find_data(None, {}) is None


@pytest.mark.parametrize("origin", ["--data", r"\$MEDMOE_DATA"])
def test_wrong_folder_says_where_it_came_from_and_what_was_looked_for(
    tmp_path: Path, origin: str
) -> None:
    def find(path: Path) -> Path | None:
        if origin == "--data":
            return registry.find_data(path, {})
        return registry.find_data(None, {"MEDMOE_DATA": str(path)})

    with pytest.raises(DataError, match=rf"^{origin} .*gone: no such folder; give the folder"):
        find(tmp_path / "gone")
    with pytest.raises(DataError, match=rf"^{origin} .*looked for .*vqa-rad/trainset\.json"):
        find(tmp_path)


def test_available_looks_for_each_marker(tmp_path: Path) -> None:
    found = registry.available(data_folder(tmp_path))
    assert found.pop("pneumoniamnist") is True
    assert set(found.values()) == {False}


def test_unknown_set_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown data set 'vqarad'.*did you mean 'vqa_rad'"):
        registry.read("vqarad", tmp_path, "train")


def test_read_passes_on_to_the_reader(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mednist: no mednist-6k\.npz"):
        registry.read("mednist", tmp_path, "train")


def test_held_out_images_take_all_their_records_with_them() -> None:
    everything = records(300)
    train, validation = registry.hold_out(everything, 0.2, seed=7)
    assert len(train) + len(validation) == len(everything)
    assert not {r.image.id for r in train} & {r.image.id for r in validation}
    # 300 images at 0.2: 60 expected, standard deviation 6.9; the bound is 4 of them.
    assert len(validation) / 3 == pytest.approx(60, abs=28)


def test_hold_out_depends_on_seed_but_not_on_order_or_company() -> None:
    everything = records(100)
    held = {r.image.id for r in registry.hold_out(everything, 0.3, seed=1)[1]}
    assert {r.image.id for r in registry.hold_out(everything[::-1], 0.3, seed=1)[1]} == held
    half = everything[:150]
    kept = {r.image.id for r in registry.hold_out(half, 0.3, seed=1)[1]}
    assert kept == held & {r.image.id for r in half}
    assert {r.image.id for r in registry.hold_out(everything, 0.3, seed=2)[1]} != held


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_hold_out_refuses_a_fraction_outside_zero_to_one(fraction: float) -> None:
    with pytest.raises(DataError, match="hold_out fraction"):
        registry.hold_out(records(2), fraction, seed=0)


def test_no_fraction_holds_nothing_out() -> None:
    assert registry.hold_out(records(20), 0.0, seed=0)[1] == []


def test_a_set_is_named_by_name_or_path_each_with_a_split_where_wanted(tmp_path: Path) -> None:
    table = tmp_path / "scans.csv"
    table.write_text("image,question,answer\n")
    parsed = {
        text: registry.parse_set(text)
        for text in ("vqa_rad", "vqa_rad/test", str(table), f"{table}:val")
    }
    found = [(reader.NAME, split) for reader, split in parsed.values()]
    assert found == [
        ("vqa_rad", None),
        ("vqa_rad", "test"),
        ("scans", None),
        ("scans", "validation"),
    ]
    odd = tmp_path / "a:b.csv"
    odd.write_text("image,question,answer\n")
    assert registry.parse_set(odd)[1] is None


@pytest.mark.parametrize("name", sorted(registry.READERS))
def test_a_known_set_is_recognised_by_its_own_folder_and_the_one_above(
    tmp_path: Path, name: str
) -> None:
    markers = registry.READERS[name].MARKERS
    for number, marker in enumerate(markers):
        root = tmp_path / str(number)
        path = root / marker
        path.parent.mkdir(parents=True)
        path.touch() if path.suffix in (".json", ".csv", ".npz", ".txt") else path.mkdir()
        folder, _, inner = marker.partition("/")
        above, _ = registry.parse_sets(root)
        own, _ = registry.parse_sets(root / folder)
        assert name in [reader.NAME for reader in above]
        assert [reader.NAME for reader in own] == [reader.NAME for reader in above]
        bad = BadRows()
        with pytest.raises(DataError):  # the miniature holds nothing
            next(r for r in own if name == r.NAME).read(Path(), "train", bad)
        assert bad.notes == [f"{root / folder}: read as {name}"]
        assert inner or path.is_file()


def test_a_folder_that_holds_several_known_sets_must_be_narrowed_down(tmp_path: Path) -> None:
    for name in ("mednist-6k.npz", "pneumoniamnist.npz"):
        (tmp_path / name).touch()
    assert len(registry.parse_sets(tmp_path)[0]) == 2
    with pytest.raises(DataError, match=r"holds pneumoniamnist, mednist; give it as --data"):
        registry.parse_set(tmp_path)


def test_a_name_without_a_data_folder_says_where_it_can_be_given() -> None:
    with pytest.raises(DataError, match=r"vqa_rad: where is it\? give the data folder with --data"):
        registry.read_splits(*registry.parse_set("vqa_rad"), None)


def test_pictures_of_one_record_are_held_out_together() -> None:
    single = records(60)
    pairs = [
        replace(r, further_images=((1, single[(n + 30) % 60].image),)) for n, r in enumerate(single)
    ][:30]
    parts = registry.hold_out([*pairs, *single], 0.3, seed=1)
    train, held = ({i.id for i in images_of(part)} for part in parts)
    assert train.isdisjoint(held)
    assert min(len(train), len(held)) > 0
    assert len(train | held) == len({r.image.id for r in single})
