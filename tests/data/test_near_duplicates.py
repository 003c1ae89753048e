"""One picture under two names: found after resizing, compression and crops, and not invented."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.pictures import copied, images, next_slice, picture

from medmoe.data import near_duplicates, picture_index
from medmoe.data.cache import ImageCache
from medmoe.data.intake.sandbox import DecoderPool
from medmoe.data.near_duplicates import (
    Fingerprints,
    Pair,
    fingerprints,
    repeated_pictures,
    same_pictures,
)
from medmoe.data.picture_index import (
    CROPPED,
    WHOLE,
    Floats,
    Pictures,
    candidates,
    descriptors,
    side_by_side,
)
from medmoe.data.schema import ImageRecord, Pixels
from medmoe.errors import ImageError

COPIES = {
    "compressed": {"quality": 40},
    "smaller": {"scale": 0.6, "quality": 60},
    "larger": {"scale": 1.4, "quality": 75},
    "brighter": {"gain": 0.6, "offset": 60},
    "cropped": {"crop": (0.06, 0.02, 0.05, 0.06)},
    "all of it": {"crop": (0.04, 0.05, 0.0, 0.03), "scale": 0.7, "quality": 60, "gain": 0.9},
}


def pairs(left: list[Pixels], right: list[Pixels]) -> list[Pair]:
    return same_pictures(fingerprints(images("a", left)), fingerprints(images("b", right)))


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_found_and_nothing_else(change: str) -> None:
    left = [picture(seed) for seed in range(12)]
    right = [copied(pixels, **COPIES[change]) for pixels in left[::-1]]  # type: ignore[arg-type]
    found = pairs(left, right)
    assert {(p.left_id, p.right_id) for p in found} == {
        (f"a/{i}", f"b/{11 - i}") for i in range(12)
    }
    assert {p.kind for p in found} == {"near"}


def test_it_does_not_matter_which_side_was_cropped() -> None:
    whole, part = picture(5), copied(picture(5), crop=(0.05, 0.0, 0.03, 0.06))
    assert len(pairs([whole], [part])) == len(pairs([part], [whole])) == 1


def test_equal_pixels_are_exact_at_distance_0_and_size_counts() -> None:
    pixels = picture(1)
    assert pairs([pixels], [pixels.copy()]) == [Pair("a/0", "b/0", "exact", 0)]
    wide = np.zeros((64, 128), np.uint8)
    assert pairs([wide], [wide.reshape(128, 64)]) == []


def test_next_slice_of_a_scan_is_another_picture() -> None:
    """Same coarse shapes, other detail: the first stage proposes it, the second refuses."""
    left = [picture(seed) for seed in range(12)]
    right = [next_slice(pixels, 100 + i) for i, pixels in enumerate(left)]
    of_left, of_right = (
        descriptors(fingerprints(images("x", side)).grey[:], CROPPED, (WHOLE,))[0]
        for side in (left, right)
    )
    assert (np.diag(of_left @ of_right.T) > CROPPED.limit).all()
    assert pairs(left, right) == []


def test_different_mirrored_turned_and_even_pictures_are_no_pair() -> None:
    pixels = picture(3)
    mirrored, turned = pixels[:, ::-1].copy(), np.rot90(pixels).copy()
    assert pairs([pixels], [mirrored, turned]) == []
    assert pairs([picture(s) for s in range(20)], [picture(s) for s in range(50, 70)]) == []
    assert pairs([np.full((128, 128), 9, np.uint8)], [np.full((128, 128), 90, np.uint8)]) == []


def test_small_pictures_are_compared_as_a_whole() -> None:
    """28x28 as in MedMNIST; a resized copy is found, one also against its large original."""
    small = [picture(seed, 28) for seed in range(30)]
    larger = [copied(pixels, scale=2.0, quality=95) for pixels in small[:5]]
    assert {(p.left_id, p.right_id) for p in pairs(small, larger)} == {
        (f"a/{i}", f"b/{i}") for i in range(5)
    }
    assert repeated_pictures(fingerprints(images("a", small))) == []


def test_repeats_come_once_each_and_in_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [picture(seed % 6) for seed in range(8)]
    prints = fingerprints(images("a", [*arrays, copied(arrays[2], quality=60)]))
    whole = repeated_pictures(prints)
    assert {(p.left_id, p.right_id, p.kind) for p in whole} == {
        ("a/0", "a/6", "exact"),
        ("a/1", "a/7", "exact"),
        ("a/2", "a/8", "near"),
    }
    monkeypatch.setattr(picture_index, "_BLOCK", 2)
    monkeypatch.setattr(picture_index, "_ROWS", 3)
    monkeypatch.setattr(picture_index, "_PAIRS", 2)
    monkeypatch.setattr(picture_index, "_HELD", 1)
    monkeypatch.setattr(near_duplicates, "_CHUNK", 1)
    assert repeated_pictures(prints) == whole


def test_within_a_set_a_pair_comes_once_by_its_best_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of a pair ask, in different blocks: it waits until both have."""
    arrays = [picture(seed % 3, 128) for seed in range(9)]
    grey = held("a", arrays).grey

    def pairs() -> list[tuple[int, int, float]]:
        given = list(candidates(grey, grey, CROPPED, within=True))
        columns = [(c.left.tolist(), c.right.tolist(), c.likeness.tolist()) for c in given]
        return [(a, b, round(r, 5)) for part in columns for a, b, r in zip(*part, strict=True)]

    whole = pairs()
    assert len(whole) >= 9
    monkeypatch.setattr(picture_index, "_BLOCK", 2)
    monkeypatch.setattr(picture_index, "_HELD", 1)
    assert sorted(pairs()) == sorted(whole)


