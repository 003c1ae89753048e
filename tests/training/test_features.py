"""Kept features are the encoder's, to the bit, and follow from weights and pictures alone."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import VISION, vision_tower

from medmoe.data.pixels import PixelTable
from medmoe.training import features
from medmoe.training.features import Views, encode_images

COUNT = 200  # more than one batch


def table(seed: int = 0, count: int = COUNT) -> PixelTable:
    pixels = torch.randint(
        0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return PixelTable(pixels, {f"image {i}": i for i in range(count)}, VISION.mean, VISION.std)


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_kept_features_are_those_that_are_computed(tmp_path: Path) -> None:
    encoder = vision_tower()
    computed = encode_images(encoder, table(), VISION)
    assert computed.shape == (COUNT, 16, 32)
    written = encode_images(encoder, table(), VISION, tmp_path)
    assert torch.equal(written, computed)
    assert len(kept(tmp_path)) == 1


def test_the_encoder_is_not_run_a_second_time(tmp_path: Path) -> None:
    encoder = vision_tower()
    first = encode_images(encoder, table(), VISION, tmp_path)
    handle = encoder.register_forward_pre_hook(lambda *_: pytest.fail("the encoder was run"))
    assert torch.equal(encode_images(encoder, table(), VISION, tmp_path), first)
    handle.remove()


def test_other_weights_pictures_names_or_layers_are_kept_apart(tmp_path: Path) -> None:
    encoder, other = vision_tower(), vision_tower()
    next(other.parameters()).data.add_(1e-3)
    renamed = replace(table(), rows={f"x {i}": i for i in range(COUNT)})
    ways: list[tuple[Any, PixelTable, Any]] = [
        (encoder, table(), VISION),
        (other, table(), VISION),
        (encoder, table(seed=1), VISION),
        (encoder, renamed, VISION),
        (encoder, replace(table(), mean=(0.0, 0.0, 0.0)), VISION),
        (encoder, table(), replace(VISION, select_layer=-1)),
    ]
    for number, way in enumerate(ways, start=1):
        assert torch.equal(encode_images(*way, tmp_path), encode_images(*way))
        assert len(kept(tmp_path)) == number


def test_damaged_features_are_computed_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = vision_tower()
    wanted = encode_images(encoder, table(), VISION, tmp_path).clone()
    (file,) = tmp_path.glob("*/features.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.unlink()  # the old one is still mapped
    file.write_bytes(content)
    assert torch.equal(encode_images(encoder, table(), VISION, tmp_path), wanted)
    assert "they are computed anew" in caplog.text


def test_features_that_do_not_fit_are_computed_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(features, "_SHARE_OF_FREE", 0.0)
    encoder = vision_tower()
    found = encode_images(encoder, table(), VISION, tmp_path)
    assert torch.equal(found, encode_images(encoder, table(), VISION))
    assert kept(tmp_path) == []
    assert "the features of 200 images do not fit" in caplog.text


def test_processes_that_come_together_compute_once(tmp_path: Path) -> None:
    encoder = vision_tower()
    wanted = encode_images(encoder, table(), VISION)
    children = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            runs: list[int] = []
            encoder.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
            equal = False
            try:
                equal = torch.equal(encode_images(encoder, table(), VISION, tmp_path), wanted)
                (tmp_path / f"ran-{number}").write_text(str(len(runs)))
            finally:
                os._exit(0 if equal else 1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    ran = sorted(int(path.read_text()) for path in tmp_path.glob("ran-*"))
    assert ran == [0, 0, 2]  # two batches, in one process
    assert len(kept(tmp_path)) == 1


def test_features_in_bfloat16_are_kept_apart_and_close(tmp_path: Path) -> None:
    encoder = vision_tower()
    exact = encode_images(encoder, table(), VISION, tmp_path)
    rounded = encode_images(encoder, table(), VISION, tmp_path, autocast=True)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert float((rounded - exact).norm() / exact.norm()) < 0.05  # bfloat16 has three digits
    assert torch.equal(encode_images(encoder, table(), VISION, tmp_path), exact)


def test_views_are_kept_apart_and_the_first_is_the_picture_itself(tmp_path: Path) -> None:
    encoder = vision_tower()
    ways = [
        replace(table(count=6), view=view, strength=strength)
        for view, strength in ((0, 0.5), (1, 0.5), (2, 0.5), (2, 0.7))
    ]
    found = [encode_images(encoder, way, VISION, tmp_path) for way in ways]
    assert len(kept(tmp_path)) == 4
    assert torch.equal(found[0], encode_images(encoder, table(count=6), VISION))
    assert torch.equal(found[2], encode_images(encoder, ways[2], VISION))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(found, 2))


def test_views_are_indexed_one_behind_the_other() -> None:
    versions = list(torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(0)))
    rows = torch.tensor([0, 4, 5, 14, 7])
    assert torch.equal(Views(versions)[rows], torch.cat(versions)[rows])
