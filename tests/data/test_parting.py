"""Own sets that name no split: parted by patient or picture, copies together, whatever the seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tests.data.pictures import copied, picture, record

from medmoe.data.bad_rows import BadRows
from medmoe.data.parting import part
from medmoe.data.readers.common import hash_share
from medmoe.data.schema import ImageRecord, Record, images_of


def records_of(pictures: dict[str, int], each: int = 2) -> list[Record]:
    images = {
        name: ImageRecord(f"set/{name}", picture(seed, 40)) for name, seed in pictures.items()
    }
    return [record(i, f"{n}/{q}", split="") for n, i in images.items() for q in range(each)]


def names(records: list[Record]) -> set[str]:
    return {one.image.id for one in records}


def test_every_record_stands_in_one_part_with_all_questions_on_its_picture() -> None:
    everything = records_of({str(n): n for n in range(60)})
    parts, said = part(everything, {}, BadRows())
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(r.id for p in parts.values() for r in p) == sorted(r.id for r in everything)
    assert all(r.split == name for name, part_ in parts.items() for r in part_)
    assert sum(len(names(found)) for found in parts.values()) == 60
    # 6 pictures expected in each of the two, standard deviation 2.3; the bound is 4 of them.
    assert len(names(parts["train"])) == pytest.approx(48, abs=13)
    assert said.startswith("no split is named: parted by picture, copies together, into ")


def test_the_part_of_a_picture_depends_on_its_pixels_alone() -> None:
    parts, _ = part(records_of({str(n): n for n in range(40)}), {}, BadRows())
    renamed = records_of({f"x{n}": n for n in reversed(range(40))})
    again, _ = part(renamed, {}, BadRows())
    for split, found in parts.items():
        assert {n.replace("/", "/x") for n in names(found)} == names(again[split])


def test_copies_and_patients_are_never_torn_apart(tmp_path: Path) -> None:
    images = {str(n): ImageRecord(f"set/{n}", picture(n)) for n in range(20)}
    images |= {f"c{n}": ImageRecord(f"set/c{n}", copied(picture(n), scale=0.8)) for n in range(5)}
    everything = [record(image, name, split="") for name, image in images.items()]
    patients = {f"set/{n}": f"p{n // 2}" for n in range(20)}
    parts, said = part(everything, patients, BadRows())
    part_of = {r.image.id: name for name, found in parts.items() for r in found}
    assert all(part_of[f"set/{n}"] == part_of[f"set/c{n}"] for n in range(5))
    assert all(part_of[f"set/{n}"] == part_of[f"set/{n + 1}"] for n in range(0, 20, 2))
    assert "parted by patient" in said


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [(1, ["train"]), (2, ["train", "test"]), (3, ["train", "validation", "test"])],
)
def test_a_very_small_set_has_as_many_parts_as_it_can(pictures: int, expected: list[str]) -> None:
    parts, said = part(records_of({str(n): n for n in range(pictures)}), {}, BadRows())
    assert list(parts) == expected
    assert (f"only {pictures} can be told apart" in said) == (pictures < 3)


def test_a_patient_with_most_of_the_pictures_is_trained_on() -> None:
    heavy = next(f"p{n}" for n in range(99) if hash_share(f"patient p{n}") > 0.9)
    everything = records_of({str(n): n for n in range(20)}, each=1)
    patients = {f"set/{n}": heavy if n < 10 else f"other{n}" for n in range(20)}
    parts, _ = part(everything, patients, BadRows())
    assert {f"set/{n}" for n in range(10)} <= names(parts["train"])


def test_a_picture_that_cannot_be_opened_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    Image.fromarray(picture(1)).save(tmp_path / "y.png")
    images = [ImageRecord(f"set/{name}", tmp_path / f"{name}.png") for name in "xy"]
    rows = [record(one, one.id, split="", place=f"t.csv row {n}") for n, one in enumerate(images)]
    bad = BadRows()
    parts, _ = part(rows, {}, bad)
    assert [r.id for found in parts.values() for r in found] == ["set/y/set/y"]
    assert len(bad.reasons) == 1
    assert bad.reasons[0].startswith("t.csv row 0: unreadable image: ")


def test_pictures_of_one_record_are_never_torn_apart() -> None:
    images = [ImageRecord(f"set/{n}", picture(n, 40)) for n in range(40)]
    everything = [
        replace(record(images[n], str(n), split=""), further_images=((0, images[n + 1]),))
        for n in range(0, 40, 2)
    ]
    everything += [record(images[n], str(n), split="") for n in range(1, 40, 2)]
    parts, _ = part(everything, {}, BadRows())
    seen = {name: {i.id for i in images_of(found)} for name, found in parts.items()}
    assert len(seen) == 3
    assert sum(map(len, seen.values())) == 40


def test_a_record_with_one_broken_picture_belongs_to_no_part() -> None:
    images = [ImageRecord(f"set/{n}", picture(n, 40)) for n in range(5)]
    broken = ImageRecord("set/broken", b"no picture")
    lost = replace(record(images[4], "lost", split=""), further_images=((1, broken),))
    bad = BadRows()
    parts, said = part([*(record(i, i.id, split="") for i in images[:4]), lost], {}, bad)
    assert [reason.split(": ")[0] for reason in bad.reasons] == [lost.place or lost.id]
    assert all(parts.values())
    assert sum(map(len, parts.values())) == 4
    assert "2 train" in said