def held(name: str, arrays: list[Pixels]) -> Fingerprints:
    """Return fingerprints of pictures of 128 x 128 pixels, which are their own grey squares."""
    ids = tuple(f"{name}/{i}" for i in range(len(arrays)))
    grey = Pictures(io.BytesIO(b"".join(a.tobytes() for a in arrays)), np.arange(len(ids)))
    return Fingerprints(ids, grey, ids, np.zeros(len(ids), np.bool_))


def test_the_index_gives_the_pairs_of_comparing_all_with_less_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows meet 8 of 98 clusters; crops, resizing and compression are found all the same."""
    originals = [picture(seed, 128) for seed in range(150)]
    changes = [*COPIES.values()] * 20
    copies = [
        np.asarray(Image.fromarray(copied(a, **c)).resize((128, 128)))  # type: ignore[arg-type]
        for a, c in zip(originals, changes, strict=False)
    ]
    left, right = held("a", originals), held("b", copies)
    together = held("c", [*originals, *copies])
    compared: list[int] = []
    plain = picture_index._Index._alike

    def counted(index: picture_index._Index, asking: Floats) -> Iterator[Any]:
        short = index._shortened(asking)
        near = picture_index._nearest(short, index._centres, picture_index._MET)
        compared.append(int(np.diff(index._starts)[near].sum()))
        return plain(index, asking)

    monkeypatch.setattr(picture_index._Index, "_alike", counted)
    all_compared = same_pictures(left, right), repeated_pictures(together)
    assert [len(pairs) for pairs in all_compared] == [120, 120]
    work = sum(compared)
    compared.clear()
    monkeypatch.setattr(picture_index, "_ALL_COMPARED", 1)
    monkeypatch.setattr(picture_index, "_MET", 8)
    assert (same_pictures(left, right), repeated_pictures(together)) == all_compared
    assert sum(compared) < work / 4


def test_many_pictures_lie_in_a_file_that_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [picture(seed) for seed in (1, 2, 1)]
    in_memory = fingerprints(images("a", arrays))
    monkeypatch.setattr(near_duplicates, "_IN_MEMORY", 2)
    in_file = fingerprints(images("a", arrays), cache=ImageCache(tmp_path / "cache"))
    assert not isinstance(in_file.grey._file, io.BytesIO)
    assert np.array_equal(in_file.grey[:], in_memory.grey[:])
    assert repeated_pictures(in_file) == repeated_pictures(in_memory)
    assert list(tmp_path.rglob("*")) == [tmp_path / "cache"]


def test_a_selection_of_fingerprints_keeps_its_images() -> None:
    pictures = (
        images(name, [picture(s) for s in s2]) for name, s2 in (("a", (1, 2)), ("b", (2, 3)))
    )
    both = fingerprints([image for part in pictures for image in part])
    assert same_pictures(both.of(["b/0"]), both.of(["a/0", "a/1"])) == [
        Pair("b/0", "a/1", "exact", 0)
    ]
    assert same_pictures(both.of([]), both) == []


def test_an_unreadable_picture_is_an_error_or_is_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    broken = [ImageRecord("a/x", tmp_path / "x.png"), ImageRecord("a/y", picture(1))]
    with pytest.raises(ImageError):
        fingerprints(broken)
    unreadable: dict[str, str] = {}
    assert fingerprints(broken, unreadable).ids == ("a/y",)
    assert list(unreadable) == ["a/x"]


def test_real_copies_are_found_by_pixels_alone(shared: Path) -> None:
    """The 38 listed copies of VQA-RAD pictures, among all of VQA-RAD and 300 more of VQA-Med.

    All 3,700 give the same 38 and no other (`medmoe data audit vqa_rad vqa_med_2019`).
    """
    data = shared / "data"
    overlap = json.loads((data / "vqa-med-2019" / "overlap_with_vqa_rad.json").read_text())

    def listed(kind: str) -> set[tuple[str, str, str]]:
        return {
            (t["split"], t["image"], rad) for rad, found in overlap[kind].items() for t in found
        }

    same, adjacent = listed("same_picture"), listed("perhaps_only_adjacent_slices")
    folders = {split: data / "vqa-med-2019" / split / "images" for split in ("train", "val")}
    paths = {folders[split] / name for split, name, _ in same | adjacent}
    paths |= set(sorted(folders["train"].iterdir())[::11][:300])
    hidden = {f"a/{n}": (p.parents[1].name, p.name) for n, p in enumerate(sorted(paths))}
    left = [ImageRecord(n, folders[split] / name) for n, (split, name) in hidden.items()]
    rad = {f"b/{n}": p for n, p in enumerate(sorted((data / "vqa-rad" / "images").iterdir()))}
    right = [ImageRecord(n, p) for n, p in rad.items()]
    pairs = same_pictures(fingerprints(left), fingerprints(right))
    found = {(*hidden[p.left_id], rad[p.right_id].name) for p in pairs}
    assert len(same) == 38
    assert len(found & same) >= 36
    assert len(found - same - adjacent) <= 2
    # Room: copies stay far from the limit, which is 5.
    assert max(pair.distance for pair in pairs) <= 2


# The cache


def test_a_kept_fingerprint_is_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for seed, side in ((1, 192), (2, 64)):  # one with fine detail, one small
        path = tmp_path / f"{seed}.png"
        Image.fromarray(picture(seed, side)).save(path)
        files.append(ImageRecord(id=f"x/{seed}", source=path))
    plain = fingerprints(files)
    cache = ImageCache(tmp_path / "cache")
    first = fingerprints(files, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(DecoderPool, "decode", None)  # opened again, it would fail
        again = fingerprints(files, cache=cache)
    for found in (first, again):
        assert (found.ids, found.digests) == (plain.ids, plain.digests)
        assert np.array_equal(found.grey[:], plain.grey[:])
        assert found.small.tolist() == plain.small.tolist() == [False, True]

    Image.fromarray(picture(3)).save(tmp_path / "1.png")  # another picture under the same name
    changed = fingerprints(files, cache=cache)
    assert changed.digests[0] != plain.digests[0]
    assert changed.digests[1] == plain.digests[1]


def test_pictures_in_memory_and_unreadable_ones_are_not_kept(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache")
    (tmp_path / "y.png").write_bytes(b"no picture")
    unreadable: dict[str, str] = {}
    mixed = [*images("a", [picture(1)]), ImageRecord(id="a/y", source=tmp_path / "y.png")]
    assert fingerprints(mixed, unreadable, cache=cache).ids == ("a/0",)
    assert list(unreadable) == ["a/y"]
    assert not (tmp_path / "cache").exists()


def test_parts_are_worked_on_side_by_side_in_order_and_leave_torchs_threads_alone() -> None:
    threads = torch.get_num_threads()
    assert list(side_by_side(lambda part: (part, torch.get_num_threads()), range(9))) == [
        (part, 1) for part in range(9)
    ]
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda part: 1 // part, [1, 0]))
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == threads
