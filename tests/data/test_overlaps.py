"""Pictures shared by parts of data, and splits that share none."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.pictures import copied, images, picture, records

from medmoe.data.disjoint import SHARES, disjoint_split, split_content
from medmoe.data.leakage import find_overlaps
from medmoe.data.schema import ImageRecord


def test_pairs_are_sorted_into_their_parts() -> None:
    train = images("set", [picture(seed) for seed in range(4)])
    again = ImageRecord("set/again", picture(1))
    test = [train[0], *images("other", [copied(picture(2), scale=0.7), picture(50)])]
    overlaps, unreadable = find_overlaps({"train": records([*train, again]), "test": records(test)})
    assert not unreadable
    found = {(o.left, o.right): o for o in overlaps}
    assert [(p.left_id, p.right_id, p.kind) for p in found["train", "train"].pairs] == [
        ("set/1", "set/again", "exact")
    ]
    assert found["train", "train"].shared_images == 2
    across = found["train", "test"]
    assert {(p.left_id, p.right_id, p.kind) for p in across.pairs} == {
        ("set/0", "set/0", "same_id"),
        ("set/2", "other/0", "near"),
    }
    assert (across.left_images, across.right_images, across.shared_images) == (5, 3, 2)
    assert found["test", "test"].pairs == ()
    assert across.to_dict()["pairs"][0] == {
        "left": "set/0",
        "right": "set/0",
        "kind": "same_id",
        "distance": 0,
    }


def test_unreadable_pictures_are_reported_and_the_rest_is_compared(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    broken = [ImageRecord("set/x", tmp_path / "x.png"), *images("set", [picture(1)])]
    _, unreadable = find_overlaps({"train": records(broken)})
    assert list(unreadable) == ["set/x"]


def many(count: int) -> list[ImageRecord]:
    return [
        ImageRecord(f"set/{n}", Path("unused"), organ=("head", "chest")[n % 2])
        for n in range(count)
    ]


def test_copies_never_part_and_every_part_sees_every_organ() -> None:
    alike = [(f"set/{n}", f"set/{n + 10}") for n in range(0, 60, 3)] + [("set/0", "set/99")]
    parts = disjoint_split(many(200), alike, seed=7)
    place = {name: part for part, names in parts.items() for name in names}
    assert len(place) == 200
    assert all(place[one] == place[other] for one, other in alike)
    for part, share in SHARES.items():
        organs = [int(name.split("/")[1]) % 2 for name in parts[part]]
        # 100 images of each organ; a group may overshoot a part by its own size.
        assert organs.count(0) == pytest.approx(100 * share, abs=5)
        assert organs.count(1) == pytest.approx(100 * share, abs=5)


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    one = disjoint_split(many(60), [], seed=1)
    assert disjoint_split(many(60)[::-1], [], seed=1) == one
    assert disjoint_split(many(60), [], seed=2) != one


def test_the_file_of_a_split_names_each_image_once_without_its_set() -> None:
    found = many(20)
    content = split_content(disjoint_split(found, [], seed=1), seed=1)
    names = [name for part in SHARES for name in content[part]]
    assert sorted(f"set/{name}" for name in names) == sorted(image.id for image in found)
