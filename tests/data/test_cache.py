"""The image cache: shared by processes, bounded, mended, and made of content alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.model.tiny import processor

from medmoe.data.cache import ImageCache, default_cache, key_of
from medmoe.data.intake.sandbox import DecoderPool
from medmoe.data.pixels import cache_policy, pixel_table
from medmoe.data.schema import ImageRecord
from medmoe.model.processing_medmoe import square_image_processor


def picture(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, side, side), dtype=np.uint8)


def key(number: int) -> str:
    return key_of(bytes([number]), "policy")


def entries(cache: ImageCache) -> list[Path]:
    return [path for path in cache.folder.rglob("*") if path.is_file()]


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache")
    assert cache.get(key(1)) is None
    cache.put(key(1), picture(1))
    found = cache.get(key(1))
    assert found is not None
    assert np.array_equal(found, picture(1))
    assert cache.get(key(2)) is None


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache")
    cache.put(key(1), picture(1))
    (path,) = entries(cache)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "longer", "shape"])
def test_a_damaged_entry_is_deleted_and_made_anew(tmp_path: Path, damage: str) -> None:
    cache = ImageCache(tmp_path)
    cache.put(key(1), picture(1))
    (path,) = entries(cache)
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-5] ^= 4
    if damage == "shape":
        data[8] += 1
    content = {"cut": data[:-1], "empty": b"", "longer": data + b"x"}.get(damage, data)
    path.write_bytes(content)
    assert cache.get(key(1)) is None
    assert entries(cache) == []
    cache.put(key(1), picture(1))
    assert cache.get(key(1)) is not None


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    size = 3 * 8 * 8 + 24
    cache = ImageCache(tmp_path, max_bytes=10 * size)
    for number in range(10):
        cache.put(key(number), picture(number))
        path = cache._path(key(number))
        os.utime(path, (number, time.time() - 1000 + number))
    assert cache.get(key(0)) is not None  # used now
    cache.put(key(10), picture(10))
    left = [number for number in range(11) if cache._path(key(number)).exists()]
    assert 0 in left
    assert 10 in left
    assert 1 not in left
    for number in range(11, 60):
        cache.put(key(number), picture(number))
        assert sum(path.stat().st_size for path in entries(cache)) <= cache.max_bytes


def test_a_new_process_knows_what_is_there_already(tmp_path: Path) -> None:
    size = 3 * 8 * 8 + 24
    for number in range(20):
        ImageCache(tmp_path, max_bytes=5 * size).put(key(number), picture(number))
    assert len(entries(ImageCache(tmp_path))) <= 5


def test_staging_files_of_killed_processes_go(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path)
    cache.put(key(1), picture(1))
    stale = cache._path(key(1)).parent / ".staging-old"
    stale.write_bytes(b"x")
    os.utime(stale, (0, 0))
    ImageCache(tmp_path).put(key(2), picture(2))
    assert not stale.exists()


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = ImageCache(tmp_path / "file" / "cache")
    for number in range(3):
        cache.put(key(number), picture(number))
    assert cache.get(key(0)) is None
    assert caplog.text.count("cannot be written") == 1


def test_many_processes_share_a_folder(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from medmoe.data.cache import ImageCache, key_of\n"
        "cache = ImageCache(Path(sys.argv[1]), max_bytes=3000)\n"
        "for turn in range(300):\n"
        "    n = turn % 17\n"
        "    found = cache.get(key_of(bytes([n]), ''))\n"
        "    assert found is None or (found == n).all()\n"
        "    cache.put(key_of(bytes([n]), ''), np.full((3, 8, 8), n, np.uint8))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()


def test_key_depends_on_content_and_policy() -> None:
    assert key_of(b"a", "p") != key_of(b"b", "p")
    assert key_of(b"a", "p") != key_of(b"a", "q")
    small, large = (square_image_processor(side, (0.5,) * 3, (0.5,) * 3) for side in (32, 64))
    assert cache_policy(small) != cache_policy(large)
    assert cache_policy(small) == cache_policy(square_image_processor(32, (0.5,) * 3, (0.5,) * 3))


def test_the_default_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_cache() is None  # the suite switches it off
    monkeypatch.setenv("MEDMOE_CACHE", str(tmp_path))
    found = default_cache()
    assert found is not None
    assert found.folder == tmp_path
    monkeypatch.delenv("MEDMOE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = default_cache()
    assert found is not None
    assert found.folder == tmp_path / "xdg" / "medmoe" / "images"


def test_a_table_is_the_same_without_cache_cold_and_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = []
    for number, (height, width) in enumerate([(40, 50), (32, 32), (64, 20), (90, 90)]):
        array = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{number}.png")
        sources.append(tmp_path / f"{number}.png")
    images = [ImageRecord(path.name, path) for path in sources]
    images.append(ImageRecord("array", np.full((20, 30), 7, np.uint8)))
    policy = processor().image_processor
    plain = pixel_table(images, policy).pixels
    cache = ImageCache(tmp_path / "cache")
    cold = pixel_table(images, policy, cache=cache).pixels
    assert len(entries(cache)) == len(sources)

    def no_decoding(*_: object, **__: object) -> None:
        raise AssertionError("a cached picture was decoded")

    monkeypatch.setattr(DecoderPool, "decode", no_decoding)
    warm = pixel_table(images, policy, cache=cache).pixels
    assert (plain == cold).all()
    assert (plain == warm).all()
    sources[0].write_bytes(sources[1].read_bytes())  # changed content is another entry
    changed = pixel_table(images, policy, cache=cache).pixels
    assert (changed[0] == plain[1]).all()
