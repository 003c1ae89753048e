"""Training records on a test picture: dropped by a recipe, refused where a corpus is settled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.data.pictures import copied, images, picture, records

from medmoe.data.leakage import drop_near_duplicates, find_leak, refuse_leaks
from medmoe.data.near_duplicates import fingerprints, same_pictures
from medmoe.errors import DataError

TRAIN = images("train", [picture(seed) for seed in range(5)])
COPY = images("test", [copied(picture(3), scale=0.7, quality=70), picture(90)])


def test_records_on_test_pictures_are_dropped_and_counted() -> None:
    train = records(TRAIN)
    kept, dropped = drop_near_duplicates(train, records(COPY))
    assert dropped == 2
    assert [r.id for r in kept] == [r.id for r in train if r.image.id != "train/3"]


def test_nothing_to_compare_drops_nothing() -> None:
    train = records(TRAIN[:1])
    assert drop_near_duplicates(train, []) == (train, 0)
    assert drop_near_duplicates([], train) == ([], 0)


def test_a_leak_is_refused_with_both_images_and_the_way_out() -> None:
    with pytest.raises(
        DataError,
        match=r"'train/3' nearly equals test image 'test/0' \(1 of 2 test .*--allow-leak",
    ):
        refuse_leaks(records(TRAIN), records(COPY))


def test_an_allowed_leak_is_returned_to_be_recorded() -> None:
    leak = refuse_leaks(records(TRAIN), records(COPY), allow=True)
    assert (leak.shared, leak.test_images) == (1, 2)
    assert str(leak) == "1 of 2 test pictures are also trained on"


def test_one_image_on_both_sides_is_a_leak() -> None:
    with pytest.raises(DataError, match=r"'train/0' equals test image 'train/0' \(5 of 5"):
        refuse_leaks(records(TRAIN), records(TRAIN))


def test_no_leak_is_empty_with_and_without_known_pairs() -> None:
    train, test = records(TRAIN), records(COPY[1:])
    pairs = same_pictures(fingerprints(TRAIN), fingerprints(COPY))
    assert pairs
    assert refuse_leaks(train, test).pairs == find_leak(train, test, pairs).pairs == ()
    assert find_leak(train, records(COPY), pairs) == find_leak(train, records(COPY))


def test_a_record_is_dropped_for_any_of_its_pictures() -> None:
    pair, other = (
        replace(records(TRAIN)[0], id=name, further_images=((turn, TRAIN[image]),))
        for name, turn, image in (("pair", 1, 3), ("other", 0, 2))
    )
    assert drop_near_duplicates([pair, other], records(COPY)) == ([other], 1)
    with pytest.raises(DataError, match="'train/3' nearly equals test image 'test/0'"):
        refuse_leaks([pair], records(COPY))
    asked = replace(records(COPY)[-1], further_images=((0, COPY[0]),))
    assert refuse_leaks(records(TRAIN), [asked], allow=True).shared == 1
